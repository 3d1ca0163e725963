//! What networks ask of a change: unique names, VNIs, subnets, addresses, published ports and numbers in the fabric, and
//! no network removed that something is on.

use skep_proto::id::ServiceId;
use skep_proto::v1::{NetworkDriver, Protocol};

use super::network_users::users;
use super::protocol_word;
use super::refused::Refused;
use crate::object::{Network, NetworkAddresses, Node, Service, Task};
use crate::store::{Holder, ObjectKey, State};

/// The highest VXLAN network identifier (RFC 7348 section 5: 24 bits).
const MAX_VNI: u32 = (1 << 24) - 1;
/// Users of an object that a refusal names.
const NAMED_USERS: usize = 5;

/// What is wrong with a network whatever else is stored.
pub(super) fn network_flaw(network: &Network) -> Option<&'static str> {
    let is_overlay = network.spec.driver() == NetworkDriver::Overlay;
    let ipv4 = network.subnets.iter().filter(|subnet| subnet.cidr.is_ipv4()).count();
    let flaws = [
        (network.spec.name.is_empty(), "it has no name"),
        (is_overlay != network.vni.is_some(), "an overlay has a VNI, and no other network"),
        (network.vni.is_some_and(|vni| vni == 0 || vni > MAX_VNI), "a VNI is 1 to 16777215"),
        (ipv4 > 1 || network.subnets.len() - ipv4 > 1, "it has two subnets of one family"),
        (
            network.subnets.iter().any(|subnet| !subnet.cidr.contains(subnet.gateway)),
            "a gateway of it is outside its subnet",
        ),
        (
            network.subnets.iter().any(|subnet| subnet.range.is_some_and(|range| !subnet.cidr.covers(&range))),
            "a range of it is outside its subnet",
        ),
    ];
    flaws.into_iter().find_map(|(wrong, why)| wrong.then_some(why))
}

/// What is wrong with a list of addresses whatever else is stored.
pub(super) fn addresses_flaw(addresses: &[NetworkAddresses]) -> Option<&'static str> {
    let twice = addresses
        .iter()
        .enumerate()
        .any(|(index, one)| addresses[..index].iter().any(|before| before.network == one.network));
    twice.then_some("it has addresses of one network twice")
}

/// Whether a network's claims are free or its own, and what it has is what it had.
pub(super) fn network_fits(state: &State, network: &Network) -> Result<(), Refused> {
    let name = &network.spec.name;
    let taken = |what: String, holder: &Network| {
        let holder = format!(
            "network {}",
            if holder.spec.name == *name { holder.id.to_string() } else { holder.spec.name.clone() }
        );
        Err(Refused::Taken { what, holder })
    };
    if let Some(holder) = state.network_by_name(name).filter(|holder| holder.id != network.id) {
        return taken(format!("name {name}"), holder);
    }
    let by_vni = network.vni.and_then(|vni| state.network(state.network_by_vni(vni)?));
    if let Some(holder) = by_vni.filter(|holder| holder.id != network.id) {
        return taken(format!("VNI {}", network.vni.unwrap_or(0)), holder);
    }
    if let Some(holder) = state.ingress_network().filter(|holder| network.spec.ingress && holder.id != network.id) {
        return taken("the routing mesh".to_owned(), holder);
    }
    for subnet in &network.subnets {
        if let Some((other, holder)) = state.overlapping_subnet(&subnet.cidr).filter(|found| found.1 != network.id) {
            let network = name_of(state, holder);
            return Err(Refused::Overlaps { subnet: subnet.cidr, other, network });
        }
    }
    let Some(stored) = state.network(network.id) else {
        return Ok(());
    };
    let fixed = |part| Err(Refused::Fixed { object: format!("network {}", stored.spec.name), part });
    if stored.subnets != network.subnets {
        return fixed("subnets");
    }
    if stored.vni != network.vni {
        return fixed("VNI");
    }
    let mut relabelled = (*stored.spec).clone();
    relabelled.labels.clone_from(&network.spec.labels);
    if relabelled != *network.spec { fixed("settings") } else { Ok(()) }
}

/// Whether addresses are free or the holder's own.
pub(super) fn addresses_free(state: &State, addresses: &[NetworkAddresses], own: Holder) -> Result<(), Refused> {
    for one in addresses {
        for address in one.iter() {
            if let Some(holder) = state.address_holder(one.network, address).filter(|holder| *holder != own) {
                let what = format!("address {address} of network {}", name_of(state, one.network));
                return Err(Refused::Taken { what, holder: holder_name(state, holder) });
            }
        }
    }
    Ok(())
}

/// Whether what a service claims of networks is free: virtual addresses and ports of the routing mesh.
pub(super) fn service_claims(state: &State, service: &Service) -> Result<(), Refused> {
    addresses_free(state, &service.virtual_addresses, Holder::Service(service.id))?;
    let mut seen = Vec::new();
    for (protocol, port) in service.ingress_ports() {
        let holder = state.ingress_port_holder(protocol, port);
        if holder.is_some_and(|holder| holder != service.id) || seen.contains(&(protocol, port)) {
            refuse_port(state, protocol, port, Some(holder.unwrap_or(service.id)))?;
        }
        seen.push((protocol, port));
    }
    modes_apart(state, service)
}

