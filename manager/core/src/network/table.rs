//! The table of a network: who is on it and where, as its nodes hear it. Here is what one row says and which rows an event
//! touches; the dispatcher keeps the rows, numbers the differences and sends them. A row follows from the state alone, so
//! it does not matter how often, or in which order, touched rows are looked at again.

use std::collections::{BTreeMap, BTreeSet};

use skep_proto::cidr::address_to_wire;
use skep_proto::id::{NetworkId, NodeId, ServiceId, TaskId};
use skep_proto::template::{self, Facts};
use skep_proto::v1::{
    EndpointState, NetworkDriver, NetworkEndpoint, NetworkPeer, NetworkService, NodeState, PublishMode, TaskState,
    WantedState,
};

use crate::event::Event;
use crate::object::{Network, NetworkAddresses, Node, Revision, Service, Slot, Task};
use crate::store::{Object, State, attached_networks};

/// Names a row of a network's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// A task.
    Endpoint(TaskId),
    /// A service.
    Service(ServiceId),
    /// A node.
    Peer(NodeId),
}

/// What a row says.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    Endpoint(NetworkEndpoint),
    Service(NetworkService),
    Peer(NetworkPeer),
}

/// What an event changes in the tables, perhaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Touched {
    /// The network was made, changed or removed: all of its table.
    Network(NetworkId),
    /// One row. A node's row is touched also where the node may now need the table, or need it no more.
    Row(NetworkId, RowKey),
}

/// The number of a store version in tables. It rises also over a recovery from a lost quorum, after which store versions
/// may come again with another content.
pub fn version(state: &State, at: u64) -> u64 {
    let epoch = state.cluster().map_or(0, |cluster| cluster.recovery_epoch);
    (epoch << 40).saturating_add(at)
}

/// One row as the state has it. `None`: there is no such row.
pub fn row(state: &State, network: NetworkId, key: RowKey) -> Option<Row> {
    let network = state.network(network)?;
    match key {
        RowKey::Endpoint(id) => endpoint(state, network, state.task(id)?).map(Row::Endpoint),
        RowKey::Service(id) => service_row(state, network, state.service(id)?).map(Row::Service),
        RowKey::Peer(id) => peer(state, network, state.node(id)?).map(Row::Peer),
    }
}

/// All rows of a network. O(n). Empty where there is no such network.
pub fn rows(state: &State, network: NetworkId) -> BTreeMap<RowKey, Row> {
    let tasks = state.tasks_on_network(network).map(|task| RowKey::Endpoint(task.id));
    let services = state.services_on_network(network).map(|service| RowKey::Service(service.id));
    let nodes = members(state, network).into_iter().map(RowKey::Peer);
    tasks.chain(services).chain(nodes).filter_map(|key| Some((key, row(state, network, key)?))).collect()
}

/// Nodes that the table goes to: those with a task on the network; to the routing mesh's network belong all nodes while
/// any service publishes a port there.
pub fn members(state: &State, network: NetworkId) -> BTreeSet<NodeId> {
    if is_everywhere(state, network) {
        return state.nodes().map(|node| node.id).collect();
    }
    state.nodes_on_network(network).map(|(node, _)| node).collect()
}

/// Whether the table goes to a node: see [`members`].
pub fn is_member(state: &State, network: NetworkId, node: NodeId) -> bool {
    state.network_use(network, node) > 0 || (is_everywhere(state, network) && state.node(node).is_some())
}

/// Whether the table goes to any node of which `holds` is true. Stops at the first.
pub fn any_member(state: &State, network: NetworkId, mut holds: impl FnMut(NodeId) -> bool) -> bool {
    if is_everywhere(state, network) {
        return state.nodes().any(|node| holds(node.id));
    }
    state.nodes_on_network(network).any(|(node, _)| holds(node))
}

/// Networks whose tables go to a node. O(tasks of the node).
pub fn networks_of_node(state: &State, node: NodeId) -> BTreeSet<NetworkId> {
    let held = state.tasks_on_node(node).flat_map(|task| task.held_addresses()).map(|one| one.network);
    let mesh = state.ingress_network().map(|network| network.id).filter(|id| is_member(state, *id, node));
    held.chain(mesh).collect()
}

