//! Tasks on two hosts talk, find each other, and are kept apart.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use skep_netlink::Namespace;
use skep_proto::id::NetworkId;

use crate::lab::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn tasks_on_two_hosts_talk_by_name_and_are_balanced() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let hosts = [lab.host(1), lab.host(2)];
    let net = network(5, |_| {});
    let vip = Ipv4Addr::new(10, 5, 0, 2);
    let mut table = pair(&net, 5, 0);
    table.put_services = vec![service(9, "web", vip, Vec::new())];
    let addresses = [1, 2].map(|host| pair_address(5, host));
    let mut sandboxes = attach_pair(&hosts, (&net, 5, 0), &table, &[]).into_iter();
    let (one, two) = (sandboxes.next().unwrap(), sandboxes.next().unwrap());
    for (number, sandbox) in [&one, &two].into_iter().enumerate() {
        serve(sandbox, 80, &format!("task{}", number + 1));
    }
    assert!(ping(&one, "10.5.1.2") && ping(&two, "10.5.1.1") && ping(&one, "10.5.0.1"));
    assert_eq!(resolve(&one, "web"), [vip]);
    assert_eq!(resolve(&two, "task1"), [Ipv4Addr::new(10, 5, 1, 1)]);
    let service = SocketAddr::from((vip, 80));
    let answers: BTreeSet<String> = (0..40).map(|_| who(&one, service).unwrap()).collect();
    assert_eq!(answers.len(), 2, "{answers:?}");
    assert_eq!(who_udp(&one, SocketAddr::from((addresses[1], 80))).unwrap(), "task2");
    assert!(who_udp(&two, service).is_ok());

    // A backend that goes gets no new connections, and keeps its open ones.
    let mut open: Vec<_> = (0..40).map(|_| connect(&one, service).unwrap()).collect();
    let before: Vec<String> = open.iter_mut().map(|stream| ask(stream).unwrap()).collect();
    let mut change = difference(&net, 2);
    change.put_endpoints = vec![endpoint(2, 2, 9, addresses[1], false)];
    for host in &hosts {
        host.follow(&[change.clone()]);
    }
    let after: Vec<String> = open.iter_mut().map(|stream| ask(stream).unwrap()).collect();
    assert_eq!(before, after);
    assert!(before.contains(&"task2".to_owned()));
    for _ in 0..20 {
        assert_eq!(who(&one, service).unwrap(), "task1");
    }
    // Its own names still lead to itself.
    assert_eq!((resolve(&two, "task2").len(), resolve(&one, "task2").len()), (1, 0));
    // A gap is told.
    let response = hosts[0].apply(&[difference(&net, 7)]);
    assert!(response.faults[0].needs_complete);
    assert_eq!(response.applied[0].version, 2);
}

#[test]
fn plain_overlays_use_the_port_of_their_table() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let hosts = [lab.host(1), lab.host(2)];
    let net = network(5, |_| {});
    let table = skep_proto::v1::NetworkTable { data_path_port: 5000, ..pair(&net, 5, 0) };
    let sandboxes = attach_pair(&hosts, (&net, 5, 0), &table, &[]);
    assert!(ping(&sandboxes[0], "10.5.1.2"));
    let port = |host: &Host<'_>| {
        let path = host.dir.join("networks").join(NetworkId::from_wire(&net.id).unwrap().to_string()).join("net");
        let namespace = Namespace::open(&path).unwrap();
        let links = namespace.enter(skep_netlink::Inside::rtnetlink).unwrap().links().unwrap();
        links.iter().find_map(|link| link.vxlan).unwrap().port
    };
    assert_eq!(hosts.each_ref().map(port), [5000, 5000]);
    // Another one, and the usual one where none is said.
    for (version, told, right) in [(2, 5001, 5001), (3, 0, 4789)] {
        let change = skep_proto::v1::NetworkTable {
            network: Some(net.clone()),
            data_path_port: told,
            ..difference(&net, version)
        };
        hosts[0].follow(std::slice::from_ref(&change));
        assert!(is_silent(&sandboxes[0], "10.5.1.2"), "only one of them is there");
        hosts[1].follow(&[change]);
        assert_eq!(hosts.each_ref().map(port), [right, right]);
        assert!(ping(&sandboxes[0], "10.5.1.2") && ping(&sandboxes[1], "10.5.1.1"));
    }
    let wrong = skep_proto::v1::NetworkTable { data_path_port: 65_536, ..whole(&net, 4) };
    assert!(hosts[0].apply(&[wrong]).faults[0].error.contains("65536 is no UDP port"));
}

