//! How a service is reached: its virtual addresses and its published ports. Called by the control API at create and
//! update, and by the updater when it rolls back. What stays is kept; what is left out is free as soon as the service is
//! stored without it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use skep_proto::id::{NetworkId, ServiceId};
use skep_proto::v1::{EndpointMode, NetworkMode, PortSpec, Protocol, PublishMode, ServiceSpec, TaskTemplate};

use super::addresses::find_virtual;
use crate::ids::mix;
use crate::object::{Network, NetworkAddresses, Service};
use crate::store::{Holder, State, attached_networks};

/// Ports that are chosen where the spec leaves them open. Swarm's.
pub const CHOSEN_PORTS: RangeInclusive<u32> = 30_000..=32_767;

/// UDP port of overlays that are not encrypted, where the cluster's spec names none (RFC 7348 section 5).
const DATA_PATH_PORT: u32 = 4789;

/// What a service has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Endpoint {
    /// In the order of the spec's.
    pub ports: Vec<PortSpec>,
    /// One entry for each network.
    pub virtual_addresses: Vec<NetworkAddresses>,
}

/// Why a service cannot have what its spec asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("network {0} is not there (any more)")]
    NetworkGone(NetworkId),
    #[error(
        "there is no network for the routing mesh, so no port can be published by it: make one with `skep network create \
         --ingress`, or publish with mode=host"
    )]
    NoIngress,
    #[error("network {0} is the routing mesh's: publish a port instead of attaching to it")]
    AttachesToIngress(String),
    #[error("no free address in network {0} for the service's virtual address")]
    NoAddress(String),
    #[error("port {port}/{protocol} is taken by service {holder}: choose another, or remove it there")]
    PortTaken { port: u32, protocol: &'static str, holder: String },
    #[error(
        "port {port}/{protocol} is {what}, of node {node}: whoever connects to it would reach the service instead; \
         choose another"
    )]
    PortOfSwarm { port: u32, protocol: &'static str, what: &'static str, node: String },
    #[error("all ports from 30000 to 32767 are taken: say which port to publish")]
    NoPort,
    #[error("address {address} is outside network {network}")]
    Outside { address: String, network: String },
    #[error("address {address} of network {network} is {holder}: choose another")]
    NeverFree { address: String, network: String, holder: Holder },
}

/// What the service will have. `template` names networks by id; `present` is the service before an update. `seed` decides
/// among free addresses and ports.
pub fn resolve(
    state: &State,
    spec: &ServiceSpec,
    template: &TaskTemplate,
    present: Option<&Service>,
    seed: u64,
) -> Result<Endpoint, EndpointError> {
    let ports = resolve_ports(state, spec, template, present, seed)?;
    let mut networks = Vec::new();
    for id in attached_networks(template) {
        let network = state.network(id).ok_or(EndpointError::NetworkGone(id))?;
        if network.spec.ingress {
            return Err(EndpointError::AttachesToIngress(network.spec.name.clone()));
        }
        networks.push(network);
    }
    check_fixed(state, template, &networks)?;
    if ports.iter().any(|port| port.mode() == PublishMode::Ingress) {
        networks.push(state.ingress_network().ok_or(EndpointError::NoIngress)?);
    }
    let mode = spec.endpoint.as_ref().map_or(EndpointMode::Vip, |endpoint| endpoint.mode());
    let mut virtual_addresses = Vec::new();
    if mode == EndpointMode::Vip {
        for (index, network) in (0..).zip(networks) {
            virtual_addresses.push(virtual_address(state, network, present, mix(seed ^ index))?);
        }
    }
    Ok(Endpoint { ports, virtual_addresses })
}

/// Whether the tasks of a service need another address than they have: it publishes by the routing mesh for the first
/// time, so that none of them is on its network.
pub fn joins_mesh(before: &Service, after: &[PortSpec]) -> bool {
    let publishes = after.iter().any(|port| port.mode() == PublishMode::Ingress);
    publishes && before.ingress_ports().next().is_none()
}

/// Ports that each task claims on its node, in the order of the spec's.
pub fn host_ports(ports: &[PortSpec]) -> impl Iterator<Item = &PortSpec> {
    ports.iter().filter(|port| port.mode() == PublishMode::Host)
}

fn virtual_address(
    state: &State,
    network: &Network,
    present: Option<&Service>,
    seed: u64,
) -> Result<NetworkAddresses, EndpointError> {
    let kept = present.and_then(|service| service.virtual_addresses.iter().find(|one| one.network == network.id));
    let mut addresses = kept.copied().unwrap_or(NetworkAddresses::none(network.id));
    for subnet in &network.subnets {
        let has = if subnet.cidr.is_ipv4() { addresses.v4.is_some() } else { addresses.v6.is_some() };
        if !has {
            let found = find_virtual(state, network, subnet, seed);
            addresses.set(found.ok_or_else(|| EndpointError::NoAddress(network.spec.name.clone()))?);
        }
    }
    Ok(addresses)
}

/// Fixed addresses must be ones that the network has, and that a task can ever have. One that a task holds today is waited
/// for.
fn check_fixed(
    state: &State,
    template: &TaskTemplate,
    networks: &[&std::sync::Arc<Network>],
) -> Result<(), EndpointError> {
    for (attachment, network) in template.networks.iter().zip(networks) {
        for text in &attachment.addresses {
            let name = network.spec.name.clone();
            let Some(address) = text.parse().ok().filter(|address| network.admits(*address)) else {
                return Err(EndpointError::Outside { address: text.clone(), network: name });
            };
            let holder = state.address_holder(network.id, address);
            if let Some(holder @ (Holder::Gateway | Holder::Reserved)) = holder {
                return Err(EndpointError::NeverFree { address: text.clone(), network: name, holder });
            }
        }
    }
    Ok(())
}

