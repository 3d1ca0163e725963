//! Devices on hosts with a real kernel between: what containers see, and what strangers cannot do. Needs root.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod lab;

use std::net::UdpSocket;
use std::time::Duration;

use lab::{Lab, VNI, container_v4, container_v6, fabric_address, inside, run, tcp, until};
use skep_fabric::{Change, Config, Device, DropReason, Offload, PrivateKey};

/// Pings both ways and both kinds, then bulk.
fn works(lab: &Lab, megabytes: usize) {
    for (from, to) in [(1, 2), (2, 1)] {
        until("pings arrive", 10, || lab.ping(from, container_v4(to)));
        until("IPv6 pings arrive", 10, || lab.ping(from, container_v6(to)));
    }
    tcp(lab, 1, 2, false, megabytes << 20);
    tcp(lab, 2, 1, true, megabytes << 20);
}

fn dropped(device: &Device, reason: DropReason) -> u64 {
    device.statistics().dropped(reason)
}

#[test]
fn containers_talk_over_ipv4() {
    let lab = Lab::new(2, 1500, false);
    let (devices, _) = lab.mesh(|_| ());
    works(&lab, 32);
    let statistics = devices[0].statistics();
    let peer = statistics.peer(fabric_address(2)).unwrap();
    assert_eq!(peer.endpoint, Some(lab.endpoint(2)));
    assert!(peer.last_handshake.unwrap() < Duration::from_secs(60) && peer.newest_keys);
    assert!(peer.sent.bytes > 32 << 20 && peer.received.bytes > 32 << 20, "{peer:?}");
    for reason in [DropReason::Malformed, DropReason::Forged, DropReason::TooBig, DropReason::TapRefused] {
        assert_eq!(statistics.dropped(reason), 0, "{:?}", statistics.drops);
    }
}

#[test]
fn containers_talk_over_ipv6() {
    let lab = Lab::new(2, 1500, true);
    let _devices = lab.mesh(|_| ());
    works(&lab, 8);
}

#[test]
fn containers_talk_over_jumbo_frames() {
    let lab = Lab::new(2, 9000, false);
    let _devices = lab.mesh(|_| ());
    let largest = format!("ping -n -c 1 -W 2 -M do -s {} 10.0.0.2", lab.overlay_mtu - 28);
    until("the largest packet arrives", 10, || {
        lab.command(&lab.container(1), &largest).output().is_ok_and(|output| output.status.success())
    });
    works(&lab, 32);
}

#[test]
fn each_offload_has_a_way_without_it() {
    let with = Offload::default();
    let without = [
        Offload { udp_segment: false, ..with },
        Offload { udp_gro: false, ..with },
        Offload { tap_uso: false, ..with },
        Offload { tap_tso: false, tap_uso: false, ..with },
        Offload { udp_segment: false, udp_gro: false, tap_tso: false, tap_uso: false },
    ];
    for offload in without {
        let lab = Lab::new(2, 1500, false);
        let _devices = lab.mesh(|config| config.offload = offload);
        works(&lab, 4);
    }
}

#[test]
fn fabric_addresses_may_be_ipv6() {
    let lab = Lab::new(2, 1500, false);
    let (devices, keys) = lab.mesh(|config| config.fabric_addresses.push("fd00:fab::1".parse().unwrap()));
    // The same peers again, by other names: each has the address of the other's second one.
    drop(devices);
    let keys: Vec<&PrivateKey> = keys.iter().collect();
    let address = |host: usize| format!("fd00:fab::{host}").parse().unwrap();
    let start = |host: usize| {
        let config = Config { fabric_addresses: vec![address(host)], ..lab.config(host, keys[host - 1]) };
        let device = lab.start(host, config);
        let other = 3 - host;
        let mut peer = lab.peer(other, keys[other - 1]);
        peer.fabric_address = address(other);
        let forward = skep_fabric::Forward {
            mac: lab::mac(other),
            addresses: vec![container_v4(other), container_v6(other)],
            peer: address(other),
        };
        device.peers(Change::put(vec![peer])).unwrap();
        device.forward(VNI, Change::put(vec![forward])).unwrap();
        device
    };
    let _devices = (start(1), start(2));
    works(&lab, 4);
}

