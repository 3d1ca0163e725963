//! The local record: what is assigned and what was observed, so that a restarted agent goes on where the last one was.
//!
//! Used by the agent and the task drivers. One thread of its own writes: whatever is queued goes in one atomic batch, and
//! one flush serves all who wait (group commit), so a state never costs an fsync of its own. Credentials, secrets and
//! configs never come here.
//!
//! What a flush is for differs. Assignments must outlive the agent, so they leave its memory; after a power cut no
//! container runs and the managers send them again. How a task ended, and the boot that the record speaks of, nobody else
//! knows: they must be on the disk. sled's flush alone does not see to that: it ends in sync_file_range(2), which syncs
//! neither the file's length nor the drive's cache. So fdatasync(2) follows it there.
//!
//! Keys: `m` + name for the agent's own facts, `t` + task id, `r` + service id + number, `s` + task id, `a` + task id. A status is one
//! byte (1: acknowledged by a manager) and the message. `a` has the revision whose secrets and configs a running
//! task has, where it was told to take over another one. Long values are cut into pieces (`pieces.rs`).

mod pieces;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prost::Message;
use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::v1::{Managers, Revision, Task, TaskStatus};
use tokio::sync::oneshot;

use crate::assignments::{AssignmentSet, Changes, RevisionKey};
use pieces::Change;

/// Format of the record; raised when an older build could misread it. Since 2, long values come in pieces; since 3, there are
/// revisions that were taken over in place.
const FORMAT: u8 = 3;
/// Memory that sled may keep pages in: the record is small and read once.
const CACHE_BYTES: u64 = 4 << 20;

/// Why the record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The database does not open (another daemon has it, the disk is broken).
    #[error("cannot open the local record {}", path.display())]
    Open {
        /// Its folder.
        path: PathBuf,
        /// What sled says.
        #[source]
        source: sled::Error,
    },
    /// A write failed (full disk).
    #[error("cannot write the local record")]
    Write(#[source] Arc<sled::Error>),
    /// An entry does not read back.
    #[error("the local record is damaged at key {key:?}")]
    Damaged {
        /// The key.
        key: String,
    },
    /// Written by a newer version.
    #[error("the local record has format {0}, this version reads format {FORMAT}")]
    Format(u8),
    /// It belongs to another node's identity.
    #[error("the local record belongs to node {found}, this is node {here}; remove it to start afresh")]
    Foreign {
        /// Whose it is.
        found: NodeId,
        /// Who asks.
        here: NodeId,
    },
    /// The writer is gone (shutdown).
    #[error("the local record is closed")]
    Closed,
}

/// The session that the recorded set came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionMark {
    /// Empty: none.
    pub session_id: Vec<u8>,
    /// Last sequence in the record.
    pub sequence: u64,
}

/// What a record held when it was opened.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Boot in which it was written. Empty: a new record.
    pub boot_id: String,
    /// Where its assignments came from.
    pub session: SessionMark,
    /// Managers known at the end.
    pub managers: Managers,
    /// Assigned tasks.
    pub tasks: BTreeMap<TaskId, Task>,
    /// Their revisions.
    pub revisions: BTreeMap<RevisionKey, Arc<Revision>>,
    /// Last status of each held task, and whether a manager has it.
    pub statuses: BTreeMap<TaskId, (TaskStatus, bool)>,
    /// The revision that a task has taken over, where it may be another than the one it is told to.
    pub applied: BTreeMap<TaskId, u64>,
}

/// From what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Safe {
    /// The end of this process.
    FromKill,
    /// A power cut.
    FromPowerCut,
}

enum Command {
    /// In one atomic batch.
    Apply(Vec<Change>),
    /// Answered when all before it is safe.
    Flush(Safe, oneshot::Sender<Result<(), RecordError>>),
    Close,
}

/// A handle to the open record; clones are cheap.
#[derive(Debug, Clone)]
pub struct Record {
    commands: mpsc::Sender<Command>,
}

/// Closes the record when dropped, after all that was queued is on disk.
#[derive(Debug)]
pub struct RecordGuard {
    commands: mpsc::Sender<Command>,
    writer: Option<JoinHandle<()>>,
}

