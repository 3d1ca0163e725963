//! Which subnet a network gets that names none: the first one of the swarm's pools that overlaps with no network's, and
//! that no known address of a host lies in.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use skep_proto::cidr::Cidr;
use skep_proto::v1::ClusterSpec;

use crate::object::Node;
use crate::store::State;

/// The pool where the cluster's spec names none.
pub const DEFAULT_POOL: &str = "10.0.0.0/8";
/// Length of subnets where the cluster's spec names none.
pub const DEFAULT_SUBNET_LENGTH: u8 = 24;
/// Length of IPv6 subnets (RFC 4291 section 2.5.1).
pub(super) const V6_LENGTH: u8 = 64;

/// What subnets are chosen from.
#[derive(Clone, Debug, PartialEq)]
pub struct Pools {
    ranges: Vec<Cidr>,
    length: u8,
}

impl Pools {
    /// Those of the cluster's spec, else the default. What does not parse, which the API refuses, is left out.
    pub fn of(spec: &ClusterSpec) -> Self {
        let default = [DEFAULT_POOL.to_owned()];
        let texts = if spec.address_pools.is_empty() { &default[..] } else { &spec.address_pools };
        let length = u8::try_from(spec.subnet_length).ok().filter(|length| *length > 0);
        Self {
            ranges: texts.iter().filter_map(|text| text.parse().ok()).collect(),
            length: length.unwrap_or(DEFAULT_SUBNET_LENGTH),
        }
    }

    /// Whether a pool has the whole range.
    pub(super) fn cover(&self, cidr: &Cidr) -> bool {
        self.ranges.iter().any(|pool| pool.covers(cidr))
    }

    /// A free IPv4 subnet of the pools' length.
    pub(super) fn choose(&self, state: &State, hosts: &BTreeSet<IpAddr>) -> Option<Cidr> {
        let mut pools = self.ranges.iter().filter(|pool| pool.is_ipv4());
        pools.find_map(|pool| free_subnet(state, hosts, pool, self.length))
    }

    /// A free IPv4 subnet of a length, or a smaller one where it would be more than a quarter of its pool; not smaller than
    /// the pools' usual one.
    pub(super) fn choose_part(&self, state: &State, hosts: &BTreeSet<IpAddr>, length: u8) -> Option<Cidr> {
        let of = |pool: &Cidr| length.max(pool.length() + 2).min(self.length.max(length));
        self.ranges.iter().filter(|pool| pool.is_ipv4()).find_map(|pool| free_subnet(state, hosts, pool, of(pool)))
    }

    /// A free IPv6 subnet: of an IPv6 pool, else of the unique local range (RFC 4193) that `global_id` names.
    pub(super) fn choose_v6(&self, state: &State, hosts: &BTreeSet<IpAddr>, global_id: u64) -> Option<Cidr> {
        let mut pools = self.ranges.iter().filter(|pool| !pool.is_ipv4()).peekable();
        if pools.peek().is_some() {
            return pools.find_map(|pool| free_subnet(state, hosts, pool, V6_LENGTH.max(pool.length())));
        }
        let prefix = 0xfdu128 << 120 | u128::from(global_id & 0xff_ffff_ffff) << 80;
        free_subnet(state, hosts, &Cidr::around(IpAddr::from(prefix.to_be_bytes()), 48)?, V6_LENGTH)
    }
}

/// The first free subnet of a length within a pool. Jumps over what is taken: O(taken subnets).
fn free_subnet(state: &State, hosts: &BTreeSet<IpAddr>, pool: &Cidr, length: u8) -> Option<Cidr> {
    if length < pool.length() {
        return None;
    }
    let mut subnet = Cidr::around(pool.first(), length)?;
    while pool.covers(&subnet) {
        let taken = state.overlapping_subnet(&subnet).map(|(taken, _)| taken);
        if taken.is_none() && host_within(hosts, &subnet).is_none() {
            return Some(subnet);
        }
        // A larger one is left behind as a whole.
        let end = taken.map_or(subnet.last(), |taken| taken.last().max(subnet.last()));
        subnet = Cidr::around(end, length)?.next()?;
    }
    None
}

/// A host's address that lies in the range.
pub(super) fn host_within(hosts: &BTreeSet<IpAddr>, cidr: &Cidr) -> Option<IpAddr> {
    hosts.range(cidr.first()..=cidr.last()).next().copied()
}

/// Addresses of the hosts, as far as the managers know them.
pub(super) fn known_hosts(state: &State) -> BTreeSet<IpAddr> {
    state.nodes().flat_map(|node| host_addresses(node)).filter(|address| !address.is_loopback()).collect()
}

fn host_addresses(node: &Node) -> Vec<IpAddr> {
    let with_port = |text: &str| text.parse::<SocketAddr>().ok().map(|addr| addr.ip());
    let description = node.description.as_deref();
    let fabric = description.and_then(|description| description.fabric.as_ref());
    [
        node.status.addr.parse().ok(),
        node.manager.as_ref().and_then(|manager| with_port(&manager.addr)),
        description.and_then(|description| with_port(&description.peer_addr)),
        fabric.and_then(|fabric| with_port(&fabric.wireguard_addr)),
        fabric.and_then(|fabric| fabric.vxlan_addr.parse().ok()),
    ]
    .into_iter()
    .flatten()
    .collect()
}
