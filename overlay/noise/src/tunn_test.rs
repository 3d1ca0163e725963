// Copyright (c) 2019 Cloudflare, Inc. All rights reserved.
// SPDX-License-Identifier: BSD-3-Clause

//! Two tunnels against each other: handshakes, sessions, cookies, timers, and what a third one throws in.

use super::*;
use crate::timers::Traffic;

/// Not zero: the clock that is passed in starts anywhere.
const START: Duration = Duration::from_secs(1000);

fn create_two_tuns() -> (Tunn, Tunn) {
    let my_secret_key = crate::random_secret().unwrap();
    let my_public_key = x25519::PublicKey::from(&my_secret_key);
    let my_limiter = Arc::new(RateLimiter::new(&my_public_key, 10, START).unwrap());

    let their_secret_key = crate::random_secret().unwrap();
    let their_public_key = x25519::PublicKey::from(&their_secret_key);
    let their_limiter = Arc::new(RateLimiter::new(&their_public_key, 10, START).unwrap());

    let my_tun = Tunn::new(my_secret_key, their_public_key, None, None, 1, my_limiter, TimerSettings::default(), START);

    let their_tun =
        Tunn::new(their_secret_key, my_public_key, None, None, 2, their_limiter, TimerSettings::default(), START);

    (my_tun, their_tun)
}

fn create_handshake_init(tun: &mut Tunn) -> Vec<u8> {
    let mut dst = vec![0u8; 2048];
    let handshake_init = tun.format_handshake_initiation(&mut dst, false, START);
    assert!(matches!(handshake_init, TunnResult::WriteToNetwork(_)));
    let handshake_init = if let TunnResult::WriteToNetwork(sent) = handshake_init {
        sent
    } else {
        unreachable!();
    };

    handshake_init.into()
}

fn create_handshake_response(tun: &mut Tunn, handshake_init: &[u8]) -> Vec<u8> {
    let mut dst = vec![0u8; 2048];
    let handshake_resp = tun.decapsulate(None, handshake_init, &mut dst, START);
    assert!(matches!(handshake_resp, TunnResult::WriteToNetwork(_)));

    let handshake_resp = if let TunnResult::WriteToNetwork(sent) = handshake_resp {
        sent
    } else {
        unreachable!();
    };

    handshake_resp.into()
}

fn parse_handshake_resp(tun: &mut Tunn, handshake_resp: &[u8]) -> Vec<u8> {
    let mut dst = vec![0u8; 2048];
    let keepalive = tun.decapsulate(None, handshake_resp, &mut dst, START);
    assert!(matches!(keepalive, TunnResult::WriteToNetwork(_)));

    let keepalive = if let TunnResult::WriteToNetwork(sent) = keepalive {
        sent
    } else {
        unreachable!();
    };

    keepalive.into()
}

fn parse_keepalive(tun: &mut Tunn, keepalive: &[u8]) {
    let mut dst = vec![0u8; 2048];
    let keepalive = tun.decapsulate(None, keepalive, &mut dst, START);
    assert!(matches!(keepalive, TunnResult::Done));
}

fn create_two_tuns_and_handshake() -> (Tunn, Tunn) {
    let (mut my_tun, mut their_tun) = create_two_tuns();
    let init = create_handshake_init(&mut my_tun);
    let resp = create_handshake_response(&mut their_tun, &init);
    let keepalive = parse_handshake_resp(&mut my_tun, &resp);
    parse_keepalive(&mut their_tun, &keepalive);

    (my_tun, their_tun)
}

/// 10.0.0.1 to 10.0.0.2, UDP, four bytes.
fn create_ipv4_udp_packet() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 5, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet.extend([0x16, 0x2e, 0, 23, 0, 12, 0, 0, 0, 1, 2, 3]);
    packet
}

fn update_timer_results_in_handshake(tun: &mut Tunn, now: Duration) {
    let mut dst = vec![0u8; 2048];
    let result = tun.update_timers(&mut dst, now);
    assert!(matches!(result, TunnResult::WriteToNetwork(_)));
    let packet_data = if let TunnResult::WriteToNetwork(data) = result {
        data
    } else {
        unreachable!();
    };
    let packet = Tunn::parse_incoming_packet(packet_data).unwrap();
    assert!(matches!(packet, Packet::HandshakeInit(_)));
}