#[test]
fn udp_arrives_whole_and_in_order() {
    let lab = Lab::new(2, 1500, false);
    let (devices, _) = lab.mesh(|_| ());
    until("pings arrive", 10, || lab.ping(1, container_v4(2)));
    let receiver = inside(&lab.container(2), || UdpSocket::bind((container_v4(2), 7000))).unwrap();
    let sender = inside(&lab.container(1), || UdpSocket::bind((container_v4(1), 7000))).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // Of all sizes, also ones that are sent in fragments.
    for size in (0..3000).step_by(37) {
        let data: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        sender.send_to(&data, (container_v4(2), 7000)).unwrap();
        let mut buffer = [0; 4000];
        let length = receiver.recv(&mut buffer).unwrap_or_else(|error| panic!("{size} bytes: {error}"));
        assert_eq!(buffer[..length], data);
    }
    // Large ones that the sender's kernel leaves to us to cut.
    nix::sys::socket::setsockopt(&sender, nix::sys::socket::sockopt::UdpGsoSegment, &1000).unwrap();
    let sent = || devices[0].statistics().peer(fabric_address(2)).unwrap().sent.packets;
    let before = sent();
    let data: Vec<u8> = (0..30_000).map(|at| (at / 1000) as u8).collect();
    sender.send_to(&data, (container_v4(2), 7000)).unwrap();
    for datagram in data.chunks(1000) {
        let mut buffer = [0; 4000];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], *datagram);
    }
    // Counted before they are sent.
    assert!(sent() - before >= 30, "each datagram is a packet of its own on the wire");
}

/// The thread that received a question looks for the kernel's answer, beside the one whose queue it is in.
#[test]
fn answers_arrive_in_order_whoever_sends_them() {
    let lab = Lab::new(2, 1500, false);
    let _devices = lab.mesh(|_| ());
    until("pings arrive", 10, || lab.ping(1, container_v4(2)));
    // Sixteen on their way at a time.
    let said = lab.exec(&lab.container(1), "ping -n -c 3000 -i 0.0002 -l 16 10.0.0.2");
    let number = |line: &str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse::<u32>().ok();
    let numbers: Vec<u32> = said.lines().filter_map(number).collect();
    assert_eq!(numbers.len(), 3000, "{}", said.lines().last().unwrap_or_default());
    let late = numbers.windows(2).find(|two| two[0] > two[1]);
    assert_eq!(late, None, "an answer overtook another one");
}

#[test]
fn a_peer_that_moves_is_found() {
    let lab = Lab::new(2, 1500, false);
    let (devices, _) = lab.mesh(|_| ());
    until("pings arrive", 10, || lab.ping(1, container_v4(2)));
    lab.ip(&lab.host(2), &["address add 192.0.2.77/24 dev eth0", "address del 192.0.2.2/24 dev eth0"]);
    // The kernel may remove the second address together with the first one.
    lab.ip(&lab.host(2), &["address replace 192.0.2.77/24 dev eth0"]);
    until("pings arrive from the new place", 10, || lab.ping(2, container_v4(1)));
    assert_eq!(
        devices[0].statistics().peer(fabric_address(2)).unwrap().endpoint.unwrap().ip().to_string(),
        "192.0.2.77"
    );
    until("the way back works too", 5, || lab.ping(1, container_v4(2)));
}

