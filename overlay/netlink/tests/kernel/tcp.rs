//! Who listens, and connections that nobody has accepted yet.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use skep_netlink::tcp::TcpSockets;

use crate::lab::{Place, root, run};

fn becomes(sockets: &TcpSockets, count: u64) {
    let started = Instant::now();
    while sockets.waiting().unwrap() != count {
        assert!(started.elapsed() < Duration::from_secs(5), "{count} wanted, {} found", sockets.waiting().unwrap());
        std::thread::yield_now();
    }
}

#[test]
fn what_waits_in_queues_is_counted_here_only() {
    if !root() {
        return;
    }
    let (place, other) = (Place::new(), Place::new());
    let here = place.inside(|inside| inside.tcp_sockets().unwrap());
    let elsewhere = other.inside(|inside| inside.tcp_sockets().unwrap());
    assert_eq!(here.waiting().unwrap(), 0);
    let listen = |address: &str| {
        let listener = place.inside(|_| TcpListener::bind(address).unwrap());
        (listener.local_addr().unwrap(), listener)
    };
    let (v4, v6) = (listen("127.0.0.1:0"), listen("[::1]:0"));
    let connect_to = |to: SocketAddr| place.inside(|_| TcpStream::connect(to).unwrap());
    let clients = [v4.0, v4.0, v6.0].map(connect_to);
    becomes(&here, 3);
    assert_eq!(elsewhere.waiting().unwrap(), 0, "of another namespace");
    // One that is accepted does not wait, whether or not it has asked for anything.
    let accepted = v4.1.accept().unwrap();
    becomes(&here, 2);
    drop(v6.1);
    becomes(&here, 1);
    drop((clients, accepted));
}

#[test]
fn half_open_connections_count() {
    if !root() {
        return;
    }
    let place = Place::new();
    let sockets = place.inside(|inside| inside.tcp_sockets().unwrap());
    let listener = place.inside(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let SocketAddr::V4(to) = listener.local_addr().unwrap() else { unreachable!("bound to IPv4") };
    // Its answers do not arrive: the client never says that it is open.
    run(&place.namespace, "nft add table ip t");
    run(&place.namespace, "nft add chain ip t in { type filter hook input priority 0 ; }");
    run(&place.namespace, "nft add rule ip t in tcp flags & (syn | ack) == (syn | ack) drop");
    let client = place.inside(|_| {
        let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
        let _ = connect(client.as_raw_fd(), &SockaddrIn::from(to));
        client
    });
    becomes(&sockets, 1);
    drop(client);
}

#[test]
fn who_listens_is_told_unless_it_is_for_itself_only() {
    if !root() {
        return;
    }
    let place = Place::new();
    let sockets = place.inside(|inside| inside.tcp_sockets().unwrap());
    assert_eq!(sockets.listening().unwrap(), Some(BTreeSet::new()));
    let listen = |address: &str| place.inside(|_| TcpListener::bind(address).unwrap());
    let alone = [listen("127.0.0.1:0"), listen("[::1]:0"), listen("[::ffff:127.0.0.1]:0")];
    assert_eq!(sockets.listening().unwrap(), Some(BTreeSet::new()));
    let open = [listen("0.0.0.0:0"), listen("[::]:0")];
    let ports = open.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    assert_eq!(sockets.listening().unwrap(), Some(ports));
    drop((alone, open));
    assert_eq!(sockets.listening().unwrap(), Some(BTreeSet::new()));
}
