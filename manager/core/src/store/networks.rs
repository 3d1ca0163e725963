//! Networks and what is on them: names, VNIs, subnets, who holds which address, which tasks and services are on a
//! network, published ports, the nodes' numbers in the fabric. All of it is kept by `put` and `remove` of the objects it
//! comes from; nothing else writes an index.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use skep_proto::cidr::Cidr;
use skep_proto::id::{NetworkId, NodeId, ServiceId, TaskId};
use skep_proto::v1::{Protocol, PublishMode};

use super::taken::TakenAddresses;
use super::{Object, State};
use crate::object::{Network, NetworkAddresses, Node, Service, Task};

/// Who has an address of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// It is the gateway.
    Gateway,
    /// The network's spec keeps it from tasks.
    Reserved,
    Task(TaskId),
    /// It is a virtual address.
    Service(ServiceId),
    /// The node's own, in the network of the routing mesh.
    Node(NodeId),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway => f.write_str("its gateway"),
            Self::Reserved => f.write_str("its own reservation"),
            Self::Task(id) => write!(f, "task {id}"),
            Self::Service(id) => write!(f, "service {id}"),
            Self::Node(id) => write!(f, "node {id}"),
        }
    }
}

/// Networks and their indexes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct NetworkTable {
    by_id: OrdMap<NetworkId, Arc<Network>>,
    by_name: OrdMap<String, NetworkId>,
    by_vni: OrdMap<u32, NetworkId>,
    /// In order of their first addresses. No two overlap.
    subnets: OrdMap<Cidr, NetworkId>,
    /// The routing mesh's; one at most.
    ingress: OrdSet<NetworkId>,
    holders: OrdMap<(NetworkId, IpAddr), Holder>,
    /// The same addresses as `holders`.
    taken: TakenAddresses,
    /// Tasks that hold addresses.
    tasks: OrdSet<(NetworkId, TaskId)>,
    on_node: OrdMap<(NetworkId, NodeId), u64>,
    /// Networks that the current template of each service attaches to, in its order. No entry: none.
    attached: OrdMap<ServiceId, Arc<[NetworkId]>>,
    services: OrdSet<(NetworkId, ServiceId)>,
    /// Ports published by the routing mesh.
    ports: OrdMap<(Protocol, u32), ServiceId>,
    /// Ports that tasks claim on their hosts. Several services may have one, on different hosts.
    host_ports: OrdSet<(Protocol, u32, ServiceId)>,
    publishing: OrdMap<ServiceId, u32>,
    fabric: OrdMap<u32, NodeId>,
}

impl Task {
    /// Addresses that are its own: from its placement until it is known to have ended.
    pub fn held_addresses(&self) -> &[NetworkAddresses] {
        if self.occupies_node() { &self.networks } else { &[] }
    }
}

impl Service {
    /// Ports that the routing mesh publishes for it.
    pub fn ingress_ports(&self) -> impl Iterator<Item = (Protocol, u32)> {
        let ingress = self.ports.iter().filter(|port| port.mode() == PublishMode::Ingress && port.published_port != 0);
        ingress.map(|port| (port.protocol(), port.published_port))
    }

    /// Ports that each of its tasks claims on its host.
    pub fn host_ports(&self) -> impl Iterator<Item = (Protocol, u32)> {
        let host = self.ports.iter().filter(|port| port.mode() == PublishMode::Host && port.published_port != 0);
        host.map(|port| (port.protocol(), port.published_port))
    }
}

impl NetworkTable {
    pub(super) fn put(&mut self, network: Arc<Network>) -> Option<Arc<Network>> {
        let old = self.by_id.insert(network.id, Arc::clone(&network));
        if let Some(old) = &old {
            self.forget(old);
        }
        let id = network.id;
        self.by_name.insert(network.spec.name.clone(), id);
        if let Some(vni) = network.vni {
            self.by_vni.insert(vni, id);
        }
        if network.spec.ingress {
            self.ingress.insert(id);
        }
        for subnet in &network.subnets {
            self.subnets.insert(subnet.cidr, id);
            self.claim(id, subnet.gateway, Holder::Gateway);
        }
        for (address, _) in network.reserved() {
            self.claim(id, address, Holder::Reserved);
        }
        old
    }

