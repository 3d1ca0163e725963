//! Encrypted networks: what works on others works here, and nobody on the underlay reads or forges it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use skep_fabric::PrivateKey;
use skep_netlink::{Namespace, NetlinkError};
use skep_proto::v1;

use crate::lab::*;

/// What no header has by chance.
const MARK: &[u8] = b"plain text of a task";
const VIP: Ipv4Addr = Ipv4Addr::new(10, 6, 0, 2);

fn sealed(number: u8) -> v1::Network {
    network(number, |spec| spec.options.clear())
}

fn address(network: u8, last: u8) -> IpAddr {
    IpAddr::from([10, network, 1, last])
}

/// A table of a network with a task on each of two hosts.
fn table(net: &v1::Network, number: u8) -> v1::NetworkTable {
    let mut table = whole(net, 1);
    table.put_services = vec![service(9, "web", Ipv4Addr::new(10, number, 0, 2), Vec::new())];
    table.put_peers = vec![peer(1), peer(2)];
    table.put_endpoints = [1, 2].map(|host| endpoint(host, host.into(), 9, address(number, host), true)).to_vec();
    table
}

/// Attaches task 1 and 2 on hosts 1 and 2.
fn plug(hosts: &[Host<'_>], net: &v1::Network, number: u8) -> Vec<Namespace> {
    let plug = |host: &Host<'_>| {
        host.follow(&[table(net, number)]);
        host.attach(&attach_request(host.number.into(), &[(net, address(number, host.number))]))
    };
    hosts.iter().map(plug).collect()
}

fn udp(namespace: &Namespace, port: u16) -> UdpSocket {
    let open = |inside: &skep_netlink::Inside| inside.udp(SocketAddr::from(([0, 0, 0, 0], port)));
    let socket = namespace.enter(open).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

/// All frames of a namespace from now on.
fn capture(namespace: &Namespace) -> OwnedFd {
    let all = i32::from((libc::ETH_P_ALL as u16).to_be());
    let flags = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let open = |_: &skep_netlink::Inside| Ok::<_, NetlinkError>(unsafe { libc::socket(libc::AF_PACKET, flags, all) });
    let descriptor = namespace.enter(open).unwrap();
    assert!(descriptor >= 0);
    // SAFETY: a new descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// How many frames there were, and how many with the mark.
fn seen(socket: &OwnedFd) -> (usize, usize) {
    let (mut all, mut marked) = (0, 0);
    let mut buffer = vec![0u8; 65_536];
    let mut receive = || {
        // SAFETY: the kernel writes at most the buffer's length into it.
        let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let frame = usize::try_from(length).ok().map(|length| &buffer[..length]);
        frame.map(|frame| frame.windows(MARK.len()).any(|window| window == MARK))
    };
    while let Some(found) = receive() {
        all += 1;
        marked += usize::from(found);
    }
    (all, marked)
}

#[test]
fn tasks_talk_and_the_underlay_sees_nothing() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let hosts = [lab.host(1), lab.host(2)];
    let (net, plain) = (sealed(6), network(5, |_| {}));
    let sandboxes = plug(&hosts, &net, 6);
    assert!(ping(&sandboxes[0], "10.6.1.2") && ping(&sandboxes[1], "10.6.1.1"));
    // As long as the network carries, and not a byte more.
    let long = |size: u16| format!("-M do -s {size} 10.6.1.2");
    assert!(ping(&sandboxes[0], &long(1370 - 28)) && is_silent(&sandboxes[0], &long(1370 - 27)));
    for (number, sandbox) in sandboxes.iter().enumerate() {
        serve(sandbox, 80, &format!("task{}", number + 1));
    }
    assert_eq!(who(&sandboxes[0], SocketAddr::from((address(6, 2), 80))).unwrap(), "task2");
    assert_eq!(resolve(&sandboxes[0], "web"), [VIP]);
    assert_eq!(resolve(&sandboxes[0], "task2"), [Ipv4Addr::new(10, 6, 1, 2)]);
    let answers: std::collections::BTreeSet<_> =
        (0..40).map(|_| who(&sandboxes[0], SocketAddr::from((VIP, 80))).unwrap()).collect();
    assert_eq!(answers.len(), 2, "{answers:?}");

    let mesh = hosts[0].mesh();
    assert_eq!((mesh.device.as_str(), mesh.peers.len()), (device_of(1), 1));
    let seen_peer = &mesh.peers[0];
    assert_eq!(
        (seen_peer.node_id.as_slice(), seen_peer.endpoint.as_str()),
        (hosts[1].node().to_vec().as_slice(), "10.77.0.2:51820")
    );
    assert!(seen_peer.last_handshake_ms > 1_600_000_000_000, "{seen_peer:?}");
    assert!(seen_peer.sent_bytes > 10_000 && seen_peer.received_bytes > 10_000, "{seen_peer:?}");

    // Plain ones beside it, on the same hosts: there the mark is seen.
    let others: Vec<Namespace> = hosts
        .iter()
        .map(|host| {
            host.follow(&[table(&plain, 5)]);
            host.attach(&attach_request(10 + u128::from(host.number), &[(&plain, address(5, host.number))]))
        })
        .collect();
    let underlay = capture(&hosts[1].namespace);
    for (sandboxes, number) in [(&sandboxes, 6), (&others, 5)] {
        let (from, to) = (udp(&sandboxes[0], 0), udp(&sandboxes[1], 7777));
        let before = seen(&underlay);
        for _ in 0..20 {
            from.send_to(MARK, (address(number, 2), 7777)).unwrap();
            let mut buffer = [0; 64];
            let length = to.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], MARK);
        }
        let (all, marked) = seen(&underlay);
        assert!(all >= 20, "{before:?} {all}");
        assert_eq!(marked >= 20, number == 5, "network {number}: {marked} of {all}");
        assert!(number == 5 || marked == 0, "network {number}: {marked} of {all}");
    }

    // Peers go with the last network that has them.
    hosts[0].detach(task_id(1));
    assert!(hosts[0].mesh().peers.is_empty());
    assert!(is_silent(&sandboxes[1], "10.6.1.1"));
}

