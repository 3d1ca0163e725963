//! The caller's state machine, as openraft wants it: applies entries, freezes, restores, counts for the policy.
//!
//! openraft calls it from one task. Snapshots are written on a thread of their own from a frozen copy, so applying never
//! waits for a disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};

use super::snapshots::{Current, SnapshotData, SnapshotStore, new_snapshot_id, read_preface};
use crate::consensus::StopCause;
use crate::digests::Digests;
use crate::engine;
use crate::error::{StartError, StoreError};
use crate::priority;
use crate::state_machine::{FatalError, Snapshot, StateMachine};
use crate::types::{Applied, EngineStorageError, Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig};

/// How much was applied, for the snapshot policy and for figures. Only rises.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    bytes: AtomicU64,
    changes: AtomicU64,
    /// The two at the newest snapshot.
    snapshot_bytes: AtomicU64,
    snapshot_changes: AtomicU64,
}

impl Gauge {
    fn add(&self, bytes: u64, changes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.changes.fetch_add(changes, Ordering::Relaxed);
    }

    fn now(&self) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed), self.changes.load(Ordering::Relaxed))
    }

    fn snapshot_at(&self, (bytes, changes): (u64, u64)) {
        self.snapshot_bytes.fetch_max(bytes, Ordering::Relaxed);
        self.snapshot_changes.fetch_max(changes, Ordering::Relaxed);
    }

    /// Bytes and changes applied since the newest snapshot.
    pub(crate) fn since_snapshot(&self) -> (u64, u64) {
        let (bytes, changes) = self.now();
        let bytes = bytes.saturating_sub(self.snapshot_bytes.load(Ordering::Relaxed));
        (bytes, changes.saturating_sub(self.snapshot_changes.load(Ordering::Relaxed)))
    }
}

/// openraft's view of the caller's state machine.
pub(crate) struct Machine<M: StateMachine> {
    machine: M,
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshots: Arc<SnapshotStore>,
    gauge: Arc<Gauge>,
    digests: Arc<Digests>,
}

impl<M: StateMachine> Machine<M> {
    /// Puts the machine into the state of the newest snapshot, if there is one. All of the file is checked.
    pub(crate) fn open(
        machine: M,
        snapshots: Arc<SnapshotStore>,
        gauge: Arc<Gauge>,
        digests: Arc<Digests>,
    ) -> Result<Self, StartError> {
        let membership = StoredMembership::default();
        let mut opened = Self { machine, applied: None, membership, snapshots, gauge, digests };
        if let Some(current) = opened.snapshots.current() {
            opened.restore(&current).map_err(|error| match error {
                RestoreError::Store(error) => StartError::Store(error),
                RestoreError::Machine(text) => StartError::StateMachine(text),
            })?;
        }
        Ok(opened)
    }

    fn restore(&mut self, current: &Current) -> Result<(), RestoreError> {
        let file = &current.file;
        let mut from = Watched { from: file.read()?, error: None };
        read_preface(&mut from).map_err(|error| file.failed(error))?;
        let meta = &current.preface.meta;
        let index = meta.last_log_id.map_or(0, |id| id.index);
        let restored = self.machine.restore(index, &mut from);
        // A broken file shows as an error of the machine too; the file's own error says more.
        if let Some(error) = from.error {
            return Err(file.failed(error).into());
        }
        restored.map_err(|error| RestoreError::Machine(format!("snapshot {:?}: {error}", file.path())))?;
        from.from.drain().map_err(|error| file.failed(error))?;
        if let Some(expected) = current.preface.digest
            && self.machine.freeze().digest() != Some(expected)
        {
            let what = "the state restored from it has another digest than the one it was made from";
            return Err(StoreError::damaged(file.path(), what).into());
        }
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    fn apply_one(&mut self, entry: Entry) -> Result<Applied, FatalError> {
        let index = entry.log_id.index;
        self.applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Ok(Applied::default()),
            EntryPayload::Normal(command) => {
                self.gauge.add(command.0.len() as u64, self.machine.count_changes(&command.0));
                let response = self.machine.apply(index, &command.0)?;
                Ok(Applied { response: Some(Box::new(response)) })
            }
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Ok(Applied::default())
            }
        }
    }

    fn fail(&self, cause: StopCause, text: String) -> AnyError {
        self.snapshots.store().fail(cause, text.clone());
        AnyError::error(text)
    }
}

enum RestoreError {
    Store(StoreError),
    Machine(String),
}

impl From<StoreError> for RestoreError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Remembers the first error of a reader, which the code behind it may have turned into another one.
struct Watched<R> {
    from: R,
    error: Option<io::Error>,
}

impl<R: io::Read> io::Read for Watched<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.from.read(out).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.error.get_or_insert(error);
            }
            io::Error::from(kind)
        })
    }
}

