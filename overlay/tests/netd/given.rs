//! What managers gave to another task since, what is left of one that has ended, and what an earlier netd did not finish: nothing
//! of it is in the way of others.

use std::net::{IpAddr, SocketAddr};

use nix::sys::signal::Signal;
use skep_netlink::link::Link;
use skep_netlink::{Inside, Namespace, Rtnetlink};
use skep_overlay::{Sandboxes, link};
use skep_proto::v1;

use crate::lab::*;

const PORT: u16 = 9090;

fn address(last: u8) -> IpAddr {
    [10, 5, 1, last].into()
}

/// A task on a network, with ports of the host.
fn request(net: &v1::Network, number: u128, address: IpAddr, ports: &[u16]) -> v1::AttachRequest {
    let port = |published: &u16| v1::PortSpec {
        published_port: (*published).into(),
        target_port: 80,
        mode: v1::PublishMode::Host.into(),
        ..v1::PortSpec::default()
    };
    let host_ports = ports.iter().map(port).collect();
    v1::AttachRequest { host_ports, ..attach_request(number, &[(net, address)]) }
}

/// The namespace of the only network.
fn network_of(host: &Host<'_>) -> Rtnetlink {
    let folder = std::fs::read_dir(host.dir.join("networks")).unwrap().next().unwrap().unwrap().path();
    Namespace::open(&folder.join("net")).unwrap().enter(Inside::rtnetlink).unwrap()
}

fn task(host: &Host<'_>, net: &v1::Network, number: u128, address: IpAddr) -> Namespace {
    let sandbox = host.attach(&request(net, number, address, &[PORT]));
    serve(&sandbox, 80, &format!("task{number}"));
    sandbox
}

#[test]
fn addresses_and_ports_lead_to_the_task_that_has_them_now() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut host = lab.host(1);
    let (net, other) = (network(5, |_| {}), network(6, |_| {}));
    host.know(&net);
    host.know(&other);
    let client = host.attach(&attach_request(9, &[(&net, address(9))]));
    let published = SocketAddr::from(([10, 77, 0, 1], PORT));
    // Whatever their ids say about their order: each comes while the one before is still there.
    for (number, last) in [(4, 4), (5, 4), (3, 4), (2, 6)] {
        let _sandbox = task(&host, &net, number, address(last));
        let own = format!("task{number}");
        assert_eq!(who(&client, SocketAddr::new(address(last), 80)).unwrap(), own);
        assert_eq!(who(&lab.outside, published).unwrap(), own);
    }
    let elsewhere = [10, 6, 1, 7].into();
    for (number, net, at) in [(8, &other, elsewhere), (7, &net, address(7))] {
        let _sandbox = task(&host, net, number, at);
        assert_eq!(who(&lab.outside, published).unwrap(), format!("task{number}"));
    }
    // The next netd restores what each has, not what it had.
    host.signal(Signal::SIGKILL);
    host.start_alone();
    assert_eq!(who(&lab.outside, published).unwrap(), "task7");
    // Late, and it takes nothing from the others.
    for number in [4, 5, 8, 3, 2] {
        host.detach(task_id(number));
        assert_eq!(who(&lab.outside, published).unwrap(), "task7");
    }
    assert_eq!(who(&client, SocketAddr::new(address(7), 80)).unwrap(), "task7");
}

#[test]
fn a_port_is_free_where_the_task_that_was_given_it_cannot_have_all_of_its_ports() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host(1);
    let net = network(5, |_| {});
    host.know(&net);
    let _sandbox = task(&host, &net, 1, address(1));
    let any = |port: u16| SocketAddr::from(([0, 0, 0, 0], port));
    let _process = host.namespace.enter(|inside| inside.tcp(any(PORT + 1))).unwrap();
    let refused = host.try_attach(&request(&net, 2, address(2), &[PORT, PORT + 1])).unwrap_err();
    assert!(refused.message().contains("9091"), "{}", refused.message());
    // Whoever had it has ended.
    drop(host.namespace.enter(|inside| inside.tcp(any(PORT))).unwrap());
    host.detach(task_id(1));
    let _sandbox = task(&host, &net, 3, address(3));
    assert_eq!(who(&lab.outside, SocketAddr::from(([10, 77, 0, 1], PORT))).unwrap(), "task3");
}

