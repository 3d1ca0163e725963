//! A new network from its spec: subnets, gateways, VNI. Called by the control API when a network is created, and for the
//! routing mesh's own when the swarm is made. The spec is valid; what is taken is looked up here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use skep_proto::cidr::Cidr;
use skep_proto::id::NetworkId;
use skep_proto::v1::{ClusterSpec, NetworkDriver, NetworkSpec, SubnetSpec};

use super::all_managers_know;
use super::pools::{Pools, host_within, known_hosts};
use super::vni;
use crate::ids::mix;
use crate::object::{Meta, Network, Subnet};
use crate::store::State;

/// The routing mesh's subnet, if it is free. Swarm's of old.
const INGRESS_SUBNET: &str = "10.255.0.0/16";
/// Length of the routing mesh's subnet: every task behind a published port has an address of it, and every node. Smaller
/// than that where it would take more than a quarter of a pool.
const INGRESS_LENGTH: u8 = 16;
/// Name of the routing mesh's network that `swarm init` makes.
pub const INGRESS_NAME: &str = "ingress";

/// Why a network cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    #[error("network {name} is there already: choose another name, or remove it with `skep network rm {name}`")]
    NameTaken { name: String },
    #[error("network {name} is the routing mesh's: remove it before you make another")]
    IngressTaken { name: String },
    #[error("subnet {subnet} overlaps with {other} of network {network}: choose another, or leave it out")]
    Overlaps { subnet: Cidr, other: Cidr, network: String },
    #[error("subnet {subnet} contains {address}, an address of a host: choose another, or leave it out")]
    HostWithin { subnet: Cidr, address: IpAddr },
    #[error("no subnet is free in the swarm's address pools: remove a network that is not used, or give a subnet")]
    PoolsExhausted,
    #[error("no VXLAN network identifier is free: remove a network that is not used")]
    NoVni,
    #[error("{0:?} is not a subnet")]
    Malformed(String),
    #[error("a manager of the swarm has a version without networks: upgrade all managers first")]
    OldManagers,
}

/// The network that a spec asks for, with what it leaves open chosen.
pub fn make(state: &State, id: NetworkId, spec: NetworkSpec) -> Result<Network, NetworkError> {
    if !all_managers_know(state) {
        return Err(NetworkError::OldManagers);
    }
    if let Some(other) = state.network_by_name(&spec.name) {
        return Err(NetworkError::NameTaken { name: other.spec.name.clone() });
    }
    if let Some(other) = state.ingress_network().filter(|_| spec.ingress) {
        return Err(NetworkError::IngressTaken { name: other.spec.name.clone() });
    }
    let hosts = known_hosts(state);
    let default = ClusterSpec::default();
    let pools = Pools::of(state.cluster().map_or(&default, |cluster| &cluster.spec));
    let mut subnets = Vec::new();
    for asked in &spec.subnets {
        subnets.push(asked_subnet(state, &hosts, &spec, asked)?);
    }
    if !subnets.iter().any(|subnet| subnet.cidr.is_ipv4()) {
        let chosen = if spec.ingress { ingress_subnet(state, &pools, &hosts) } else { pools.choose(state, &hosts) };
        subnets.push(plain(chosen.ok_or(NetworkError::PoolsExhausted)?));
    }
    if spec.ipv6 && subnets.iter().all(|subnet| subnet.cidr.is_ipv4()) {
        // RFC 4193 section 3.2.2: of one site and not guessable from others'; the cluster's id is random.
        let site = state.cluster().map_or(0, |cluster| cluster.id.value());
        let global_id = mix((site >> 64) as u64 ^ (site & u128::from(u64::MAX)) as u64);
        subnets.push(plain(pools.choose_v6(state, &hosts, global_id).ok_or(NetworkError::PoolsExhausted)?));
    }
    subnets.sort_by_key(|subnet| subnet.cidr);
    let vni = match spec.driver() {
        NetworkDriver::Overlay => Some(vni::choose(state, id).ok_or(NetworkError::NoVni)?),
        NetworkDriver::Bridge | NetworkDriver::Macvlan => None,
    };
    Ok(Network { id, meta: Meta::default(), spec: Arc::new(spec), subnets, vni })
}

/// What the routing mesh's network is made from by `swarm init`.
pub fn ingress_spec() -> NetworkSpec {
    NetworkSpec { name: INGRESS_NAME.to_owned(), ingress: true, ..NetworkSpec::default() }
}

/// The routing mesh's network of a swarm that is being made. `state` holds what is known so far: cluster and first node.
pub fn make_ingress(state: &State, id: NetworkId) -> Result<Network, NetworkError> {
    make(state, id, ingress_spec())
}

fn ingress_subnet(state: &State, pools: &Pools, hosts: &BTreeSet<IpAddr>) -> Option<Cidr> {
    let usual: Option<Cidr> = INGRESS_SUBNET.parse().ok();
    let free = |cidr: &Cidr| {
        pools.cover(cidr) && state.overlapping_subnet(cidr).is_none() && host_within(hosts, cidr).is_none()
    };
    usual
        .filter(free)
        .or_else(|| pools.choose_part(state, hosts, INGRESS_LENGTH))
        .or_else(|| pools.choose(state, hosts))
}

/// A subnet that the spec names.
fn asked_subnet(
    state: &State,
    hosts: &BTreeSet<IpAddr>,
    spec: &NetworkSpec,
    asked: &SubnetSpec,
) -> Result<Subnet, NetworkError> {
    let cidr: Cidr = asked.subnet.parse().map_err(|_| NetworkError::Malformed(asked.subnet.clone()))?;
    if let Some((other, network)) = state.overlapping_subnet(&cidr) {
        let network = state.network(network).map_or_else(|| network.to_string(), |other| other.spec.name.clone());
        return Err(NetworkError::Overlaps { subnet: cidr, other, network });
    }
    // A macvlan is on the hosts' own network.
    let address = host_within(hosts, &cidr).filter(|_| spec.driver() != NetworkDriver::Macvlan);
    if let Some(address) = address {
        return Err(NetworkError::HostWithin { subnet: cidr, address });
    }
    let malformed = |text: &String| NetworkError::Malformed(text.clone());
    let mut subnet = plain(cidr);
    if !asked.gateway.is_empty() {
        subnet.gateway = asked.gateway.parse().map_err(|_| malformed(&asked.gateway))?;
    }
    if !asked.ip_range.is_empty() {
        subnet.range = Some(asked.ip_range.parse().map_err(|_| malformed(&asked.ip_range))?);
    }
    Ok(subnet)
}

/// A subnet whose gateway is its first address.
fn plain(cidr: Cidr) -> Subnet {
    Subnet { cidr, gateway: cidr.hosts().0, range: None }
}