#[test]
fn networks_are_apart_and_internal_ones_have_no_way_out() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host(1);
    let (open, inner) = (network(5, |_| {}), network(6, |spec| spec.internal = true));
    host.know(&open);
    host.know(&inner);
    let one = host.attach(&attach_request(1, &[(&open, ip("10.5.1.1"))]));
    let two = host.attach(&attach_request(2, &[(&inner, ip("10.6.1.1"))]));
    let both = host.attach(&attach_request(3, &[(&inner, ip("10.6.1.2")), (&open, ip("10.5.1.2"))]));
    assert!(ping(&both, "10.5.1.1") && ping(&both, "10.6.1.1"));
    assert!(is_silent(&one, "10.6.1.1") && is_silent(&two, "10.5.1.1"));
    assert!(ping(&one, "10.77.0.100") && ping(&both, "10.77.0.100"));
    assert!(is_silent(&two, "10.77.0.100"));
    let local = lab_local(&host);
    assert!(ping(&local, "10.77.0.100") && is_silent(&local, "10.5.1.1"));
    let alone = host.attach(&attach_request(8, &[]));
    assert!(is_silent(&alone, "10.77.0.100") && ping(&alone, "127.0.0.1"));
}

fn lab_local(host: &Host<'_>) -> Namespace {
    host.attach(&skep_proto::v1::AttachRequest { local_bridge: true, ..attach_request(4, &[]) })
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut host = lab.host(1);
    let unknown = |host: &Host<'_>, net: &skep_proto::v1::Network, address: &str, text: &str| {
        let request = attach_request(1, &[(net, ip(address))]);
        let error = host.try_attach(&request).unwrap_err();
        assert!(error.message().contains(text), "{error}");
        for folder in ["networks", "sandboxes"] {
            assert_eq!(std::fs::read_dir(host.dir.join(folder)).unwrap().count(), 0, "{text}: {folder}");
        }
        error.code()
    };
    let refused = |host: &Host<'_>, net: &skep_proto::v1::Network, address: &str, text: &str| {
        host.know(net);
        unknown(host, net, address, text)
    };
    let code = unknown(&host, &network(5, |_| {}), "10.5.1.1", "has not come to this host yet");
    assert_eq!(code, tonic::Code::Unavailable);
    refused(&host, &network(5, |_| {}), "10.9.1.1", "in no subnet");
    let sealed = |mtu: &str| {
        let mtu = mtu.to_owned();
        network(5, |spec| spec.options = [("mtu".to_owned(), mtu)].into())
    };
    refused(&host, &sealed("1371"), "10.5.1.1", "so that 1370 is the largest that fits");
    let large = |spec: &mut skep_proto::v1::NetworkSpec| drop(spec.options.insert("mtu".into(), "1500".into()));
    refused(&host, &network(5, large), "10.5.1.1", "so that 1450 is the largest that fits");
    let macvlan = |spec: &mut skep_proto::v1::NetworkSpec| {
        spec.driver = skep_proto::v1::NetworkDriver::Macvlan.into();
        spec.options.insert("parent".into(), "eth7".into());
    };
    refused(&host, &network(5, macvlan), "10.5.1.1", "no such device");
    let wide = |spec: &mut skep_proto::v1::NetworkSpec| {
        macvlan(spec);
        spec.options.extend([("parent".into(), "eth0".into()), ("mtu".into(), "1600".into())]);
    };
    refused(&host, &network(5, wide), "10.5.1.1", "`mtu` is 1600, and the device's own is 1500");
    // Who is not told a key has no encrypted networks.
    host.who.private_key.clear();
    assert!(host.configure().unwrap().public_key.is_empty());
    refused(&host, &sealed("1370"), "10.5.1.1", "wait for this host's key");
    host.who.private_key = vec![1; 31];
    assert!(host.configure().unwrap_err().message().contains("31 bytes instead of 32"));
    // Nor who has no number yet.
    let host = lab.host(2);
    host.follow(&[whole(&sealed("1370"), 2)]);
    unknown(&host, &sealed("1370"), "10.5.1.1", "wait for this host's number");
    host.know(&sealed("1370"));
    host.attach(&attach_request(1, &[(&sealed("1370"), ip("10.5.1.1"))]));
    // A network that no task needs any more, says the manager, though one is there still: nobody else comes to it.
    host.follow(&[skep_proto::v1::NetworkTable { dropped: true, ..difference(&sealed("1370"), 2) }]);
    let late = attach_request(2, &[(&sealed("1370"), ip("10.5.1.2"))]);
    assert_eq!(host.try_attach(&late).unwrap_err().code(), tonic::Code::Unavailable);
    assert!(host.state().networks.is_empty());
}

