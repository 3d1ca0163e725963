//! Tasks behind the routing mesh see the addresses of clients where its network keeps them.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use skep_netlink::{Inside, Namespace, NetlinkError};
use skep_proto::cidr::address_to_wire;
use skep_proto::v1;

use crate::lab::*;

const TCP: u16 = 8080;
const UDP: u16 = 8081;

/// Serves TCP and UDP of both families: each answer is a name and who asked.
fn serve_who(namespace: &Namespace, name: &str) {
    let any = SocketAddr::from(([0; 16], 80));
    let open = |inside: &Inside| Ok::<_, NetlinkError>((inside.tcp(any)?, inside.udp(any)?));
    let (tcp, udp) = namespace.enter(open).unwrap();
    let text = |name: &str, from: SocketAddr| format!("{name} {}", from.ip().to_canonical());
    let own = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(text(&own, from).as_bytes(), from);
        }
    });
    let own = name.to_owned();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { return };
            let answer = text(&own, stream.peer_addr().unwrap());
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(answer.as_bytes()).is_ok() {}
            });
        }
    });
}

/// A mesh that keeps sources, with tasks on hosts 1 and 2 of three. The second task is on an internal network besides.
struct Mesh<'a> {
    hosts: [Host<'a>; 3],
    sandboxes: Vec<Namespace>,
    net: v1::Network,
    requests: Vec<v1::AttachRequest>,
    table: v1::NetworkTable,
}

fn six(last: u16) -> IpAddr {
    IpAddr::from([0xfdff, 0, 0, 0, 0, 0, 1, last])
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 255, 1, last])
}

fn row(number: u8, serving: bool) -> v1::NetworkEndpoint {
    let mut row = endpoint(number, number.into(), 9, address(number), serving);
    row.addresses.push(address_to_wire(six(number.into())));
    row
}

fn make(lab: &Lab, encrypted: bool) -> Mesh<'_> {
    let hosts = [lab.host(1), lab.host(2), lab.host(3)];
    let net = network(9, |spec| {
        (spec.ingress, spec.ipv6) = (true, true);
        spec.options.insert("keep-source".to_owned(), "true".to_owned());
        spec.options.insert("encrypted".to_owned(), encrypted.to_string());
    });
    let port = |published_port: u16, protocol: v1::Protocol| v1::PortSpec {
        published_port: published_port.into(),
        target_port: 80,
        protocol: protocol.into(),
        mode: v1::PublishMode::Ingress.into(),
    };
    let ports = vec![port(TCP, v1::Protocol::Tcp), port(UDP, v1::Protocol::Udp)];
    let mut table = whole(&net, 1);
    table.put_services = vec![service(9, "web", Ipv4Addr::new(10, 255, 9, 9), ports)];
    table.put_peers = [1, 2, 3]
        .map(|number: u8| {
            let mut row = peer(number);
            row.addresses.push(address_to_wire(IpAddr::from([0xfdff, 0, 0, 0, 0, 0, 0, number.into()])));
            row
        })
        .to_vec();
    table.put_endpoints = vec![row(1, true), row(2, true)];
    let others = [network(5, |_| {}), network(6, |spec| spec.internal = true)];
    let (mut sandboxes, mut requests) = (Vec::new(), Vec::new());
    for (host, number) in hosts.iter().zip(1_u8..) {
        host.follow(&[table.clone()]);
        let Some(other) = others.get(usize::from(number) - 1) else { continue };
        host.know(other);
        let own = IpAddr::from([10, number + 4, 1, number]);
        let mut request = attach_request(number.into(), &[(other, own), (&net, address(number))]);
        request.endpoints[1].addresses.push(address_to_wire(six(number.into())));
        let sandbox = host.attach(&request);
        serve_who(&sandbox, &format!("task{number}"));
        sandboxes.push(sandbox);
        requests.push(request);
    }
    Mesh { hosts, sandboxes, net, requests, table }
}

/// What answers say, over TCP and UDP.
fn answers(from: &Namespace, at: IpAddr) -> BTreeSet<String> {
    let tcp = |number| who(from, SocketAddr::new(at, TCP)).unwrap_or_else(|error| panic!("TCP {at} {number}: {error}"));
    let udp =
        |number| who_udp(from, SocketAddr::new(at, UDP)).unwrap_or_else(|error| panic!("UDP {at} {number}: {error}"));
    (0..12).map(tcp).chain((0..12).map(udp)).collect()
}

fn both(client: &str) -> BTreeSet<String> {
    [1, 2].map(|number| format!("task{number} {client}")).into()
}

