//! Where frames to other hosts' endpoints go: the static forwarding and neighbour entries of a network's VXLAN device, or
//! those of the mesh's device.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use skep_fabric::{Change, Forward, Mac};
use skep_netlink::MacAddress;
use skep_netlink::neighbour::{Neighbour, NeighbourChange};
use skep_proto::id::{NodeId, TaskId};

use crate::plan::mac_of;
use crate::plan::mesh::fabric_address;
use crate::table::{Peer, Table, TableChange};

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Holder {
    Node(NodeId),
    Task(TaskId),
}

/// Where an address is: behind which Ethernet address, on which host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    mac: MacAddress,
    remote: IpAddr,
}

/// By which of their addresses other hosts are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Those of the underlay.
    Underlay,
    /// Those inside the mesh.
    Mesh,
}

impl Way {
    /// Without an address it cannot be reached yet.
    fn remote(self, peer: &Peer) -> Option<IpAddr> {
        match self {
            Self::Underlay => peer.endpoint.vxlan_addr.parse().ok(),
            Self::Mesh => fabric_address(peer.fabric_number),
        }
    }
}

/// What was so before a change.
struct Before {
    places: HashMap<IpAddr, Option<Place>>,
    tunnels: HashMap<MacAddress, Option<IpAddr>>,
}

/// The entries that a table asks for on one host.
#[derive(Clone, Debug)]
pub struct Forwarding {
    own: NodeId,
    way: Way,
    addresses: HashMap<Holder, Vec<IpAddr>>,
    /// Of two holders of an address, which there are only for a moment, the last counts.
    places: HashMap<IpAddr, BTreeMap<Holder, Place>>,
    /// How many addresses are at an Ethernet address (those of both families share one), and behind which host.
    tunnels: HashMap<MacAddress, BTreeMap<Holder, IpAddr>>,
}

impl Forwarding {
    /// Of the host `own`, whose own endpoints need no entries. Nobody is anywhere yet.
    pub fn new(own: NodeId, way: Way) -> Self {
        Self { own, way, addresses: HashMap::new(), places: HashMap::new(), tunnels: HashMap::new() }
    }

    /// Follows a change that led to `table`. `device` is the number of the VXLAN device in the entries.
    pub fn change(&mut self, table: &Table, change: &TableChange, device: u32) -> Vec<NeighbourChange> {
        let before = self.follow(table, change);
        let (mut gone, mut put) = (Vec::new(), Vec::new());
        for (address, before) in before.places {
            let entry = |place: Place| Neighbour::Host { device, address, mac: place.mac };
            let (before, after) = (before.map(entry), self.place(address).map(entry));
            decide(before, after, &mut gone, &mut put);
        }
        for (mac, before) in before.tunnels {
            let entry = |remote| Neighbour::Tunnel { device, mac, remote };
            decide(before.map(entry), self.tunnel(mac).map(entry), &mut gone, &mut put);
        }
        gone.append(&mut put);
        gone
    }

    /// Follows a change that led to `table`, for the mesh's device.
    pub fn change_forwards(&mut self, table: &Table, change: &TableChange) -> Change<Forward, Mac> {
        let before = self.follow(table, change);
        let mut macs: BTreeSet<MacAddress> = BTreeSet::new();
        for (address, before) in before.places {
            let after = self.place(address);
            if before != after {
                // Also whoever had the address before, and keeps others.
                macs.extend([before, after].into_iter().flatten().map(|place| place.mac));
            }
        }
        macs.extend(
            before.tunnels.into_iter().filter(|(mac, before)| *before != self.tunnel(*mac)).map(|(mac, _)| mac),
        );
        let mut change = Change { put: Vec::new(), remove: Vec::new() };
        for mac in macs {
            match self.forward(mac) {
                Some(forward) => change.put.push(forward),
                None => change.remove.push(mac.0),
            }
        }
        change
    }

