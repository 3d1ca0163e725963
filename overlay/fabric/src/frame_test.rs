//! Frames are read as they were made; strange bytes are refused.

use proptest::prelude::*;

use super::*;
use crate::samples::{Sample, sample};

#[test]
fn a_tcp_frame_has_its_parts() {
    let frame = Sample { v6: false, tcp: true, options: 12, payload: vec![7; 100], ..Default::default() }.frame();
    let layout = parse(&frame).unwrap().unwrap();
    assert_eq!((layout.transport, layout.payload, layout.end), (34, 66, 166));
    assert_eq!(layout.kind, Transport::Tcp { header: 32 });
}

#[test]
fn fragments_have_no_transport() {
    let mut frame = Sample { v6: false, tcp: false, payload: vec![7; 100], ..Default::default() }.frame();
    frame[20] = 0x20;
    assert_eq!(parse(&frame).unwrap().unwrap().kind, Transport::Other);
}

#[test]
fn other_protocols_are_left_alone() {
    let mut frame = [0; 60];
    frame[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(parse(&frame), Ok(None));
    assert_eq!(parse(&frame[..13]), Err(Malformed::Truncated));
}

proptest! {
    /// Sound frames with a few bytes changed or cut off: refused, or a layout that lies within.
    #[test]
    fn any_bytes_parse_or_are_refused(sample in sample(), changes in prop::collection::vec((0usize..80, any::<u8>()), 0..4), cut in 0usize..200) {
        let mut frame = sample.frame();
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(frame.len().saturating_sub(cut));
        if let Ok(Some(layout)) = parse(&frame) {
            prop_assert!(layout.transport <= layout.payload && layout.payload <= layout.end && layout.end <= frame.len());
            flow_hash(&frame, &layout);
        }
    }

    #[test]
    fn the_hash_is_the_flows(sample in sample()) {
        let (a, b) = (sample.frame(), Sample { payload: vec![1], sequence: 9, ..sample.clone() }.frame());
        let c = Sample { source_port: sample.source_port ^ 1, ..sample }.frame();
        let hash = |frame: &[u8]| flow_hash(frame, &parse(frame).unwrap().unwrap());
        prop_assert_eq!(hash(&a), hash(&b));
        prop_assert_ne!(hash(&a), hash(&c));
    }
}
