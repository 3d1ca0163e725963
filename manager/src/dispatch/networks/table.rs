//! One network's table: its rows, its version, and the last differences, as messages that all sessions share. Pure.
//!
//! A version names the content: the table after that store version. So it means the same at every manager, and a node
//! that was told version x elsewhere has what the last version up to x has here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use skep_core::network::table::{self as rows, Row, RowKey, Touched};
use skep_core::object::Network;
use skep_core::store::State;
use skep_proto::id::NetworkId;

use super::encode::{self, Definition, Difference};

/// Differences that are kept, in number …
const KEPT: usize = 256;
/// … and in bytes: about what a table of 10,000 endpoints has.
const KEPT_BYTES: usize = 2 << 20;

/// What happened since the last version.
#[derive(Debug, Default)]
struct Batch {
    /// Rows that changed, also if they changed back: another manager may have told of what was in between.
    changed: BTreeSet<RowKey>,
    /// The network itself did.
    renewed: bool,
    /// A task began to drain.
    drains: bool,
    /// Of the last event that touched the table.
    version: u64,
}

/// From one version to the next.
struct Step {
    applies_to: u64,
    keys: Vec<RowKey>,
    network: bool,
    messages: Arc<[Bytes]>,
    bytes: usize,
}

/// The table.
pub(super) struct Table {
    network: Arc<Network>,
    /// The cluster's: fixed when the swarm is made.
    data_path_port: u32,
    rows: BTreeMap<RowKey, Row>,
    version: u64,
    /// Oldest first; the last one leads to `version`.
    steps: VecDeque<Step>,
    bytes: usize,
    batch: Batch,
    /// There is a version that nobody was woken for.
    is_untold: bool,
    /// The whole table, as it was last asked for.
    whole: Option<(u64, Arc<[Bytes]>)>,
}

impl Table {
    /// As the state has it.
    pub(super) fn of(state: &State, network: &Arc<Network>) -> Self {
        Self {
            network: Arc::clone(network),
            data_path_port: state.cluster().map_or(0, |cluster| cluster.spec.data_path_port),
            rows: rows::rows(state, network.id),
            version: rows::version(state, state.version()),
            steps: VecDeque::new(),
            bytes: 0,
            batch: Batch::default(),
            is_untold: false,
            whole: None,
        }
    }

    /// Of what [`Self::messages`] told last.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    fn id(&self) -> NetworkId {
        self.network.id
    }

    fn definition(&self) -> Definition<'_> {
        Definition { network: &self.network, data_path_port: self.data_path_port }
    }

    /// Looks at what an event of that version touched. `state` is the one after the whole entry.
    pub(super) fn look(&mut self, state: &State, touched: Touched, version: u64, drains: bool) {
        match touched {
            Touched::Network(_) => self.look_at_all(state, version),
            Touched::Row(_, key) => self.set(key, rows::row(state, self.id(), key)),
        }
        self.batch.version = self.batch.version.max(version);
        self.batch.drains |= drains;
    }

    /// Looks at everything, which is then of that version.
    pub(super) fn look_at_all(&mut self, state: &State, version: u64) {
        let Some(network) = state.network(self.id()) else { return };
        self.batch.renewed |= **network != *self.network;
        self.network = Arc::clone(network);
        let mut fresh = rows::rows(state, self.id());
        let keys: BTreeSet<RowKey> = self.rows.keys().chain(fresh.keys()).copied().collect();
        for key in keys {
            self.set(key, fresh.remove(&key));
        }
        self.batch.version = self.batch.version.max(version);
    }

    fn set(&mut self, key: RowKey, fresh: Option<Row>) {
        if fresh.as_ref() == self.rows.get(&key) {
            return;
        }
        self.batch.changed.insert(key);
        match fresh {
            Some(row) => drop(self.rows.insert(key, row)),
            None => drop(self.rows.remove(&key)),
        }
    }

    /// Makes a version of what happened. Says whether there is one that nobody was woken for.
    pub(super) fn flush(&mut self) -> bool {
        self.advance();
        std::mem::take(&mut self.is_untold)
    }

    fn advance(&mut self) {
        let Batch { changed, renewed, drains, version } = std::mem::take(&mut self.batch);
        // A table that was made after these events shows them.
        if version <= self.version || !(renewed || drains || !changed.is_empty()) {
            return;
        }
        let applies_to = std::mem::replace(&mut self.version, version);
        let messages: Arc<[Bytes]> = self.difference(applies_to, changed.iter().copied(), renewed).into();
        let bytes = messages.iter().map(Bytes::len).sum();
        self.bytes += bytes;
        let keys = changed.into_iter().collect();
        self.steps.push_back(Step { applies_to, keys, network: renewed, messages, bytes });
        while (self.steps.len() > KEPT || self.bytes > KEPT_BYTES)
            && let Some(oldest) = self.steps.pop_front()
        {
            self.bytes -= oldest.bytes;
        }
        self.is_untold = true;
    }

    /// What leads a node to this version. `known`: up to which version this manager knows what the content was.
    pub(super) fn messages(&mut self, has: Option<u64>, known: u64) -> Vec<Bytes> {
        self.advance();
        let steps = has.filter(|has| *has <= known).and_then(|has| self.from(has));
        if let Some(messages) = steps {
            return messages;
        }
        if let Some((version, whole)) = &self.whole
            && let Some(later) = self.from(*version)
        {
            return whole.iter().cloned().chain(later).collect();
        }
        let whole: Arc<[Bytes]> = encode::whole(self.definition(), self.version, self.rows.values()).into();
        self.whole = Some((self.version, Arc::clone(&whole)));
        whole.to_vec()
    }

    /// From a version that a node has. `None`: too long ago.
    fn from(&self, has: u64) -> Option<Vec<Bytes>> {
        if has >= self.version {
            return Some(Vec::new());
        }
        let first = self.steps.partition_point(|step| step.applies_to <= has).checked_sub(1)?;
        let steps = self.steps.range(first..);
        if self.steps.get(first)?.applies_to == has {
            return Some(steps.flat_map(|step| step.messages.iter().cloned()).collect());
        }
        // It was told that content under another number, elsewhere.
        let keys: BTreeSet<RowKey> = steps.clone().flat_map(|step| step.keys.iter().copied()).collect();
        let renewed = steps.clone().any(|step| step.network);
        Some(self.difference(has, keys.into_iter(), renewed))
    }

    fn difference(&self, applies_to: u64, keys: impl Iterator<Item = RowKey>, renewed: bool) -> Vec<Bytes> {
        let network = renewed.then(|| self.definition());
        let difference = Difference { id: self.id(), applies_to, version: self.version, network };
        encode::difference(&difference, keys.map(|key| (key, self.rows.get(&key))))
    }
}