/// What no two neighbouring pieces have in common.
fn pattern(at: usize) -> u8 {
    (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7]
}

/// Sends so many bytes over TCP, and checks each at the other end.
fn stream(from: &Namespace, to: &Namespace, address: IpAddr, bytes: usize) {
    let at = SocketAddr::from((address, 8080));
    let listener = to.enter(|inside| inside.tcp(at)).unwrap();
    let mut out = connect(from, at).unwrap();
    let sender = std::thread::spawn(move || {
        let data: Vec<u8> = (0..bytes).map(pattern).collect();
        out.write_all(&data).unwrap();
    });
    let (mut inward, _) = listener.accept().unwrap();
    inward.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut data = Vec::with_capacity(bytes);
    inward.read_to_end(&mut data).unwrap();
    sender.join().unwrap();
    assert_eq!(data.len(), bytes);
    assert!(data.iter().enumerate().all(|(at, byte)| *byte == pattern(at)));
}

#[test]
fn all_sizes_arrive_whole_both_ways() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let hosts = [lab.host(1), lab.host(2)];
    let sandboxes = plug(&hosts, &sealed(6), 6);
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to, address) = (&sandboxes[from], &sandboxes[to], address(6, hosts[to].number));
        for size in [0, 1, 1000, 1370 - 28, 1370 - 27, 9000, 60_000] {
            assert!(ping(from, &format!("-s {size} {address}")), "{size}");
        }
        let (out, inward) = (udp(from, 0), udp(to, 7777));
        let mut buffer = vec![0; 1 << 16];
        for size in (0..=64).chain([1000, 1341, 1342, 1343, 4000, 30_000]) {
            let data: Vec<u8> = (size..2 * size).map(pattern).collect();
            out.send_to(&data, (address, 7777)).unwrap();
            let length = inward.recv(&mut buffer).unwrap();
            assert!(buffer[..length] == data, "{size}");
        }
        for bytes in [1, 1330, 100_000, 8 << 20] {
            stream(from, to, address, bytes);
        }
    }
    let mesh = hosts.each_ref().map(|host| host.mesh().device);
    assert_eq!(mesh, [device_of(1), device_of(2)]);
}

