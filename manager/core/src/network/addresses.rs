//! Which addresses tasks and nodes get: the next free one after the last that was given, so that a freed address rests as
//! long as it can. Where the last one was is kept beside the state by the scheduler's driver; that an address has one
//! holder is checked by `apply`. Used for one pass: what it gives away is marked in a copy of the state's index.

use std::collections::BTreeMap;
use std::net::IpAddr;

use skep_proto::cidr::{next, previous};
use skep_proto::id::NetworkId;

use crate::object::{Network, NetworkAddresses, Subnet};
use crate::store::{State, TakenAddresses};

/// What was given last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cursors {
    /// The address of each subnet, by network and family (true: IPv6).
    addresses: BTreeMap<(NetworkId, bool), IpAddr>,
    /// The number of a node in the fabric.
    pub(super) fabric_number: u32,
}

impl Cursors {
    /// Forgets networks that are gone.
    pub fn prune(&mut self, state: &State) {
        self.addresses.retain(|(network, _), _| state.network(*network).is_some());
    }
}

/// Why there is no address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoAddress {
    /// The network is not there.
    Gone(NetworkId),
    /// All are taken.
    Full(String),
    /// One that the spec names is taken.
    Taken { address: IpAddr, network: String, holder: String },
    /// One that the spec names cannot be had there.
    Outside { address: IpAddr, network: String },
}

impl std::fmt::Display for NoAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone(id) => write!(f, "network {id} was removed"),
            Self::Full(network) => write!(f, "no free address in network {network}"),
            Self::Taken { address, network, holder } => {
                write!(f, "address {address} of network {network} is taken by {holder}")
            }
            Self::Outside { address, network } => write!(f, "address {address} is outside network {network}"),
        }
    }
}

/// Gives addresses during one pass.
pub struct Addresses<'a> {
    state: &'a State,
    cursors: &'a mut Cursors,
    taken: TakenAddresses,
}

/// The first and last address of a subnet that are given to tasks and services.
pub fn given_range(subnet: &Subnet) -> (IpAddr, IpAddr) {
    let (first, last) = subnet.cidr.hosts();
    subnet.range.map_or((first, last), |range| (range.first().max(first), range.last().min(last)))
}

impl<'a> Addresses<'a> {
    /// `cursors` move on with each address that is given.
    pub fn new(state: &'a State, cursors: &'a mut Cursors) -> Self {
        Self { state, cursors, taken: state.taken_addresses().clone() }
    }

    /// One free address of each family of a network, or the ones of `fixed`. They are not taken yet: see
    /// [`Self::take`].
    pub fn find(&mut self, network: NetworkId, fixed: &[IpAddr]) -> Result<NetworkAddresses, NoAddress> {
        let network = self.state.network(network).ok_or(NoAddress::Gone(network))?;
        let mut found = NetworkAddresses::none(network.id);
        for address in fixed {
            self.check_fixed(network, *address)?;
            found.set(*address);
        }
        for subnet in &network.subnets {
            let has = if subnet.cidr.is_ipv4() { found.v4.is_some() } else { found.v6.is_some() };
            if !has {
                let free = self.next_free(network, subnet);
                found.set(free.ok_or_else(|| NoAddress::Full(network.spec.name.clone()))?);
            }
        }
        Ok(found)
    }

    /// Takes what was found.
    pub fn take(&mut self, addresses: &NetworkAddresses) {
        for address in addresses.iter() {
            self.taken.insert(addresses.network, address);
            self.cursors.addresses.insert((addresses.network, address.is_ipv6()), address);
        }
    }

    fn check_fixed(&self, network: &Network, address: IpAddr) -> Result<(), NoAddress> {
        let name = || network.spec.name.clone();
        if !network.admits(address) {
            return Err(NoAddress::Outside { address, network: name() });
        }
        if !self.taken.contains(network.id, address) {
            return Ok(());
        }
        let holder = self.state.address_holder(network.id, address);
        let holder = holder.map_or_else(|| "a task that is being placed".to_owned(), |holder| holder.to_string());
        Err(NoAddress::Taken { address, network: name(), holder })
    }

    fn next_free(&mut self, network: &Network, subnet: &Subnet) -> Option<IpAddr> {
        let (first, last) = given_range(subnet);
        let key = (network.id, !subnet.cidr.is_ipv4());
        let (state, cursors) = (self.state, &mut self.cursors.addresses);
        let given = *cursors.entry(key).or_insert_with(|| newest(state, network.id, subnet).unwrap_or(last));
        let from = next(given).filter(|from| (first..=last).contains(from)).unwrap_or(first);
        self.taken
            .first_free(network.id, from, last)
            .or_else(|| self.taken.first_free(network.id, first, previous(from).filter(|end| *end >= first)?))
    }
}

/// Where another leader was: the address of the newest task.
fn newest(state: &State, network: NetworkId, subnet: &Subnet) -> Option<IpAddr> {
    let held = state.tasks_on_network(network).flat_map(|task| {
        let of_network = task.held_addresses().iter().filter(|one| one.network == network);
        of_network.flat_map(NetworkAddresses::iter).map(|address| (task.meta.created_at, address))
    });
    held.filter(|(_, address)| subnet.cidr.contains(*address)).max().map(|(_, address)| address)
}

/// A free address for a service, from a random place on: its handler knows no cursor, and a freed one must rest too.
pub(super) fn find_virtual(state: &State, network: &Network, subnet: &Subnet, seed: u64) -> Option<IpAddr> {
    let (first, last) = given_range(subnet);
    let (low, high) = (subnet.cidr.offset(first)?, subnet.cidr.offset(last)?);
    let from = subnet.cidr.nth(low + u128::from(seed) % (high.checked_sub(low)?.saturating_add(1)))?;
    let taken = state.taken_addresses();
    taken
        .first_free(network.id, from, last)
        .or_else(|| taken.first_free(network.id, first, previous(from).filter(|end| *end >= first)?))
}