/// Which rows an event touches. `state` is the one after it, or after later ones.
pub fn touched(event: &Event, state: &State) -> BTreeSet<Touched> {
    let mut touched = BTreeSet::new();
    let (before, after) = (event.before.as_ref(), event.after.as_ref());
    match before.or(after) {
        Some(Object::Network(network)) => {
            touched.insert(Touched::Network(network.id));
        }
        Some(Object::Task(_)) => {
            let task = |object: Option<&'_ Object>| match object {
                Some(Object::Task(task)) => by_task(task),
                _ => Vec::new(),
            };
            touched.extend(task(before).into_iter().chain(task(after)));
        }
        Some(Object::Service(service)) => by_service(state, service.id, before, after, &mut touched),
        Some(Object::Revision(revision)) => touched.extend(by_revision(revision)),
        Some(Object::Node(node)) => by_node(state, node.id, before, after, &mut touched),
        _ => {}
    }
    touched
}

/// Whether the network is the routing mesh's and in use.
fn is_everywhere(state: &State, network: NetworkId) -> bool {
    state.has_ingress_ports() && state.ingress_network().is_some_and(|ingress| ingress.id == network)
}

fn by_task(task: &Task) -> Vec<Touched> {
    let rows = |one: &NetworkAddresses| {
        let node = task.node.map(RowKey::Peer);
        let network = one.network;
        [Some(RowKey::Endpoint(task.id)), node].into_iter().flatten().map(move |key| Touched::Row(network, key))
    };
    task.held_addresses().iter().flat_map(rows).collect()
}

/// Networks that the service is or was on: by its addresses, by any template that is kept, by its ports.
fn by_service(
    state: &State,
    id: ServiceId,
    before: Option<&Object>,
    after: Option<&Object>,
    touched: &mut BTreeSet<Touched>,
) {
    let mut published = [false; 2];
    for (object, published) in [before, after].into_iter().zip(&mut published) {
        let Some(Object::Service(service)) = object else { continue };
        *published = service.ingress_ports().next().is_some();
        touched.extend(service.virtual_addresses.iter().map(|one| Touched::Row(one.network, RowKey::Service(id))));
    }
    touched.extend(state.revisions_of(id).flat_map(|revision| by_revision(revision)));
    if let Some(ingress) = state.ingress_network().filter(|_| published != [false; 2]) {
        touched.insert(Touched::Row(ingress.id, RowKey::Service(id)));
        if published[0] != published[1] {
            // The first such service brings the network to all nodes, the last takes it away.
            touched.extend(state.nodes().map(|node| Touched::Row(ingress.id, RowKey::Peer(node.id))));
        }
    }
}

fn by_revision(revision: &Revision) -> Vec<Touched> {
    let key = RowKey::Service(revision.key.service);
    attached_networks(&revision.template).into_iter().map(|network| Touched::Row(network, key)).collect()
}

/// Reports of a node come often: what no row says touches none.
fn by_node(
    state: &State,
    id: NodeId,
    before: Option<&Object>,
    after: Option<&Object>,
    touched: &mut BTreeSet<Touched>,
) {
    fn node(object: Option<&Object>) -> Option<&Node> {
        if let Some(Object::Node(node)) = object { Some(node) } else { None }
    }
    let (before, after) = (node(before), node(after));
    fn fabric(node: &Node) -> Option<&skep_proto::v1::FabricEndpoint> {
        node.description.as_ref()?.fabric.as_ref()
    }
    let is_down = |node: &Node| node.status.state == NodeState::Down;
    let place = |node: &Node| (node.fabric_number, node.ingress, fabric(node).cloned(), is_down(node));
    let moved = before.map(place) != after.map(place);
    let words = |node: &Node| {
        let platform = node.description.as_ref().and_then(|description| description.platform.clone());
        (node.hostname().to_owned(), platform)
    };
    let renamed = before.map(words) != after.map(words);
    if !moved && !renamed {
        return;
    }
    if let Some(ingress) = state.ingress_network() {
        touched.insert(Touched::Row(ingress.id, RowKey::Peer(id)));
    }
    for task in state.tasks_on_node(id) {
        touched.extend(by_task(task));
    }
}