#[test]
fn the_devices_of_a_task_that_ended_are_cut_off_and_go_with_its_namespace() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host(1);
    let net = network(5, |_| {});
    host.know(&net);
    let client = host.attach(&attach_request(9, &[(&net, address(9))]));
    let bridge = network_of(&host);
    let ended = host.attach(&attach_request(1, &[(&net, address(1))]));
    let before = bridge.links().unwrap();
    host.detach(task_id(1));
    // As by a process that does not end.
    assert!(!ended.enter(Inside::rtnetlink).unwrap().link("eth0").unwrap().unwrap().up);
    let on_bridge = |links: Vec<Link>| links.into_iter().filter(|link| link.master.is_some()).count();
    assert_eq!(on_bridge(bridge.links().unwrap()), on_bridge(before.clone()) - 1);
    let _next = task(&host, &net, 2, address(1));
    assert_eq!(who(&client, SocketAddr::new(address(1), 80)).unwrap(), "task2");
    // The same one again, while its old namespace is there still.
    host.attach(&attach_request(1, &[(&net, address(3))]));
    host.detach(task_id(1));
    drop(ended);
    until("its devices are there still", || (bridge.links().unwrap().len() == before.len()).then_some(()));
}

#[test]
fn a_task_has_the_address_of_the_underlay_that_another_had() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host(1);
    let lan = lan(|_| {});
    host.know(&lan);
    let [ended, given] = [1, 2].map(|number| host.attach(&attach_request(number, &[(&lan, [10, 77, 0, 40].into())])));
    assert!(ping(&given, "10.77.0.100") && is_silent(&ended, "10.77.0.100"));
}

#[test]
fn a_task_that_was_half_cut_off_is_whole_with_the_next_netd() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut host = lab.host(1);
    let net = network(5, |_| {});
    host.know(&net);
    let client = host.attach(&attach_request(9, &[(&net, address(9))]));
    let bridge = network_of(&host);
    let others = bridge.links().unwrap();
    let sandbox = task(&host, &net, 1, address(1));
    let is_new = |link: &Link| others.iter().all(|other| other.name != link.name);
    let device = bridge.links().unwrap().into_iter().find(is_new).unwrap();
    link::cut_off(&bridge, device.index).unwrap();
    assert!(is_silent(&client, "10.5.1.1"));
    host.signal(Signal::SIGKILL);
    let state = host.start_alone();
    assert_eq!(state.sandboxes.len(), 2);
    assert_eq!(who(&client, SocketAddr::new(address(1), 80)).unwrap(), "task1");
    drop(sandbox);
}

#[test]
fn a_network_that_was_being_removed_goes_with_the_next_netd() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let mut host = lab.host(1);
    let net = network(5, |_| {});
    host.know(&net);
    host.attach(&attach_request(1, &[(&net, address(1))]));
    let networks = host.dir.join("networks");
    let network = network_of(&host);
    host.signal(Signal::SIGKILL);
    // The sandbox is gone already, as in the middle of a detach.
    Sandboxes::open(&host.dir.join("sandboxes")).unwrap().remove(&task_id(1).to_string()).unwrap();
    until("its device is there still", || {
        network.links().unwrap().iter().all(|link| !link.name.starts_with("v-")).then_some(())
    });
    host.start_alone();
    until("the network is there still", || (std::fs::read_dir(&networks).unwrap().count() == 0).then_some(()));
    assert!(host.rtnetlink.links().unwrap().iter().all(|link| !link.name.starts_with("sk-")));
}