/// Takes two minutes, so it is run by hand, and by `make test-vm`.
#[test]
#[ignore = "WireGuard renews sessions after two minutes"]
fn sessions_are_renewed_without_loss() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let hosts = [lab.host(1), lab.host(2)];
    let sandboxes = plug(&hosts, &sealed(6), 6);
    assert!(ping(&sandboxes[0], "10.6.1.2"));
    let handshake = |host: &Host<'_>| host.mesh().peers[0].last_handshake_ms;
    let before = hosts.each_ref().map(handshake);
    let output = run(&sandboxes[0], "ping -n -i 0.5 -c 270 -W 2 10.6.1.2");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(" 0% packet loss"), "{text}");
    let after = hosts.each_ref().map(handshake);
    assert!(before.iter().zip(&after).all(|(before, after)| after - before > 100_000), "{before:?} {after:?}");
}

/// An Ethernet frame with a UDP datagram to port 7777 in VXLAN, as anybody on the underlay can send it.
fn forged(vni: u32, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let length = 28 + MARK.len() as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(length.to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    ip.extend(from);
    ip.extend(to);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![8, 0, 0, 0];
    packet.extend((vni << 8).to_be_bytes());
    for mac in [to, from] {
        packet.extend([2, 0x42]);
        packet.extend(mac);
    }
    packet.extend([8, 0]);
    packet.extend(ip);
    for field in [9, 7777, length - 20, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(MARK);
    packet
}

#[test]
fn forged_datagrams_come_into_plain_networks_only() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let hosts = [lab.host(1), lab.host(2)];
    let (net, plain) = (sealed(6), network(5, |_| {}));
    let inside = plug(&hosts, &net, 6);
    hosts[1].follow(&[table(&plain, 5)]);
    let other = hosts[1].attach(&attach_request(12, &[(&plain, address(5, 2))]));
    assert!(ping(&inside[0], "10.6.1.2"));
    let stranger = udp(&lab.outside, 0);
    let mut buffer = [0; 64];
    for (sandbox, number) in [(&inside[1], 6), (&other, 5)] {
        let socket = udp(sandbox, 7777);
        let packet = forged(4096 + u32::from(number), [10, number, 1, 1], [10, number, 1, 2]);
        for port in [4789, 4790, 51820] {
            stranger.send_to(&packet, ("10.77.0.2", port)).unwrap();
        }
        match number {
            5 => {
                let length = socket.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..length], MARK);
            }
            _ => assert!(socket.recv(&mut buffer).is_err()),
        }
    }
}

