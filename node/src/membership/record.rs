//! What a member keeps besides its credentials, in `swarm.json`. Written whole at each change.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Addresses of managers that are kept, those of managers long gone included.
const MOST_MANAGERS: usize = 16;

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Where the managers' API listens here, if this is a manager.
    pub(crate) listen_addr: SocketAddr,
    /// What others are told.
    pub(crate) advertise_addr: SocketAddr,
    /// Managers ever heard of, the present ones first.
    pub(crate) managers: Vec<String>,
    /// This node's seat among the managers. `None`: it has none.
    #[serde(default)]
    pub(crate) seat: Option<SeatRecord>,
    /// The swarm removed this node; nothing of it runs any more.
    #[serde(default)]
    pub(crate) removed: bool,
}

/// A manager's seat in Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SeatRecord {
    /// Raft's id of this manager. Never used twice.
    pub(crate) raft_id: u64,
    pub(crate) phase: SeatPhase,
}

/// How far a seat is taken or given up; what a restart goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SeatPhase {
    /// `swarm init` is making the swarm: only it can go on.
    Founding,
    /// The managers gave the id; Raft's files may not be there yet.
    Entered,
    /// Raft's files are there.
    Taken,
    /// Raft's files are being deleted.
    Leaving,
}

impl Record {
    /// Reads it; an error says what to do about it.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| {
            format!("{} is damaged: leave with `skep swarm leave --force` and join again", path.display())
        })
    }

    pub(crate) fn parse(text: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text)
    }

    /// Written whole: temporary file, fsync, rename, fsync of the folder.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let temporary: PathBuf = path.with_extension("tmp");
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&temporary)?;
            serde_json::to_writer(&mut file, self)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        write()
            .inspect_err(|_| drop(fs::remove_file(&temporary)))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Puts the present managers before those only heard of earlier.
    pub(crate) fn learn(&mut self, present: &[String]) {
        let mut all = present.to_vec();
        all.extend(self.managers.drain(..).filter(|known| !present.contains(known)));
        all.truncate(MOST_MANAGERS.max(present.len()));
        self.managers = all;
    }
}

/// The file and its content. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct RecordFile(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    record: Mutex<Record>,
    /// Held while the file is written, so that no older content follows a newer one.
    writing: tokio::sync::Mutex<()>,
}

impl RecordFile {
    /// A record whose file holds `record` already, or will by the next update.
    pub(crate) fn new(path: PathBuf, record: Record) -> Self {
        Self(Arc::new(Shared { path, record: Mutex::new(record), writing: tokio::sync::Mutex::new(()) }))
    }

    /// What it says now.
    pub(crate) fn get(&self) -> Record {
        self.0.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes it, on disk first: after an error it is as it was.
    pub(crate) async fn update(&self, change: impl FnOnce(&mut Record)) -> anyhow::Result<()> {
        let _writing = self.0.writing.lock().await;
        let mut record = self.get();
        change(&mut record);
        if record == self.get() {
            return Ok(());
        }
        let shared = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            record.save(&shared.path)?;
            *shared.record.lock().unwrap_or_else(PoisonError::into_inner) = record;
            Ok(())
        })
        .await?
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn record() -> Record {
        let address: SocketAddr = "10.0.0.1:2377".parse().unwrap();
        Record {
            listen_addr: address,
            advertise_addr: address,
            managers: vec!["a:1".to_owned(), "b:1".to_owned()],
            seat: None,
            removed: false,
        }
    }

    #[test]
    fn managers_of_the_past_stay_behind_those_of_today() {
        let mut record = record();
        record.learn(&["c:1".to_owned(), "b:1".to_owned()]);
        assert_eq!(record.managers, ["c:1", "b:1", "a:1"]);
        let many: Vec<String> = (0..40).map(|n| format!("m{n}:1")).collect();
        for few in many.chunks(3) {
            record.learn(few);
        }
        assert_eq!(record.managers.len(), MOST_MANAGERS);
        assert_eq!(record.managers[0], "m39:1");
    }

    #[tokio::test]
    async fn a_change_is_on_disk_before_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swarm.json");
        let file = RecordFile::new(path.clone(), record());
        let seat = SeatRecord { raft_id: 7, phase: SeatPhase::Entered };
        file.update(|record| record.seat = Some(seat)).await.unwrap();
        assert_eq!(Record::load(&path).unwrap(), file.get());
        let lost = RecordFile::new(dir.path().join("missing/swarm.json"), record());
        assert!(lost.update(|record| record.removed = true).await.is_err());
        assert!(!lost.get().removed);
    }

    #[test]
    fn files_of_the_first_version_are_read_and_damaged_ones_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("swarm.json");
        fs::write(&path, r#"{"listen_addr":"0.0.0.0:2377","advertise_addr":"10.0.0.1:2377","managers":[]}"#).unwrap();
        assert_eq!(Record::load(&path).unwrap().seat, None);
        fs::write(&path, r#"{"listen_addr":"0.0"#).unwrap();
        let error = format!("{:#}", Record::load(&path).unwrap_err());
        assert!(error.contains("swarm.json is damaged") && error.contains("leave"), "{error}");
    }
}