/// It is gone from where it was last, and does not speak: it is looked for where it should be.
#[test]
fn a_peer_that_moved_back_in_silence_is_found() {
    let lab = Lab::new(2, 1500, false);
    let (devices, _) = lab.mesh(|config| {
        config.timers.rekey_attempt = Duration::from_secs(2);
        config.timers.rekey_timeout = Duration::from_millis(500);
        config.timers.keepalive_timeout = Duration::from_secs(1);
    });
    until("pings arrive", 10, || lab.ping(1, container_v4(2)));
    lab.ip(&lab.host(2), &["address add 192.0.2.77/32 dev eth0"]);
    lab.ip(&lab.host(2), &["route add 192.0.2.1/32 dev eth0 src 192.0.2.77"]);
    let endpoint = || devices[0].statistics().peer(fabric_address(2)).unwrap().endpoint.unwrap().ip().to_string();
    until("the new place is known", 10, || lab.ping(2, container_v4(1)) && endpoint() == "192.0.2.77");
    lab.ip(&lab.host(2), &["route del 192.0.2.1/32 dev eth0", "address del 192.0.2.77/32 dev eth0"]);
    // Forgets all, and where we are: it cannot begin.
    devices[1].peers(Change::remove(vec![fabric_address(1)])).unwrap();
    let mut peer = lab.peer(1, &PrivateKey::generate().unwrap());
    peer.public_keys = devices[0].public_keys();
    peer.endpoint = None;
    devices[1].peers(Change::put(vec![peer])).unwrap();
    assert!(!lab.ping(1, container_v4(2)), "it is where it was looked for");
    until("it is found where it should be", 30, || lab.ping(1, container_v4(2)));
    assert_eq!(endpoint(), "192.0.2.2");
}

#[test]
fn keys_are_renewed_without_a_loss() {
    let lab = Lab::new(2, 1500, false);
    let (devices, _) = lab.mesh(|config| {
        config.timers.rekey_after = Duration::from_secs(1);
        config.timers.reject_after = Duration::from_secs(3);
        config.timers.rekey_timeout = Duration::from_millis(500);
        config.timers.keepalive_timeout = Duration::from_secs(1);
    });
    until("pings arrive", 10, || lab.ping(1, container_v4(2)));
    let output = lab.exec(&lab.container(1), "ping -n -c 80 -i 0.1 -W 1 10.0.0.2");
    assert!(output.contains(" 0% packet loss"), "{output}");
    let age = devices[0].statistics().peer(fabric_address(2)).unwrap().last_handshake.unwrap();
    assert!(age < Duration::from_secs(3), "the keys are {age:?} old after eight seconds of pings");
}

#[test]
fn own_keys_change_while_pings_go_on() {
    let lab = Lab::new(2, 1500, false);
    let (devices, keys) = lab.mesh(|_| ());
    until("pings arrive", 10, || lab.ping(1, container_v4(2)));
    let mut pings = lab
        .command(&lab.container(1), "ping -n -c 60 -i 0.1 -W 1 10.0.0.2")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let new = PrivateKey::generate().unwrap();
    devices[0].rotate(new.clone()).unwrap();
    assert_eq!(devices[0].public_keys(), [new.public(), keys[0].public()]);
    let mut peer = lab.peer(1, &new);
    peer.public_keys.push(keys[0].public());
    devices[1].peers(Change::put(vec![peer.clone()])).unwrap();
    // A handshake of the newest pair happens when the other end knows it; here it is asked for by the keepalive.
    peer.keepalive = Some(1);
    devices[1].peers(Change::put(vec![peer.clone()])).unwrap();
    let newest = |device: &Device, host: usize| device.statistics().peer(fabric_address(host)).unwrap().newest_keys;
    until("both use the new key", 20, || newest(&devices[0], 2) && newest(&devices[1], 1));
    devices[0].retire().unwrap();
    peer.public_keys.pop();
    devices[1].peers(Change::put(vec![peer])).unwrap();
    assert!(lab.ping(1, container_v4(2)));
    pings.wait().unwrap();
    let mut output = String::new();
    std::io::Read::read_to_string(&mut pings.stdout.take().unwrap(), &mut output).unwrap();
    assert!(output.contains(" 0% packet loss"), "{output}");
}

