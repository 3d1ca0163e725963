//! Namespaces made, kept, entered and given up, and what is set inside them.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

use skep_netlink::conntrack::Conntrack;
use skep_netlink::link::LinkChange;
use skep_netlink::nft::{Family, Nft, Table, Transaction};
use skep_netlink::offload::Offload;
use skep_netlink::sysctl::{Scope, Sysctl};
use skep_netlink::{Changes, Inside, Namespace, NetlinkError, Rtnetlink};

use crate::lab::{Network, Place, root, text};

/// A path of our own that is cleaned up also when the test panics.
struct Kept(PathBuf);

impl Kept {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("skep-netlink-{name}-{}", std::process::id())))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = Namespace::remove(&self.0);
    }
}

#[test]
fn made_found_again_and_removed() {
    if !root() {
        return;
    }
    let kept = Kept::new("kept");
    let here = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let looked = |inside: &Inside| inside.rtnetlink()?.links();
    let (namespace, links) = Namespace::create(&kept.0, looked).unwrap();
    assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), here, "this thread has not moved");
    assert_eq!(links.len(), 1);
    assert!(links[0].name == "lo" && links[0].index == 1 && links[0].up);

    let again = Namespace::open(&kept.0).unwrap();
    assert_eq!(again.identity().unwrap(), namespace.identity().unwrap());
    assert_ne!(again.identity().unwrap(), Namespace::host().unwrap().identity().unwrap());
    let refused = Namespace::create(&kept.0, |_| Ok::<_, NetlinkError>(())).unwrap_err();
    assert!(text(&refused).contains("there is one already"), "{refused}");
    // Sockets that were opened inside work from here, and outlive the path.
    let socket = again.enter(|inside| inside.udp("127.0.0.1:5353".parse().unwrap())).unwrap();
    Namespace::remove(&kept.0).unwrap();
    Namespace::remove(&kept.0).unwrap();
    assert!(!kept.0.exists());
    let from = again.enter(|inside| inside.udp("127.0.0.1:0".parse().unwrap())).unwrap();
    from.send_to(b"x", "127.0.0.1:5353").unwrap();
    assert_eq!(socket.recv_from(&mut [0; 8]).unwrap().0, 1);
}

#[test]
fn what_fails_leaves_nothing() {
    if !root() {
        return;
    }
    let kept = Kept::new("failed");
    let failed = Namespace::create(&kept.0, |inside| inside.udp("192.0.2.1:53".parse().unwrap())).unwrap_err();
    assert!(text(&failed).contains("bind UDP 192.0.2.1:53"), "{}", text(&failed));
    assert!(!kept.0.exists());
    fs::write(&kept.0, "somebody's").unwrap();
    assert!(Namespace::create(&kept.0, |_| Ok::<_, NetlinkError>(())).is_err());
    assert_eq!(fs::read_to_string(&kept.0).unwrap(), "somebody's");
    // An empty file is what a crash leaves.
    fs::write(&kept.0, []).unwrap();
    assert!(Namespace::open(&kept.0).is_err());
    Namespace::create(&kept.0, |_| Ok::<_, NetlinkError>(())).unwrap();
    Namespace::open(&kept.0).unwrap();
    let missing = Namespace::open(&kept.0.with_extension("missing")).unwrap_err();
    assert!(missing.is_absent() && text(&missing).contains("missing"), "{}", text(&missing));
}