    /// All entries for the mesh's device, in no order.
    pub fn forwards(&self) -> impl Iterator<Item = Forward> + '_ {
        self.tunnels.keys().filter_map(|mac| self.forward(*mac))
    }

    fn forward(&self, mac: MacAddress) -> Option<Forward> {
        let peer = self.tunnel(mac)?;
        let holders = self.tunnels.get(&mac)?.keys();
        let is_here = |address: &IpAddr| self.place(*address).is_some_and(|place| place.mac == mac);
        let mut addresses: Vec<IpAddr> =
            holders.filter_map(|holder| self.addresses.get(holder)).flatten().copied().filter(is_here).collect();
        addresses.sort_unstable();
        addresses.dedup();
        Some(Forward { mac: mac.0, addresses, peer })
    }

    fn follow(&mut self, table: &Table, change: &TableChange) -> Before {
        let mut holders: BTreeSet<Holder> = change.endpoints.keys().map(|task| Holder::Task(*task)).collect();
        for node in change.peers.keys() {
            holders.insert(Holder::Node(*node));
        }
        if !change.peers.is_empty() {
            let on_changed = table.endpoints.iter().filter(|(_, endpoint)| change.peers.contains_key(&endpoint.node));
            holders.extend(on_changed.map(|(task, _)| Holder::Task(*task)));
        }
        self.follow_holders(table, &holders)
    }

    /// Follows what became of these.
    fn follow_holders(&mut self, table: &Table, holders: &BTreeSet<Holder>) -> Before {
        let (mut places, mut tunnels) = (HashMap::new(), HashMap::new());
        for holder in holders {
            let old = self.addresses.remove(holder).unwrap_or_default();
            let (new, remote) = self.wanted(table, *holder).unwrap_or_default_pair();
            for address in old.iter().chain(&new) {
                places.entry(*address).or_insert_with(|| self.place(*address));
            }
            for mac in [mac_of(&old), mac_of(&new)].into_iter().flatten() {
                tunnels.entry(mac).or_insert_with(|| self.tunnel(mac));
            }
            self.forget(*holder, &old);
            if let (Some(remote), Some(mac)) = (remote, mac_of(&new)) {
                for address in &new {
                    self.places.entry(*address).or_default().insert(*holder, Place { mac, remote });
                }
                self.tunnels.entry(mac).or_default().insert(*holder, remote);
                self.addresses.insert(*holder, new);
            }
        }
        Before { places, tunnels }
    }

    /// All entries, in no order.
    pub fn entries(&self, device: u32) -> impl Iterator<Item = Neighbour> + '_ {
        let hosts = self.places.keys().filter_map(move |address| {
            self.place(*address).map(|place| Neighbour::Host { device, address: *address, mac: place.mac })
        });
        let tunnels = self
            .tunnels
            .keys()
            .filter_map(move |mac| self.tunnel(*mac).map(|remote| Neighbour::Tunnel { device, mac: *mac, remote }));
        hosts.chain(tunnels)
    }

    fn place(&self, address: IpAddr) -> Option<Place> {
        self.places.get(&address)?.last_key_value().map(|(_, place)| *place)
    }

    fn tunnel(&self, mac: MacAddress) -> Option<IpAddr> {
        self.tunnels.get(&mac)?.last_key_value().map(|(_, remote)| *remote)
    }

    fn forget(&mut self, holder: Holder, addresses: &[IpAddr]) {
        for address in addresses {
            if let Some(places) = self.places.get_mut(address) {
                places.remove(&holder);
                if places.is_empty() {
                    self.places.remove(address);
                }
            }
        }
        if let Some(mac) = mac_of(addresses)
            && let Some(tunnels) = self.tunnels.get_mut(&mac)
        {
            tunnels.remove(&holder);
            if tunnels.is_empty() {
                self.tunnels.remove(&mac);
            }
        }
    }

    /// The addresses of a holder on another host, and that host. `None`: it needs no entries.
    fn wanted(&self, table: &Table, holder: Holder) -> Option<(Vec<IpAddr>, IpAddr)> {
        let (node, addresses) = match holder {
            Holder::Task(task) => {
                let endpoint = table.endpoints.get(&task)?;
                (endpoint.node, endpoint.addresses.clone())
            }
            Holder::Node(node) => (node, table.peers.get(&node)?.addresses.clone()),
        };
        if node == self.own {
            return None;
        }
        let remote = self.way.remote(table.peers.get(&node)?)?;
        Some((addresses, remote))
    }
}

/// Addresses that may be none, and where they are.
trait OrNowhere {
    fn unwrap_or_default_pair(self) -> (Vec<IpAddr>, Option<IpAddr>);
}

impl OrNowhere for Option<(Vec<IpAddr>, IpAddr)> {
    fn unwrap_or_default_pair(self) -> (Vec<IpAddr>, Option<IpAddr>) {
        self.map_or_else(|| (Vec::new(), None), |(addresses, remote)| (addresses, Some(remote)))
    }
}

fn decide(
    before: Option<Neighbour>,
    after: Option<Neighbour>,
    gone: &mut Vec<NeighbourChange>,
    put: &mut Vec<NeighbourChange>,
) {
    match (before, after) {
        (before, after) if before == after => {}
        (_, Some(after)) => put.push(NeighbourChange::Put(after)),
        (Some(before), None) => gone.push(NeighbourChange::Delete(before)),
        (None, None) => {}
    }
}

/// What leads from the entries that are there to those that are wanted, of one device.
pub fn difference(
    found: impl IntoIterator<Item = Neighbour>,
    wanted: impl IntoIterator<Item = Neighbour>,
) -> Vec<NeighbourChange> {
    let key = |entry: &Neighbour| match *entry {
        Neighbour::Host { address, .. } => (Some(address), None),
        Neighbour::Tunnel { mac, .. } | Neighbour::Port { mac, .. } => (None, Some(mac)),
    };
    let mut there: HashMap<_, Neighbour> = found.into_iter().map(|entry| (key(&entry), entry)).collect();
    let mut put = Vec::new();
    for entry in wanted {
        if there.remove(&key(&entry)) != Some(entry) {
            put.push(NeighbourChange::Put(entry));
        }
    }
    let mut changes: Vec<NeighbourChange> = there.into_values().map(NeighbourChange::Delete).collect();
    changes.append(&mut put);
    changes
}

#[cfg(test)]
#[path = "forwarding_test.rs"]
mod tests;
