//! The log on disk, as openraft wants it: entries, the vote, marks.
//!
//! The Raft core is the only writer; replication reads. Writes go to sled's memory and are acknowledged by the flusher's
//! thread (`db.rs`), so no thread of the Raft runtime waits for a disk. A purge only moves a mark: a thread of its own
//! removes the records behind it in small steps, because removing a long log at once takes seconds.

use std::fmt::Debug;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread;
use std::time::Duration;

use openraft::storage::{LogFlushed, LogState as EngineLogState, RaftLogStorage};
use openraft::{AnyError, OptionalSend, RaftLogReader, StorageIOError};

use super::db::Batch;
use super::log_state::LogState;
use super::record::{self, BadEntry};
use super::{Store, Vault};
use crate::codec;
use crate::config::Limits;
use crate::consensus::StopCause;
use crate::engine;
use crate::error::{StoreError, is_full};
use crate::priority;
use crate::types::{EngineStorageError, Entry, LogId, TypeConfig, Vote};

/// Records removed in one step, and the pause after it.
const SWEEP_STEP: usize = 256;
const SWEEP_PAUSE: Duration = Duration::from_millis(5);

/// A handle on the log. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    state: Arc<Mutex<LogState>>,
    append_bytes: u64,
    /// Wakes the sweeper with the first index to stay.
    sweep: mpsc::Sender<u64>,
}

impl LogStore {
    /// Reads the whole log, checks every entry, and removes what a crash left unfinished behind the last flush.
    pub(crate) fn open(store: Arc<Store>, limits: &Limits) -> Result<Self, StoreError> {
        let state = load(&store, limits.cache_bytes)?;
        let (sweep, requests) = mpsc::channel();
        let weak = Arc::downgrade(&store);
        if !engine::is_simulated() {
            let sweeper = move || {
                priority::lower();
                sweep_loop(&weak, &requests);
            };
            let started = thread::Builder::new().name("skep-raft-sweep".to_owned()).spawn(sweeper);
            started.map_err(StoreError::io("start the sweeper of", store.db_path()))?;
        }
        let log = Self {
            inner: Arc::new(Inner {
                store,
                append_bytes: limits.append_bytes as u64,
                sweep,
                state: Arc::new(Mutex::new(state)),
            }),
        };
        log.sweep();
        Ok(log)
    }