#[test]
fn three_hosts_and_one_that_restarts() {
    let lab = Lab::new(3, 1500, false);
    let (mut devices, keys) = lab.mesh(|_| ());
    for (from, to) in [(1, 2), (1, 3), (2, 3), (3, 1)] {
        until("pings arrive", 10, || lab.ping(from, container_v4(to)));
    }
    drop(devices.pop());
    assert!(lab.ping(1, container_v4(2)));
    let device = lab.start(3, lab.config(3, &keys[2]));
    let peers = [1, 2].map(|host| {
        let mut peer = lab.peer(host, &keys[host - 1]);
        peer.keepalive = Some(25);
        peer
    });
    device.peers(Change::put(peers.to_vec())).unwrap();
    until("the restarted host is reached", 5, || lab.ping(1, container_v4(3)));
    devices[1].peers(Change::remove(vec![fabric_address(3)])).unwrap();
    assert!(!lab.ping(3, container_v4(2)), "a removed peer gets no answer");
    assert!(lab.ping(3, container_v4(1)));
    devices[0].detach(VNI).unwrap();
    assert!(!lab.ping(3, container_v4(1)), "a detached network gets nothing");
    assert!(dropped(&devices[0], DropReason::UnknownNetwork) > 0);
}

/// What somebody on the hosts' network can try.
#[test]
fn strangers_get_nothing_in() {
    let lab = Lab::new(3, 1500, false);
    let (devices, keys) = lab.mesh(|_| ());
    until("pings arrive", 10, || lab.ping(1, container_v4(2)));
    let stranger = inside(&lab.host(3), || UdpSocket::bind("192.0.2.3:9")).unwrap();
    let device = &devices[0];
    let send = |data: &[u8]| stranger.send_to(data, lab.endpoint(1)).unwrap();
    let grows = |reason: DropReason, data: &[u8]| {
        let before = dropped(device, reason);
        send(data);
        until(&format!("{reason:?} is counted"), 5, || dropped(device, reason) > before);
    };
    // Data for indexes that exist and for one that does not, junk of all lengths, a handshake of nobody.
    let mut forged = [0u8; 100];
    forged[0] = 4;
    // A counter that was not used yet.
    forged[8..16].copy_from_slice(&1_000_000u64.to_le_bytes());
    let mut index = 0u32;
    let before = dropped(device, DropReason::Forged);
    while dropped(device, DropReason::Forged) == before && index < 0x800 {
        forged[4..8].copy_from_slice(&index.to_le_bytes());
        send(&forged);
        index += 1;
        std::thread::sleep(Duration::from_micros(200));
    }
    until("a forged packet is counted", 5, || dropped(device, DropReason::Forged) > before);
    forged[4..8].copy_from_slice(&[0xff; 4]);
    grows(DropReason::UnknownSession, &forged);
    grows(DropReason::Malformed, &[4, 0, 0]);
    let mut handshake = [0u8; 148];
    handshake[0] = 1;
    grows(DropReason::HandshakeRefused, &handshake);
    for length in 0..200 {
        send(&vec![(length % 5) as u8; length]);
    }
    let peer = device.statistics().peer(fabric_address(2)).unwrap().clone();
    assert_eq!(peer.endpoint, Some(lab.endpoint(2)), "no endpoint is learned from a stranger");

    // A peer with another peer's inner address, and one that talks of a network that is not here.
    drop(keys);
    assert!(lab.ping(1, container_v4(2)));
}

