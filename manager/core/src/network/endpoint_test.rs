//! Published ports and virtual addresses of services: unique, kept by an update, never a host's own.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use skep_proto::id::ServiceId;
use skep_proto::v1::{
    EndpointMode, EndpointSpec, FabricEndpoint, NodeDescription, PortSpec, Protocol, PublishMode, ServiceSpec,
};

use super::testing::{Leader, draft, publish};
use super::*;
use crate::change::{Change, Group, Op};
use crate::example::START;
use crate::object::{ManagerStatus, Meta, Node, Revision, Service};

#[test]
fn ports_that_nodes_listen_on_are_not_published() {
    let mut leader = Leader::new("10.1.0.0/24");
    let refused = leader.create(1, 1, |spec, _| {
        publish(spec, &[4789]);
        spec.endpoint.as_mut().unwrap().ports[0].set_protocol(Protocol::Udp);
    });
    assert!(refused.contains("is the overlays' data path, of node"), "before a node tells: {refused}");
    let mut node = Node::clone(leader.state.nodes().next().unwrap());
    node.manager = Some(ManagerStatus { raft_id: 1, addr: "192.0.2.1:2377".into() });
    let fabric = Some(FabricEndpoint {
        wireguard_addr: "[2001:db8::1]:51820".into(),
        vxlan_addr: "192.0.2.1".into(),
        ..FabricEndpoint::default()
    });
    let description =
        NodeDescription { hostname: "n1".into(), peer_addr: "192.0.2.1:30001".into(), fabric, ..Default::default() };
    node.description = Some(Arc::new(description));
    leader.state.put(node);
    for (number, udp, mode, what) in [
        (2377, false, PublishMode::Ingress, "the managers' API"),
        (2377, false, PublishMode::Host, "the managers' API"),
        (30001, false, PublishMode::Ingress, "where nodes serve images"),
        (51820, true, PublishMode::Ingress, "the encrypted mesh's"),
        (4789, true, PublishMode::Host, "the overlays' data path"),
    ] {
        let refused = leader.create(1, 1, |spec, _| {
            publish(spec, &[number]);
            let port = &mut spec.endpoint.as_mut().unwrap().ports[0];
            port.set_mode(mode);
            port.set_protocol(if udp { Protocol::Udp } else { Protocol::Tcp });
        });
        assert!(refused.contains(&format!("is {what}, of node n1")), "{refused}");
    }
    // The other protocol is another port, and a service that has one since before keeps it.
    assert_eq!(leader.create(1, 1, |spec, _| publish(spec, &[4789])), "");
    let mut present = Service::clone(leader.state.services().next().unwrap());
    present.ports[0].published_port = 2377;
    let (mut spec, template) = draft(1, 1);
    publish(&mut spec, &[2377]);
    assert!(endpoint::resolve(&leader.state, &spec, &template, Some(&present), 1).is_ok());
}

#[test]
fn ports_are_unique_and_chosen_ones_stay() {
    let mut leader = Leader::new("10.1.0.0/24");
    assert_eq!(leader.create(1, 1, |spec, _| publish(spec, &[8080, 0])), "");
    let first = Service::clone(leader.state.service(ServiceId::new(1)).unwrap());
    let chosen = first.ports[1].published_port;
    assert!(endpoint::CHOSEN_PORTS.contains(&chosen));
    let taken = leader.create(2, 1, |spec, _| publish(spec, &[8080]));
    assert_eq!(taken, "port 8080/tcp is taken by service s1: choose another, or remove it there");
    let taken = leader.create(2, 1, |spec, _| publish(spec, &[chosen]));
    assert_eq!(taken, format!("port {chosen}/tcp is taken by service s1: choose another, or remove it there"));
    // An update keeps the address and the chosen port, and gives the mesh's address back with the last port.
    let (mut spec, template) = draft(1, 1);
    publish(&mut spec, &[0]);
    let update = |spec: &ServiceSpec| endpoint::resolve(&leader.state, spec, &template, Some(&first), 77).unwrap();
    let kept = update(&spec);
    assert_eq!((kept.ports[0].published_port, &kept.virtual_addresses), (chosen, &first.virtual_addresses));
    assert_eq!(kept.virtual_addresses.len(), 2);
    publish(&mut spec, &[]);
    assert_eq!(update(&spec).virtual_addresses, first.virtual_addresses[..1]);
    spec.endpoint = Some(EndpointSpec { mode: EndpointMode::Dnsrr.into(), ..EndpointSpec::default() });
    assert_eq!(update(&spec), Endpoint::default());
    leader.remove(1);
    assert_eq!(leader.create(2, 1, |spec, _| publish(spec, &[8080])), "");
    leader.check();
}

