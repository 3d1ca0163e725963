//! Messages to and from the kernel's WireGuard against ones made by hand; any bytes as an answer.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::message::Messages;

/// An attribute by hand: length, type, value, padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

const NESTED: u16 = 0x8000;

#[test]
fn a_device_is_laid_out_as_the_header_says() {
    let peer = PeerSettings {
        endpoint: Some("192.0.2.7:51820".parse().unwrap()),
        keepalive: Some(Duration::from_secs(25)),
        preshared_key: Some(Key([3; 32])),
        ..PeerSettings::new(Key([2; 32]), vec!["10.1.2.3/24".parse().unwrap(), "fd00::/64".parse().unwrap()])
    };
    let settings = DeviceSettings {
        private_key: Some(Key([1; 32])),
        port: Some(51820),
        mark: Some(7),
        replace_peers: true,
        peers: vec![peer],
    };
    let batch = encode(31, "wg0", &settings);
    let message = Messages(batch.bytes()).next().unwrap().unwrap();
    let v4 = [attribute(1, &2u16.to_ne_bytes()), attribute(2, &[10, 1, 2, 0]), attribute(3, &[24])].concat();
    let mut network = [0; 16];
    network[0] = 0xfd;
    let v6 = [attribute(1, &10u16.to_ne_bytes()), attribute(2, &network), attribute(3, &[64])].concat();
    let allowed = [attribute(NESTED, &v4), attribute(NESTED, &v6)].concat();
    let peer = [
        attribute(1, &[2; 32]),
        attribute(3, &2u32.to_ne_bytes()),
        attribute(2, &[3; 32]),
        attribute(4, &[2, 0, 0xca, 0x6c, 192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 0, 0]),
        attribute(5, &25u16.to_ne_bytes()),
        attribute(9 | NESTED, &allowed),
    ]
    .concat();
    let expected = [
        vec![1, 1, 0, 0],
        attribute(2, b"wg0\0"),
        attribute(3, &[1; 32]),
        attribute(5, &1u32.to_ne_bytes()),
        attribute(6, &51820u16.to_ne_bytes()),
        attribute(7, &7u32.to_ne_bytes()),
        attribute(8 | NESTED, &attribute(NESTED, &peer)),
    ]
    .concat();
    assert_eq!((message.kind, message.payload), (31, expected.as_slice()));
}

#[test]
fn many_peers_take_several_messages_and_change_the_device_once() {
    let peer = |n: u16| {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_ne_bytes());
        PeerSettings::new(Key(key), vec![Prefix::host(Ipv4Addr::from(u32::from(n)))])
    };
    let settings = DeviceSettings {
        replace_peers: true,
        peers: (0..2000).map(peer).chain([PeerSettings { remove: true, ..peer(9999) }]).collect(),
        ..DeviceSettings::default()
    };
    let batch = encode(31, "wg0", &settings);
    assert!(batch.len() > 1 && batch.oversized().is_none());
    let (mut flags, mut read) = (0, Device::default());
    for message in Messages(batch.bytes()) {
        let message = message.unwrap();
        flags += message.split(4).unwrap().1.filter(|a| a.unwrap().kind == WGDEVICE_A_FLAGS).count();
        parse_device(&mut read, message).unwrap();
    }
    assert_eq!((flags, read.peers.len()), (1, 2001));
    assert!(read.peers.iter().zip(&settings.peers).all(|(read, sent)| read.public_key == sent.public_key));
    assert!(read.peers[2000].allowed.is_empty());
}

#[test]
fn a_dump_is_read() {
    let part = |address: [u8; 4], first: bool| {
        let allowed = [attribute(1, &2u16.to_ne_bytes()), attribute(2, &address), attribute(3, &[32])].concat();
        let mut endpoint = vec![10, 0, 0xca, 0x6c, 0, 0, 0, 0, 0xfd];
        endpoint.resize(28, 0);
        let time = [1_700_000_000i64.to_ne_bytes(), 5i64.to_ne_bytes()].concat();
        let rest = [
            attribute(4, &endpoint),
            attribute(5, &25u16.to_ne_bytes()),
            attribute(6, &time),
            attribute(7, &10u64.to_ne_bytes()),
            attribute(8, &11u64.to_ne_bytes()),
        ];
        let rest = if first { rest.concat() } else { Vec::new() };
        let peer = [attribute(1, &[2; 32]), rest, attribute(9 | NESTED, &attribute(NESTED, &allowed))].concat();
        [vec![0, 1, 0, 0], attribute(6, &9u16.to_ne_bytes()), attribute(8 | NESTED, &attribute(NESTED, &peer))].concat()
    };
    let mut device = Device::default();
    for payload in [part([10, 0, 0, 1], true), part([10, 0, 0, 2], false)] {
        parse_device(&mut device, Message { kind: 31, flags: 0, sequence: 1, payload: &payload }).unwrap();
    }
    let peer = Peer {
        public_key: Key([2; 32]),
        endpoint: Some("[fd00::]:51820".parse().unwrap()),
        last_handshake: Some(Duration::new(1_700_000_000, 5)),
        rx_bytes: 10,
        tx_bytes: 11,
        keepalive: Duration::from_secs(25),
        allowed: vec!["10.0.0.1/32".parse().unwrap(), "10.0.0.2/32".parse().unwrap()],
    };
    assert_eq!(device, Device { public_key: None, port: 9, peers: vec![peer] });
}

#[test]
fn keys_are_not_shown() {
    let settings = DeviceSettings { private_key: Some(Key([77; 32])), ..DeviceSettings::default() };
    assert!(!format!("{settings:?}").contains("77"));
}

proptest! {
    #[test]
    fn endpoints(address: IpAddr, port: u16) {
        let endpoint = SocketAddr::new(address, port);
        prop_assert_eq!(decode_endpoint(&encode_endpoint(endpoint)), Ok(endpoint));
    }

    #[test]
    fn no_panic(payload in prop::collection::vec(any::<u8>(), 0..128)) {
        let _ = parse_device(&mut Device::default(), Message { kind: 31, flags: 0, sequence: 1, payload: &payload });
        let _ = decode_endpoint(&payload);
        let _ = handshake(&payload);
    }
}
