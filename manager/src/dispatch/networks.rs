//! The tables of networks, as nodes with a session here hear them. One shared table a network, kept for as long as a node
//! here needs it: its rows, its version, and its last differences, each encoded once. Rows follow from this manager's
//! applied state: the state machine's events say which to look at again, never more than those.
//!
//! | file | job |
//! |---|---|
//! | `table.rs` | one table: its rows, its version, its last differences |
//! | `encode.rs` | rows as messages, cut to size |
//! | `follower.rs` | what one node has, and what it is to be told next |
//! | `applied.rs` | which versions nodes have applied |
//! | `behind.rs` | who has not applied one yet that somebody waits for |
//!
//! Sessions fetch: a node that reads slowly holds none of this, and gets later what is then there. The driver only wakes
//! them. A burst of changes becomes one version; a lone change goes out at once.

mod applied;
mod behind;
mod encode;
mod follower;
mod table;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use skep_core::event::Event;
use skep_core::network::table::{self as rows, RowKey, Touched};
use skep_core::store::{Object, State};
use skep_proto::id::{NetworkId, NodeId};
use skep_proto::v1::{AppliedVersion, WantedState};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

pub(crate) use self::applied::AppliedTables;
pub(crate) use self::behind::{Behind, NodesView};
pub use self::follower::Follower;
use self::table::Table;
use crate::store::{Fed, Store};

/// Shortest time between two versions of tables.
const GATHER: Duration = Duration::from_millis(20);

/// All tables. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct NetworkTables(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    /// Store version that tables can be made of.
    seen: watch::Sender<u64>,
}

struct Inner {
    /// What the tables are made of: the state after the last events that came.
    state: State,
    tables: BTreeMap<NetworkId, Table>,
    /// Networks that something happened to since the last versions, with the nodes whose part in them was touched.
    pending: BTreeMap<NetworkId, BTreeSet<NodeId>>,
    /// Nodes with a session here, by the number of their follower.
    followers: HashMap<u64, Listener>,
    next: u64,
}

/// Whom to wake.
struct Listener {
    node: NodeId,
    wake: Arc<Notify>,
    holds: BTreeSet<NetworkId>,
}

impl NetworkTables {
    /// No tables yet, over a state.
    pub fn new(state: State) -> Self {
        let seen = watch::channel(state.version()).0;
        let inner =
            Inner { state, tables: BTreeMap::new(), pending: BTreeMap::new(), followers: HashMap::new(), next: 0 };
        Self(Arc::new(Shared { inner: Mutex::new(inner), seen }))
    }

    /// Keeps the tables in step with the store. Ends only when dropped.
    pub(super) async fn run(self, store: Store) {
        let mut feed = store.follow();
        // Events of what this state shows already change nothing.
        self.feed(&Fed { events: Arc::new([]), state: store.state(), replaced: true });
        self.flush();
        let mut last = Instant::now();
        while let Some(fed) = feed.recv().await {
            self.feed(&fed);
            // What has come, and what comes before the next version may be.
            while let Ok(fed) = feed.try_recv() {
                self.feed(&fed);
            }
            if !self.has_news() {
                continue;
            }
            let due = last + GATHER;
            if due > Instant::now() {
                sleep_until(due).await;
                while let Ok(fed) = feed.try_recv() {
                    self.feed(&fed);
                }
            }
            self.flush();
            last = Instant::now();
        }
    }

    /// Takes note of what was applied.
    pub fn feed(&self, fed: &Fed) {
        let mut inner = self.lock();
        inner.take_note(fed);
        drop(inner);
        self.0.seen.send_replace(fed.state.version());
    }

    /// The versions that nodes with a session here were sent, or are about to be.
    pub(super) fn versions(&self) -> BTreeMap<NetworkId, u64> {
        self.lock().tables.iter().map(|(id, table)| (*id, table.version())).collect()
    }

    fn has_news(&self) -> bool {
        !self.lock().pending.is_empty()
    }

    /// Makes versions of what was noted, and wakes the nodes that they concern.
    pub fn flush(&self) {
        self.lock().flush();
    }

    /// A session of a node begins, which has these versions already.
    pub fn follow(&self, node: NodeId, has: &[AppliedVersion]) -> Follower {
        let wake = Arc::new(Notify::new());
        let mut inner = self.lock();
        let number = inner.next;
        inner.next += 1;
        let listener = Listener { node, wake: Arc::clone(&wake), holds: BTreeSet::new() };
        inner.followers.insert(number, listener);
        drop(inner);
        Follower::new(self.clone(), number, wake, has)
    }

    /// Returns when tables can be made of that store version.
    async fn seen(&self, version: u64) {
        // An error: the dispatcher is gone, and the caller with it.
        let _ = self.0.seen.subscribe().wait_for(|seen| *seen >= version).await;
    }

    /// Throws away tables that no node here holds.
    pub(super) fn sweep(&self) {
        let mut inner = self.lock();
        let held: BTreeSet<NetworkId> = inner.followers.values().flat_map(|one| one.holds.iter().copied()).collect();
        inner.tables.retain(|network, _| held.contains(network));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn take_note(&mut self, fed: &Fed) {
        self.state = fed.state.clone();
        if fed.replaced {
            let version = rows::version(&self.state, self.state.version());
            for (id, table) in &mut self.tables {
                table.look_at_all(&self.state, version);
                self.pending.entry(*id).or_default();
            }
            // Who needs a table may be different, too.
            self.followers.values().for_each(|one| one.wake.notify_one());
            return;
        }
        for event in &*fed.events {
            let version = rows::version(&self.state, event.version);
            let drains = begins_to_drain(event);
            for touched in rows::touched(event, &self.state) {
                let (Touched::Network(network) | Touched::Row(network, _)) = touched;
                let nodes = self.pending.entry(network).or_default();
                if let Touched::Row(_, RowKey::Peer(node)) = touched {
                    nodes.insert(node);
                }
                if let Some(table) = self.tables.get_mut(&network) {
                    table.look(&self.state, touched, version, drains);
                }
            }
        }
    }

    fn flush(&mut self) {
        for (network, nodes) in std::mem::take(&mut self.pending) {
            let is_gone = self.state.network(network).is_none();
            let is_new = match self.tables.get_mut(&network) {
                Some(_) if is_gone => self.tables.remove(&network).is_some(),
                Some(table) => table.flush(),
                None => false,
            };
            if !is_new && nodes.is_empty() {
                continue;
            }
            for one in self.followers.values() {
                // Whoever may need it now, or need it no more, looks.
                if nodes.contains(&one.node) || (is_new && one.holds.contains(&network)) {
                    one.wake.notify_one();
                }
            }
        }
    }

    /// What leads a node to the table's version: from the one that it has, or from none.
    fn messages(&mut self, network: NetworkId, has: Option<u64>) -> Option<(u64, Vec<Bytes>)> {
        let made = self.state.network(network)?;
        let state = &self.state;
        let table = self.tables.entry(network).or_insert_with(|| Table::of(state, made));
        let messages = table.messages(has, rows::version(state, state.version()));
        Some((table.version(), messages))
    }
}

/// A drain that began gets a version of its own, though no row may differ (the task ran for a moment only): the leader
/// waits for one.
fn begins_to_drain(event: &Event) -> bool {
    let wanted = |object: &Option<Object>| match object {
        Some(Object::Task(task)) => Some(task.wanted),
        _ => None,
    };
    wanted(&event.after) == Some(WantedState::Draining) && wanted(&event.before) != Some(WantedState::Draining)
}

#[cfg(test)]
#[path = "networks/networks_test.rs"]
mod tests;
