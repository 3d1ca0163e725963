//! Packets: names, tunnels, frames, and the kernel's answers.

use std::net::IpAddr;

use skep_fabric::vxlan::Outer;
use skep_netlink::message::Batch;

use super::{Add, framed, parts};
use crate::network;

pub(super) fn add(add: &mut Add<'_>) {
    add("dns", dns());
    add("wireguard", (0..4).map(network::spoilt_message).chain([network::real_message()]).collect());
    let inner = frame(1, b"hello");
    let outer = Outer::new(IpAddr::from([100, 64, 0, 1]), IpAddr::from([100, 64, 0, 2]), 4790).unwrap();
    let mut packet = vec![0; outer.length()];
    packet.extend(&inner);
    outer.write(&mut packet, 4097, 7);
    add("vxlan", vec![packet]);
    let whole = [&[0; 10][..], &inner].concat();
    let large = frame(1, &[b'x'; 3000]);
    // Checksum wanted; TCP over IPv4; headers of 54 bytes; pieces of 1000; from byte 34 on, at 16 of them.
    let mut cut = vec![1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0];
    cut.extend(&large);
    let mut question =
        vec![255, 255, 255, 255, 255, 255, 2, 66, 10, 1, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 66, 10, 1, 0, 1];
    question.extend([10, 1, 0, 1, 0, 0, 0, 0, 0, 0, 10, 1, 0, 2]);
    add("tap_frame", vec![whole, cut, [&[0; 10][..], &question].concat()]);
    let frames = framed(&[frame(1, &[b'x'; 100]), frame(101, &[b'y'; 100]), frame(201, b"end")]);
    add("coalesce", vec![[&[1][..], &frames].concat()]);
    let reply = [0, 0, 0, 0, 0, 7, 0, 9, 1, 2, 3, 4];
    let header = [0x45, 0, 0, 32, 0, 0, 0, 0, 64, 1, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
    add("probe_answer", vec![[&[0][..], &header, &reply].concat(), [&[1, 129][..], &reply[1..]].concat()]);
    add("netlink", netlink());
}

/// Questions, and what a name server says to one.
fn dns() -> Vec<Vec<u8>> {
    let question = |name: &str, kind: u8, edns: bool| {
        let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        if edns {
            query.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        }
        query
    };
    let answer = |query: &[u8], address: [u8; 4]| {
        let mut answer = query.to_vec();
        answer[2] = 0x81;
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address);
        answer
    };
    let (web, db) = (question("web", 1, false), question("tasks.db", 1, true));
    let (other, reverse) = (question("www.example", 1, false), question("7.0.1.10.in-addr.arpa", 12, false));
    vec![
        parts(&[&web, b""]),
        parts(&[&db, b""]),
        parts(&[&other, &answer(&other, [192, 0, 2, 1])]),
        parts(&[&reverse, b""]),
    ]
}

/// An Ethernet frame of IPv4 with TCP.
fn frame(sequence: u32, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(40 + payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![2, 66, 10, 1, 0, 2, 2, 66, 10, 1, 0, 1, 8, 0];
    frame.extend([0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 1, 10, 1, 0, 2]);
    frame.extend([0x9c, 0x40, 0, 80]);
    frame.extend(sequence.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0x50, 0x10, 2, 0, 0, 0, 0, 0]);
    frame.extend(payload);
    frame
}

/// As the kernel lays them out (rtnetlink(7), nfnetlink): a link, an address, a route, a neighbour, a rule, a connection,
/// a table of nftables, a WireGuard device.
fn netlink() -> Vec<Vec<u8>> {
    let one = |kind: u16, fixed: &[u8], attributes: &[(u16, &[u8])]| {
        let mut batch = Batch::new();
        batch.message(kind, 2, |message| {
            message.raw(fixed);
            attributes.iter().for_each(|(kind, value)| message.bytes(*kind, value));
        });
        batch.bytes().to_vec()
    };
    let nest = |attributes: &[(u16, &[u8])]| {
        let mut batch = Batch::new();
        batch.message(0, 0, |message| attributes.iter().for_each(|(kind, value)| message.bytes(*kind, value)));
        batch.bytes()[16..].to_vec()
    };
    let data = nest(&[(1, &7_u32.to_ne_bytes()), (4, &[10, 0, 0, 1])]);
    let info = nest(&[(1, b"vxlan\0"), (2, &data)]);
    let tuple = nest(&[
        (1, &nest(&[(1, &[10, 0, 0, 1]), (2, &[10, 0, 0, 2])])),
        (2, &nest(&[(1, &[6]), (2, &[1, 2]), (3, &[0, 80])])),
    ]);
    let allowed = nest(&[(0, &nest(&[(1, &2_u16.to_ne_bytes()), (2, &[10, 0, 0, 1]), (3, &[32])]))]);
    let peer = nest(&[(1, &[7; 32]), (4, &[2, 0, 0xca, 0x6c, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), (9, &allowed)]);
    vec![
        one(16, &[0; 16], &[(3, b"vx0\0"), (18, &info), (23, &[1; 192])]),
        one(20, &[2, 24, 0, 0, 1, 0, 0, 0], &[(2, &[10, 0, 0, 1])]),
        one(
            24,
            &[2, 24, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0],
            &[(1, &[10, 0, 0, 0]), (5, &[10, 0, 0, 1]), (4, &2_u32.to_ne_bytes())],
        ),
        one(28, &[7, 0, 0, 0, 2, 0, 0, 0, 0x80, 0, 2, 0], &[(1, &[10, 0, 0, 1]), (2, &[2, 0, 0, 0, 0, 1])]),
        one(32, &[2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0], &[(15, &100_u32.to_ne_bytes()), (10, &1_u32.to_ne_bytes())]),
        one(256, &[2, 0, 0, 0], &[(1, &tuple), (2, &tuple)]),
        one(0xa00, &[1, 0, 0, 0], &[(1, b"skep\0")]),
        one(0x1c, &[0, 1, 0, 0], &[(3, &[1; 32]), (6, &51820_u16.to_ne_bytes()), (8, &nest(&[(0, &peer)]))]),
    ]
}