    pub(super) fn remove(&mut self, id: NetworkId) -> Option<Arc<Network>> {
        let old = self.by_id.remove(&id)?;
        self.forget(&old);
        Some(old)
    }

    /// Takes a network out of all indexes that come from it alone.
    fn forget(&mut self, old: &Network) {
        self.by_name.remove(&old.spec.name);
        if let Some(vni) = old.vni {
            self.by_vni.remove(&vni);
        }
        self.ingress.remove(&old.id);
        for (address, _) in old.reserved() {
            self.release(old.id, address, Holder::Reserved);
        }
        for subnet in &old.subnets {
            self.subnets.remove(&subnet.cidr);
            self.release(old.id, subnet.gateway, Holder::Gateway);
        }
    }

    /// Brings everything that nodes, services and tasks have on networks up to date.
    pub(super) fn reindex(&mut self, old: Option<&Object>, new: Option<&Object>) {
        match old.or(new) {
            Some(Object::Task(_)) => self.reindex_task(old.and_then(as_task), new.and_then(as_task)),
            Some(Object::Service(_)) => self.reindex_service(old.and_then(as_service), new.and_then(as_service)),
            Some(Object::Node(_)) => self.reindex_node(old.and_then(as_node), new.and_then(as_node)),
            _ => {}
        }
    }

    fn reindex_task(&mut self, old: Option<&Task>, new: Option<&Task>) {
        let (had, has) = (old.map_or(&[][..], Task::held_addresses), new.map_or(&[][..], Task::held_addresses));
        if had == has && old.map(|task| task.node) == new.map(|task| task.node) {
            return;
        }
        if let Some((task, node)) = old.and_then(|task| Some((task, task.node?))) {
            let mut seen = OrdSet::new();
            for one in had {
                self.release_all(one, Holder::Task(task.id));
                if seen.insert(one.network).is_none() {
                    self.tasks.remove(&(one.network, task.id));
                    count(&mut self.on_node, (one.network, node), false);
                }
            }
        }
        if let Some((task, node)) = new.and_then(|task| Some((task, task.node?))) {
            for one in has {
                self.claim_all(one, Holder::Task(task.id));
                if self.tasks.insert((one.network, task.id)).is_none() {
                    count(&mut self.on_node, (one.network, node), true);
                }
            }
        }
    }

    fn reindex_service(&mut self, old: Option<&Service>, new: Option<&Service>) {
        let same =
            |old: &Service, new: &Service| old.virtual_addresses == new.virtual_addresses && old.ports == new.ports;
        if old.zip(new).is_some_and(|(old, new)| same(old, new)) {
            return;
        }
        if let Some(old) = old {
            old.virtual_addresses.iter().for_each(|one| self.release_all(one, Holder::Service(old.id)));
            for port in old.ingress_ports() {
                if self.ports.get(&port) == Some(&old.id) {
                    self.ports.remove(&port);
                }
            }
            for (protocol, port) in old.host_ports() {
                self.host_ports.remove(&(protocol, port, old.id));
            }
            self.publishing.remove(&old.id);
        }
        if let Some(new) = new {
            new.virtual_addresses.iter().for_each(|one| self.claim_all(one, Holder::Service(new.id)));
            self.host_ports.extend(new.host_ports().map(|(protocol, port)| (protocol, port, new.id)));
            let mut published = 0;
            for port in new.ingress_ports() {
                published += 1;
                if !self.ports.contains_key(&port) {
                    self.ports.insert(port, new.id);
                }
            }
            if published > 0 {
                self.publishing.insert(new.id, published);
            }
        }
    }

    fn reindex_node(&mut self, old: Option<&Node>, new: Option<&Node>) {
        let parts = |node: &Node| (node.fabric_number, node.ingress);
        if old.map(parts) == new.map(parts) {
            return;
        }
        if let Some(old) = old {
            if let Some(number) = old.fabric_number.filter(|number| self.fabric.get(number) == Some(&old.id)) {
                self.fabric.remove(&number);
            }
            old.ingress.iter().for_each(|one| self.release_all(one, Holder::Node(old.id)));
        }
        if let Some(new) = new {
            if let Some(number) = new.fabric_number.filter(|number| !self.fabric.contains_key(number)) {
                self.fabric.insert(number, new.id);
            }
            new.ingress.iter().for_each(|one| self.claim_all(one, Holder::Node(new.id)));
        }
    }

