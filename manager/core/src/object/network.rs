//! Networks, and addresses on them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use skep_proto::cidr::Cidr;
use skep_proto::id::NetworkId;
use skep_proto::v1::NetworkSpec;

use super::Meta;

/// A network that tasks attach to. What it has never changes: only its labels do.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub spec: Arc<NetworkSpec>,
    /// What it has, from the spec or from the pools; one of each family at most.
    pub subnets: Vec<Subnet>,
    /// VXLAN network identifier, 24 bits. `None`: not an overlay.
    pub vni: Option<u32>,
}

/// A subnet of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    pub cidr: Cidr,
    /// Its way out; never given to a task.
    pub gateway: IpAddr,
    /// Part of it that addresses are chosen from. `None`: all of it.
    pub range: Option<Cidr>,
}

/// Addresses on one network, one of each family at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkAddresses {
    pub network: NetworkId,
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl Network {
    /// The subnet that an address lies in.
    pub fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.cidr.contains(address))
    }

    /// Whether a task, a service or a node may have the address, if nobody else has it: a host's address of one of its
    /// subnets.
    pub fn admits(&self, address: IpAddr) -> bool {
        self.subnet_of(address).is_some_and(|subnet| {
            let (first, last) = subnet.cidr.hosts();
            (first..=last).contains(&address)
        })
    }

    /// Addresses that the user keeps from tasks, with what has them. One that does not parse, or that is outside, keeps
    /// nothing.
    pub fn reserved(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        let all = self.spec.subnets.iter().flat_map(|subnet| &subnet.reserved_addresses);
        let parsed = all.filter_map(|(name, address)| Some((address.parse().ok()?, name.as_str())));
        parsed.filter(|(address, _)| self.subnet_of(*address).is_some())
    }
}

impl NetworkAddresses {
    /// None yet.
    pub fn none(network: NetworkId) -> Self {
        Self { network, v4: None, v6: None }
    }

    /// The addresses, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }

    /// Puts an address in its family's place.
    pub fn set(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.v4 = Some(address),
            IpAddr::V6(address) => self.v6 = Some(address),
        }
    }
}
