//! One node's part: which tables it has, in which versions, and what it is to be told next. Owned by its session, which
//! asks when it has room to send.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use skep_core::store::State;
use skep_proto::id::NetworkId;
use skep_proto::v1::AppliedVersion;
use tokio::sync::Notify;

use super::{NetworkTables, encode};
use crate::dispatch::limits::NODE_NETWORKS;

/// What a node has of tables.
pub struct Follower {
    tables: NetworkTables,
    number: u64,
    wake: Arc<Notify>,
    has: BTreeMap<NetworkId, u64>,
}

impl Follower {
    pub(super) fn new(tables: NetworkTables, number: u64, wake: Arc<Notify>, has: &[AppliedVersion]) -> Self {
        Self { tables, number, wake, has: versions(has) }
    }

    /// Returns when there may be something to tell.
    pub(crate) async fn changed(&self) {
        self.wake.notified().await;
    }

    /// What the node is to be told of `needed`, the networks that its tasks are on, before it hears of tasks that are new in `state`.
    pub(crate) async fn news(&mut self, state: &State, needed: &BTreeSet<NetworkId>) -> Vec<Bytes> {
        if needed.iter().any(|network| !self.has.contains_key(network)) {
            // A network may be as new as its task.
            self.tables.seen(state.version()).await;
        }
        self.collect(needed)
    }

    /// The same, of networks that are known.
    pub fn collect(&mut self, needed: &BTreeSet<NetworkId>) -> Vec<Bytes> {
        let mut news = Vec::new();
        let mut inner = self.tables.lock();
        for network in needed {
            if let Some((version, messages)) = inner.messages(*network, self.has.get(network).copied()) {
                if let Some(listener) = inner.followers.get_mut(&self.number) {
                    listener.holds.insert(*network);
                }
                // One that it was told elsewhere may be ahead of the last change here: it has that content.
                let told = if messages.is_empty() { self.has.get(network).copied() } else { None };
                self.has.insert(*network, told.unwrap_or(version));
                news.extend(messages);
            }
        }
        news
    }

    /// What it needs no more, after it heard that it has no such tasks.
    pub fn gone(&mut self, needed: &BTreeSet<NetworkId>) -> Vec<Bytes> {
        let gone: Vec<NetworkId> = self.has.keys().filter(|network| !needed.contains(network)).copied().collect();
        if gone.is_empty() {
            return Vec::new();
        }
        let mut inner = self.tables.lock();
        for network in &gone {
            self.has.remove(network);
            if let Some(listener) = inner.followers.get_mut(&self.number) {
                listener.holds.remove(network);
            }
        }
        gone.into_iter().map(encode::dropped).collect()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.tables.lock().followers.remove(&self.number);
    }
}

/// What a node says that it has; what cannot be is passed over.
pub(super) fn versions(said: &[AppliedVersion]) -> BTreeMap<NetworkId, u64> {
    let known = said.iter().take(NODE_NETWORKS);
    known.filter_map(|one| Some((NetworkId::from_wire(&one.object_id).ok()?, one.version))).collect()
}