/// A TAP that somebody removes makes no thread spin, and the network can be attached again.
#[test]
fn a_removed_tap_costs_nothing() {
    let lab = Lab::new(2, 1500, false);
    let (devices, _) = lab.mesh(|_| ());
    until("pings arrive", 10, || lab.ping(1, container_v4(2)));
    lab.ip(&lab.network(1), &["link del fabric0"]);
    let cpu = || nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap().user_time();
    let system = || nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap().system_time();
    let before = (cpu(), system());
    std::thread::sleep(Duration::from_millis(500));
    let used = (cpu() - before.0, system() - before.1);
    assert!(used.0.tv_usec() + used.1.tv_usec() < 200_000 && used.0.tv_sec() + used.1.tv_sec() == 0, "{used:?}");
    devices[0].detach(VNI).unwrap();
    let tap = inside(&lab.network(1), || skep_fabric::tap::open("fabric0", 1, Offload::default())).unwrap();
    lab.ip(&lab.network(1), &[&format!("link set fabric0 mtu {}", lab.overlay_mtu), "link set fabric0 master br0 up"]);
    let port = skep_fabric::PortConfig { vni: VNI, queues: tap.queues, mtu: lab.overlay_mtu, uso: true, flood: true };
    devices[0].attach(port).unwrap();
    let entry = skep_fabric::Forward { mac: lab::mac(2), addresses: vec![], peer: fabric_address(2) };
    devices[0].forward(VNI, Change::put(vec![entry])).unwrap();
    // Without the address in the table, the question goes to the peer.
    let _ = lab.command(&lab.container(1), "ip neigh flush dev eth0").output();
    until("pings arrive again", 10, || lab.ping(1, container_v4(2)));
}

/// Somebody who knows our public key, but is no peer, asks for more handshakes than are answered.
#[test]
fn a_flood_of_handshakes_gets_cookies_and_stops_nobody() {
    let lab = Lab::new(3, 1500, false);
    let (devices, _) = lab.mesh(|_| ());
    until("pings arrive", 10, || lab.ping(1, container_v4(2)));
    let stranger = inside(&lab.host(3), || UdpSocket::bind("192.0.2.3:9")).unwrap();
    stranger.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let secret = skep_noise::random_secret().unwrap();
    let ours = skep_noise::x25519::PublicKey::from(&secret);
    let theirs = skep_noise::x25519::PublicKey::from(devices[0].public_keys()[0]);
    let now = Duration::from_secs(1);
    let limiter = std::sync::Arc::new(skep_noise::RateLimiter::new(&ours, 1, now).unwrap());
    let mut tunnel = skep_noise::Tunn::new(secret, theirs, None, None, 1, limiter, Default::default(), now);
    for _ in 0..300 {
        let mut buffer = [0; 256];
        match tunnel.format_handshake_initiation(&mut buffer, true, now) {
            skep_noise::TunnResult::WriteToNetwork(message) => stranger.send_to(message, lab.endpoint(1)).unwrap(),
            other => panic!("{other:?}"),
        };
    }
    let mut buffer = [0; 256];
    let length = stranger.recv(&mut buffer).unwrap();
    assert_eq!((length, buffer[0]), (skep_noise::COOKIE_REPLY_SZ, 3));
    assert!(dropped(&devices[0], DropReason::HandshakeLimited) > 0);
    assert!(dropped(&devices[0], DropReason::HandshakeRefused) > 0, "the first ones are looked at");
    assert!(lab.ping(1, container_v4(2)) && lab.ping(2, container_v4(1)));
}

/// A true peer that sends in another peer's name.
#[test]
fn a_peer_cannot_use_another_peers_address() {
    let lab = Lab::new(2, 1500, false);
    let (devices, keys) = lab.mesh(|_| ());
    until("pings arrive", 10, || lab.ping(1, container_v4(2)));
    drop(devices);
    let one = lab.start(1, lab.config(1, &keys[0]));
    one.peers(Change::put(vec![lab.peer(2, &keys[1])])).unwrap();
    let liar = Config { fabric_addresses: vec![fabric_address(9)], ..lab.config(2, &keys[1]) };
    let two = lab.start(2, liar);
    two.peers(Change::put(vec![lab.peer(1, &keys[0])])).unwrap();
    assert!(!lab.ping(2, container_v4(1)));
    until("it is counted", 5, || dropped(&one, DropReason::WrongSource) > 0);
    assert!(!lab.ping(1, container_v4(2)));
    until("it is counted", 5, || dropped(&two, DropReason::WrongDestination) > 0);
}