impl Drop for RecordGuard {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Close);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Record {
    /// Opens or makes the record in folder `path` for node `node`.
    pub fn open(path: &Path, node: NodeId) -> Result<(Self, RecordGuard, Recorded), RecordError> {
        let opened = |source| RecordError::Open { path: path.to_owned(), source };
        let db = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(1000))
            .open()
            .map_err(opened)?;
        let recorded = read(&db)?;
        match db.get(b"mnode").map_err(opened)? {
            Some(bytes) => {
                let found = NodeId::from_wire(&bytes).map_err(|_| damaged(b"mnode"))?;
                if found != node {
                    return Err(RecordError::Foreign { found, here: node });
                }
            }
            None => {
                db.insert(b"mnode", node.to_vec()).map_err(opened)?;
            }
        }
        // Only now: another node's record, or a newer one, is left as it is. And only once: a full disk must not keep an
        // agent from its containers.
        if db.get(b"mformat").map_err(opened)?.as_deref() != Some(&[FORMAT][..]) {
            db.insert(b"mformat", &[FORMAT]).map_err(opened)?;
            db.flush().map_err(opened)?;
        }
        let file = File::open(path.join("db")).map_err(|error| opened(error.into()))?;
        let (commands, receiver) = mpsc::channel();
        let writer = std::thread::Builder::new()
            .name("skep-record".to_owned())
            .spawn(move || write_all(&db, &file, &receiver))
            .expect("a thread can be spawned at start");
        let guard = RecordGuard { commands: commands.clone(), writer: Some(writer) };
        Ok((Self { commands }, guard, recorded))
    }

    /// Writes a message's changes, with the set they led to. A later agent finds them when it returns: only then may this
    /// one act.
    pub async fn assign(&self, changes: &Changes, set: &AssignmentSet, session_id: &[u8]) -> Result<(), RecordError> {
        let mut batch: Vec<Change> = Vec::new();
        for id in &changes.put_tasks {
            batch.push((task_key(b't', *id), Some(set.tasks()[id].encode_to_vec())));
        }
        for (id, before) in &changes.moved_tasks {
            batch.push((task_key(b'a', *id), Some(before.to_be_bytes().to_vec())));
        }
        for id in &changes.removed_tasks {
            batch.push((task_key(b't', *id), None));
        }
        for key in &changes.put_revisions {
            if let Some(revision) = set.revision(key) {
                batch.push((revision_key(key), Some(revision.encode_to_vec())));
            }
        }
        for key in &changes.removed_revisions {
            batch.push((revision_key(key), None));
        }
        let resumable = set.is_recordable();
        let session_id = if resumable { session_id } else { &[] };
        batch.push((b"msession".to_vec(), Some(session_id.to_vec())));
        batch.push((b"msequence".to_vec(), Some(set.sequence().to_be_bytes().to_vec())));
        self.send(batch)?;
        self.flush(Safe::FromKill).await
    }

    /// Notes a status. On disk soon, or with the next [`durable`](Self::durable).
    pub fn status(&self, task: TaskId, status: &TaskStatus, acknowledged: bool) {
        let mut value = Vec::with_capacity(1 + status.encoded_len());
        value.push(u8::from(acknowledged));
        status.encode(&mut value).expect("a vector grows as needed");
        // A closed record means shutdown; the truth is found again at the next start.
        let _ = self.send(vec![(task_key(b's', task), Some(value))]);
    }

    /// Notes that a running task has the secrets and configs of that revision.
    pub fn applied(&self, task: TaskId, revision: u64) {
        let _ = self.send(vec![(task_key(b'a', task), Some(revision.to_be_bytes().to_vec()))]);
    }

    /// Drops a task that is neither assigned nor running.
    pub fn forget(&self, task: TaskId) {
        let _ = self.send([b't', b's', b'a'].map(|kind| (task_key(kind, task), None)).to_vec());
    }

    /// Notes the managers to find again after a restart.
    pub fn managers(&self, managers: &Managers) {
        let _ = self.send(vec![(b"mmanagers".to_vec(), Some(managers.encode_to_vec()))]);
    }

    /// Notes the boot that the record now speaks of. Durable when it returns.
    pub async fn boot(&self, boot_id: &str) -> Result<(), RecordError> {
        self.send(vec![(b"mboot".to_vec(), Some(boot_id.as_bytes().to_vec()))])?;
        self.durable().await
    }

    /// Waits until everything noted so far is on disk.
    pub async fn durable(&self) -> Result<(), RecordError> {
        self.flush(Safe::FromPowerCut).await
    }

    async fn flush(&self, safe: Safe) -> Result<(), RecordError> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command::Flush(safe, answer)).map_err(|_| RecordError::Closed)?;
        answered.await.map_err(|_| RecordError::Closed)?
    }

    fn send(&self, changes: Vec<Change>) -> Result<(), RecordError> {
        self.commands.send(Command::Apply(changes)).map_err(|_| RecordError::Closed)
    }
}

