//! Ways in and out besides the plain one: of the host to itself, of a task to its own host, over IPv6, on an underlay of IPv6.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use skep_netlink::Namespace;
use skep_proto::cidr::address_to_wire;
use skep_proto::v1;

use crate::lab::*;

fn port(published_port: u32, udp: bool, mode: v1::PublishMode) -> v1::PortSpec {
    v1::PortSpec { published_port, target_port: 80, protocol: i32::from(udp), mode: mode.into() }
}

fn own(last: u8) -> IpAddr {
    IpAddr::from([10, 5, 1, last])
}

fn own6(last: u8) -> IpAddr {
    IpAddr::from([0xfd05, 0, 0, 0, 0, 0, 1, last.into()])
}

fn mesh(last: u8) -> IpAddr {
    IpAddr::from([10, 255, 1, last])
}

fn mesh6(last: u8) -> IpAddr {
    IpAddr::from([0xfdff, 0, 0, 0, 0, 0, 1, last.into()])
}

/// Who answers at a port over TCP and at the next one over UDP, each several times.
fn answers(from: &Namespace, address: IpAddr, port: u16) -> BTreeSet<String> {
    let tcp = |number| {
        who(from, SocketAddr::new(address, port))
            .unwrap_or_else(|error| panic!("TCP {address} {port} {number}: {error}"))
    };
    let udp = |number| {
        let to = SocketAddr::new(address, port + 1);
        who_udp(from, to).unwrap_or_else(|error| panic!("UDP {address} {} {number}: {error}", port + 1))
    };
    (0..12).map(tcp).chain((0..12).map(udp)).collect()
}

fn both() -> BTreeSet<String> {
    ["task1", "task2"].map(str::to_owned).into()
}

/// Two hosts, each with a task that serves 8080 in the mesh, with IPv6 where it is wanted; the first also in mode host 9090.
fn two_hosts<'a>(lab: &'a Lab, ipv6: bool) -> ([Host<'a>; 2], Vec<Namespace>) {
    let hosts = [lab.host(1), lab.host(2)];
    for host in &hosts {
        // Strict, as some distributions have it.
        assert!(run(&host.namespace, "sysctl -w net.ipv4.conf.all.rp_filter=1").status.success());
    }
    let net = network(5, |spec| spec.ipv6 = ipv6);
    let ingress = network(9, |spec| {
        spec.ingress = true;
        spec.ipv6 = ipv6;
    });
    let mut table = whole(&ingress, 1);
    let ports = vec![port(8080, false, v1::PublishMode::Ingress), port(8081, true, v1::PublishMode::Ingress)];
    table.put_services = vec![service(9, "web", Ipv4Addr::new(10, 255, 9, 9), ports)];
    table.put_peers = [1, 2]
        .map(|number| {
            let mut row = peer(number);
            if ipv6 {
                let own = IpAddr::from([0xfdff, 0, 0, 0, 0, 0, 0, number.into()]);
                row.addresses.push(address_to_wire(own));
            }
            row
        })
        .to_vec();
    let row = |number: u8| {
        let mut row = endpoint(number, number.into(), 9, mesh(number), true);
        row.addresses.extend(ipv6.then(|| address_to_wire(mesh6(number))));
        row
    };
    table.put_endpoints = [1, 2].map(row).to_vec();
    let sandboxes = hosts.iter().zip([1, 2]).map(|(host, number)| {
        host.know(&net);
        host.follow(&[table.clone()]);
        let mut request = attach_request(number.into(), &[(&net, own(number)), (&ingress, mesh(number))]);
        if ipv6 {
            request.endpoints[0].addresses.push(address_to_wire(own6(number)));
            request.endpoints[1].addresses.push(address_to_wire(mesh6(number)));
        }
        if number == 1 {
            request.host_ports =
                vec![port(9090, false, v1::PublishMode::Host), port(9091, true, v1::PublishMode::Host)];
        }
        let sandbox = host.attach(&request);
        serve(&sandbox, 80, &format!("task{number}"));
        if ipv6 {
            serve6(&sandbox, 80, &format!("task{number}"));
        }
        sandbox
    });
    let sandboxes = sandboxes.collect();
    (hosts, sandboxes)
}

#[test]
fn a_host_and_its_tasks_reach_what_it_publishes() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let (hosts, sandboxes) = two_hosts(&lab, false);
    let at = |number: u8| IpAddr::from([10, 77, 0, number]);
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let one = BTreeSet::from(["task1".to_owned()]);
    for host in &hosts {
        assert_eq!(answers(&host.namespace, loopback, 8080), both());
        assert_eq!(answers(&host.namespace, at(1), 8080), both());
        assert_eq!(answers(&host.namespace, at(2), 8080), both());
        assert_eq!(answers(&host.namespace, at(1), 9090), one);
    }
    assert_eq!(answers(&hosts[0].namespace, loopback, 9090), one);
    // Also to the very host that the task is on, and back to itself.
    for sandbox in &sandboxes {
        for number in [1, 2] {
            assert_eq!(answers(sandbox, at(number), 8080), both());
        }
        assert_eq!(answers(sandbox, at(1), 9090), one);
    }
    // The loopback is still nobody else's: whoever sends to it from outside or from a task, by whatever route.
    let listen = |inside: &skep_netlink::Inside| inside.udp(SocketAddr::from(([127, 0, 0, 5], 9999)));
    let secret = hosts[0].namespace.enter(listen).unwrap();
    secret.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    for (from, gateway) in [(&lab.outside, "10.77.0.1"), (&sandboxes[0], "10.5.0.1")] {
        for command in [
            "sysctl -w net.ipv4.conf.all.route_localnet=1".to_owned(),
            "ip route del table local 127.0.0.0/8 dev lo".to_owned(),
            format!("ip route add 127.0.0.5/32 via {gateway}"),
        ] {
            let output = run(from, &command);
            assert!(output.status.success(), "{command}: {output:?}");
        }
        let socket = from.enter(|inside| inside.udp(SocketAddr::from(([0; 4], 0)))).unwrap();
        for port in [9999, 8081, 9091] {
            socket.send_to(b"?", ("127.0.0.5", port)).unwrap();
        }
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(socket.recv(&mut [0; 8]).is_err());
        assert!(secret.recv(&mut [0; 8]).is_err());
    }
}

