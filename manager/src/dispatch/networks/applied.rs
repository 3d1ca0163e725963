//! Which versions of network tables nodes have applied: at every manager those of its own sessions, at the leader those of
//! all connected nodes. For whoever waits until a change is known everywhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_proto::id::{NetworkId, NodeId};
use skep_proto::v1::AppliedVersion;
use tokio::sync::watch;

use super::follower::versions;

/// Versions by node. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct AppliedTables(Arc<Shared>);

struct Shared {
    nodes: Mutex<Nodes>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Nodes {
    versions: HashMap<NodeId, BTreeMap<NetworkId, u64>>,
    /// Nodes whose versions the leader was not told yet.
    untold: BTreeSet<NodeId>,
}

impl AppliedTables {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared { nodes: Mutex::default(), changed: watch::channel(0).0 }))
    }

    /// A node says what it has applied. Says whether that is news.
    pub(crate) fn update(&self, node: NodeId, said: &[AppliedVersion]) -> bool {
        let said = versions(said);
        let mut nodes = self.lock();
        let known = nodes.versions.get(&node);
        if known.map_or(said.is_empty(), |known| *known == said) {
            return false;
        }
        if said.is_empty() {
            nodes.versions.remove(&node);
        } else {
            nodes.versions.insert(node, said);
        }
        nodes.untold.insert(node);
        drop(nodes);
        self.0.changed.send_modify(|count| *count += 1);
        true
    }

    /// What a node has applied of a network. `None`: nothing.
    pub(crate) fn version(&self, node: NodeId, network: NetworkId) -> Option<u64> {
        self.lock().versions.get(&node)?.get(&network).copied()
    }

    /// Waits for news.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// All of these nodes are to be told anew.
    pub(crate) fn untell(&self, told: impl Iterator<Item = NodeId>) {
        let mut nodes = self.lock();
        let known: BTreeSet<NodeId> = told.filter(|node| nodes.versions.contains_key(node)).collect();
        nodes.untold = known;
    }

    /// A node that the leader was not told of, with all that it has. It counts as told then.
    pub(crate) fn next_untold(&self) -> Option<(NodeId, Vec<AppliedVersion>)> {
        let mut nodes = self.lock();
        let node = nodes.untold.pop_first()?;
        let version =
            |(network, version): (&NetworkId, &u64)| AppliedVersion { object_id: network.to_vec(), version: *version };
        let versions = nodes.versions.get(&node).into_iter().flatten().map(version).collect();
        Some((node, versions))
    }

    /// Forgets all nodes but these.
    pub(crate) fn retain(&self, keep: impl Fn(NodeId) -> bool) {
        let mut nodes = self.lock();
        nodes.versions.retain(|node, _| keep(*node));
        nodes.untold.retain(|node| keep(*node));
    }

    fn lock(&self) -> MutexGuard<'_, Nodes> {
        self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