fn resolve_ports(
    state: &State,
    spec: &ServiceSpec,
    template: &TaskTemplate,
    present: Option<&Service>,
    seed: u64,
) -> Result<Vec<PortSpec>, EndpointError> {
    let asked = spec.endpoint.as_ref().map_or(&[][..], |endpoint| &endpoint.ports);
    let own = present.map(|service| service.id);
    let of_swarm = swarm_ports(state);
    let mut ports = Vec::with_capacity(asked.len());
    let mut used: BTreeSet<(Protocol, u32)> = asked
        .iter()
        .filter(|port| port.published_port != 0)
        .map(|port| (port.protocol(), port.published_port))
        .collect();
    for port in asked {
        // With the host's network a port is published where the container listens.
        let on_host = template.network_mode() == NetworkMode::Host;
        let given = if port.published_port == 0 && on_host { port.target_port } else { port.published_port };
        let published = if given != 0 {
            let number = &(port.protocol(), given);
            if let Some((what, node)) = of_swarm.get(number).filter(|_| !has_already(present, port, given)) {
                let protocol = protocol_word(port.protocol());
                return Err(EndpointError::PortOfSwarm { port: given, protocol, what, node: (*node).to_owned() });
            }
            if let Some(holder) = clash(state, port, given, own) {
                let protocol = protocol_word(port.protocol());
                return Err(EndpointError::PortTaken { port: given, protocol, holder: holder.spec.name.clone() });
            }
            given
        } else {
            let free = |number: u32| {
                let key = (port.protocol(), number);
                !used.contains(&key) && !of_swarm.contains_key(&key) && is_free(state, port, number, own)
            };
            let kept = present.into_iter().flat_map(|service| &service.ports).find(|kept| {
                let same = kept.protocol() == port.protocol() && kept.mode() == port.mode();
                let was_chosen = CHOSEN_PORTS.contains(&kept.published_port);
                same && was_chosen && kept.target_port == port.target_port && free(kept.published_port)
            });
            let chosen = kept.map(|kept| kept.published_port).or_else(|| choose(seed, free));
            chosen.ok_or(EndpointError::NoPort)?
        };
        used.insert((port.protocol(), published));
        ports.push(PortSpec { published_port: published, ..*port });
    }
    Ok(ports)
}

/// Ports that nodes listen on for one another, with what each is for and a node that does. A published port comes before a
/// host's own listeners, on every host in mode ingress: managers, image transfers and the mesh would lead into a container.
fn swarm_ports(state: &State) -> BTreeMap<(Protocol, u32), (&'static str, &str)> {
    let mut ports = BTreeMap::new();
    let asked = state.cluster().map_or(0, |cluster| cluster.spec.data_path_port);
    let data_path_port = if asked == 0 { DATA_PATH_PORT } else { asked };
    for node in state.nodes() {
        let description = node.description.as_deref();
        let fabric = description.and_then(|description| description.fabric.as_ref());
        let listens = [
            (Protocol::Tcp, "the managers' API", node.manager.as_ref().map(|manager| manager.addr.as_str())),
            (Protocol::Tcp, "where nodes serve images", description.map(|description| description.peer_addr.as_str())),
            (Protocol::Udp, "the encrypted mesh's", fabric.map(|fabric| fabric.wireguard_addr.as_str())),
        ];
        for (protocol, what, address) in listens {
            let number = address.and_then(|address| address.rsplit_once(':')).and_then(|(_, port)| port.parse().ok());
            if let Some(number) = number.filter(|number| *number != 0) {
                ports.entry((protocol, number)).or_insert((what, node.hostname()));
            }
        }
        // Also on one that has not told of its networks yet.
        ports.entry((Protocol::Udp, data_path_port)).or_insert(("the overlays' data path", node.hostname()));
    }
    ports
}

/// Whether a service publishes the port since before: what else is changed about it is not held up.
fn has_already(present: Option<&Service>, port: &PortSpec, number: u32) -> bool {
    present.into_iter().flat_map(|service| &service.ports).any(|before| {
        before.protocol() == port.protocol() && before.mode() == port.mode() && before.published_port == number
    })
}

fn choose(seed: u64, free: impl Fn(u32) -> bool) -> Option<u32> {
    let (first, last) = (*CHOSEN_PORTS.start(), *CHOSEN_PORTS.end());
    let count = u64::from(last - first + 1);
    let start = u32::try_from(mix(seed) % count).unwrap_or(0) + first;
    (start..=last).chain(first..start).find(|port| free(*port))
}

/// Whether nobody else publishes the port. A chosen one must be free on every node.
fn is_free(state: &State, port: &PortSpec, number: u32, own: Option<ServiceId>) -> bool {
    let mesh = state.ingress_port_holder(port.protocol(), number);
    mesh.is_none_or(|holder| Some(holder) == own)
        && state.host_port_services(port.protocol(), number).all(|service| Some(service) == own)
}

/// The service that a port cannot be published beside. Two services may claim one port of different nodes.
fn clash<'a>(state: &'a State, port: &PortSpec, number: u32, own: Option<ServiceId>) -> Option<&'a Service> {
    let mesh = state.ingress_port_holder(port.protocol(), number);
    let hosts = state.host_port_services(port.protocol(), number).filter(|_| port.mode() == PublishMode::Ingress);
    let other = mesh.into_iter().chain(hosts).find(|holder| Some(*holder) != own)?;
    state.service(other).map(|service| &**service)
}

fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}