impl<M: StateMachine> RaftStateMachine<TypeConfig> for Machine<M> {
    type SnapshotBuilder = Builder<M::Snapshot>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), EngineStorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, EngineStorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        // The core, woken by the answers before this batch, may sit in this thread's private slot: let it run first, so
        // that a long backlog of entries does not hold up heartbeats.
        tokio::task::yield_now().await;
        let mut answers = Vec::new();
        for entry in entries {
            let log_id = entry.log_id;
            match self.apply_one(entry) {
                Ok(answer) => {
                    answers.push(answer);
                    if self.digests.is_due(log_id.index) {
                        self.digests.compute(log_id.index, self.machine.freeze());
                    }
                }
                Err(error) => {
                    let text = format!("log entry {} cannot be applied: {error}", log_id.index);
                    return Err(StorageIOError::apply(log_id, self.fail(StopCause::StateMachine, text)).into());
                }
            }
        }
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        let mut meta =
            SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone(), ..Default::default() };
        meta.snapshot_id = new_snapshot_id(&meta);
        Builder {
            job: Some((meta, self.machine.freeze())),
            at: self.gauge.now(),
            gauge: Arc::clone(&self.gauge),
            snapshots: Arc::clone(&self.snapshots),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotData>, EngineStorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<SnapshotData>,
    ) -> Result<(), EngineStorageError> {
        let install = |machine: &mut Self| -> Result<(), RestoreError> {
            let missing = || StoreError::damaged(machine.snapshots.store().snapshots_dir(), "no snapshot was received");
            let file = snapshot.0.ok_or_else(missing)?;
            let mut preface = read_preface(&mut file.read()?).map_err(|error| file.failed(error))?;
            preface.meta = meta.clone();
            let current = machine.snapshots.make_current(preface, &file)?;
            let at = machine.gauge.now();
            machine.restore(&current)?;
            machine.gauge.snapshot_at(at);
            Ok(())
        };
        engine::in_place(|| install(self)).map_err(|error| {
            let (cause, text) = match error {
                RestoreError::Store(error) => (error.cause(), error.text()),
                RestoreError::Machine(text) => (StopCause::StateMachine, text),
            };
            StorageIOError::write_snapshot(Some(meta.signature()), self.fail(cause, text)).into()
        })
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<openraft::Snapshot<TypeConfig>>, EngineStorageError> {
        Ok(self.snapshots.current().map(engine_snapshot))
    }
}

fn engine_snapshot(current: Current) -> openraft::Snapshot<TypeConfig> {
    openraft::Snapshot { meta: current.preface.meta, snapshot: Box::new(SnapshotData(Some(current.file))) }
}

/// Writes one frozen state.
pub(crate) struct Builder<S> {
    job: Option<(SnapshotMeta, S)>,
    at: (u64, u64),
    gauge: Arc<Gauge>,
    snapshots: Arc<SnapshotStore>,
}

impl<S: Snapshot> RaftSnapshotBuilder<TypeConfig> for Builder<S> {
    /// A full disk is waited for: an error here would end the engine, and nothing depends on the snapshot but space.
    async fn build_snapshot(&mut self) -> Result<openraft::Snapshot<TypeConfig>, EngineStorageError> {
        let Some((meta, state)) = self.job.take() else {
            return Err(self.failed(StopCause::Engine, "a snapshot builder was used twice".to_owned()));
        };
        let state = Arc::new(state);
        loop {
            match self.write(meta.clone(), Arc::clone(&state)).await {
                Ok(current) => {
                    self.gauge.snapshot_at(self.at);
                    return Ok(engine_snapshot(current));
                }
                Err((StopCause::DiskFull, text)) => {
                    tracing::warn!(error = text, "no space for a snapshot; it is tried again");
                    tokio::time::sleep(FULL_PAUSE).await;
                }
                Err((cause, text)) => return Err(self.failed(cause, text)),
            }
        }
    }
}

/// Pause before a snapshot that found no space is tried again.
const FULL_PAUSE: Duration = Duration::from_secs(5);

impl<S: Snapshot> Builder<S> {
    fn failed(&self, cause: StopCause, text: String) -> EngineStorageError {
        self.snapshots.store().fail(cause, text.clone());
        StorageIOError::write_snapshot(None, AnyError::error(text)).into()
    }

    async fn write(&self, meta: SnapshotMeta, state: Arc<S>) -> Result<Current, (StopCause, String)> {
        let text = |error: StoreError| (error.cause(), error.text());
        if engine::is_simulated() {
            return self.snapshots.write(meta, &*state).map_err(text);
        }
        let (sender, answer) = tokio::sync::oneshot::channel();
        let snapshots = Arc::clone(&self.snapshots);
        let spawned = thread::Builder::new().name("skep-raft-snap".to_owned()).spawn(move || {
            priority::lower();
            let written = snapshots.write(meta, &*state);
            // The node may stop meanwhile; then nobody waits, and the snapshot counts all the same.
            let _ = sender.send(written.map_err(text));
        });
        let panicked = || (StopCause::StateMachine, "the state machine panicked while it wrote a snapshot".to_owned());
        match spawned {
            Ok(_) => answer.await.unwrap_or_else(|_| Err(panicked())),
            Err(error) => Err((StopCause::Engine, format!("cannot start a thread for the snapshot: {error}"))),
        }
    }
}
