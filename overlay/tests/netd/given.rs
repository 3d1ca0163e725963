//! What managers gave to another task since, and what an earlier netd did not finish: a task that has ended is not in the way
//! while it is taken down.

use std::net::{IpAddr, SocketAddr};

use nix::sys::signal::Signal;
use skep_netlink::{Inside, Namespace};
use skep_overlay::Sandboxes;
use skep_proto::v1;

use crate::lab::*;

fn address(last: u8) -> IpAddr {
    [10, 5, 1, last].into()
}

/// A task of that number and address, with port 9090 of the host.
fn task(host: &Host<'_>, net: &v1::Network, number: u128, last: u8) -> Namespace {
    let port = v1::PortSpec {
        published_port: 9090,
        target_port: 80,
        mode: v1::PublishMode::Host.into(),
        ..v1::PortSpec::default()
    };
    let request = attach_request(number, &[(net, address(last))]);
    let sandbox = host.attach(&v1::AttachRequest { host_ports: vec![port], ..request });
    serve(&sandbox, 80, &format!("task{number}"));
    sandbox
}

#[test]
fn addresses_and_ports_lead_to_the_task_that_has_them_now() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host(1);
    let net = network(5, |_| {});
    host.know(&net);
    let client = host.attach(&attach_request(9, &[(&net, address(9))]));
    let published = SocketAddr::from(([10, 77, 0, 1], 9090));
    // Whatever their ids say about their order: each comes while the one before is still there.
    for (number, last) in [(4, 4), (5, 4), (3, 4), (2, 6), (7, 7)] {
        let _sandbox = task(&host, &net, number, last);
        let own = format!("task{number}");
        assert_eq!(who(&client, SocketAddr::new(address(last), 80)).unwrap(), own);
        assert_eq!(who(&lab.outside, published).unwrap(), own);
    }
    // Late, and it takes nothing from the others.
    for number in [4, 5, 3, 2] {
        host.detach(task_id(number));
        assert_eq!(who(&lab.outside, published).unwrap(), "task7");
    }
    assert_eq!(who(&client, SocketAddr::new(address(7), 80)).unwrap(), "task7");
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
    let folder = std::fs::read_dir(&networks).unwrap().next().unwrap().unwrap().path();
    host.signal(Signal::SIGKILL);
    // The sandbox is gone already, as in the middle of a detach.
    Sandboxes::open(&host.dir.join("sandboxes")).unwrap().remove(&task_id(1).to_string()).unwrap();
    let network = Namespace::open(&folder.join("net")).unwrap().enter(Inside::rtnetlink).unwrap();
    until("its device is there still", || {
        network.links().unwrap().iter().all(|link| !link.name.starts_with("v-")).then_some(())
    });
    host.start_alone();
    until("the network is there still", || (std::fs::read_dir(&networks).unwrap().count() == 0).then_some(()));
    assert!(host.rtnetlink.links().unwrap().iter().all(|link| !link.name.starts_with("sk-")));
}