    fn state(&self) -> MutexGuard<'_, LogState> {
        locked(&self.inner.state)
    }

    /// Refuses a log that begins behind the end of the snapshot: entries between them would be lost.
    pub(crate) fn check_begins_after(&self, contained: Option<LogId>) -> Result<(), StoreError> {
        let first = self.state().first();
        let next = contained.map_or(0, |id| id.index + 1);
        if first > next {
            let what = format!(
                "the log begins at entry {first}, but the newest snapshot only reaches to entry {next}, excluded"
            );
            return Err(StoreError::damaged(self.inner.store.db_path(), what));
        }
        Ok(())
    }

    /// The last entry and the newest vote.
    pub(crate) fn ends(&self) -> (Option<LogId>, Option<Vote>) {
        let state = self.state();
        (state.last_log_id(), state.vote)
    }

    /// See [`LogState::purge_target`].
    pub(crate) fn purge_target(&self, contained: u64, limits: &Limits) -> Option<u64> {
        self.state().purge_target(contained, limits.keep_entries, limits.keep_bytes)
    }

    /// Writes the marks that otherwise ride on the next append. Blocks: for shutdown.
    pub(crate) fn settle(&self) -> Result<(), StoreError> {
        let progress = self.state().progress;
        let vault = self.inner.store.in_use();
        let mut batch = Batch::default();
        record::put_progress(&mut batch, &vault.ring, &progress);
        vault.db.apply(batch)?;
        vault.db.flush_and_wait()?;
        vault.floor.sync().map_err(StoreError::io("sync", vault.floor.path()))
    }

    fn sweep(&self) {
        if engine::is_simulated() {
            while sweep_step(&self.inner.store, self.state().first()).is_ok_and(|count| count > 0) {}
            return;
        }
        // The sweeper ends only with the store.
        let _ = self.inner.sweep.send(self.state().first());
    }

    /// Every entry.
    #[cfg(feature = "sim")]
    pub(crate) fn all(&self) -> Result<Vec<Entry>, StoreError> {
        self.read(0..u64::MAX)
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<Entry>, StoreError> {
        let range = {
            let state = self.state();
            let range = state.clamp(range);
            if let Some(entries) = state.cached(range.clone()) {
                return Ok(entries);
            }
            range
        };
        let vault = self.inner.store.vault();
        let mut entries = Vec::new();
        for item in entry_parts(&vault, range.start, Some(range.end)) {
            let (index, parts) = item?;
            let (entry, _) =
                record::join_entry(&vault.ring, index, &parts).map_err(|bad| unreadable(&vault, index, bad))?;
            entries.push(entry);
        }
        if entries.len() as u64 != range.end - range.start {
            return Err(StoreError::damaged(vault.db.path(), format!("log entries of {range:?} are missing")));
        }
        Ok(entries)
    }

    fn write(&self, entries: Vec<Entry>, flushed: LogFlushed<TypeConfig>) -> Result<(), StoreError> {
        let store = &self.inner.store;
        let (purged, progress) = {
            let state = self.state();
            (state.purged.map(|id| id.index), state.progress)
        };
        // What was purged is in a snapshot: writing it again would only leave it for the sweeper.
        let entries: Vec<Entry> = entries.into_iter().filter(|entry| Some(entry.log_id.index) > purged).collect();
        let vault = store.in_use();
        let mut batch = Batch::default();
        record::put_progress(&mut batch, &vault.ring, &progress);
        let sizes: Vec<usize> = entries.iter().map(|entry| record::put_entry(&mut batch, &vault.ring, entry)).collect();
        vault.db.apply(batch)?;
        let last = {
            let mut state = self.state();
            for (entry, size) in entries.into_iter().zip(sizes) {
                let index = entry.log_id.index;
                if !state.push(entry, size) {
                    let what = format!("entry {index} does not follow entry {}", state.next().wrapping_sub(1));
                    return Err(StoreError::damaged(vault.db.path(), what));
                }
            }
            state.next().checked_sub(1)
        };
        let state = Arc::clone(&self.inner.state);
        let (weak, weak_vault) = (Arc::downgrade(store), Arc::downgrade(&vault));
        // Asked for while the vault is held: whoever gives it up waits for what was asked for.
        vault.db.flush(move |result| {
            let store = weak.upgrade();
            // Goes before the store, which holds the directory's lock.
            let vault = weak_vault.upgrade();
            let result = match (&store, &vault) {
                (Some(store), Some(vault)) => note_flushed(store, vault, &state, last, result),
                _ => result,
            };
            drop(vault);
            drop(store);
            flushed.log_io_completed(result);
        });
        Ok(())
    }

    async fn cut(&self, since: u64) -> Result<(), StoreError> {
        let store = &self.inner.store;
        let vault = {
            let vault = store.in_use();
            store.note_cut(since);
            vault.floor.lower(since)?;
            let mut batch = Batch::default();
            {
                let mut state = self.state();
                for index in (since.max(state.first())..state.next()).rev() {
                    let len = usize::try_from(state.sealed_bytes(index)).unwrap_or(usize::MAX);
                    for part in (0..record::parts_of(len)).rev() {
                        batch.remove(&record::entry_key(index, part));
                    }
                }
                state.truncate(since);
                record::put_progress(&mut batch, &vault.ring, &state.progress);
            }
            vault.db.apply(batch)?;
            Arc::clone(&vault)
        };
        vault.db.flush_async().await
    }

    async fn discard(&self, upto: LogId) -> Result<(), StoreError> {
        let mut plain = Vec::new();
        codec::put_log_id(&mut plain, &upto);
        let vault = self.put_mark(record::PURGED, &plain)?;
        vault.db.flush_async().await?;
        drop(vault);
        self.state().purge(upto);
        self.sweep();
        Ok(())
    }

    async fn put_vote(&self, vote: &Vote) -> Result<(), StoreError> {
        let mut plain = Vec::new();
        codec::put_vote(&mut plain, vote);
        let vault = self.put_mark(record::VOTE, &plain)?;
        vault.db.flush_async().await?;
        drop(vault);
        // The one in use by now: the vote went along.
        let vault = self.inner.store.in_use();
        vault.floor.vote(*vote).map_err(StoreError::io("write", vault.floor.path()))?;
        drop(vault);
        self.state().vote = Some(*vote);
        Ok(())
    }

    /// Puts a mark into the database in use, and answers that, to be flushed.
    fn put_mark(&self, name: &str, plain: &[u8]) -> Result<Arc<Vault>, StoreError> {
        let vault = self.inner.store.in_use();
        let mut batch = Batch::default();
        record::put_mark(&mut batch, &vault.ring, name, plain);
        vault.db.apply(batch)?;
        Ok(Arc::clone(&vault))
    }

    /// Notes a failure for the operator and turns it into the engine's type.
    fn engine<'a>(
        &'a self,
        how: impl FnOnce(AnyError) -> StorageIOError<u64> + 'a,
    ) -> impl FnOnce(StoreError) -> EngineStorageError + 'a {
        move |error| {
            let text = error.text();
            self.inner.store.fail(error.cause(), text.clone());
            how(AnyError::error(text)).into()
        }
    }
}