/// A task's row.
fn endpoint(state: &State, network: &Network, task: &Task) -> Option<NetworkEndpoint> {
    let addresses = task.held_addresses().iter().find(|one| one.network == network.id)?;
    Some(NetworkEndpoint {
        task_id: task.id.to_vec(),
        node_id: task.node?.to_vec(),
        service_id: task.service().to_vec(),
        addresses: addresses.iter().map(address_to_wire).collect(),
        names: state.revision(task.revision).map(|revision| names(state, revision, task)).unwrap_or_default(),
        state: endpoint_state(task).into(),
        last_resort: is_last_resort(state, task),
    })
}

fn endpoint_state(task: &Task) -> EndpointState {
    match task.state == TaskState::Running && task.wanted == WantedState::Running {
        true => EndpointState::Serving,
        false => EndpointState::Quiet,
    }
}

/// A container may outlive its agent, so one that has no other in its place is better than none.
fn is_last_resort(state: &State, task: &Task) -> bool {
    let node = task.node.and_then(|node| state.node(node));
    endpoint_state(task) == EndpointState::Serving && node.is_some_and(|node| node.status.state == NodeState::Down)
}

/// Names of one task: the hostname that its user chose, and `service.slot.task`.
fn names(state: &State, revision: &Revision, task: &Task) -> Vec<String> {
    let place = match task.slot {
        Slot::Replica(number) => number.to_string(),
        Slot::Node(node) => node.to_string(),
    };
    let name = format!("{}.{place}.{}", revision.service_name, task.id);
    let hostname = &revision.template.hostname;
    if hostname.is_empty() {
        return vec![name];
    }
    let node = task.node.and_then(|node| state.node(node));
    let platform = node.and_then(|node| node.description.as_ref()?.platform.clone()).unwrap_or_default();
    let facts = Facts {
        service_id: task.service().to_string(),
        service_name: revision.service_name.to_string(),
        service_labels: None,
        node_id: task.node.map(|node| node.to_string()).unwrap_or_default(),
        node_hostname: node.map(|node| node.hostname().to_owned()).unwrap_or_default(),
        node_os: platform.os,
        node_architecture: platform.architecture,
        task_id: task.id.to_string(),
        task_name: name.clone(),
        task_slot: place,
    };
    // What cannot be filled in was refused when the service was made.
    let hostname = template::render(hostname, &facts).ok();
    hostname.into_iter().chain([name]).collect()
}

/// A service's row.
fn service_row(state: &State, network: &Network, service: &Service) -> Option<NetworkService> {
    let is_mesh = state.ingress_network().is_some_and(|ingress| ingress.id == network.id);
    let publishes = is_mesh && service.ingress_ports().next().is_some();
    let attached = state.attachments_of(service.id).contains(&network.id);
    if !attached && !publishes {
        return None;
    }
    let template = state.revision(service.current()).map(|revision| &revision.template);
    let attachments = template.map_or(&[][..], |template| &template.networks);
    let id = network.id.to_vec();
    let aliases = attachments.iter().filter(|one| one.network_id == id).flat_map(|one| &one.aliases).cloned();
    let mut names = vec![service.spec.name.clone()];
    for alias in aliases {
        if !names.contains(&alias) {
            names.push(alias);
        }
    }
    let addresses = service.virtual_addresses.iter().filter(|one| one.network == network.id);
    let ports = service.ports.iter().filter(|port| is_mesh && port.mode() == PublishMode::Ingress);
    Some(NetworkService {
        service_id: service.id.to_vec(),
        names,
        virtual_addresses: addresses.flat_map(NetworkAddresses::iter).map(address_to_wire).collect(),
        ports: ports.filter(|port| port.published_port != 0).copied().collect(),
    })
}

/// A node's row: on overlays, where others reach it.
fn peer(state: &State, network: &Network, node: &Node) -> Option<NetworkPeer> {
    if network.spec.driver() != NetworkDriver::Overlay || !is_member(state, network.id, node.id) {
        return None;
    }
    let own = node.ingress.filter(|ingress| ingress.network == network.id);
    Some(NetworkPeer {
        node_id: node.id.to_vec(),
        endpoint: Some(node.description.as_ref()?.fabric.clone()?),
        fabric_number: node.fabric_number?,
        addresses: own.iter().flat_map(NetworkAddresses::iter).map(address_to_wire).collect(),
    })
}

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
