//! Ports that are reached from outside: of the routing mesh on every host, of mode host on one.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use skep_proto::v1;

use crate::lab::*;

fn port(published_port: u32, target_port: u32, udp: bool, mode: v1::PublishMode) -> v1::PortSpec {
    v1::PortSpec { published_port, target_port, protocol: i32::from(udp), mode: mode.into() }
}

#[test]
fn every_host_answers_for_the_mesh() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let hosts = [lab.host(1), lab.host(2), lab.host(3)];
    let (net, mesh) = (network(5, |_| {}), network(9, |spec| spec.ingress = true));
    let ports = vec![port(8080, 80, false, v1::PublishMode::Ingress), port(8053, 80, true, v1::PublishMode::Ingress)];
    let mut table = whole(&mesh, 1);
    table.put_services = vec![service(9, "web", Ipv4Addr::new(10, 255, 9, 9), ports)];
    table.put_peers = vec![peer(1), peer(2), peer(3)];
    let address = |last: u8| IpAddr::from([10, 255, 1, last]);
    table.put_endpoints = vec![endpoint(1, 1, 9, address(1), true), endpoint(2, 2, 9, address(2), true)];
    let mut sandboxes = Vec::new();
    for (host, number) in hosts.iter().zip(1..=3_u8) {
        host.know(&net);
        host.follow(&[table.clone()]);
        // The third has none of the tasks.
        if number < 3 {
            let own = IpAddr::from([10, 5, 1, number]);
            let request = attach_request(number.into(), &[(&net, own), (&mesh, address(number))]);
            let sandbox = host.attach(&request);
            serve(&sandbox, 80, &format!("task{number}"));
            sandboxes.push(sandbox);
        }
    }
    for number in 1..=3 {
        let at = |port: u16| SocketAddr::from(([10, 77, 0, number], port));
        let answers: BTreeSet<String> = (0..40).map(|_| who(&lab.outside, at(8080)).unwrap()).collect();
        assert_eq!(answers.len(), 2, "host {number}: {answers:?}");
        let answers: BTreeSet<String> = (0..40).map(|_| who_udp(&lab.outside, at(8053)).unwrap()).collect();
        assert_eq!(answers.len(), 2, "host {number}: {answers:?}");
        // From another host, and from a host itself.
        assert!(who(&hosts[0].namespace, at(8080)).is_ok());
    }
    // Its own address there is given later, or is another one: replies come back to that.
    for (version, own) in [(2, vec![]), (3, vec![vec![10, 255, 0, 33]])] {
        let mut change = difference(&mesh, version);
        change.put_peers = vec![v1::NetworkPeer { addresses: own.clone(), ..peer(3) }];
        for host in &hosts {
            host.follow(&[change.clone()]);
        }
        // Without one, it cannot tell its own connections from those of other hosts.
        if !own.is_empty() {
            let at = SocketAddr::from(([10, 77, 0, 3], 8080));
            let answers: BTreeSet<String> = (0..40).map(|_| who(&lab.outside, at).unwrap()).collect();
            assert_eq!(answers.len(), 2, "{answers:?}");
        }
    }
    // Without backends the port is the host's own.
    let mut change = difference(&mesh, 4);
    change.put_endpoints = vec![endpoint(1, 1, 9, address(1), false), endpoint(2, 2, 9, address(2), false)];
    for host in &hosts {
        host.follow(&[change.clone()]);
    }
    let refused = who(&lab.outside, SocketAddr::from(([10, 77, 0, 3], 8080))).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    // With the last published service goes what the third host had of the network.
    let mut change = difference(&mesh, 5);
    change.remove_services = vec![skep_proto::id::ServiceId::new(9).to_vec()];
    let mut gone = difference(&mesh, 6);
    gone.dropped = true;
    hosts[2].follow(&[change, gone]);
    assert_eq!(std::fs::read_dir(hosts[2].dir.join("networks")).unwrap().count(), 0);
}

#[test]
fn ports_of_mode_host_lead_to_their_task() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let host = lab.host(1);
    let net = network(5, |_| {});
    host.know(&net);
    let mut request = attach_request(1, &[(&net, IpAddr::from([10, 5, 1, 1]))]);
    request.host_ports =
        vec![port(8080, 80, false, v1::PublishMode::Host), port(8053, 80, true, v1::PublishMode::Host)];
    let one = host.attach(&request);
    serve(&one, 80, "one");
    let at = |port: u16| SocketAddr::from(([10, 77, 0, 1], port));
    assert_eq!(who(&lab.outside, at(8080)).unwrap(), "one");
    assert_eq!(who_udp(&lab.outside, at(8053)).unwrap(), "one");
    host.detach(task_id(1));
    assert!(who(&lab.outside, at(8080)).is_err());
    // On the host's own bridge as well.
    let request = v1::AttachRequest { endpoints: Vec::new(), local_bridge: true, ..request };
    let one = host.attach(&request);
    serve(&one, 80, "local");
    assert_eq!(who(&lab.outside, at(8080)).unwrap(), "local");
}
