//! Links of every kind that skep makes, with their addresses, routes and neighbours, in real namespaces.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use skep_netlink::address::Address;
use skep_netlink::link::{Bridge, BridgePort, LinkChange, LinkKind, Macvlan, NewLink, Vxlan, VxlanFragment, VxlanLink};
use skep_netlink::neighbour::{Neighbour, NeighbourChange::Put};
use skep_netlink::route::{Route, Target};
use skep_netlink::rule::RoutingRule;
use skep_netlink::{Changes, MacAddress, NetlinkError, Prefix};

use crate::lab::{BRIDGE, Network, Place, root, run, text};

/// One datagram each way.
fn reach(from: &Place, to: &Place, address: IpAddr) {
    let server = to.inside(|inside| inside.udp((address, 7000).into()).unwrap());
    let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let client = from.inside(|inside| inside.udp((any, 0).into()).unwrap());
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    client.send_to(b"ping", (address, 7000)).unwrap();
    let answer = |socket: &UdpSocket| socket.recv_from(&mut [0; 16]);
    let (length, back) = answer(&server).unwrap();
    server.send_to(b"pong", back).unwrap();
    assert_eq!((length, answer(&client).unwrap().0), (4, 4));
}

#[test]
fn a_pair_with_all_that_belongs_to_it() {
    if !root() {
        return;
    }
    let network = Network::new();
    let (one, ..) = network.sandbox();
    let (two, v4, v6) = network.sandbox();
    reach(&one, &two, v4);
    reach(&one, &two, v6);

    let eth0 = one.rtnetlink.link("eth0").unwrap().unwrap();
    assert_eq!((eth0.index, eth0.kind.as_deref(), eth0.up, eth0.operational), (2, Some("veth"), true, true));
    assert!(eth0.parent_elsewhere && eth0.statistics.tx_packets > 0);
    let links = network.place.rtnetlink.links().unwrap();
    let port = links.iter().find(|link| link.name == "veth1").unwrap();
    assert_eq!((port.master, port.kind.as_deref()), (Some(BRIDGE), Some("veth")));
    assert_eq!(eth0.parent, Some(port.index));

    // Deleting one end deletes both.
    let mut changes = Changes::new();
    changes.delete_link("veth1");
    network.place.rtnetlink.apply(&changes).unwrap();
    assert_eq!(one.rtnetlink.link("eth0").unwrap(), None);
}

#[test]
fn the_bridge_is_as_meant() {
    if !root() {
        return;
    }
    let network = Network::new();
    let (_sandbox, ..) = network.sandbox();
    let shown = run(&network.place.namespace, "ip -d link show br0");
    for meant in [
        "stp_state 0",
        "mcast_snooping 0",
        "nf_call_iptables 0",
        "nf_call_ip6tables 0",
        "nf_call_arptables 0",
        "forward_delay 0",
    ] {
        assert!(shown.contains(meant), "{meant}: {shown}");
    }
    let mut changes = Changes::new();
    let port = |on| BridgePort {
        hairpin: Some(on),
        isolated: Some(on),
        neigh_suppress: Some(on),
        learning: Some(!on),
        flood: Some(!on),
    };
    changes.change_link("veth1", &LinkChange { port: Some(port(true)), ..LinkChange::default() });
    network.place.rtnetlink.apply(&changes).unwrap();
    let shown = run(&network.place.namespace, "ip -d link show veth1");
    for meant in [
        "hairpin on",
        "isolated on",
        "neigh_suppress on",
        "learning off",
        " flood off",
        "mcast_flood off",
        "bcast_flood off",
    ] {
        assert!(shown.contains(meant), "{meant}: {shown}");
    }
    let mut changes = Changes::new();
    changes.change_link("veth1", &LinkChange { port: Some(port(false)), ..LinkChange::default() });
    changes.change_link("veth1", &LinkChange { master: Some(0), ..LinkChange::default() });
    network.place.rtnetlink.apply(&changes).unwrap();
    assert_eq!(network.place.rtnetlink.link("veth1").unwrap().unwrap().master, None);
}

