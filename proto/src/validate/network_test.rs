//! Mistakes in networks and endpoints name the field and what would be right.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::v1::{PortSpec, ReplicatedMode, UpdatePolicy};

fn network() -> NetworkSpec {
    NetworkSpec { name: "front".into(), ..NetworkSpec::default() }
}

fn refused(change: impl FnOnce(&mut NetworkSpec)) -> String {
    let mut spec = network();
    change(&mut spec);
    network_spec(&spec).unwrap_err().to_string()
}

fn with_subnet(change: impl FnOnce(&mut SubnetSpec)) -> Result<(), Invalid> {
    let mut subnet = SubnetSpec { subnet: "10.1.0.0/24".into(), ..SubnetSpec::default() };
    change(&mut subnet);
    network_spec(&NetworkSpec { subnets: vec![subnet], ..network() })
}

fn option(key: &str, value: &str) -> std::collections::BTreeMap<String, String> {
    [(key.to_owned(), value.to_owned())].into()
}

#[test]
fn plain_networks_of_every_driver_are_valid() {
    assert_eq!(network_spec(&network()), Ok(()));
    let mut bridge = network();
    bridge.set_driver(NetworkDriver::Bridge);
    assert_eq!(network_spec(&bridge), Ok(()));
    let mut macvlan = NetworkSpec { options: option("parent", "eth0"), ..network() };
    macvlan.set_driver(NetworkDriver::Macvlan);
    assert!(network_spec(&macvlan).unwrap_err().to_string().starts_with("subnets: a macvlan network needs"));
    macvlan.subnets = vec![SubnetSpec { subnet: "192.168.1.0/24".into(), ..SubnetSpec::default() }];
    assert_eq!(network_spec(&macvlan), Ok(()));
    macvlan.options.clear();
    assert!(network_spec(&macvlan).unwrap_err().to_string().starts_with("options.parent: "));
}

#[test]
fn mistakes_in_networks_name_the_field() {
    assert!(refused(|spec| spec.name.clear()).starts_with("name: "));
    for name in PREDEFINED {
        assert!(refused(|spec| spec.name = name.into()).contains("is predefined"));
    }
    assert!(refused(|spec| spec.driver = 99).starts_with("driver: must be overlay"));
    assert!(refused(|spec| spec.options = option("colour", "red")).contains("it has encrypted, mtu"));
    assert!(refused(|spec| spec.options = option("encrypted", "maybe")).contains("must be true or false"));
    // Only the routing mesh leads clients on.
    assert!(refused(|spec| spec.options = option("keep-source", "true")).contains("it has encrypted, mtu"));
    let kept = |value| NetworkSpec { ingress: true, options: option("keep-source", value), ..network() };
    assert_eq!(network_spec(&kept("true")), Ok(()));
    assert!(network_spec(&kept("yes")).unwrap_err().to_string().starts_with("options.keep-source: must be true"));
    for mtu in ["", "67", "65536", "-1", "x"] {
        assert!(refused(|spec| spec.options = option("mtu", mtu)).starts_with("options.mtu: must be 68"), "{mtu}");
    }
    let v6 = |spec: &mut NetworkSpec| {
        spec.ipv6 = true;
        spec.options = option("mtu", "1279");
    };
    assert!(refused(v6).contains("1280 to 65535"));
    let mesh = |spec: &mut NetworkSpec| (spec.ingress, spec.attachable) = (true, true);
    assert!(refused(mesh).contains("neither attachable nor internal"));
    let two = |spec: &mut NetworkSpec| {
        spec.subnets = ["10.0.0.0/24", "10.1.0.0/24"]
            .map(|subnet| SubnetSpec { subnet: subnet.into(), ..SubnetSpec::default() })
            .into();
    };
    assert!(refused(two).contains("at most one IPv4"));
}

#[test]
fn subnets_gateways_and_ranges_must_fit() {
    assert_eq!(with_subnet(|_| {}), Ok(()));
    let good = |subnet: &mut SubnetSpec| {
        subnet.gateway = "10.1.0.254".into();
        subnet.ip_range = "10.1.0.128/25".into();
        subnet.reserved_addresses = option("router", "10.1.0.9");
    };
    assert_eq!(with_subnet(good), Ok(()));
    for bad in ["", "10.1.0.1/24", "10.1.0.0/31", "127.0.0.0/24", "224.0.0.0/24", "0.0.0.0/0", "fe80::/64", "::/0"] {
        let message = with_subnet(|subnet| subnet.subnet = bad.into()).unwrap_err().to_string();
        assert!(message.starts_with("subnets[0].subnet: "), "{message}");
    }
    for bad in ["10.1.0.0", "10.1.0.255", "10.2.0.1", "x", "fd00::1"] {
        let message = with_subnet(|subnet| subnet.gateway = bad.into()).unwrap_err().to_string();
        assert!(message.starts_with("subnets[0].gateway: "), "{message}");
    }
    let message = with_subnet(|subnet| subnet.ip_range = "10.1.0.0/23".into()).unwrap_err().to_string();
    assert_eq!(message, "subnets[0].ip_range: 10.1.0.0/23 is outside 10.1.0.0/24");
    let message = with_subnet(|subnet| subnet.reserved_addresses = option("a", "10.9.0.1")).unwrap_err().to_string();
    assert!(message.starts_with("subnets[0].reserved_addresses[a]: "), "{message}");
    let message = with_subnet(|subnet| {
        subnet.gateway = "10.1.0.9".into();
        subnet.reserved_addresses = option("a", "10.1.0.9");
    });
    assert!(message.unwrap_err().to_string().contains("10.1.0.9 is the gateway"));
}