/// After a flush, before it is acknowledged: remembers how far the log is durable. Runs on the flusher's thread.
fn note_flushed(
    store: &Store,
    vault: &Vault,
    state: &Mutex<LogState>,
    last: Option<u64>,
    result: std::io::Result<()>,
) -> std::io::Result<()> {
    let noted = result.and_then(|()| vault.floor.raise(last));
    match &noted {
        Ok(()) => {
            let mut state = locked(state);
            state.progress.synced = state.progress.synced.max(last);
        }
        Err(error) => {
            let cause = if is_full(error) { StopCause::DiskFull } else { StopCause::Storage };
            store.fail(cause, format!("cannot flush database {:?}: {error}", vault.db.path()));
        }
    }
    noted
}

fn locked(state: &Mutex<LogState>) -> MutexGuard<'_, LogState> {
    state.lock().expect("nothing panics while it holds the log's index")
}

pub(super) fn unreadable(vault: &Vault, index: u64, bad: BadEntry) -> StoreError {
    let what = match bad {
        BadEntry::Incomplete => format!("log entry {index}: parts of it are missing"),
        BadEntry::Damaged(what) => what,
    };
    StoreError::damaged(vault.db.path(), what)
}

/// Groups the database's records by entry.
struct EntryParts<I> {
    records: I,
    ahead: Option<(u64, u16, sled::IVec)>,
}

pub(super) type Parts = (u64, Vec<(u16, sled::IVec)>);

/// The records of the entries `[from, to)`, entry by entry.
pub(super) fn entry_parts(
    vault: &Vault,
    from: u64,
    to: Option<u64>,
) -> impl Iterator<Item = Result<Parts, StoreError>> + '_ {
    let records = vault.db.range(record::entry_range(from, to)).map(|item| {
        let (key, value) = item?;
        let (index, part) = record::parse_entry_key(&key)
            .ok_or_else(|| StoreError::damaged(vault.db.path(), "a record has an impossible name"))?;
        Ok((index, part, value))
    });
    EntryParts { records, ahead: None }
}

impl<I> Iterator for EntryParts<I>
where
    I: Iterator<Item = Result<(u64, u16, sled::IVec), StoreError>>,
{
    type Item = Result<Parts, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (index, part, value) = match self.ahead.take() {
            Some(first) => first,
            None => match self.records.next()? {
                Ok(first) => first,
                Err(error) => return Some(Err(error)),
            },
        };
        let mut parts = vec![(part, value)];
        for item in self.records.by_ref() {
            match item {
                Ok((same, part, value)) if same == index => parts.push((part, value)),
                Ok(other) => {
                    self.ahead = Some(other);
                    break;
                }
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok((index, parts)))
    }
}

fn load(store: &Store, cache_bytes: usize) -> Result<LogState, StoreError> {
    let vault = store.vault();
    let (db, ring) = (&vault.db, &vault.ring);
    let purged = record::get_mark(db, ring, record::PURGED, codec::get_log_id)?;
    let mut state = LogState::new(purged, cache_bytes);
    state.vote = record::get_mark(db, ring, record::VOTE, codec::get_vote)?;
    state.progress = record::get_progress(db, ring)?;
    let floor = vault.floor.mark();
    let synced = state.progress.synced.max(floor.synced);
    state.progress.synced = synced;
    let mut torn = None;
    for item in entry_parts(&vault, state.first(), None) {
        let (index, parts) = item?;
        let unsynced = synced.is_none_or(|synced| state.next() > synced);
        if index != state.next() {
            if unsynced {
                torn = Some(state.next());
                break;
            }
            let what = format!("log entries {}..{index} are missing", state.next());
            return Err(StoreError::damaged(db.path(), what));
        }
        match record::join_entry(ring, index, &parts) {
            Ok((entry, size)) => {
                if state.last_log_id().is_some_and(|last| entry.log_id.leader_id < last.leader_id) {
                    return Err(StoreError::damaged(
                        db.path(),
                        format!("log entry {index} has an older term than the one before"),
                    ));
                }
                state.push(entry, size);
            }
            // Never acknowledged: it was still being written when the process or the machine stopped.
            Err(BadEntry::Incomplete) if unsynced => {
                torn = Some(index);
                break;
            }
            Err(bad) => return Err(unreadable(&vault, index, bad)),
        }
    }
    check_ends(&vault, &state)?;
    if let Some(since) = torn {
        tracing::warn!(
            since,
            "removing log entries that were being written when skep stopped; they were never acknowledged"
        );
        remove_since(&vault, since)?;
    }
    Ok(state)
}