/// Two overlay namespaces, with their tunnels' ends in two other namespaces, as a host's overlays are.
#[test]
fn vxlan_ends_up_elsewhere_than_its_tunnel() {
    if !root() {
        return;
    }
    let underlay = Network::new();
    let hosts = [underlay.sandbox(), underlay.sandbox()];
    for (id, ipv6) in [(4097, false), (4098, true)] {
        let local = hosts.each_ref().map(|(_, v4, v6)| if ipv6 { *v6 } else { *v4 });
        let overlays = [Place::new(), Place::new()];
        tunnel(id, hosts.each_ref().map(|(host, ..)| host), &overlays, local);
        reach(&overlays[0], &overlays[1], [10, 9, 0, 2].into());

        let link = overlays[0].rtnetlink.link("vx0").unwrap().unwrap();
        assert_eq!(link.vxlan, Some(VxlanLink { id, port: 4790, local: Some(local[0]) }));
        assert_eq!((link.mtu, link.mac, link.parent_elsewhere), (1430, Some(mac(1)), true));
        let shown = run(&overlays[0].namespace, "ip -d link show vx0");
        let name = format!("id {id}");
        for meant in
            [&name, "dstport 4790", "nolearning", "ttl 33", "df set", "noudpcsum", "udp6zerocsumtx", "udp6zerocsumrx"]
        {
            assert!(shown.contains(meant), "{meant}: {shown}");
        }
        assert!(!shown.contains("gbp") && !shown.contains(" proxy"), "{shown}");
        if !ipv6 {
            // The same number cannot be used twice in one underlay: the error names the device and the reason.
            let mut changes = Changes::new();
            let again = Vxlan { device: Some(2), ..Vxlan::new(id, 4790) };
            changes.add_link(&NewLink::new("vx1", LinkKind::Vxlan(again)));
            let error = hosts[0].0.rtnetlink.apply(&changes).unwrap_err();
            assert!(error.is_present());
            let text = text(&error);
            assert!(text.starts_with("cannot add vxlan device vx1: File exists (A VXLAN device"), "{text}");
        }
    }
}

fn mac(last: u8) -> MacAddress {
    MacAddress([2, 0x42, 0, 0, 0, last])
}

/// Joins two overlays (10.9.0.1 and 10.9.0.2) through two hosts.
fn tunnel(id: u32, hosts: [&Place; 2], overlays: &[Place; 2], local: [IpAddr; 2]) {
    for (this, other, number) in [(0, 1, 1), (1, 0, 2)] {
        let fragment = VxlanFragment::Forbidden;
        let local_address = Some(local[this]);
        let vxlan = Vxlan { local: local_address, ttl: Some(33), fragment, device: Some(2), ..Vxlan::new(id, 4790) };
        let mut changes = Changes::new();
        changes.add_link(&NewLink {
            index: Some(5),
            mtu: Some(1430),
            mac: Some(mac(number)),
            up: true,
            namespace: Some(overlays[this].namespace.as_fd()),
            ..NewLink::new("vx0", LinkKind::Vxlan(vxlan))
        });
        hosts[this].rtnetlink.apply(&changes).unwrap();
        let mut changes = Changes::new();
        changes.add_address(5, Prefix::new([10, 9, 0, number], 24).unwrap());
        overlays[this].rtnetlink.apply(&changes).unwrap();
        let to = 3 - number;
        let entries = [
            Put(Neighbour::Tunnel { device: 5, mac: mac(to), remote: local[other] }),
            Put(Neighbour::Host { device: 5, address: [10, 9, 0, to].into(), mac: mac(to) }),
        ];
        overlays[this].rtnetlink.change_neighbours(&entries).unwrap();
    }
}