#[test]
fn create_two_tunnels_linked_to_eachother() {
    let (_my_tun, _their_tun) = create_two_tuns();
}

#[test]
fn handshake_init() {
    let (mut my_tun, _their_tun) = create_two_tuns();
    let init = create_handshake_init(&mut my_tun);
    let packet = Tunn::parse_incoming_packet(&init).unwrap();
    assert!(matches!(packet, Packet::HandshakeInit(_)));
}

#[test]
fn handshake_init_and_response() {
    let (mut my_tun, mut their_tun) = create_two_tuns();
    let init = create_handshake_init(&mut my_tun);
    let resp = create_handshake_response(&mut their_tun, &init);
    let packet = Tunn::parse_incoming_packet(&resp).unwrap();
    assert!(matches!(packet, Packet::HandshakeResponse(_)));
}

#[test]
fn full_handshake() {
    let (mut my_tun, mut their_tun) = create_two_tuns();
    let init = create_handshake_init(&mut my_tun);
    let resp = create_handshake_response(&mut their_tun, &init);
    let keepalive = parse_handshake_resp(&mut my_tun, &resp);
    let packet = Tunn::parse_incoming_packet(&keepalive).unwrap();
    assert!(matches!(packet, Packet::PacketData(_)));
}

#[test]
fn full_handshake_plus_timers() {
    let (mut my_tun, mut their_tun) = create_two_tuns_and_handshake();
    // Time has not yet advanced so their is nothing to do
    assert!(matches!(my_tun.update_timers(&mut [], START), TunnResult::Done));
    assert!(matches!(their_tun.update_timers(&mut [], START), TunnResult::Done));
}

#[test]
fn new_handshake_after_two_mins() {
    let (mut my_tun, mut their_tun) = create_two_tuns_and_handshake();
    let mut my_dst = [0u8; 1024];
    // A packet sent a second later: new keys are made after the timeout.
    let sent = START + Duration::from_secs(1);
    assert!(matches!(their_tun.update_timers(&mut [], sent), TunnResult::Done));
    assert!(matches!(my_tun.update_timers(&mut my_dst, sent), TunnResult::Done));
    let data = my_tun.encapsulate(&create_ipv4_udp_packet(), &mut my_dst, sent);
    assert!(matches!(data, TunnResult::WriteToNetwork(_)));
    let later = sent + TimerSettings::default().rekey_after;
    assert!(matches!(their_tun.update_timers(&mut my_dst, later), TunnResult::Done));
    update_timer_results_in_handshake(&mut my_tun, later);
}

/// As the test above, but sealed outside the lock and noted afterwards.
#[test]
fn noted_traffic_counts_as_sent() {
    let (mut my_tun, _) = create_two_tuns_and_handshake();
    let later = START + Duration::from_secs(1) + TimerSettings::default().rekey_after;
    assert!(matches!(my_tun.update_timers(&mut [0u8; 1024], later), TunnResult::Done), "nothing was sent");
    let at = START + Duration::from_secs(1);
    my_tun.note_traffic(&Traffic { sent: at, data_sent: at, ..Default::default() });
    update_timer_results_in_handshake(&mut my_tun, later);
}