#[test]
fn the_store_refuses_a_doubled_port_and_address() {
    let mut leader = Leader::new("10.1.0.0/24");
    leader.create(1, 1, |spec, _| publish(spec, &[8080]));
    let first = Service::clone(leader.state.service(ServiceId::new(1)).unwrap());
    let mut second = Service { id: ServiceId::new(2), spec: Arc::new(draft(2, 1).0), ..first };
    let put = |leader: &mut Leader, service: &Service| {
        leader.apply(vec![Group(vec![Change::create(Op::PutService(service.clone()))])])
    };
    let address = second.virtual_addresses[0].iter().next().unwrap();
    assert_eq!(put(&mut leader, &second), [format!("address {address} of network front is taken by service s1")]);
    second.virtual_addresses.clear();
    assert_eq!(put(&mut leader, &second), ["port 8080/tcp is taken by service s1"]);
}

/// Two creates at once: each was resolved from a state without the other one.
#[test]
fn the_store_refuses_one_port_in_both_modes() {
    let mut leader = Leader::new("10.1.0.0/24");
    let port = |mode: PublishMode, published_port| PortSpec {
        mode: mode.into(),
        target_port: 80,
        published_port,
        ..PortSpec::default()
    };
    let service = |id: u128, ports: &[PortSpec]| {
        let (mut spec, template) = draft(id, 1);
        spec.endpoint = Some(EndpointSpec { mode: EndpointMode::Dnsrr.into(), ..EndpointSpec::default() });
        let service_name = spec.name.as_str().into();
        let (id, meta, spec, ports) = (ServiceId::new(id), Meta::default(), Arc::new(spec), ports.to_vec());
        let service = Service { id, meta, spec, revision: 1, ports, update: None, virtual_addresses: Vec::new() };
        let (key, template) = (service.current(), Arc::new(template));
        let revision = Revision { key, template, created_at: START, copied_from: None, service_name, live: None };
        vec![Group([Op::PutService(service), Op::PutRevision(revision)].map(Change::any).into())]
    };
    let (host, mesh) = (PublishMode::Host, PublishMode::Ingress);
    assert_eq!(leader.apply(service(1, &[port(host, 80)])), [""; 0]);
    assert_eq!(leader.apply(service(2, &[port(mesh, 80)])), ["port 80/tcp is taken by service s1"]);
    assert_eq!(leader.apply(service(2, &[port(mesh, 81)])), [""; 0]);
    assert_eq!(leader.apply(service(3, &[port(host, 81)])), ["port 81/tcp is taken by service s2"]);
    // Of different hosts it may be claimed twice, and another protocol is another port.
    assert_eq!(leader.apply(service(3, &[port(host, 80)])), [""; 0]);
    let udp = PortSpec { protocol: Protocol::Udp.into(), ..port(mesh, 80) };
    assert_eq!(leader.apply(service(4, &[udp])), [""; 0]);
    leader.remove(1);
    assert_eq!(leader.apply(service(5, &[port(mesh, 80)])), ["port 80/tcp is taken by service s3"]);
    leader.remove(3);
    assert_eq!(leader.apply(service(5, &[port(mesh, 80)])), [""; 0]);
}
