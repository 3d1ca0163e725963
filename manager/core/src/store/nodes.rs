//! Nodes, by id and by hostname, and the nodes that were removed.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use skep_proto::id::NodeId;
use skep_proto::time::UnixMs;

use super::State;
use crate::object::Node;

/// Nodes and the index by hostname (not unique: two hosts may claim the same).
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct NodeTable {
    by_id: OrdMap<NodeId, Arc<Node>>,
    by_hostname: OrdSet<(String, NodeId)>,
    /// Removed nodes, and when the last certificate of each has surely ended.
    denied: OrdMap<NodeId, UnixMs>,
    denied_by_end: OrdSet<(UnixMs, NodeId)>,
}

impl NodeTable {
    pub(super) fn put(&mut self, node: Arc<Node>) -> Option<Arc<Node>> {
        let old = self.by_id.insert(node.id, Arc::clone(&node));
        let before = old.as_deref().map_or("", Node::hostname);
        if before != node.hostname() {
            self.forget_hostname(before, node.id);
            if !node.hostname().is_empty() {
                self.by_hostname.insert((node.hostname().to_owned(), node.id));
            }
        }
        old
    }

    pub(super) fn remove(&mut self, id: NodeId) -> Option<Arc<Node>> {
        let old = self.by_id.remove(&id)?;
        self.forget_hostname(old.hostname(), id);
        Some(old)
    }

    fn forget_hostname(&mut self, hostname: &str, id: NodeId) {
        if !hostname.is_empty() {
            self.by_hostname.remove(&(hostname.to_owned(), id));
        }
    }

    fn deny(&mut self, id: NodeId, until: UnixMs) {
        if let Some(old) = self.denied.insert(id, until) {
            self.denied_by_end.remove(&(old, id));
        }
        self.denied_by_end.insert((until, id));
    }

    fn allow(&mut self, id: NodeId) -> Option<UnixMs> {
        let until = self.denied.remove(&id)?;
        self.denied_by_end.remove(&(until, id));
        Some(until)
    }
}

impl State {
    /// The node of that id.
    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.by_id.get(&id)
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = &Arc<Node>> {
        self.nodes.by_id.values()
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.by_id.len()
    }

    /// Nodes that report this hostname, by id.
    pub fn nodes_by_hostname(&self, hostname: &str) -> impl Iterator<Item = &Arc<Node>> {
        let low = (hostname.to_owned(), NodeId::new(0));
        let high = (hostname.to_owned(), NodeId::new(u128::MAX));
        self.nodes.by_hostname.range(low..=high).filter_map(|(_, id)| self.nodes.by_id.get(id))
    }

    /// Nodes whose ids lie in the range, by id.
    pub(super) fn nodes_between(&self, low: NodeId, high: NodeId) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.by_id.range(low..=high).map(|(_, node)| node)
    }

    /// Whether the node was removed: its certificate must not be accepted.
    pub fn is_denied(&self, id: NodeId) -> bool {
        self.nodes.denied.contains_key(&id)
    }

    /// Removed nodes, and when the last certificate of each has surely ended.
    pub fn denied(&self) -> impl Iterator<Item = (NodeId, UnixMs)> {
        self.nodes.denied.iter().map(|(id, until)| (*id, *until))
    }

    /// Denies a node's certificate until then. For `apply`, snapshot restore, and tests.
    pub fn deny(&mut self, id: NodeId, until: UnixMs) {
        self.nodes.deny(id, until);
    }

    /// Takes a denial back; returns until when it was. For `apply`.
    pub(crate) fn allow(&mut self, id: NodeId) -> Option<UnixMs> {
        self.nodes.allow(id)
    }

    /// Forgets at most `limit` denials that ended before `now`.
    pub(crate) fn expire_denied(&mut self, now: UnixMs, limit: usize) {
        for _ in 0..limit {
            match self.nodes.denied_by_end.get_min() {
                Some(&(until, id)) if until < now => self.nodes.allow(id),
                _ => return,
            };
        }
    }
}