#[test]
fn many_at_once_of_both_families_and_on_the_hosts_own_network() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let (host, other) = (lab.host(1), lab.host(2));
    let net = network(5, |spec| spec.ipv6 = true);
    let six = |last: u16| IpAddr::from([0xfd05, 0, 0, 0, 0, 0, 1, last]);
    let request = |task: u8| {
        let mut request = attach_request(task.into(), &[(&net, IpAddr::from([10, 5, 1, task]))]);
        request.endpoints[0].addresses.push(skep_proto::cidr::address_to_wire(six(task.into())));
        request
    };
    host.know(&net);
    let client = host.client();
    let attach = |task: u8| {
        let (mut client, request) = (client.clone(), request(task));
        async move { client.attach(request).await.unwrap().into_inner() }
    };
    let made = lab.runtime.block_on(futures::future::join_all((1..=20).map(attach)));
    let open = |path: &str| Namespace::open(std::path::Path::new(path)).unwrap();
    let first = open(&made[0].namespace_path);
    for last in 2..=20 {
        assert!(ping(&first, &format!("10.5.1.{last}")) && ping(&first, &six(last).to_string()));
    }
    // Over to another host, by IPv6.
    let mut table = whole(&net, 1);
    table.put_peers = vec![peer(1), peer(2)];
    for (node, task) in [(1, 1), (2, 30)] {
        let mut row = endpoint(node, task.into(), 9, IpAddr::from([10, 5, 1, task]), true);
        row.addresses.push(skep_proto::cidr::address_to_wire(six(task.into())));
        table.put_endpoints.push(row);
    }
    for host in [&host, &other] {
        host.follow(&[table.clone()]);
    }
    let far = other.attach(&request(30));
    assert!(ping(&first, &six(30).to_string()) && ping(&far, "10.5.1.1"));
    let detach = |task: u8| {
        let mut client = client.clone();
        let request = skep_proto::v1::DetachRequest { task_id: task_id(task.into()).to_vec() };
        async move { drop(client.detach(request).await.unwrap()) }
    };
    lab.runtime.block_on(futures::future::join_all((1..=20).map(detach)));
    assert_eq!(std::fs::read_dir(host.dir.join("networks")).unwrap().count(), 0);

    // macvlan: an address of the underlay.
    let lan = lan(|spec| drop(spec.options.insert("mtu".into(), "1400".into())));
    host.know(&lan);
    let one = host.attach(&attach_request(40, &[(&lan, ip("10.77.0.40"))]));
    assert!(ping(&one, "10.77.0.100") && ping(&one, "10.77.0.2") && ping(&lab.outside, "10.77.0.40"));
    let link = one.enter(skep_netlink::Inside::rtnetlink).unwrap().link("eth0").unwrap().unwrap();
    assert_eq!(link.mtu, 1400);
    host.detach(task_id(40));
    assert!(is_silent(&lab.outside, "10.77.0.40"));
}

#[test]
fn each_host_has_its_own_network_of_driver_bridge() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let hosts = [lab.host(1), lab.host(2)];
    let net = network(5, |spec| {
        spec.driver = skep_proto::v1::NetworkDriver::Bridge.into();
        spec.options.clear();
    });
    let vip = Ipv4Addr::new(10, 5, 0, 2);
    let address = |last: u8| IpAddr::from([10, 5, 1, last]);
    let mut table = whole(&net, 1);
    table.put_services = vec![service(9, "web", vip, Vec::new())];
    table.put_endpoints = [1, 2].map(|host| endpoint(host, host.into(), 9, address(host), true)).to_vec();
    table.put_endpoints.push(endpoint(2, 3, 9, address(3), true));
    let sandboxes = [(0, 1), (1, 2), (1, 3)].map(|(host, last): (usize, u8)| {
        hosts[host].follow(&[table.clone()]);
        let sandbox = hosts[host].attach(&attach_request(last.into(), &[(&net, address(last))]));
        serve(&sandbox, 80, &format!("task{last}"));
        sandbox
    });
    let answers = |from| (0..20).map(|_| who(from, SocketAddr::from((vip, 80))).unwrap()).collect::<BTreeSet<_>>();
    let names = |from, name| resolve(from, name).len();
    assert_eq!(answers(&sandboxes[0]), ["task1".to_owned()].into());
    assert_eq!(answers(&sandboxes[1]), ["task2", "task3"].map(str::to_owned).into());
    for (sandbox, own, other) in [(&sandboxes[0], "task1", "task2"), (&sandboxes[2], "task2", "task1")] {
        assert_eq!((names(sandbox, own), names(sandbox, other)), (1, 0));
    }
    assert_eq!((names(&sandboxes[0], "tasks.web"), names(&sandboxes[2], "tasks.web")), (1, 2));
    // Changes too: one goes, another host's comes and goes.
    let mut change = difference(&net, 2);
    change.put_endpoints = vec![endpoint(2, 3, 9, address(3), false), endpoint(1, 4, 9, address(4), true)];
    for host in &hosts {
        host.follow(&[change.clone()]);
    }
    assert_eq!(answers(&sandboxes[1]), ["task2".to_owned()].into());
    assert_eq!((names(&sandboxes[0], "task4"), names(&sandboxes[2], "task4")), (1, 0));
}
