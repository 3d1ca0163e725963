//! What differs between two versions of a table: what kernel, name server and balancing have to do something about.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use skep_proto::id::{NodeId, ServiceId, TaskId};

use super::{Endpoint, Peer, Service, Table};

/// Rows that came, changed or went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableChange {
    /// The network itself is new or changed, or its UDP port.
    pub network: bool,
    pub endpoints: RowChanges<TaskId, Endpoint>,
    pub services: RowChanges<ServiceId, Service>,
    pub peers: RowChanges<NodeId, Peer>,
}

/// Each changed row, before and after; `None`: it was not there, or is not any more.
pub type RowChanges<K, V> = BTreeMap<K, (Option<Arc<V>>, Option<Arc<V>>)>;

impl TableChange {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.network && self.endpoints.is_empty() && self.services.is_empty() && self.peers.is_empty()
    }
}

/// What leads from `old` to `new`.
pub(super) fn between(old: &Table, new: &Table) -> TableChange {
    TableChange {
        network: old.network != new.network || old.data_path_port != new.data_path_port,
        endpoints: rows(&old.endpoints, &new.endpoints),
        services: rows(&old.services, &new.services),
        peers: rows(&old.peers, &new.peers),
    }
}

fn rows<K: Ord + Copy, V: PartialEq>(old: &OrdMap<K, Arc<V>>, new: &OrdMap<K, Arc<V>>) -> RowChanges<K, V> {
    let change = |item| match item {
        DiffItem::Add(key, is) => (*key, (None, Some(Arc::clone(is)))),
        DiffItem::Update { old: (key, was), new: (_, is) } => (*key, (Some(Arc::clone(was)), Some(Arc::clone(is)))),
        DiffItem::Remove(key, was) => (*key, (Some(Arc::clone(was)), None)),
    };
    // What it tells apart by pointer may be the same after all.
    old.diff(new).map(change).filter(|(_, (was, is))| was != is).collect()
}
