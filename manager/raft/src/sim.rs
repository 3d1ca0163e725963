//! For simulations of many managers on one thread (feature `sim`): seeded random numbers and a disk in memory.
//!
//! Call [`seed`] on the thread that runs the simulation, before anything of this crate; from then on the crate starts no
//! threads there, does blocking work inline and draws from the seeded numbers. Give each node a [`SimDisk`] in
//! [`crate::Config::sim_disk`] and start it with [`crate::RaftNode::start_here`] on the simulated host's runtime; time is
//! tokio's. After a crash of the host start it again with the same disk and `Start::Existing`: what was not flushed is
//! gone. [`SimDisk::forget`] makes a disk that lies, to prove that the simulation notices.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::store::db::Change;
use crate::store::record;

thread_local! {
    static RNG: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// Makes this thread one that simulates, with random numbers from `seed`.
pub fn seed(seed: u64) {
    RNG.with(|rng| *rng.borrow_mut() = Some(StdRng::seed_from_u64(seed)));
}

pub(crate) fn is_seeded() -> bool {
    RNG.with(|rng| rng.borrow().is_some())
}

pub(crate) fn with_rng<T>(draw: impl FnOnce(&mut StdRng) -> T) -> Option<T> {
    RNG.with(|rng| rng.borrow_mut().as_mut().map(draw))
}

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Debug, Default)]
struct Content {
    /// What a crash leaves.
    durable: Records,
    /// What the running node sees.
    seen: Records,
    /// Changes that were not flushed yet, in order, each with its number.
    pending: Vec<(u64, Vec<Change>)>,
    batches: u64,
    files: BTreeMap<PathBuf, Arc<Vec<u8>>>,
    flush_delay: Duration,
}

/// A disk in memory. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<Content>>);

fn apply(records: &mut Records, change: &Change) {
    match change {
        (key, Some(value)) => records.insert(key.to_vec(), value.to_vec()),
        (key, None) => records.remove(key.as_ref()),
    };
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a node was made on it.
    pub fn holds_a_node(&self) -> bool {
        !self.content().durable.is_empty()
    }

    /// How long a flush takes from now on: a slow disk. Zero: it is done at once.
    pub fn set_flush_delay(&self, delay: Duration) {
        self.content().flush_delay = delay;
    }

    /// Loses what was not flushed. A start does this by itself.
    pub fn crash(&self) {
        let mut content = self.content();
        content.pending.clear();
        content.seen = content.durable.clone();
    }

    /// How many batches of changes are not flushed.
    pub fn unflushed(&self) -> usize {
        self.content().pending.len()
    }

    /// The first `batches` of what was not flushed are on the disk nevertheless, as a real disk may have it. For the time
    /// after a crash, before the next start.
    pub fn keep_unflushed(&self, batches: usize) {
        let number = self.content().pending.iter().take(batches).last().map(|(number, _)| *number);
        if let Some(number) = number {
            self.flush(number);
        }
    }

    /// Breaks its promise: the last `entries` of the flushed log are gone, and every mark that would show it; what a
    /// snapshot contains stays. For the time while the node does not run.
    pub fn forget(&self, entries: u64) {
        let mut content = self.content();
        let index = |key: &Vec<u8>| record::parse_entry_key(key).map(|(index, _)| index);
        let Some(last) = content.durable.keys().rev().find_map(index) else { return };
        let keep = last.saturating_sub(entries);
        content.durable.retain(|key, _| index(key).is_none_or(|index| index <= keep));
        content.durable.remove(&record::mark_key(record::PROGRESS));
        content.pending.clear();
        content.seen = content.durable.clone();
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.content().seen.get(key).cloned()
    }

    pub(crate) fn range(&self, range: Range<Vec<u8>>) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.content().seen.range(range).map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    pub(crate) fn apply(&self, changes: Vec<Change>) {
        let mut content = self.content();
        changes.iter().for_each(|change| apply(&mut content.seen, change));
        content.batches += 1;
        let number = content.batches;
        content.pending.push((number, changes));
    }

    /// Number of the newest batch, and how long its flush takes.
    pub(crate) fn newest(&self) -> (u64, Duration) {
        let content = self.content();
        (content.batches, content.flush_delay)
    }

    /// Makes the batches up to a number durable. Those that a crash took in the meantime stay lost.
    pub(crate) fn flush(&self, upto: u64) {
        let mut content = self.content();
        let content = &mut *content;
        let later = content.pending.partition_point(|(number, _)| *number <= upto);
        for (_, changes) in content.pending.drain(..later) {
            changes.iter().for_each(|change| apply(&mut content.durable, change));
        }
    }

    pub(crate) fn file(&self, path: &Path) -> Option<Arc<Vec<u8>>> {
        self.content().files.get(path).cloned()
    }

    pub(crate) fn put(&self, path: PathBuf, bytes: Vec<u8>) {
        self.content().files.insert(path, Arc::new(bytes));
    }

    pub(crate) fn remove(&self, path: &Path) {
        self.content().files.remove(path);
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) {
        let mut content = self.content();
        if let Some(bytes) = content.files.remove(from) {
            content.files.insert(to.to_owned(), bytes);
        }
    }

    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.content().files.keys().cloned().collect()
    }
}
