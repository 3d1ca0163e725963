//! From what a person types to an object: id, name, or unique id prefix. Ordered range scans, never over a whole
//! table. Called by the control API.

use std::fmt;
use std::sync::Arc;

use skep_proto::id::{ClientId, ConfigId, NetworkId, NodeId, PRINTED_LEN, SecretId, ServiceId, TaskId, from_base36};

use super::State;
use crate::object::{Client, Network, Node, Parcel, ParcelId, ParcelKind, Service, Slot, Task};

/// Matches named in an ambiguous answer; enough to choose from.
const NAMED_MATCHES: usize = 5;

/// Kind of object that was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Node,
    Service,
    Task,
    Network,
    Secret,
    Config,
    Client,
}

/// Why a reference names no single object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    #[error("no {kind} {reference:?}: give its id, its name, or the start of its id")]
    NotFound { kind: Kind, reference: String },
    #[error("{reference:?} names more than one {kind} ({}): give more of the id", matches.join(", "))]
    Ambiguous {
        kind: Kind,
        reference: String,
        /// Printed ids, at most five.
        matches: Vec<String>,
    },
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Service => "service",
            Self::Task => "task",
            Self::Network => "network",
            Self::Secret => "secret",
            Self::Config => "config",
            Self::Client => "client",
        })
    }
}

/// Ids that begin with `prefix`, as their lowest and highest value. `None` where none can.
fn prefix_range(prefix: &str) -> Option<(u128, u128)> {
    if prefix.is_empty() || prefix.len() > PRINTED_LEN || !prefix.is_ascii() {
        return None;
    }
    let low = from_base36(&format!("{prefix:0<PRINTED_LEN$}"))?;
    // Above 2^128 there is no id: the range ends at the highest one.
    let high = from_base36(&format!("{prefix:z<PRINTED_LEN$}")).unwrap_or(u128::MAX);
    Some((low, high))
}

/// The only one of `found`, else an error that says which there are.
fn single<'a, T: 'a>(
    kind: Kind,
    reference: &str,
    mut found: impl Iterator<Item = &'a Arc<T>>,
    id: impl Fn(&T) -> String,
) -> Result<&'a Arc<T>, FindError> {
    let Some(first) = found.next() else {
        let reference = reference.to_owned();
        return Err(FindError::NotFound { kind, reference });
    };
    let Some(second) = found.next() else {
        return Ok(first);
    };
    let matches = [first, second].into_iter().chain(found).take(NAMED_MATCHES);
    Err(FindError::Ambiguous {
        kind,
        reference: reference.to_owned(),
        matches: matches.map(|object| id(object)).collect(),
    })
}

impl State {
    /// A service by id, name, or unique id prefix, in this order.
    pub fn find_service(&self, reference: &str) -> Result<&Arc<Service>, FindError> {
        let by_id = reference.parse().ok().and_then(|id| self.service(id));
        if let Some(service) = by_id.or_else(|| self.service_by_name(reference)) {
            return Ok(service);
        }
        let range = prefix_range(reference).into_iter();
        let found = range.flat_map(|(low, high)| self.services_between(ServiceId::new(low), ServiceId::new(high)));
        single(Kind::Service, reference, found, |service| service.id.to_string())
    }

    /// A network by id, name, or unique id prefix, in this order.
    pub fn find_network(&self, reference: &str) -> Result<&Arc<Network>, FindError> {
        let by_id = reference.parse().ok().and_then(|id| self.network(id));
        if let Some(network) = by_id.or_else(|| self.network_by_name(reference)) {
            return Ok(network);
        }
        let range = prefix_range(reference).into_iter();
        let found = range.flat_map(|(low, high)| self.networks_between(NetworkId::new(low), NetworkId::new(high)));
        single(Kind::Network, reference, found, |network| network.id.to_string())
    }

    /// A secret or config by id, name, or unique id prefix, in this order.
    pub fn find_parcel(&self, kind: ParcelKind, reference: &str) -> Result<&Arc<Parcel>, FindError> {
        let id = |value| match kind {
            ParcelKind::Secret => ParcelId::Secret(SecretId::new(value)),
            ParcelKind::Config => ParcelId::Config(ConfigId::new(value)),
        };
        let by_id = from_base36(reference).and_then(|value| self.parcel(id(value)));
        if let Some(parcel) = by_id.or_else(|| self.parcel_by_name(kind, reference)) {
            return Ok(parcel);
        }
        let range = prefix_range(reference).into_iter();
        let found = range.flat_map(|(low, high)| self.parcels_between(id(low), id(high)));
        let named = match kind {
            ParcelKind::Secret => Kind::Secret,
            ParcelKind::Config => Kind::Config,
        };
        single(named, reference, found, |parcel| parcel.id.printed())
    }

    /// A client by id, name, or unique id prefix, in this order.
    pub fn find_client(&self, reference: &str) -> Result<&Arc<Client>, FindError> {
        let by_id = reference.parse().ok().and_then(|id| self.client(id));
        if let Some(client) = by_id.or_else(|| self.client_by_name(reference)) {
            return Ok(client);
        }
        let range = prefix_range(reference).into_iter();
        let found = range.flat_map(|(low, high)| self.clients_between(ClientId::new(low), ClientId::new(high)));
        single(Kind::Client, reference, found, |client| client.id.to_string())
    }

    /// A node by id, hostname, or unique id prefix, in this order. A hostname that several nodes report is ambiguous.
    pub fn find_node(&self, reference: &str) -> Result<&Arc<Node>, FindError> {
        if let Some(node) = reference.parse().ok().and_then(|id| self.node(id)) {
            return Ok(node);
        }
        let print = |node: &Node| node.id.to_string();
        match single(Kind::Node, reference, self.nodes_by_hostname(reference), print) {
            Err(FindError::NotFound { .. }) => {}
            found => return found,
        }
        let range = prefix_range(reference).into_iter();
        let found = range.flat_map(|(low, high)| self.nodes_between(NodeId::new(low), NodeId::new(high)));
        single(Kind::Node, reference, found, print)
    }

    /// A task by id, unique id prefix, or `service.slot` (for a global service `service.node`, node by id or
    /// hostname), which names the newest task of that place.
    pub fn find_task(&self, reference: &str) -> Result<&Arc<Task>, FindError> {
        if let Some(task) = reference.parse().ok().and_then(|id| self.task(id)) {
            return Ok(task);
        }
        if let Some(task) = self.newest_in_place(reference) {
            return Ok(task);
        }
        let range = prefix_range(reference).into_iter();
        let found = range.flat_map(|(low, high)| self.tasks_between(TaskId::new(low), TaskId::new(high)));
        single(Kind::Task, reference, found, |task| task.id.to_string())
    }

    /// The newest task of `service.slot`. A service's name may hold dots itself, and so may a hostname: every dot is
    /// tried.
    fn newest_in_place(&self, reference: &str) -> Option<&Arc<Task>> {
        reference.match_indices('.').find_map(|(dot, _)| {
            let service = self.service_by_name(&reference[..dot])?.id;
            let place = &reference[dot + 1..];
            let slot = match place.parse() {
                Ok(number) => Slot::Replica(number),
                Err(_) => Slot::Node(self.find_node(place).ok()?.id),
            };
            self.tasks_in_slot(service, slot)
                .max_by_key(|task| (task.wanted.wants_to_run(), task.meta.created_at, task.id))
        })
    }
}