#[test]
fn ipv6_leads_out_and_in() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let (mut hosts, sandboxes) = two_hosts(&lab, true);
    assert!(ping(&sandboxes[0], "fd77::100") && ping(&sandboxes[0], "10.77.0.100") && ping(&sandboxes[1], "fd77::100"));
    // Masqueraded: the outside knows only the host.
    serve6(&lab.outside, 7000, "outside");
    let out = SocketAddr::from(([0xfd77, 0, 0, 0, 0, 0, 0, 0x100], 7000));
    assert_eq!(who(&sandboxes[0], out).unwrap(), "outside");
    assert_eq!(who_udp(&sandboxes[0], out).unwrap(), "outside");
    let at = |number: u16| IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, number]);
    let one = BTreeSet::from(["task1".to_owned()]);
    for from in [&lab.outside, &hosts[0].namespace, &hosts[1].namespace, &sandboxes[0], &sandboxes[1]] {
        for number in [1, 2] {
            assert_eq!(answers(from, at(number), 8080), both());
        }
        assert_eq!(answers(from, at(1), 9090), one);
    }
    // IPv4 as before.
    assert_eq!(answers(&lab.outside, IpAddr::from([10, 77, 0, 2]), 8080), both());
    // Routers are still listened to.
    assert_eq!(hosts[0].sysctl("net.ipv6.conf.all.forwarding"), "1");
    assert_eq!(hosts[0].sysctl("net.ipv6.conf.eth0.accept_ra"), "2");
    for host in &mut hosts {
        host.shutdown();
        assert_eq!(host.sysctl("net.ipv6.conf.all.forwarding"), "0");
        let rules = run(&host.namespace, "nft list ruleset");
        assert!(rules.stdout.is_empty(), "{}", String::from_utf8_lossy(&rules.stdout));
    }
}

#[test]
fn the_underlay_may_be_ipv6() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut hosts = [lab.host(1), lab.host(2)];
    for host in &mut hosts {
        host.who.vxlan_addr = format!("fd77::{}", host.number);
        host.who.wireguard_addr = format!("[fd77::{}]:51820", host.number);
        host.configure().unwrap();
    }
    let six = |number: u8| {
        let mut row = peer(number);
        let endpoint = row.endpoint.as_mut().unwrap();
        endpoint.vxlan_addr = format!("fd77::{number}");
        endpoint.wireguard_addr = format!("[fd77::{number}]:51820");
        row
    };
    for (number, largest) in [(5, 1430), (6, 1370)] {
        let net = network(number, |spec| {
            if number == 6 {
                spec.options.clear()
            }
        });
        let (before, address) = (u128::from(number) * 10, |host: u8| pair_address(number, host));
        let table = v1::NetworkTable { put_peers: vec![six(1), six(2)], ..pair(&net, number, before) };
        let sandboxes = attach_pair(&hosts, (&net, number, before), &table, &[]);
        assert!(ping(&sandboxes[0], &address(2).to_string()) && ping(&sandboxes[1], &address(1).to_string()));
        let long = |size: u16| format!("-M do -s {size} {}", address(2));
        assert!(ping(&sandboxes[0], &long(largest - 28)), "{number}");
        assert!(is_silent(&sandboxes[0], &long(largest - 27)), "{number}");
        serve(&sandboxes[1], 80, "task2");
        assert_eq!(who(&sandboxes[0], SocketAddr::new(address(2), 80)).unwrap(), "task2");
    }
}

