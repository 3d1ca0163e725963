//! For simulations of many managers on one thread (feature `sim`): seeded random numbers and a disk in memory.
//!
//! Call [`seed`] on the thread that runs the simulation, before anything of this crate; from then on the crate starts no
//! threads there, does blocking work inline and draws from the seeded numbers. Give each node a [`SimDisk`] in
//! [`crate::Config::sim_disk`] and start it with [`crate::RaftNode::start_here`] on the simulated host's runtime; time is
//! tokio's. After a crash of the host start it again with the same disk and `Start::Existing`: what was not flushed is
//! gone. [`SimDisk::set_room`] fills it. [`SimDisk::forget`] and [`SimDisk::swallow_when_full`] make disks that lie, to
//! prove that the simulation notices; [`content`] reads what a disk holds without any engine.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::EntryPayload;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::config::Config;
use crate::error::{StartError, StoreError};
use crate::store::Store;
use crate::store::db::Change;
use crate::store::log::LogStore;
use crate::store::record;
use crate::store::snapshots::{SnapshotStore, read_preface};

thread_local! {
    static RNG: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    static BUG: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Bugs that were there once. Planted again, they prove that the tests which guard against them can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A leader that was started again within its lease does not apply what it had committed before it answers reads.
    ForgetsLead,
    /// A read barrier asks again at once when there is no quorum.
    AsksAtOnce,
    /// A leader answers reads without proof that it still leads.
    TrustsLead,
}

/// This thread's nodes have this bug from now on.
pub fn plant(bug: Option<Bug>) {
    BUG.set(bug);
}

/// Whether a bug is planted here.
pub fn has_bug(bug: Bug) -> bool {
    BUG.get() == Some(bug)
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
    /// Bytes that are free. None: more than anybody needs.
    room: Option<u64>,
    /// A flush found no space: nothing can be said about the content until the next start.
    broken: bool,
    /// What finds no space is thrown away without a word.
    swallows: bool,
}

/// Needed for opening a directory, as [`crate::space::check`] has it for real disks.
const OPEN_BYTES: u64 = 4 << 10;

/// A disk in memory. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<Content>>);

fn apply(records: &mut Records, change: &Change) {
    match change {
        (key, Some(value)) => records.insert(key.to_vec(), value.to_vec()),
        (key, None) => records.remove(key.as_ref()),
    };
}

/// Bytes that changes take on the disk.
fn size(changes: &[Change]) -> u64 {
    changes.iter().map(|(key, value)| value.as_ref().map_or(0, |value| (key.len() + value.len()) as u64)).sum()
}

impl Content {
    /// Takes so many bytes, if they are there.
    fn take(&mut self, bytes: u64) -> io::Result<()> {
        match &mut self.room {
            Some(room) if *room < bytes => return Err(io::ErrorKind::StorageFull.into()),
            Some(room) => *room -= bytes,
            None => {}
        }
        Ok(())
    }
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

    /// So many bytes are free from now on; writes use them up. None: more than anybody needs.
    pub fn set_room(&self, bytes: Option<u64>) {
        self.content().room = bytes;
    }

    /// Breaks its promise: from now on writes that find no space are thrown away, and answered as done.
    pub fn swallow_when_full(&self) {
        self.content().swallows = true;
    }

    /// Free bytes.
    pub(crate) fn free(&self) -> u64 {
        self.content().room.unwrap_or(u64::MAX)
    }

    /// Refuses to be opened without the room that opening takes.
    pub(crate) fn check_room(&self) -> Result<(), StoreError> {
        let free_bytes = self.free();
        if free_bytes < OPEN_BYTES {
            return Err(StoreError::DiskFull { dir: "/simulated".into(), free_bytes, needed_bytes: OPEN_BYTES });
        }
        Ok(())
    }

    /// Loses what was not flushed. A start does this by itself.
    pub fn crash(&self) {
        let mut content = self.content();
        content.broken = false;
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
            // Without space less of it is there: that is as good.
            let _ = self.flush(number);
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

    /// Makes the batches up to a number durable; those that a crash took in the meantime stay lost. Without space some of
    /// the first are durable, and every later flush fails too, until the next start.
    pub(crate) fn flush(&self, upto: u64) -> io::Result<()> {
        let mut content = self.content();
        let content = &mut *content;
        let later = content.pending.partition_point(|(number, _)| *number <= upto);
        for (number, changes) in content.pending.drain(..later).collect::<Vec<_>>() {
            let taken =
                if content.broken { Err(io::ErrorKind::StorageFull.into()) } else { content.take(size(&changes)) };
            match taken {
                Ok(()) => changes.iter().for_each(|change| apply(&mut content.durable, change)),
                Err(_) if content.swallows => {}
                Err(error) => {
                    tracing::debug!(number, "a write finds no space");
                    content.broken = true;
                    return Err(error);
                }
            }
        }
        if content.broken { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    pub(crate) fn file(&self, path: &Path) -> Option<Arc<Vec<u8>>> {
        self.content().files.get(path).cloned()
    }

    pub(crate) fn put(&self, path: PathBuf, bytes: Vec<u8>) -> io::Result<()> {
        let mut content = self.content();
        content.take(bytes.len() as u64)?;
        content.files.insert(path, Arc::new(bytes));
        Ok(())
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

/// What a disk holds: the newest snapshot's state, and the proposals of the whole log with their indexes.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// Last index that the snapshot contains, and the state as the state machine wrote it.
    pub snapshot: Option<(u64, Vec<u8>)>,
    /// Every proposal in the log, committed or not; some may be in the snapshot too.
    pub entries: Vec<(u64, Bytes)>,
}

/// Reads the disk of a configuration whose node does not run.
pub fn content(config: &Config) -> Result<Stored, StartError> {
    let (store, _closed) = Store::open_existing(config)?;
    let store = Arc::new(store);
    let snapshots = SnapshotStore::open(Arc::clone(&store))?;
    let log = LogStore::open(store, &config.limits)?;
    let mut snapshot = None;
    if let Some(current) = snapshots.current() {
        let mut state = Vec::new();
        let mut from = current.file.read()?;
        let read = read_preface(&mut from).and_then(|_| from.read_to_end(&mut state));
        read.map_err(|error| current.file.failed(error))?;
        snapshot = current.preface.meta.last_log_id.map(|last| (last.index, state));
    }
    let proposals = log.all()?.into_iter().filter_map(|entry| match entry.payload {
        EntryPayload::Normal(command) => Some((entry.log_id.index, command.0)),
        EntryPayload::Blank | EntryPayload::Membership(_) => None,
    });
    Ok(Stored { snapshot, entries: proposals.collect() })
}