#[test]
fn received_data_is_answered_with_a_keepalive() {
    let (mut my_tun, _) = create_two_tuns_and_handshake();
    let at = START + Duration::from_secs(1);
    my_tun.note_traffic(&Traffic { received: at, data_received: at, ..Default::default() });
    let mut dst = [0u8; 256];
    let early = at + Duration::from_secs(8);
    assert!(matches!(my_tun.update_timers(&mut dst, early), TunnResult::Done));
    let due = at + TimerSettings::default().keepalive_timeout;
    match my_tun.update_timers(&mut dst, due) {
        TunnResult::WriteToNetwork(packet) => assert_eq!(packet.len(), DATA_OVERHEAD_SZ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn handshake_no_resp_rekey_timeout() {
    let (mut my_tun, _their_tun) = create_two_tuns();

    let init = create_handshake_init(&mut my_tun);
    let packet = Tunn::parse_incoming_packet(&init).unwrap();
    assert!(matches!(packet, Packet::HandshakeInit(_)));

    update_timer_results_in_handshake(&mut my_tun, START + TimerSettings::default().rekey_timeout)
}

#[test]
fn sessions_expire_and_the_tunnel_is_idle_then() {
    let (mut my_tun, _) = create_two_tuns_and_handshake();
    assert!(!my_tun.is_idle());
    let generation = my_tun.generation();
    let later = START + TimerSettings::default().reject_after + Duration::from_secs(1);
    assert!(matches!(my_tun.update_timers(&mut [0u8; 256], later), TunnResult::Done));
    assert!(my_tun.current_session().is_none() && my_tun.is_idle());
    assert_ne!(my_tun.generation(), generation);
}

#[test]
fn sessions_seal_and_open_in_place() {
    let (my_tun, mut their_tun) = create_two_tuns_and_handshake();
    let mine = my_tun.current_session().unwrap();
    let packet = create_ipv4_udp_packet();
    let mut message = vec![0u8; packet.len() + DATA_OVERHEAD_SZ];
    message[16..16 + packet.len()].copy_from_slice(&packet);
    let first = mine.reserve(2);
    mine.seal_in_place(first, &mut message).unwrap();
    assert_ne!(message[16..16 + packet.len()], packet[..]);

    let index = u32::from_le_bytes(message[4..8].try_into().unwrap());
    let theirs = their_tun.sessions()[index as usize % N_SESSIONS].clone().unwrap();
    their_tun.confirm_session(index);
    assert!(Arc::ptr_eq(their_tun.current_session().unwrap(), &theirs));
    let mut changed = message.clone();
    changed[20] ^= 1;
    assert_eq!(theirs.open_in_place(&mut changed), Err(WireGuardError::InvalidAeadTag));
    let mut replayed = message.clone();
    let place = theirs.open_in_place(&mut message).unwrap();
    assert_eq!(message[place], packet[..]);
    assert_eq!(theirs.open_in_place(&mut replayed), Err(WireGuardError::DuplicateCounter));
    assert_eq!(theirs.open_in_place(&mut [0u8; 8]), Err(WireGuardError::InvalidPacket));
    assert_eq!(mine.seal_in_place(first + 1, &mut [0u8; 31]), Err(WireGuardError::DestinationBufferTooSmall));
}

/// Under load the answer to an initiation is a cookie, and only who shows it gets further.
#[test]
fn cookies_under_load() {
    let (mut my_tun, mut their_tun) = create_two_tuns();
    let from = Some(IpAddr::from([192, 0, 2, 1]));
    let mut dst = [0u8; 256];
    let mut at = START;
    let cookie = loop {
        let mut init = [0u8; 256];
        let TunnResult::WriteToNetwork(init) = my_tun.format_handshake_initiation(&mut init, true, at) else {
            panic!()
        };
        at += Duration::from_millis(1);
        match their_tun.decapsulate(from, init, &mut dst, at) {
            TunnResult::WriteToNetwork(answer) if answer.len() == COOKIE_REPLY_SZ => break answer.to_vec(),
            TunnResult::WriteToNetwork(_) => assert!(at < START + Duration::from_millis(100)),
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(my_tun.decapsulate(None, &cookie, &mut dst, at), TunnResult::Done));
    let mut init = [0u8; 256];
    let TunnResult::WriteToNetwork(init) = my_tun.format_handshake_initiation(&mut init, true, at) else { panic!() };
    match their_tun.decapsulate(from, init, &mut dst, at) {
        TunnResult::WriteToNetwork(answer) => assert_eq!(answer.len(), HANDSHAKE_RESP_SZ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_ip_packet() {
    let (mut my_tun, mut their_tun) = create_two_tuns_and_handshake();
    let mut my_dst = [0u8; 1024];
    let mut their_dst = [0u8; 1024];

    let sent_packet_buf = create_ipv4_udp_packet();

    let data = my_tun.encapsulate(&sent_packet_buf, &mut my_dst, START);
    assert!(matches!(data, TunnResult::WriteToNetwork(_)));
    let data = if let TunnResult::WriteToNetwork(sent) = data {
        sent
    } else {
        unreachable!();
    };

    let data = their_tun.decapsulate(None, data, &mut their_dst, START);
    assert!(matches!(data, TunnResult::WriteToTunnelV4(..)));
    let recv_packet_buf = if let TunnResult::WriteToTunnelV4(recv, _addr) = data {
        recv
    } else {
        unreachable!();
    };
    assert_eq!(sent_packet_buf, recv_packet_buf);
}
