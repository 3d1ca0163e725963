//! Joining segments: only what belongs together, and cutting it again gives the same packets.

use proptest::prelude::*;

use super::*;
use crate::samples::{Sample, sample, sum};
use crate::segment::tests::cut;

/// What comes out for frames that lie one after the other in a buffer: header and whole frame.
fn coalesce(frames: &[Vec<u8>], udp: bool) -> Vec<(VirtioHeader, Vec<u8>)> {
    let mut buffer = vec![];
    let places: Vec<_> = frames
        .iter()
        .map(|frame| {
            buffer.extend(frame);
            buffer.len() - frame.len()..buffer.len()
        })
        .collect();
    let mut out = vec![];
    let mut emit = |buffer: &[u8], output: Output<'_>| {
        let mut frame = output.headers.to_vec();
        output.pieces.iter().for_each(|piece| frame.extend(&buffer[piece.clone()]));
        out.push((output.virtio, frame));
    };
    let mut coalescer = Coalescer::new(udp);
    for place in places {
        coalescer.push(&buffer, place, 3, &mut emit);
    }
    coalescer.flush(&buffer, &mut emit);
    out
}

fn stream(count: u32) -> Vec<Vec<u8>> {
    (0..count)
        .map(|index| {
            Sample { sequence: 1 + index * 100, payload: vec![index as u8; 100], ..Default::default() }.frame()
        })
        .collect()
}

#[test]
fn consecutive_segments_become_one_frame() {
    let out = coalesce(&stream(10), false);
    assert_eq!(out.len(), 1);
    let (header, frame) = &out[0];
    assert_eq!((header.gso, header.gso_size, header.checksum), (Gso::TcpV4, 100, Some((34, 16))));
    assert_eq!(frame.len(), 54 + 1000);
    assert_eq!(sum(&[&frame[14..34]]), 0xffff, "the IP header's checksum");
}

#[test]
fn a_gap_a_wrong_checksum_or_a_flag_ends_a_run() {
    let mut frames = stream(4);
    frames.remove(2);
    assert_eq!(coalesce(&frames, false).len(), 2);
    let mut frames = stream(4);
    frames[2][60] ^= 1;
    let out = coalesce(&frames, false);
    assert_eq!(out.len(), 3, "the damaged one goes as it came, for the receiver to refuse");
    assert_eq!(out[1], (VirtioHeader::NONE, frames[2].clone()));
    let mut frames = stream(2);
    frames.push(Sample { sequence: 201, flags: 0x11, payload: vec![0; 100], ..Default::default() }.frame());
    let out = coalesce(&frames, false);
    assert_eq!(out.len(), 2);
    assert_eq!(out[1].1, frames[2], "FIN comes last");
}

#[test]
fn udp_only_where_the_kernel_takes_it() {
    let frames: Vec<_> =
        (0..5).map(|_| Sample { tcp: false, payload: vec![5; 64], ..Default::default() }.frame()).collect();
    assert_eq!(coalesce(&frames, false).len(), 5);
    let out = coalesce(&frames, true);
    assert_eq!(out.len(), 1);
    assert_eq!((out[0].0.gso, out[0].0.gso_size), (Gso::Udp, 64));
    assert_eq!(out[0].1.len(), 42 + 5 * 64);
}

#[test]
fn two_flows_do_not_mix() {
    let other = |index: u32| {
        Sample { source_port: 7, v6: true, sequence: index * 50, payload: vec![9; 50], ..Default::default() }.frame()
    };
    let mut frames = vec![];
    for (index, frame) in stream(4).into_iter().enumerate() {
        frames.push(frame);
        frames.push(other(index as u32));
    }
    let out = coalesce(&frames, false);
    assert_eq!(out.len(), 2);
    assert_eq!(out[1].0.gso, Gso::TcpV6);
}

proptest! {
    /// What the sender cut is the same again when what the receiver put together is cut by its kernel.
    #[test]
    fn cutting_and_putting_together_again(samples in prop::collection::vec(sample(), 1..6), size in 50u16..1500, udp: bool) {
        let mut packets = vec![];
        for sample in &samples {
            let gso = match (sample.tcp, sample.v6) {
                (true, false) => Gso::TcpV4,
                (true, true) => Gso::TcpV6,
                (false, _) => Gso::Udp,
            };
            let header = VirtioHeader { checksum: None, gso, gso_size: size, header_length: 0 };
            packets.extend(cut(&header, &sample.frame()).unwrap());
        }
        let out = coalesce(&packets, udp);
        prop_assert!(out.len() <= packets.len());
        let mut again: Vec<Vec<u8>> = out.iter().flat_map(|(header, frame)| cut(header, frame).unwrap()).collect();
        // Identifications of packets with DF are not kept; they mean nothing.
        for packet in again.iter_mut().chain(&mut packets) {
            if packet[12] == 8 && packet[20] & 0x40 != 0 {
                packet[18..20].fill(0);
                packet[24..26].fill(0);
            }
        }
        // Flows may overtake each other, packets of one flow may not.
        let key = |packet: &Vec<u8>| parse(packet).unwrap().map(|layout| flow_hash(packet, &layout));
        packets.sort_by_key(key);
        again.sort_by_key(key);
        prop_assert_eq!(again, packets);
    }

    #[test]
    fn any_bytes_come_out_again(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..90), 0..20)) {
        let out = coalesce(&frames, true);
        let lengths = |frames: &mut dyn Iterator<Item = usize>| frames.sum::<usize>();
        prop_assert_eq!(lengths(&mut out.iter().map(|(_, frame)| frame.len())), lengths(&mut frames.iter().map(Vec::len)));
    }
}