fn service(networks: &[&str]) -> ServiceSpec {
    let networks = networks.iter().map(|&name| NetworkAttachment { name: name.into(), ..NetworkAttachment::default() });
    let template = TaskTemplate { networks: networks.collect(), ..TaskTemplate::default() };
    let mode = Some(Mode::Replicated(ReplicatedMode { replicas: 1 }));
    ServiceSpec { mode, template: Some(template), ..ServiceSpec::default() }
}

fn attaches(spec: &ServiceSpec) -> Result<(), String> {
    attachments(spec, spec.template.as_ref().unwrap()).map_err(|invalid| invalid.to_string())
}

#[test]
fn attachments_are_checked() {
    assert_eq!(attaches(&service(&["front", "back"])), Ok(()));
    assert!(attaches(&service(&["front", "front"])).unwrap_err().contains("named twice"));
    assert!(attaches(&service(&[""])).unwrap_err().starts_with("networks[0].name: "));
    assert!(attaches(&service(&["host"])).unwrap_err().contains("no network of the swarm's"));
    let mut spec = service(&["front"]);
    spec.template.as_mut().unwrap().networks[0].aliases = vec!["not a name".into()];
    assert!(attaches(&spec).unwrap_err().starts_with("networks[0].aliases: "));
    let mut spec = service(&["front"]);
    spec.template.as_mut().unwrap().set_network_mode(NetworkMode::Host);
    assert!(attaches(&spec).unwrap_err().contains("cannot attach"));
}

#[test]
fn a_fixed_address_is_for_one_task() {
    let mut spec = service(&["front"]);
    spec.template.as_mut().unwrap().networks[0].addresses = vec!["10.0.0.5".into()];
    assert_eq!(attaches(&spec), Ok(()));
    spec.mode = Some(Mode::Replicated(ReplicatedMode { replicas: 2 }));
    assert!(attaches(&spec).unwrap_err().contains("one replica at most"));
    spec.mode = Some(Mode::Replicated(ReplicatedMode { replicas: 1 }));
    let order = UpdateOrder::StartFirst.into();
    spec.update = Some(UpdatePolicy { order, ..UpdatePolicy::default() });
    assert!(attaches(&spec).unwrap_err().starts_with("update.order: "));
    spec.update = None;
    for bad in [&["x"][..], &["10.0.0.1", "10.0.0.2"]] {
        spec.template.as_mut().unwrap().networks[0].addresses = bad.iter().map(|&text| text.into()).collect();
        assert!(attaches(&spec).unwrap_err().starts_with("networks[0].addresses: "));
    }
}

fn ports(ports: &[(u32, u32, PublishMode)]) -> EndpointSpec {
    let port = |(published_port, target_port, mode): &(u32, u32, PublishMode)| PortSpec {
        published_port: *published_port,
        target_port: *target_port,
        mode: (*mode).into(),
        ..PortSpec::default()
    };
    EndpointSpec { ports: ports.iter().map(port).collect(), ..EndpointSpec::default() }
}

#[test]
fn ports_are_checked() {
    use PublishMode::{Host, Ingress};
    let none = NetworkMode::default();
    let check = |spec: &EndpointSpec, mode| endpoint(Some(spec), mode).map_err(|invalid| invalid.to_string());
    assert_eq!(check(&ports(&[(80, 8080, Ingress), (0, 8080, Ingress), (0, 53, Host)]), none), Ok(()));
    assert!(check(&ports(&[(80, 0, Ingress)]), none).unwrap_err().contains("target_port"));
    assert!(check(&ports(&[(70_000, 80, Ingress)]), none).unwrap_err().contains("at most 65535"));
    let twice = check(&ports(&[(80, 1, Ingress), (80, 2, Host)]), none).unwrap_err();
    assert_eq!(twice, "endpoint.ports[1].published_port: port 80 is published twice");
    assert!(check(&ports(&[(80, 80, Ingress)]), NetworkMode::Host).unwrap_err().contains("mode=host"));
    assert!(check(&ports(&[(80, 81, Host)]), NetworkMode::Host).unwrap_err().contains("listens on"));
    let apart = check(&ports(&[(80, 80, Host)]), NetworkMode::None).unwrap_err();
    assert_eq!(apart, "endpoint.ports: tasks without a network cannot publish ports");
    let dnsrr = EndpointSpec { mode: EndpointMode::Dnsrr.into(), ..ports(&[(80, 80, Ingress)]) };
    assert!(check(&dnsrr, none).unwrap_err().contains("endpoint mode vip"));
    assert_eq!(check(&EndpointSpec { mode: EndpointMode::Dnsrr.into(), ..ports(&[(80, 80, Host)]) }, none), Ok(()));
}