/// Ten seconds of pings.
fn pings(from: &Namespace, to: &str) -> Child {
    let net = format!("--net=/proc/{}/fd/{}", std::process::id(), std::os::fd::AsFd::as_fd(from).as_raw_fd());
    let mut command = Command::new("nsenter");
    command.arg(net).args(["ping", "-n", "-c", "100", "-i", "0.1", "-W", "1", to]);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_new_key_loses_nothing_and_a_new_address_is_followed() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut hosts = [lab.host(1), lab.host(2)];
    let net = sealed(6);
    let sandboxes = plug(&hosts, &net, 6);
    assert!(ping(&sandboxes[0], "10.6.1.2"));
    let running = pings(&sandboxes[0], "10.6.1.2");
    let (old, new) = (key(1), PrivateKey::from_bytes([77; 32]));
    let handshake = |host: &Host<'_>| host.mesh().peers[0].last_handshake_ms;
    let before = handshake(&hosts[1]);
    // Some pings later, so that the next handshake is told from this one by its time.
    let received = hosts[1].mesh().peers[0].received_bytes;
    until("no pings", || (hosts[1].mesh().peers[0].received_bytes > received + 1000).then_some(()));
    // The host has both, then all know both, then only the new one is left.
    hosts[0].who.private_key = new.to_bytes().to_vec();
    hosts[0].who.previous_private_key = old.to_bytes().to_vec();
    for _ in 0..2 {
        assert_eq!(hosts[0].configure().unwrap().public_key, new.public());
    }
    let tell = |hosts: &[Host<'_>], version: u64, row: v1::NetworkPeer| {
        let mut change = difference(&net, version);
        change.put_peers = vec![row];
        for host in hosts {
            host.follow(&[change.clone()]);
        }
    };
    let mut row = peer(1);
    let fabric = row.endpoint.as_mut().unwrap();
    fabric.public_key = new.public().to_vec();
    fabric.previous_public_key = old.public().to_vec();
    tell(&hosts, 2, row.clone());
    let changed = || until("no handshake with the new key", || (handshake(&hosts[1]) > before + 100).then_some(()));
    // The kernel's device has one key: the old one for as long as that is valid.
    if device_of(1) == "userspace" {
        changed();
    }
    hosts[0].who.previous_private_key.clear();
    hosts[0].configure().unwrap();
    row.endpoint.as_mut().unwrap().previous_public_key.clear();
    // The kernel's changes over at once, and those that know both keys see it.
    until("no handshake with the new key", || (handshake(&hosts[1]) > before + 100).then_some(()));
    tell(&hosts, 3, row.clone());
    assert!(ping(&sandboxes[0], "10.6.1.2") && ping(&sandboxes[1], "10.6.1.1"));
    let output = running.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // The other end's kernel takes what comes under the new key once netd has seen the handshake: some milliseconds, and a
    // few tenths of a second in an emulated machine.
    let lost_at_most = if device_of(2) == "kernel" { 5 } else { 0 };
    assert!((0..=lost_at_most).any(|lost| text.contains(&format!(" {} received", 100 - lost))), "{text}");

    // It moves: another address and port, another number.
    let mut changes = skep_netlink::Changes::new();
    changes.delete_address(2, "10.77.0.1/24".parse().unwrap());
    changes.add_address(2, "10.77.0.51/24".parse().unwrap());
    hosts[0].rtnetlink.apply(&changes).unwrap();
    hosts[0].who.wireguard_addr = "10.77.0.51:51999".to_owned();
    hosts[0].configure().unwrap();
    row.fabric_number = 1001;
    row.endpoint.as_mut().unwrap().wireguard_addr = "10.77.0.51:51999".to_owned();
    tell(&hosts, 4, row);
    let meet = || ping(&sandboxes[0], "10.6.1.2") && ping(&sandboxes[1], "10.6.1.1");
    until("not reached after the move", || meet().then_some(()));
    let peers = hosts[1].mesh().peers;
    assert_eq!((peers.len(), peers[0].endpoint.as_str()), (1, "10.77.0.51:51999"));
}

#[test]
fn a_netd_that_was_killed_takes_its_networks_up_again() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut hosts = [lab.host(1), lab.host(2)];
    let net = sealed(6);
    let sandboxes = plug(&hosts, &net, 6);
    serve(&sandboxes[1], 80, "task2");
    let mut open = connect(&sandboxes[0], SocketAddr::from((address(6, 2), 80))).unwrap();
    let kernels = device_of(1) == "kernel" && device_of(2) == "kernel";
    let running = kernels.then(|| pings(&sandboxes[0], "10.6.1.2"));
    for (signal, which) in [(Signal::SIGKILL, 0), (Signal::SIGTERM, 0), (Signal::SIGKILL, 1)] {
        assert_eq!(ask(&mut open).unwrap(), "task2");
        hosts[which].signal(signal);
        // The kernel's device needs nobody.
        if device_of(hosts[which].number) == "kernel" {
            assert!(ping(&sandboxes[0], "10.6.1.2"));
            assert_eq!(ask(&mut open).unwrap(), "task2");
        }
        hosts[which].start();
        hosts[which].follow(&[table(&net, 6)]);
        let number = hosts[which].number;
        hosts[which].attach(&attach_request(number.into(), &[(&net, address(6, number))]));
        assert!(ping(&sandboxes[0], "10.6.1.2") && ping(&sandboxes[1], "10.6.1.1"), "{signal} {which}");
        assert_eq!(ask(&mut open).unwrap(), "task2");
    }
    if let Some(running) = running {
        let output = running.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(" 0% packet loss"), "{text}");
    }
    // Nothing is left of it when it goes, nor of one that nobody claimed.
    hosts[0].detach(task_id(1));
    hosts[1].signal(Signal::SIGKILL);
    hosts[1].start();
    hosts[1].detach(task_id(2));
    for host in &mut hosts {
        assert_eq!(std::fs::read_dir(host.dir.join("networks")).unwrap().count(), 0);
        host.shutdown();
        let links: Vec<String> = host.rtnetlink.links().unwrap().into_iter().map(|link| link.name).collect();
        assert_eq!(links, ["lo", "eth0"]);
    }
}
