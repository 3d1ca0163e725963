//! The rules about networks: unique claims, addresses within their networks, nobody on a network that is gone.

use std::collections::BTreeMap;
use std::net::IpAddr;

use skep_proto::cidr::Cidr;
use skep_proto::id::NetworkId;

use super::Finding;
use super::rules::{Report, twice};
use crate::object::{Network, NetworkAddresses};
use crate::store::{ObjectKey, State};

/// Each network, and what no two may share.
pub(super) fn networks(state: &State, findings: &mut Vec<Finding>) {
    let mut subnets: Vec<(Cidr, &Network)> = Vec::new();
    for network in state.networks() {
        Report::on(findings, format!("network {}", network.spec.name)).meta(state, network.meta);
        subnets.extend(network.subnets.iter().map(|subnet| (subnet.cidr, &**network)));
    }
    subnets.sort_by_key(|(cidr, _)| *cidr);
    for pair in subnets.windows(2) {
        let [(a, network), (b, other)] = pair else { continue };
        let mut report = Report::on(findings, format!("network {}", other.spec.name));
        report.error(a.overlaps(b), || format!("its subnet {b} overlaps with {a} of network {}", network.spec.name));
    }
    let mut report = |what: String| Report::on(findings, "the networks").error(true, || format!("two of them {what}"));
    twice(state.networks().map(|network| &network.spec.name), |name| report(format!("are named {name}")));
    twice(state.networks().filter_map(|network| network.vni), |vni| report(format!("have VNI {vni}")));
    if state.networks().filter(|network| network.spec.ingress).count() > 1 {
        report("are the routing mesh's".to_owned());
    }
    twice(state.nodes().filter_map(|node| node.fabric_number), |number| {
        let mut report = Report::on(findings, "the nodes");
        report.error(true, || format!("two of them have fabric number {number}"));
    });
}

/// Every address that somebody has.
pub(super) fn addresses(state: &State, findings: &mut Vec<Finding>) {
    let mut held = BTreeMap::new();
    for network in state.networks() {
        for (address, name) in network.reserved() {
            held.insert((network.id, address), format!("its own reservation {name}"));
        }
        for subnet in &network.subnets {
            held.insert((network.id, subnet.gateway), "its own gateway".to_owned());
        }
    }
    for service in state.services() {
        let object = format!("service {}", service.spec.name);
        for network in state.attachments_of(service.id).iter().filter(|network| state.network(**network).is_none()) {
            Report::on(findings, &object)
                .error(true, || format!("it attaches to network {network}, which is not there"));
        }
        for one in &service.virtual_addresses {
            let on = state.services_on_network(one.network).any(|other| other.id == service.id);
            Report::on(findings, &object).warning(!on && state.network(one.network).is_some(), || {
                format!("it has a virtual address of network {}, which it is not on: update it", one.network)
            });
            check(state, &mut held, &object, one, findings);
        }
    }
    for task in state.tasks() {
        for one in task.held_addresses() {
            check(state, &mut held, &ObjectKey::Task(task.id).to_string(), one, findings);
        }
    }
    for node in state.nodes() {
        let object = ObjectKey::Node(node.id).to_string();
        if let Some(one) = &node.ingress {
            if state.network(one.network).is_some() {
                check(state, &mut held, &object, one, findings);
            } else {
                Report::on(findings, &object).warning(true, || {
                    let network = one.network;
                    format!("it has addresses of network {network}, which was removed: the scheduler must take them")
                });
            }
        }
    }
}

fn check(
    state: &State,
    held: &mut BTreeMap<(NetworkId, IpAddr), String>,
    object: &str,
    addresses: &NetworkAddresses,
    findings: &mut Vec<Finding>,
) {
    let id = addresses.network;
    let mut report = Report::on(findings, object);
    let Some(network) = state.network(id) else {
        report.error(true, || format!("it has addresses of network {id}, which is not there"));
        return;
    };
    let name = &network.spec.name;
    for address in addresses.iter() {
        report.error(!network.admits(address), || format!("its address {address} is outside network {name}"));
        if let Some(other) = held.insert((id, address), object.to_owned()) {
            report.error(true, || format!("it has address {address} of network {name}, and so has {other}"));
        }
    }
}

/// Ports of the routing mesh.
pub(super) fn ports(state: &State, findings: &mut Vec<Finding>) {
    let mut published = BTreeMap::new();
    for service in state.services() {
        let name = &service.spec.name;
        for (protocol, port) in service.ingress_ports() {
            if let Some(other) = published.insert((protocol, port), name) {
                Report::on(findings, format!("service {name}"))
                    .error(true, || format!("it publishes port {port}, and so does service {other}"));
            }
        }
    }
}