    /// Sets what the current template of a service attaches to.
    pub(super) fn attach(&mut self, service: ServiceId, networks: Vec<NetworkId>) {
        let before = self.attached.get(&service);
        if before.map_or(networks.is_empty(), |before| before[..] == networks[..]) {
            return;
        }
        for network in before.cloned().iter().flat_map(|before| before.iter()) {
            self.services.remove(&(*network, service));
        }
        self.services.extend(networks.iter().map(|network| (*network, service)));
        if networks.is_empty() {
            self.attached.remove(&service);
        } else {
            self.attached.insert(service, networks.into());
        }
    }

    fn claim_all(&mut self, addresses: &NetworkAddresses, holder: Holder) {
        addresses.iter().for_each(|address| self.claim(addresses.network, address, holder));
    }

    fn release_all(&mut self, addresses: &NetworkAddresses, holder: Holder) {
        addresses.iter().for_each(|address| self.release(addresses.network, address, holder));
    }

    /// A claim of another is never taken away.
    fn claim(&mut self, network: NetworkId, address: IpAddr, holder: Holder) {
        if self.taken.insert(network, address) {
            self.holders.insert((network, address), holder);
        }
    }

    fn release(&mut self, network: NetworkId, address: IpAddr, holder: Holder) {
        if self.holders.get(&(network, address)) == Some(&holder) {
            self.holders.remove(&(network, address));
            self.taken.remove(network, address);
        }
    }
}

fn count(counts: &mut OrdMap<(NetworkId, NodeId), u64>, key: (NetworkId, NodeId), up: bool) {
    let old = counts.get(&key).copied().unwrap_or(0);
    match if up { old.saturating_add(1) } else { old.saturating_sub(1) } {
        0 => counts.remove(&key),
        new => counts.insert(key, new),
    };
}

fn as_task(object: &Object) -> Option<&Task> {
    if let Object::Task(task) = object { Some(task) } else { None }
}

fn as_service(object: &Object) -> Option<&Service> {
    if let Object::Service(service) = object { Some(service) } else { None }
}

fn as_node(object: &Object) -> Option<&Node> {
    if let Object::Node(node) = object { Some(node) } else { None }
}

const LOWEST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
const HIGHEST: IpAddr = IpAddr::V6(std::net::Ipv6Addr::from_bits(u128::MAX));

impl State {
    /// The network of that id.
    pub fn network(&self, id: NetworkId) -> Option<&Arc<Network>> {
        self.networks.by_id.get(&id)
    }

    /// All networks, by id.
    pub fn networks(&self) -> impl DoubleEndedIterator<Item = &Arc<Network>> {
        self.networks.by_id.values()
    }

    /// How many networks there are.
    pub fn network_count(&self) -> usize {
        self.networks.by_id.len()
    }

    /// The network of that exact name.
    pub fn network_by_name(&self, name: &str) -> Option<&Arc<Network>> {
        self.network(*self.networks.by_name.get(name)?)
    }

    /// The overlay of that VXLAN network identifier.
    pub fn network_by_vni(&self, vni: u32) -> Option<NetworkId> {
        self.networks.by_vni.get(&vni).copied()
    }

    /// The network of the routing mesh.
    pub fn ingress_network(&self) -> Option<&Arc<Network>> {
        self.network(*self.networks.ingress.get_min()?)
    }