/// Refuses a log that lost its end or the vote that goes with it.
fn check_ends(vault: &Vault, state: &LogState) -> Result<(), StoreError> {
    let last = state.last_log_id().map(|id| id.index);
    let committed = state.progress.committed.map(|id| id.index);
    let known = state.progress.synced.max(committed);
    if known > last {
        let show = |index: Option<u64>| index.map_or_else(|| "nowhere".to_owned(), |index| format!("at entry {index}"));
        let what = format!("the log ends {}, but it once ended {}", show(last), show(known));
        return Err(StoreError::damaged(vault.db.path(), what));
    }
    if state.vote.is_none() && last > Some(0) {
        return Err(StoreError::damaged(vault.db.path(), "it has a log but no vote"));
    }
    if let Some(floor) = vault.floor.mark().vote
        && state.vote.is_none_or(|vote| vote < floor)
    {
        return Err(StoreError::damaged(
            vault.db.path(),
            format!("its newest vote is older than {floor}, which was given"),
        ));
    }
    Ok(())
}

fn remove_since(vault: &Vault, since: u64) -> Result<(), StoreError> {
    let mut batch = Batch::default();
    for item in vault.db.range(record::entry_range(since, None)) {
        batch.remove(&item?.0);
    }
    vault.db.apply(batch)?;
    vault.db.flush_and_wait()
}

/// Removes records before the index asked for last, in small steps. Ends with the log store.
fn sweep_loop(store: &std::sync::Weak<Store>, requests: &mpsc::Receiver<u64>) {
    while let Ok(first) = requests.recv() {
        let upto = requests.try_iter().last().unwrap_or(first);
        loop {
            let Some(store) = store.upgrade() else { return };
            match sweep_step(&store, upto) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    // Only space is lost; the next purge tries again, and a broken disk shows in the next write.
                    tracing::warn!(error = error.text(), "cannot remove old log entries");
                    break;
                }
            }
            drop(store);
            thread::sleep(SWEEP_PAUSE);
        }
    }
}

fn sweep_step(store: &Store, upto: u64) -> Result<usize, StoreError> {
    let vault = store.in_use();
    let mut batch = Batch::default();
    let mut count = 0;
    for item in vault.db.range(record::entry_range(0, Some(upto))).take(SWEEP_STEP) {
        batch.remove(&item?.0);
        count += 1;
    }
    vault.db.apply(batch)?;
    Ok(count)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, EngineStorageError> {
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start..end).map_err(self.engine(StorageIOError::read_logs))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, EngineStorageError> {
        let end = {
            let state = self.state();
            state.limit(state.clamp(start..end), self.inner.append_bytes)
        };
        self.read(start..end).map_err(self.engine(StorageIOError::read_logs))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<EngineLogState<TypeConfig>, EngineStorageError> {
        let state = self.state();
        Ok(EngineLogState { last_purged_log_id: state.purged, last_log_id: state.last_log_id() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), EngineStorageError> {
        self.put_vote(vote).await.map_err(self.engine(StorageIOError::write_vote))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, EngineStorageError> {
        Ok(self.state().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), EngineStorageError> {
        // Written with the next append: an older mark only means that less is applied before a leader is known.
        self.state().progress.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, EngineStorageError> {
        Ok(self.state().progress.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), EngineStorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().collect();
        self.write(entries, callback).map_err(self.engine(StorageIOError::write_logs))
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), EngineStorageError> {
        self.cut(log_id.index).await.map_err(self.engine(StorageIOError::write_logs))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), EngineStorageError> {
        self.discard(log_id).await.map_err(self.engine(StorageIOError::write_logs))
    }
}