/// Whether no port that the service newly publishes is published by another one in the other mode: a host could not lead
/// it to both. Several services may claim one port of different hosts.
fn modes_apart(state: &State, service: &Service) -> Result<(), Refused> {
    let stored = state.service(service.id);
    let had: Vec<_> = stored.iter().flat_map(|stored| stored.ingress_ports()).collect();
    for (protocol, port) in service.ingress_ports().filter(|port| !had.contains(port)) {
        let mut hosts = state.host_port_services(protocol, port);
        refuse_port(state, protocol, port, hosts.find(|holder| *holder != service.id))?;
    }
    let had: Vec<_> = stored.iter().flat_map(|stored| stored.host_ports()).collect();
    for (protocol, port) in service.host_ports().filter(|port| !had.contains(port)) {
        let mesh = state.ingress_port_holder(protocol, port);
        refuse_port(state, protocol, port, mesh.filter(|holder| *holder != service.id))?;
    }
    Ok(())
}

fn refuse_port(state: &State, protocol: Protocol, port: u32, holder: Option<ServiceId>) -> Result<(), Refused> {
    let Some(holder) = holder else { return Ok(()) };
    let what = format!("port {port}/{}", protocol_word(protocol));
    Err(Refused::Taken { what, holder: holder_name(state, Holder::Service(holder)) })
}

/// Whether what a node claims of networks is free.
pub(super) fn node_claims(state: &State, node: &Node) -> Result<(), Refused> {
    if let Some(number) = node.fabric_number
        && let Some(holder) = state.node_by_fabric_number(number).filter(|holder| *holder != node.id)
    {
        return Err(Refused::Taken { what: format!("fabric number {number}"), holder: format!("node {holder}") });
    }
    addresses_free(state, node.ingress.as_slice(), Holder::Node(node.id))
}

/// Whether addresses that an object newly has lie in networks that are there. Looks at the state after the group.
pub(super) fn addresses_fit(
    state: &State,
    before: &[NetworkAddresses],
    after: &[NetworkAddresses],
    key: &ObjectKey,
) -> Result<(), Refused> {
    for one in after.iter().filter(|one| !before.contains(one)) {
        let Some(network) = state.network(one.network) else {
            let object = ObjectKey::Network(one.network).to_string();
            return Err(Refused::Missing { object, needed_by: key.to_string() });
        };
        if one.iter().any(|address| !network.admits(address)) {
            return Err(Refused::Malformed { object: key.to_string(), why: "an address of it is outside the network" });
        }
    }
    Ok(())
}

/// Whether the networks that a service's current template attaches to are there. Looks at the state after the group.
pub(super) fn attachments_fit(state: &State, service: &Service) -> Result<(), Refused> {
    let missing = state.attachments_of(service.id).iter().find(|network| state.network(**network).is_none());
    match missing {
        Some(network) => Err(Refused::Missing {
            object: ObjectKey::Network(*network).to_string(),
            needed_by: format!("service {}", service.spec.name),
        }),
        None => Ok(()),
    }
}

/// Whether nothing is on a network that was removed. Looks at the state after the group.
pub(super) fn unused(state: &State, network: &Network) -> Result<(), Refused> {
    if state.network(network.id).is_some() {
        return Ok(());
    }
    match users(state, network) {
        Some(by) => Err(Refused::InUse { object: format!("network {}", network.spec.name), by: by.to_string() }),
        None => Ok(()),
    }
}

/// `services a, b and 3 more`
pub(super) fn list(kind: &str, names: &[impl AsRef<str>]) -> String {
    let named: Vec<&str> = names.iter().take(NAMED_USERS).map(AsRef::as_ref).collect();
    let more = match names.len().saturating_sub(NAMED_USERS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{kind} {}{more}", named.join(", "))
}

fn task_name(state: &State, task: &Task) -> String {
    let service = state.revision(task.revision).map(|revision| revision.service_name.clone());
    match service {
        Some(service) => format!("{} of service {service}", task.id),
        None => task.id.to_string(),
    }
}

fn holder_name(state: &State, holder: Holder) -> String {
    match holder {
        Holder::Service(id) => {
            state.service(id).map_or_else(|| holder.to_string(), |service| format!("service {}", service.spec.name))
        }
        Holder::Task(id) => {
            let name = state.task(id).map_or_else(|| id.to_string(), |task| task_name(state, task));
            format!("task {name}")
        }
        holder => holder.to_string(),
    }
}

/// A network's name, or its id where it is gone.
pub(super) fn name_of(state: &State, network: skep_proto::id::NetworkId) -> String {
    state.network(network).map_or_else(|| network.to_string(), |network| network.spec.name.clone())
}