/// The other end is wireguard-go with the kernel's VXLAN.
fn interoperates(v6_underlay: bool) {
    let mut lab = Lab::new(2, 1500, v6_underlay);
    let keys = [PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap()];
    let device = lab.start(1, lab.config(1, &keys[0]));
    device.peers(Change::put(vec![lab.peer(2, &keys[1])])).unwrap();
    lab.other_device("wireguard-go -f", 2, &keys[1], 1, &keys[0]);
    works(&lab, 8);
    // And it begins: we have forgotten all, and do not know where it is. It notices after 15 s (the protocol's time).
    drop(device);
    let device = lab.start(1, lab.config(1, &keys[0]));
    let mut peer = lab.peer(2, &keys[1]);
    peer.endpoint = None;
    device.peers(Change::put(vec![peer])).unwrap();
    until("it finds us again", 30, || lab.ping(2, container_v4(1)));
}

#[test]
fn wireguard_go_and_the_kernels_vxlan_understand_us() {
    interoperates(false);
}

#[test]
fn they_do_over_ipv6_too() {
    interoperates(true);
}

/// What somebody sees who listens on the hosts' network.
#[test]
fn no_plaintext_on_the_underlay() {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let lab = Lab::new(2, 1500, false);
    let (_devices, _) = lab.mesh(|_| ());
    until("pings arrive", 10, || lab.ping(1, container_v4(2)));
    let all = i32::from((libc::ETH_P_ALL as u16).to_be());
    // SAFETY: no memory is passed.
    let socket = |flags| unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | flags, all) };
    let open = |namespace: &str| {
        let descriptor = inside(namespace, || socket(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC));
        assert!(descriptor >= 0);
        // SAFETY: a new descriptor that nobody else owns.
        unsafe { OwnedFd::from_raw_fd(descriptor) }
    };
    let (underlay, container) = (open(&lab.host(2)), open(&lab.container(2)));
    lab.exec(&lab.container(1), "ping -n -c 20 -i 0.01 -s 200 -p 736b6570 10.0.0.2");
    let frames = |socket: &OwnedFd| {
        let mut frames = vec![];
        let mut buffer = vec![0u8; 65_536];
        loop {
            // SAFETY: the kernel writes at most the buffer's length into it.
            let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            match usize::try_from(length) {
                Ok(length) => frames.push(buffer[..length].to_vec()),
                Err(_) => return frames,
            }
        }
    };
    let seen = |frame: &Vec<u8>| frame.windows(8).any(|window| window == b"skepskep");
    assert!(frames(&container).iter().filter(|frame| seen(frame)).count() >= 20, "the container sees it");
    let outside = frames(&underlay);
    assert!(outside.len() >= 20 && !outside.iter().any(seen));
}

#[test]
fn a_port_in_use_is_an_error() {
    let lab = Lab::new(1, 1500, false);
    let key = PrivateKey::generate().unwrap();
    let first = inside(&lab.host(1), || Device::start(lab.config(1, &key))).unwrap();
    let second = inside(&lab.host(1), || Device::start(lab.config(1, &key)));
    assert_eq!(second.err().unwrap().to_string(), "cannot listen on 0.0.0.0:51820");
    drop(first);
    inside(&lab.host(1), || Device::start(lab.config(1, &key))).unwrap();
}

#[test]
fn nothing_is_left_behind() {
    let lab = Lab::new(2, 1500, false);
    let name = lab.host(1);
    let devices = lab.mesh(|_| ());
    drop(devices);
    drop(lab);
    assert!(!run(std::process::Command::new("ip").arg("netns")).contains(&name));
}