/// Two bridges joined by VXLAN as overlays are: nothing is learnt, nothing is flooded, ARP and ND are answered on the
/// spot.
#[test]
fn bridges_joined_without_learning_and_flooding() {
    if !root() {
        return;
    }
    const TUNNEL: u32 = 50;
    let underlay = Network::new();
    let hosts = [underlay.sandbox(), underlay.sandbox()];
    let networks = [Network::new(), Network::new()];
    let first = networks[0].sandbox();
    let second = networks[1].sandbox_at(2);
    let ends = [&first, &second];
    for (this, other) in [(0, 1), (1, 0)] {
        let overlay = &networks[this].place;
        let vxlan = Vxlan { local: Some(hosts[this].1), ..Vxlan::new(9, 4789) };
        let mut changes = Changes::new();
        changes.add_link(&NewLink {
            index: Some(TUNNEL),
            master: Some(BRIDGE),
            up: true,
            namespace: Some(overlay.namespace.as_fd()),
            ..NewLink::new("vx0", LinkKind::Vxlan(vxlan))
        });
        hosts[this].0.rtnetlink.apply(&changes).unwrap();
        let port = BridgePort {
            neigh_suppress: Some(true),
            learning: Some(false),
            flood: Some(false),
            ..BridgePort::default()
        };
        let mut changes = Changes::new();
        changes.change_link(TUNNEL, &LinkChange { port: Some(port), ..LinkChange::default() });
        overlay.rtnetlink.apply(&changes).unwrap();
        let (place, v4, v6) = ends[other];
        let mac = place.rtnetlink.link("eth0").unwrap().unwrap().mac.unwrap();
        let entries = [
            Neighbour::Tunnel { device: TUNNEL, mac, remote: hosts[other].1 },
            Neighbour::Port { device: TUNNEL, mac },
            Neighbour::Host { device: BRIDGE, address: *v4, mac },
            Neighbour::Host { device: BRIDGE, address: *v6, mac },
        ];
        overlay.rtnetlink.change_neighbours(&entries.map(Put)).unwrap();
        let found = overlay.rtnetlink.neighbours().unwrap();
        entries.iter().for_each(|entry| assert!(found.contains(entry), "{entry}: {found:?}"));
    }
    // ARP is answered on the spot, so nothing else waits for the far ports.
    for (place, port) in [(&underlay.place, "veth1"), (&underlay.place, "veth2")] {
        place.wait_for(port);
    }
    for (network, own) in networks.iter().zip(["veth1", "veth2"]) {
        network.place.wait_for("vx0");
        network.place.wait_for(own);
    }
    reach(&first.0, &second.0, second.1);
    reach(&first.0, &second.0, second.2);
}

#[test]
fn macvlan_wireguard_and_dummy() {
    if !root() {
        return;
    }
    let network = Network::new();
    let (host, ..) = network.sandbox();
    let (one, two) = (Place::new(), Place::new());
    for (number, place) in [(1, &one), (2, &two)] {
        let mut changes = Changes::new();
        changes.add_link(&NewLink {
            index: Some(7),
            up: true,
            namespace: Some(place.namespace.as_fd()),
            ..NewLink::new("eth0", LinkKind::Macvlan(Macvlan { parent: 2 }))
        });
        host.rtnetlink.apply(&changes).unwrap();
        let mut changes = Changes::new();
        changes.add_address(7, Prefix::new([10, 5, 7, number], 16).unwrap());
        place.rtnetlink.apply(&changes).unwrap();
    }
    reach(&one, &two, [10, 5, 7, 2].into());
    assert!(run(&one.namespace, "ip -d link show eth0").contains("macvlan mode bridge"));
    // Where the kernel lacks a kind, it says so.
    for kind in [LinkKind::Dummy, LinkKind::Wireguard] {
        let name = kind.name();
        let mut changes = Changes::new();
        changes.add_link(&NewLink::new("dev0", kind));
        match host.rtnetlink.apply(&changes) {
            Ok(()) => {
                assert_eq!(host.rtnetlink.link("dev0").unwrap().unwrap().kind.as_deref(), Some(name));
                let mut changes = Changes::new();
                changes.delete_link("dev0");
                host.rtnetlink.apply(&changes).unwrap();
            }
            Err(error) => {
                let text = text(&error);
                assert!(text.starts_with(&format!("cannot add {name} device dev0: Operation not supported")), "{text}");
            }
        }
    }
    let found = host.inside(|inside| inside.wireguard().map(drop));
    assert!(found.is_ok() || found.is_err_and(|error| error.is_absent()));
}