fn at(number: u8) -> IpAddr {
    IpAddr::from([10, 77, 0, number])
}

fn at6(number: u16) -> IpAddr {
    IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, number])
}

#[test]
fn clients_are_seen_as_they_are_wherever_they_come_in() {
    if !root() {
        return;
    }
    for encrypted in [false, true] {
        let lab = Lab::new();
        let mesh = make(&lab, encrypted);
        for number in 1..=3 {
            assert_eq!(answers(&lab.outside, at(number)), both("10.77.0.100"), "at {number}, {encrypted}");
            assert_eq!(answers(&lab.outside, at6(number.into())), both("fd77::100"), "at {number}, {encrypted}");
        }
        for host in &mesh.hosts {
            // Of another host and of itself; by its loopback it is only known to the mesh.
            let own = host.number;
            for number in 1..=3 {
                assert_eq!(answers(&host.namespace, at(number)), both(&format!("10.77.0.{own}")));
            }
            assert_eq!(answers(&host.namespace, Ipv4Addr::LOCALHOST.into()), both(&format!("10.255.0.{own}")));
        }
        // A task: to its own host and others, back to itself too.
        let one = &mesh.sandboxes[0];
        assert_eq!(answers(one, at(1)), both("10.255.0.1"));
        for number in [2, 3] {
            assert_eq!(answers(one, at(number)), both("10.77.0.1"));
        }
        // What the tasks do themselves goes where it did.
        assert!(ping(one, "10.77.0.100") && ping(one, "10.255.0.2") && ping(one, "10.255.1.2"));
        // A port where nobody listens is refused at once, and largest packets pass.
        let mut stream = connect(&lab.outside, SocketAddr::new(at(3), TCP)).unwrap();
        let name = ask(&mut stream).unwrap();
        stream.write_all(&[b'?'; 3000]).unwrap();
        let mut answer = vec![0; 3000 * name.len()];
        stream.read_exact(&mut answer).unwrap();
        assert!(answer.starts_with(name.as_bytes()));
    }
}

/// A connection from a port of its own choice.
fn connect_from(from: &Namespace, port: u16, to: SocketAddr) -> TcpStream {
    let SocketAddr::V4(to) = to else { panic!("{to}") };
    let open = |_: &Inside| {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&fd, sockopt::ReuseAddr, &true).unwrap();
        bind(fd.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port)).unwrap();
        nix::sys::socket::connect(fd.as_raw_fd(), &SockaddrIn::from(to)).unwrap();
        Ok::<_, NetlinkError>(fd.into_raw_fd())
    };
    // SAFETY: a new descriptor that nobody else owns.
    let stream = unsafe { TcpStream::from_raw_fd(from.enter(open).unwrap()) };
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream
}

#[test]
fn two_hosts_at_once_and_a_netd_that_comes_back() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut mesh = make(&lab, false);
    // One task only, so that all of a client's connections meet there.
    let mut change = difference(&mesh.net, 2);
    change.put_endpoints = vec![row(1, false)];
    mesh.hosts.iter().for_each(|host| host.follow(&[change.clone()]));
    // From one port by three hosts, over TCP and UDP.
    let mut open: Vec<TcpStream> =
        (1..=3).map(|number| connect_from(&lab.outside, 5555, SocketAddr::new(at(number), TCP))).collect();
    let socket: UdpSocket = lab.outside.enter(|inside| inside.udp(SocketAddr::from(([0; 4], 5555)))).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let all = |open: &mut [TcpStream]| {
        for stream in open.iter_mut() {
            assert_eq!(ask(stream).unwrap(), "task2 10.77.0.100");
        }
        for number in 1..=3 {
            let to = SocketAddr::new(at(number), UDP);
            socket.send_to(b"?", to).unwrap();
            let mut buffer = [0; 64];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], from), (&b"task2 10.77.0.100"[..], to));
        }
    };
    for _ in 0..3 {
        all(&mut open);
    }
    // It goes on without netd, and with the next one.
    mesh.hosts[1].signal(Signal::SIGKILL);
    all(&mut open);
    mesh.hosts[1].start();
    all(&mut open);
    mesh.table.version = 2;
    mesh.table.put_endpoints = vec![row(1, false), row(2, true)];
    mesh.hosts[1].follow(&[mesh.table.clone()]);
    mesh.hosts[1].know(&network(6, |spec| spec.internal = true));
    mesh.hosts[1].attach(&mesh.requests[1]);
    all(&mut open);
    assert_eq!(answers(&lab.outside, at(3)), BTreeSet::from(["task2 10.77.0.100".to_owned()]));
}