/// Changes that nobody waits for are gathered for so long: a starting task tells a dozen, most of which the next one
/// outdates. Far less than what sled itself keeps back.
const GATHER: Duration = Duration::from_millis(50);

/// What is written together.
#[derive(Default)]
struct Round {
    /// The last change of each key.
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// What somebody waits for.
    wanted: Option<Safe>,
    waiters: Vec<oneshot::Sender<Result<(), RecordError>>>,
    close: bool,
}

impl Round {
    /// Waits for a command and takes what follows it, until the queue is empty and somebody waits, or for [`GATHER`].
    /// `None`: no command will come.
    fn gather(commands: &mpsc::Receiver<Command>) -> Option<Self> {
        let mut round = Self::default();
        round.take(commands.recv().ok()?);
        let until = Instant::now() + GATHER;
        loop {
            let next = match round.wanted {
                Some(_) => commands.try_recv().ok(),
                None => commands.recv_timeout(until.saturating_duration_since(Instant::now())).ok(),
            };
            match next {
                Some(command) => round.take(command),
                None => return Some(round),
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Apply(changes) => self.changes.extend(changes),
            Command::Flush(safe, waiter) => {
                self.wanted = self.wanted.max(Some(safe));
                self.waiters.push(waiter);
            }
            Command::Close => {
                self.wanted = Some(Safe::FromPowerCut);
                self.close = true;
            }
        }
    }
}

/// The writer: writes all that is queued in one batch, and flushes once if anybody waits.
fn write_all(db: &sled::Db, file: &File, commands: &mpsc::Receiver<Command>) {
    while let Some(Round { changes, wanted, waiters, close }) = Round::gather(commands) {
        let written = apply(db, changes).and_then(|()| wanted.map_or(Ok(()), |safe| flush(db, file, safe)));
        let error = written.err().map(Arc::new);
        if let Some(source) = &error {
            tracing::error!(error = %source, "cannot write the local record");
        }
        for waiter in waiters {
            let outcome = error.clone().map_or(Ok(()), |source| Err(RecordError::Write(source)));
            let _ = waiter.send(outcome);
        }
        if close {
            return;
        }
    }
}

fn apply(db: &sled::Db, changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> Result<(), sled::Error> {
    if changes.is_empty() {
        return Ok(());
    }
    let mut batch = sled::Batch::default();
    for change in changes {
        pieces::put(db, &mut batch, change)?;
    }
    db.apply_batch(batch)
}

fn flush(db: &sled::Db, file: &File, safe: Safe) -> Result<(), sled::Error> {
    db.flush()?;
    match safe {
        Safe::FromKill => Ok(()),
        Safe::FromPowerCut => file.sync_data().map_err(sled::Error::from),
    }
}

fn task_key(kind: u8, id: TaskId) -> Vec<u8> {
    [&[kind][..], &id.value().to_be_bytes()].concat()
}

fn revision_key(key: &RevisionKey) -> Vec<u8> {
    [&b"r"[..], &key.0.value().to_be_bytes(), &key.1.to_be_bytes()].concat()
}

fn damaged(key: &[u8]) -> RecordError {
    RecordError::Damaged { key: key.escape_ascii().to_string() }
}

fn read(db: &sled::Db) -> Result<Recorded, RecordError> {
    let mut recorded = Recorded::default();
    for entry in pieces::whole(db) {
        let (key, value) = entry.map_err(|source| RecordError::Write(Arc::new(source)))?;
        read_entry(&mut recorded, &key, &value)?;
    }
    Ok(recorded)
}

/// Reads one key with its whole value.
pub(crate) fn read_entry(recorded: &mut Recorded, key: &[u8], value: &[u8]) -> Result<(), RecordError> {
    let bad = || damaged(key);
    match key.split_first() {
        Some((b'm', name)) => read_fact(recorded, name, value).ok_or_else(bad)??,
        Some((b't', id)) => {
            let id = TaskId::from_wire(id).map_err(|_| bad())?;
            recorded.tasks.insert(id, Task::decode(value).map_err(|_| bad())?);
        }
        Some((b's', id)) => {
            let id = TaskId::from_wire(id).map_err(|_| bad())?;
            let (acknowledged, status) = value.split_first().ok_or_else(bad)?;
            let status = TaskStatus::decode(status).map_err(|_| bad())?;
            recorded.statuses.insert(id, (status, *acknowledged == 1));
        }
        Some((b'a', id)) => {
            let id = TaskId::from_wire(id).map_err(|_| bad())?;
            let revision = value.try_into().map_err(|_| bad())?;
            recorded.applied.insert(id, u64::from_be_bytes(revision));
        }
        Some((b'r', rest)) => {
            let (service, number) = rest.split_at_checked(16).ok_or_else(bad)?;
            let service = ServiceId::from_wire(service).map_err(|_| bad())?;
            let number = u64::from_be_bytes(number.try_into().map_err(|_| bad())?);
            let revision = Revision::decode(value).map_err(|_| bad())?;
            recorded.revisions.insert((service, number), Arc::new(revision));
        }
        _ => return Err(bad()),
    }
    Ok(())
}

/// Reads one of the agent's own facts. `None`: damaged.
fn read_fact(recorded: &mut Recorded, name: &[u8], value: &[u8]) -> Option<Result<(), RecordError>> {
    match name {
        b"boot" => recorded.boot_id = String::from_utf8(value.to_vec()).ok()?,
        b"session" => recorded.session.session_id = value.to_vec(),
        b"sequence" => recorded.session.sequence = u64::from_be_bytes(value.try_into().ok()?),
        b"managers" => recorded.managers = Managers::decode(value).ok()?,
        b"format" if !matches!(value, [1..=FORMAT]) => {
            return Some(Err(RecordError::Format(value.first().copied().unwrap_or(0))));
        }
        b"node" | b"format" => {}
        _ => return None,
    }
    Some(Ok(()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::{
        AssignedPayload, AssignmentItem, Assignments, Credential, Payload, PayloadKey, TaskState,
        assignment_item::Item, payload_key::Owner,
    };

    use super::*;

    fn set() -> (AssignmentSet, Changes) {
        let item = |item| AssignmentItem { item: Some(item) };
        let mut set = AssignmentSet::default();
        let service_id = ServiceId::new(2).to_vec();
        let changes = set
            .apply(Assignments {
                complete: true,
                sequence: 4,
                put: vec![
                    item(Item::Task(Task {
                        id: TaskId::new(1).to_vec(),
                        service_id: service_id.clone(),
                        revision: 3,
                        ..Task::default()
                    })),
                    item(Item::Revision(Revision { service_id, number: 3, ..Revision::default() })),
                    item(Item::Credential(Credential {
                        id: TaskId::new(9).to_vec(),
                        registry: "very-secret-registry".to_owned(),
                        ..Credential::default()
                    })),
                    item(Item::Payload(AssignedPayload {
                        payload: Some(Payload {
                            key: Some(PayloadKey { owner: Some(Owner::SecretId(TaskId::new(8).to_vec())), version: 1 }),
                            data: b"hunter2-hunter2".to_vec().into(),
                        }),
                        templated: false,
                    })),
                ],
                ..Assignments::default()
            })
            .unwrap();
        (set, changes)
    }

    #[tokio::test]
    async fn what_was_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeId::new(7);
        let (record, guard, recorded) = Record::open(dir.path(), node).unwrap();
        assert!(recorded.boot_id.is_empty() && recorded.tasks.is_empty());
        let (set, changes) = set();
        record.assign(&changes, &set, b"session").await.unwrap();
        record.boot("boot-1").await.unwrap();
        let mut status = TaskStatus::default();
        status.set_state(TaskState::Running);
        record.status(TaskId::new(1), &status, false);
        drop(guard);
        let (record, guard, recorded) = Record::open(dir.path(), node).unwrap();
        assert_eq!(recorded.boot_id, "boot-1");
        assert_eq!(recorded.session, SessionMark { session_id: b"session".to_vec(), sequence: 4 });
        assert_eq!(&recorded.tasks, set.tasks());
        assert!(recorded.revisions.contains_key(&(ServiceId::new(2), 3)));
        assert_eq!(recorded.statuses[&TaskId::new(1)], (status, false));

        record.forget(TaskId::new(1));
        let (empty, gone) = (
            AssignmentSet::default(),
            Changes { removed_revisions: vec![(ServiceId::new(2), 3)], ..Changes::default() },
        );
        record.assign(&gone, &empty, b"session").await.unwrap();
        drop(guard);
        let (_record, _guard, recorded) = Record::open(dir.path(), node).unwrap();
        assert!(recorded.tasks.is_empty() && recorded.statuses.is_empty() && recorded.revisions.is_empty());
    }

    #[tokio::test]
    async fn values_of_any_length_come_in_pieces_that_sled_syncs() {
        use skep_proto::v1::{ContainerSpec, TaskTemplate};
        let dir = tempfile::tempdir().unwrap();
        let service_id = ServiceId::new(2).to_vec();
        let revision = |env_bytes: usize| {
            let container = ContainerSpec { env: vec!["x".repeat(env_bytes)], ..ContainerSpec::default() };
            let template = TaskTemplate { containers: vec![container], ..TaskTemplate::default() };
            Revision { service_id: service_id.clone(), number: 3, template: Some(template), ..Revision::default() }
        };
        // Growing and shrinking; the second is a value that sled alone would write to an unsynced file.
        for env_bytes in [10, 300_000, pieces::PIECE, 70_000, 1] {
            let (record, guard, _) = Record::open(dir.path(), NodeId::new(7)).unwrap();
            let mut set = AssignmentSet::default();
            let item = AssignmentItem { item: Some(Item::Revision(revision(env_bytes))) };
            let message = Assignments { complete: true, sequence: 1, put: vec![item], ..Assignments::default() };
            let changes = set.apply(message).unwrap();
            record.assign(&changes, &set, b"s").await.unwrap();
            record.durable().await.unwrap();
            drop(guard);
            let blobs = std::fs::read_dir(dir.path().join("blobs")).map_or(0, Iterator::count);
            assert_eq!(blobs, 0, "{env_bytes} bytes");
            let (_record, _guard, recorded) = Record::open(dir.path(), NodeId::new(7)).unwrap();
            assert_eq!(*recorded.revisions[&(ServiceId::new(2), 3)], revision(env_bytes));
        }
        let (record, guard, _) = Record::open(dir.path(), NodeId::new(7)).unwrap();
        let gone = Changes { removed_revisions: vec![(ServiceId::new(2), 3)], ..Changes::default() };
        record.assign(&gone, &AssignmentSet::default(), b"s").await.unwrap();
        drop(guard);
        let (_record, _guard, recorded) = Record::open(dir.path(), NodeId::new(7)).unwrap();
        assert!(recorded.revisions.is_empty());
    }

    #[tokio::test]
    async fn another_nodes_record_and_a_second_daemon_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (_record, guard, _) = Record::open(dir.path(), NodeId::new(7)).unwrap();
        assert!(matches!(Record::open(dir.path(), NodeId::new(7)), Err(RecordError::Open { .. })));
        drop(guard);
        assert!(matches!(
            Record::open(dir.path(), NodeId::new(8)),
            Err(RecordError::Foreign { found, .. }) if found == NodeId::new(7)
        ));
    }

    #[test]
    fn what_follows_at_once_is_written_together() {
        let (commands, receiver) = mpsc::channel();
        let apply = |key: u8, value: u8| Command::Apply(vec![(vec![key], Some(vec![value]))]);
        let (waiter, _) = oneshot::channel();
        let (another, _) = oneshot::channel();
        let queued = [
            apply(1, 1),
            Command::Flush(Safe::FromPowerCut, waiter),
            apply(2, 1),
            Command::Flush(Safe::FromKill, another),
            apply(1, 2),
        ];
        queued.into_iter().for_each(|command| commands.send(command).unwrap());
        let round = Round::gather(&receiver).unwrap();
        assert_eq!(round.changes, BTreeMap::from([(vec![1], Some(vec![2])), (vec![2], Some(vec![1]))]));
        assert_eq!((round.wanted, round.waiters.len(), round.close), (Some(Safe::FromPowerCut), 2, false));
        commands.send(Command::Close).unwrap();
        assert!(Round::gather(&receiver).unwrap().close);
        drop(commands);
        assert!(Round::gather(&receiver).is_none());
    }

    #[tokio::test]
    async fn credentials_and_secrets_do_not_reach_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (record, guard, _) = Record::open(dir.path(), NodeId::new(7)).unwrap();
        let (set, changes) = set();
        assert_eq!((set.credentials().len(), set.payloads().len()), (1, 1));
        // What the search must find: a status is written as it is.
        let status = TaskStatus { message: "found-in-the-record".to_owned(), ..TaskStatus::default() };
        record.status(TaskId::new(1), &status, false);
        record.assign(&changes, &set, b"s").await.unwrap();
        drop(guard);
        let (mut found, mut folders) = (false, vec![dir.path().to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let bytes = std::fs::read(path).unwrap();
                let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
                assert!(!holds(b"very-secret-registry") && !holds(b"hunter2-hunter2"));
                found |= holds(b"found-in-the-record");
            }
        }
        assert!(found, "the search finds what is there");
    }
}