#[test]
fn devices_change_and_move() {
    if !root() {
        return;
    }
    let (here, there) = (Place::new(), Place::new());
    let mut changes = Changes::new();
    changes.add_link(&NewLink { index: Some(9), ..NewLink::new("br0", LinkKind::Bridge(Bridge::default())) });
    let mac: MacAddress = "02:42:00:00:00:07".parse().unwrap();
    let change = LinkChange { name: Some("br9".into()), mac: Some(mac), mtu: Some(1400), ..LinkChange::default() };
    changes.change_link(9, &change);
    changes.change_link("br9", &LinkChange { up: Some(true), ..LinkChange::default() });
    here.rtnetlink.apply(&changes).unwrap();
    let link = here.rtnetlink.link("br9").unwrap().unwrap();
    assert_eq!((link.index, link.mac, link.mtu, link.up), (9, Some(mac), 1400, true));
    assert_eq!(here.rtnetlink.link("br0").unwrap(), None);

    let veth = LinkKind::Veth(Box::new(NewLink::new("b", LinkKind::Peer)));
    let mut changes = Changes::new();
    changes.add_link(&NewLink::new("a", veth));
    changes.change_link("b", &LinkChange { namespace: Some(there.namespace.as_fd()), ..LinkChange::default() });
    here.rtnetlink.apply(&changes).unwrap();
    assert!(here.rtnetlink.link("b").unwrap().is_none() && there.rtnetlink.link("b").unwrap().is_some());

    // Each error is attributed to its change; the others are made.
    let mut changes = Changes::new();
    changes.add_link(&NewLink::new("a", LinkKind::Bridge(Bridge::default())));
    changes.delete_link("nobody");
    changes.change_link("a", &LinkChange { mtu: Some(1300), ..LinkChange::default() });
    changes.change_link(77, &LinkChange { up: Some(true), ..LinkChange::default() });
    let errors = here.rtnetlink.apply_each(&changes).unwrap();
    let texts: Vec<String> = errors.iter().map(text).collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert!(texts[0].starts_with("cannot add bridge device a: File exists"), "{texts:?}");
    assert!(texts[1].starts_with("cannot delete device nobody: No such device"), "{texts:?}");
    assert!(texts[2].starts_with("cannot change device number 77: No such device"), "{texts:?}");
    assert_eq!(here.rtnetlink.link("a").unwrap().unwrap().mtu, 1300);

    // Both ends of a pair can have given numbers; one of them only if the other has.
    let pair = |own, other| {
        let peer = NewLink { index: Some(other), ..NewLink::new("d", LinkKind::Peer) };
        NewLink { index: own, ..NewLink::new("c", LinkKind::Veth(Box::new(peer))) }
    };
    let mut changes = Changes::new();
    changes.add_link(&pair(Some(41), 42));
    here.rtnetlink.apply(&changes).unwrap();
    assert_eq!(here.rtnetlink.link("d").unwrap().unwrap().index, 42);
    let bridge = || NewLink::new("e", LinkKind::Bridge(Bridge::default()));
    let no_peer = NewLink::new("f", LinkKind::Veth(Box::new(bridge())));
    let up = NewLink { up: true, ..NewLink::new("e", LinkKind::Peer) };
    let up = NewLink::new("f", LinkKind::Veth(Box::new(up)));
    for wrong in [pair(None, 43), NewLink::new("e", LinkKind::Peer), no_peer, up] {
        let mut changes = Changes::new();
        changes.add_link(&wrong);
        let error = here.rtnetlink.apply(&changes).unwrap_err();
        assert!(matches!(error, NetlinkError::Invalid { .. }), "{}", text(&error));
    }

    // Nothing is sent when a part of it cannot be asked for.
    let mut changes = Changes::new();
    changes.change_link("a", &LinkChange { mtu: Some(1200), ..LinkChange::default() });
    changes.add_link(&NewLink::new("a name that is too long", LinkKind::Bridge(Bridge::default())));
    let error = here.rtnetlink.apply(&changes).unwrap_err();
    assert!(text(&error).contains("cannot name a device"), "{}", text(&error));
    assert_eq!(here.rtnetlink.link("a").unwrap().unwrap().mtu, 1300);
}