#[test]
fn sysctls_are_the_namespaces_own() {
    if !root() {
        return;
    }
    let network = Network::new();
    let (sandbox, ..) = network.sandbox();
    let mine = [
        (Sysctl::Ipv4Forward, "1"),
        (Sysctl::Ipv6Forward, "1"),
        (Sysctl::RpFilter(Scope::All), "0"),
        (Sysctl::RpFilter(Scope::Device("eth0".into())), "2"),
        (Sysctl::BridgeCallIptables, "0"),
        (Sysctl::BridgeCallIp6tables, "0"),
        (Sysctl::AcceptDad(Scope::Default), "0"),
        (Sysctl::AcceptRa(Scope::Device("eth0".into())), "0"),
        (Sysctl::DisableIpv6(Scope::Device("eth0".into())), "1"),
        (Sysctl::UnprivilegedPortStart, "0"),
        (Sysctl::Other("ipv4/tcp_keepalive_time".into()), "77"),
    ];
    let host = Namespace::host().unwrap();
    let read = |inside: &Inside| mine.iter().map(|(sysctl, _)| inside.sysctl(sysctl).ok()).collect::<Vec<_>>();
    let before = host.enter(|inside| Ok::<_, NetlinkError>(read(inside))).unwrap();
    let after = sandbox.inside(|inside| {
        inside.write_sysctls(&mine).unwrap();
        read(inside)
    });
    assert_eq!(after, mine.iter().map(|(_, value)| Some((*value).to_owned())).collect::<Vec<_>>());
    assert_eq!(host.enter(|inside| Ok::<_, NetlinkError>(read(inside))).unwrap(), before);

    // The host's are written only through its own handle, and here not even then: a value that it refuses.
    let mixed_up = Namespace::open("/proc/self/ns/net".as_ref()).unwrap();
    let write = |inside: &Inside| inside.write_sysctls(&[(Sysctl::Ipv4Forward, "no number")]);
    assert!(matches!(mixed_up.enter(write), Err(NetlinkError::Invalid { .. })));
    assert!(matches!(host.enter(write), Err(NetlinkError::Io { .. })));
}

#[test]
fn offloads_are_switched() {
    if !root() {
        return;
    }
    let network = Network::new();
    let (sandbox, ..) = network.sandbox();
    sandbox.inside(|inside| {
        for offload in [Offload::TransmitChecksum, Offload::TcpSegmentation] {
            assert!(inside.offload("eth0", offload).unwrap());
        }
        inside.set_offload("eth0", Offload::TransmitChecksum, false).unwrap();
        assert!(!inside.offload("eth0", Offload::TransmitChecksum).unwrap());
        inside.set_offload("eth0", Offload::GenericReceive, true).unwrap();
        assert!(inside.offload("eth0", Offload::GenericReceive).unwrap());
        assert!(inside.set_offload("eth7", Offload::GenericReceive, true).unwrap_err().is_absent());
    });
}

#[test]
fn a_panic_inside_is_a_panic_outside() {
    if !root() {
        return;
    }
    let place = Place::new();
    let visit = std::panic::AssertUnwindSafe(|| place.inside(|_| panic!("inside")));
    let panic = std::panic::catch_unwind(visit).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"inside"));
    // The handles work on.
    let mut changes = Changes::new();
    changes.change_link("lo", &LinkChange { mtu: Some(1400), ..LinkChange::default() });
    place.rtnetlink.apply(&changes).unwrap();
    assert_eq!(place.rtnetlink.link("lo").unwrap().unwrap().mtu, 1400);
}

#[test]
fn handles_are_handed_over() {
    if !root() {
        return;
    }
    fn is_shared<T: Send + Sync>(_: &T) {}
    let place = Place::new();
    is_shared(&place.namespace);
    is_shared(&place.rtnetlink);
    is_shared(&place.nft);
    let conntrack = place.inside(|inside| inside.conntrack().unwrap());
    is_shared(&conntrack);
    // What a successor gets are descriptors. It is in another namespace, and the handles are not.
    let (rtnetlink, nft) = (place.rtnetlink.try_clone_fd().unwrap(), place.nft.try_clone_fd().unwrap());
    let wrong = Rtnetlink::from_fd(place.nft.try_clone_fd().unwrap()).unwrap_err();
    assert!(text(&wrong).contains("another kind"), "{}", text(&wrong));
    assert!(Nft::from_fd(place.namespace.as_fd().try_clone_to_owned().unwrap()).is_err());
    let (rtnetlink, nft) = (Rtnetlink::from_fd(rtnetlink).unwrap(), Nft::from_fd(nft).unwrap());
    let conntrack = Conntrack::from_fd(conntrack.try_clone_fd().unwrap()).unwrap();
    assert_eq!(rtnetlink.links().unwrap().len(), 1);
    let table = Table::new(Family::Ip, "mine");
    let mut transaction = Transaction::new();
    transaction.add_table(&table);
    nft.commit(&transaction).unwrap();
    assert_eq!(place.nft.tables().unwrap(), [table]);
    assert_eq!(conntrack.count().unwrap(), 0);
}