    /// Networks whose ids lie in the range, by id.
    pub(super) fn networks_between(&self, low: NetworkId, high: NetworkId) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.by_id.range(low..=high).map(|(_, network)| network)
    }

    /// A subnet, of any network, that has an address in common with `cidr`: the last such. O(log n).
    pub fn overlapping_subnet(&self, cidr: &Cidr) -> Option<(Cidr, NetworkId)> {
        // Stored subnets do not overlap: only the last that begins before the end of `cidr` can reach into it.
        let end = Cidr::around(cidr.last(), if cidr.is_ipv4() { 32 } else { 128 })?;
        let (found, network) = self.networks.subnets.range(..=end).next_back()?;
        found.overlaps(cidr).then_some((*found, *network))
    }

    /// Who holds an address of a network.
    pub fn address_holder(&self, network: NetworkId, address: IpAddr) -> Option<Holder> {
        self.networks.holders.get(&(network, address)).copied()
    }

    /// Taken addresses of a network with their holders, in order.
    pub fn addresses_of(&self, network: NetworkId) -> impl DoubleEndedIterator<Item = (IpAddr, Holder)> {
        let range = (network, LOWEST)..=(network, HIGHEST);
        self.networks.holders.range(range).map(|((_, address), holder)| (*address, *holder))
    }

    /// Taken addresses of all networks: a clone is free.
    pub fn taken_addresses(&self) -> &TakenAddresses {
        &self.networks.taken
    }

    /// Tasks that hold addresses of a network, by id.
    pub fn tasks_on_network(&self, network: NetworkId) -> impl Iterator<Item = &Arc<Task>> {
        let range = (network, TaskId::new(0))..=(network, TaskId::new(u128::MAX));
        self.networks.tasks.range(range).filter_map(|(_, id)| self.task(*id))
    }

    /// How many tasks on a node hold addresses of a network.
    pub fn network_use(&self, network: NetworkId, node: NodeId) -> u64 {
        self.networks.on_node.get(&(network, node)).copied().unwrap_or(0)
    }

    /// Nodes with a task on a network, by id, and how many.
    pub fn nodes_on_network(&self, network: NetworkId) -> impl Iterator<Item = (NodeId, u64)> {
        let range = (network, NodeId::new(0))..=(network, NodeId::new(u128::MAX));
        self.networks.on_node.range(range).map(|((_, node), tasks)| (*node, *tasks))
    }

    /// Networks that the current template of a service attaches to, in its order.
    pub fn attachments_of(&self, service: ServiceId) -> &[NetworkId] {
        self.networks.attached.get(&service).map_or(&[], |networks| networks)
    }

    /// Services that are on a network, by id: attached by their current template, or, to the network of the routing
    /// mesh, by a port published there.
    pub fn services_on_network(&self, network: NetworkId) -> impl Iterator<Item = &Arc<Service>> {
        let is_ingress = self.networks.ingress.contains(&network);
        let publishing = is_ingress.then(|| self.ingress_services()).into_iter().flatten();
        self.services_attached_to(network).chain(publishing)
    }

    /// Services whose current template attaches to a network, by id; also to one that is not there.
    pub fn services_attached_to(&self, network: NetworkId) -> impl Iterator<Item = &Arc<Service>> {
        let range = (network, ServiceId::new(0))..=(network, ServiceId::new(u128::MAX));
        self.networks.services.range(range).filter_map(|(_, service)| self.service(*service))
    }

    /// Services that publish a port in the routing mesh, by id.
    pub fn ingress_services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.networks.publishing.keys().filter_map(|id| self.service(*id))
    }

    /// Whether any service publishes a port in the routing mesh.
    pub fn has_ingress_ports(&self) -> bool {
        !self.networks.publishing.is_empty()
    }

    /// The service that publishes a port in the routing mesh.
    pub fn ingress_port_holder(&self, protocol: Protocol, port: u32) -> Option<ServiceId> {
        self.networks.ports.get(&(protocol, port)).copied()
    }

    /// Services whose tasks claim a port on their hosts, by id.
    pub fn host_port_services(&self, protocol: Protocol, port: u32) -> impl Iterator<Item = ServiceId> {
        let range = (protocol, port, ServiceId::new(0))..=(protocol, port, ServiceId::new(u128::MAX));
        self.networks.host_ports.range(range).map(|(_, _, service)| *service)
    }

    /// The node of that number in the fabric.
    pub fn node_by_fabric_number(&self, number: u32) -> Option<NodeId> {
        self.networks.fabric.get(&number).copied()
    }

    /// The highest number in the fabric that a node has; 0: none has one.
    pub fn last_fabric_number(&self) -> u32 {
        self.networks.fabric.get_max().map_or(0, |(number, _)| *number)
    }
}