/// Fragments that a namespace has made (`FragCreates` of RFC 4293).
fn fragments(namespace: &Namespace) -> u64 {
    let output = run(namespace, "cat /proc/net/snmp");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("Ip: ")).map(|line| line.split(' '));
    let (mut names, mut values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.position(|name| name == "FragCreates").unwrap();
    values.nth(at).unwrap().parse().unwrap()
}

/// The largest segment of a connection as its end here sends it, with timestamps (12 bytes) left out.
fn segment(stream: &std::net::TcpStream) -> u32 {
    nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::TcpMaxSeg).unwrap()
}

#[test]
fn a_large_underlay_carries_large_packets_all_the_way() {
    use std::io::{Read, Write};
    if !root() {
        return;
    }
    let lab = Lab::new();
    let hosts = [lab.host(1), lab.host(2)];
    lab.widen(9000, &[&hosts[0], &hosts[1]]);
    assert!(run(&lab.outside, "ip link set eth0 mtu 9000").status.success());
    for (number, mtu) in [(5, 8950), (6, 8870)] {
        let net = network(number, |spec| {
            if number == 6 {
                spec.options.clear()
            }
        });
        let (before, address) = (u128::from(number) * 10, |host: u8| pair_address(number, host));
        let ports = [port(u32::from(number) * 1000, false, v1::PublishMode::Host)];
        let sandboxes = attach_pair(&hosts, (&net, number, before), &pair(&net, number, before), &ports);
        let long = |to: &str, size: u32| format!("-M do -s {} {to}", size - 28);
        let there = address(2).to_string();
        assert!(ping(&sandboxes[0], &long(&there, mtu)), "{number}");
        assert!(is_silent(&sandboxes[0], &long(&there, mtu + 1)), "{number}");
        // The way out is no bottleneck.
        assert!(ping(&sandboxes[0], &long("10.77.0.100", mtu)), "{number}");
        serve(&sandboxes[1], 80, "task2");
        let places: Vec<&Namespace> = sandboxes.iter().chain(hosts.iter().map(|host| &host.namespace)).collect();
        let fragmented: u64 = places.iter().map(|place| fragments(place)).sum();
        let by_host = SocketAddr::from(([10, 77, 0, 2], u16::from(number) * 1000));
        for (from, to) in [(&sandboxes[0], SocketAddr::new(address(2), 80)), (&lab.outside, by_host)] {
            let mut stream = connect(from, to).unwrap();
            assert_eq!(segment(&stream), mtu - 40 - 12, "{number} {to}");
            // Each byte is answered by five: full segments both ways.
            let mut answers = stream.try_clone().unwrap();
            let reader = std::thread::spawn(move || {
                let mut answer = vec![0; 5 * 100_000];
                answers.read_exact(&mut answer).map(|()| answer)
            });
            stream.write_all(&vec![b'?'; 100_000]).unwrap();
            assert!(reader.join().unwrap().unwrap().starts_with(b"task2task2"));
        }
        assert_eq!(places.iter().map(|place| fragments(place)).sum::<u64>(), fragmented, "{number}");
    }
    // What does not fit is refused, in words.
    let large = network(7, |spec| drop(spec.options.insert("mtu".into(), "8951".into())));
    hosts[0].know(&large);
    let error = hosts[0].try_attach(&attach_request(70, &[(&large, IpAddr::from([10, 7, 1, 1]))])).unwrap_err();
    assert!(
        error.message().contains("option mtu: 8951 does not fit: this host's underlay has an MTU of 9000, of which VXLAN takes 50, so that 8950 is the largest that fits"),
        "{error}"
    );
}

/// Clouds serve metadata at 169.254.169.254, outside of the machine.
#[test]
fn a_task_reaches_link_local_services_outside() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host(1);
    assert!(run(&lab.outside, "ip address add 169.254.169.254/32 dev eth0").status.success());
    assert!(run(&host.namespace, "ip route add 169.254.169.254 dev eth0").status.success());
    serve(&lab.outside, 80, "metadata");
    let net = network(5, |_| {});
    host.know(&net);
    let sandbox = host.attach(&attach_request(1, &[(&net, own(1))]));
    assert_eq!(who(&sandbox, SocketAddr::from(([169, 254, 169, 254], 80))).unwrap(), "metadata");
}