#[test]
fn addresses_routes_and_rules_read_back() {
    if !root() {
        return;
    }
    let network = Network::new();
    let (sandbox, v4, v6) = network.sandbox();
    let addresses = sandbox.rtnetlink.addresses().unwrap();
    for prefix in [Prefix::new(v4, 16).unwrap(), Prefix::new(v6, 64).unwrap()] {
        assert!(addresses.contains(&Address::new(2, prefix)), "{prefix}: {addresses:?}");
    }
    assert!(run(&sandbox.namespace, "ip address show eth0").contains("10.5.1.1/16 brd 10.5.255.255"));

    let prefix = |text: &str| text.parse::<Prefix>().unwrap();
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let onlink = |text, device| Target::Gateway { address: address(text), device: Some(device), onlink: true };
    let routes = [
        Route { table: 1000, mtu: Some(1300), ..Route::new(prefix("192.0.2.0/24"), onlink("198.51.100.1", 2)) },
        Route { priority: Some(7), source: Some(v4), ..Route::new(prefix("203.0.113.0/24"), Target::Device(2)) },
        Route::new(prefix("198.18.0.0/15"), Target::Blackhole),
        Route::new(prefix("198.51.100.9/32"), Target::Unreachable),
        Route { priority: Some(1024), ..Route::new(prefix("2001:db8::/32"), onlink("fd99::1", 2)) },
        Route { priority: Some(5), table: 77, ..Route::new(prefix("2001:db8:1::/48"), Target::Blackhole) },
    ];
    let rules = [
        RoutingRule {
            ipv6: false,
            priority: 100,
            mark: Some((0x10, 0xff)),
            source: None,
            destination: Some(prefix("10.9.0.0/16")),
            input_device: Some("eth0".into()),
            table: 1000,
        },
        RoutingRule {
            ipv6: true,
            priority: 101,
            mark: Some((1, u32::MAX)),
            source: Some(prefix("fd05::/64")),
            destination: None,
            input_device: None,
            table: 77,
        },
    ];
    let mut changes = Changes::new();
    routes.iter().for_each(|route| changes.add_route(route));
    rules.iter().for_each(|rule| changes.add_rule(rule));
    sandbox.rtnetlink.apply(&changes).unwrap();
    let (found_routes, found_rules) = (sandbox.rtnetlink.routes().unwrap(), sandbox.rtnetlink.rules().unwrap());
    routes.iter().for_each(|route| assert!(found_routes.contains(route), "{route:?}: {found_routes:#?}"));
    rules.iter().for_each(|rule| assert!(found_rules.contains(rule), "{rule:?}: {found_rules:#?}"));
    assert!(run(&sandbox.namespace, "ip route show table 1000").contains("via 198.51.100.1 dev eth0"));

    let mut changes = Changes::new();
    changes.add_route(&routes[0]);
    let error = sandbox.rtnetlink.apply(&changes).unwrap_err();
    assert_eq!(text(&error), "cannot add route 192.0.2.0/24 via 198.51.100.1 in table 1000: File exists");
    let mut changes = Changes::new();
    changes.replace_route(&Route { mtu: None, ..routes[0] });
    routes[1..].iter().for_each(|route| changes.delete_route(route));
    rules.iter().for_each(|rule| changes.delete_rule(rule));
    changes.delete_address(2, Prefix::new(v6, 64).unwrap());
    sandbox.rtnetlink.apply(&changes).unwrap();
    let left = sandbox.rtnetlink.routes().unwrap();
    assert!(left.contains(&Route { mtu: None, ..routes[0] }) && !left.iter().any(|route| routes.contains(route)));
    assert!(!sandbox.rtnetlink.rules().unwrap().iter().any(|rule| rules.contains(rule)));
    assert!(!sandbox.rtnetlink.addresses().unwrap().iter().any(|found| found.prefix.address == v6));
}

#[test]
fn threads_share_a_handle() {
    if !root() {
        return;
    }
    let place = Place::new();
    let work = |thread: u8| {
        for round in 0..50u8 {
            let prefix = Prefix::new([10, 1, thread, round], 32).unwrap();
            let mut changes = Changes::new();
            changes.add_address(1, prefix);
            // Refused, in between: the error is this thread's.
            changes.delete_link(format!("t{thread}r{round}").as_str());
            let error = place.rtnetlink.apply(&changes).unwrap_err();
            assert!(text(&error).contains(&format!("device t{thread}r{round}:")), "{}", text(&error));
            assert!(place.rtnetlink.addresses().unwrap().contains(&Address::new(1, prefix)));
            let mut changes = Changes::new();
            changes.delete_address(1, prefix);
            place.rtnetlink.apply(&changes).unwrap();
        }
    };
    std::thread::scope(|scope| {
        (0..4).for_each(|thread| {
            drop(scope.spawn({
                let work = &work;
                move || work(thread)
            }))
        })
    });
}
