//! Cutting super-frames: every byte once, lengths and checksums right.

use proptest::prelude::*;

use super::*;
use crate::samples::{Sample, sample, sum, transport_sum};

fn gso(sample: &Sample, size: u16) -> VirtioHeader {
    let gso = match (sample.tcp, sample.v6) {
        (true, false) => Gso::TcpV4,
        (true, true) => Gso::TcpV6,
        (false, _) => Gso::Udp,
    };
    let start = if sample.v6 { 54 } else { 34 };
    let checksum = Some((start, sample.checksum_field() as u16));
    VirtioHeader { checksum, gso, gso_size: size, header_length: sample.headers() as u16 }
}

pub(crate) fn cut(header: &VirtioHeader, frame: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let plan = plan(header, frame)?;
    Ok((0..plan.count())
        .map(|index| {
            let mut out = vec![0; plan.length(index)];
            plan.write(frame, index, &mut out);
            out
        })
        .collect())
}

#[test]
fn a_checksum_that_was_left_over_is_completed() {
    let sample = Sample { tcp: false, payload: vec![3; 333], ..Default::default() };
    let whole = sample.frame();
    let mut frame = whole.clone();
    let length = (frame.len() - 34) as u16;
    let pseudo = sum(&[&frame[26..34], &[0, 17], &length.to_be_bytes()]);
    frame[40..42].copy_from_slice(&pseudo.to_be_bytes());
    let header = VirtioHeader { checksum: Some((34, 6)), ..VirtioHeader::NONE };
    assert_eq!(cut(&header, &frame).unwrap(), [whole]);
}

#[test]
fn headers_that_do_not_fit_are_refused() {
    let sample = Sample { payload: vec![3; 333], ..Default::default() };
    let frame = sample.frame();
    let header = gso(&sample, 100);
    assert_eq!(cut(&VirtioHeader { gso: Gso::TcpV6, ..header }, &frame), Err(Malformed::Kind));
    assert_eq!(cut(&VirtioHeader { checksum: Some((1000, 6)), ..header }, &frame), Err(Malformed::Length));
    assert_eq!(cut(&header, &frame[..50]), Err(Malformed::Truncated));
}

proptest! {
    #[test]
    fn packets_carry_the_payload_in_order(sample in sample(), size in 20u16..2000) {
        let packets = cut(&gso(&sample, size), &sample.frame()).unwrap();
        let headers = sample.headers();
        let payload: Vec<u8> = packets.iter().flat_map(|packet| packet[headers..].to_vec()).collect();
        prop_assert_eq!(&payload, &sample.payload);
        let last = packets.len() - 1;
        for (index, packet) in packets.iter().enumerate() {
            let expected = Sample {
                sequence: sample.sequence.wrapping_add(index as u32 * u32::from(size)),
                id: sample.id.wrapping_add(index as u16),
                flags: sample.flags & if index < last { !0x09 } else { !0 } & if index > 0 { !0x80 } else { !0 },
                payload: packet[headers..].to_vec(),
                ..sample.clone()
            };
            prop_assert_eq!(packet, &expected.frame());
            prop_assert_eq!(transport_sum(packet, sample.v6), 0xffff);
            prop_assert!(packet.len() - headers == usize::from(size) || index == last);
        }
    }

    #[test]
    fn any_frame_is_cut_or_refused(sample in sample(), changes in prop::collection::vec((0usize..80, any::<u8>()), 0..4), header in prop::collection::vec(any::<u8>(), 10)) {
        let mut frame = sample.frame();
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        if let Ok(header) = VirtioHeader::parse(&header) {
            let _ = cut(&header, &frame);
        }
    }
}
