//! The data directory: what is in it, and how it is opened without ever guessing.
//!
//! ```text
//! lock           who uses the directory (lock.rs)
//! initializing   present while the directory is being made; whatever else is there is then worthless
//! keys, kek      data keys, and what wraps them (keys.rs)
//! db/            sled: log, vote, marks (db.rs, log.rs)
//! floor          how far log and vote once reached, to notice a database that went back (floor.rs)
//! snapshots/     one file for each snapshot, and files on their way (snapshots.rs, snapshot_file.rs)
//! ```

pub(crate) mod db;
pub(crate) mod files;
mod floor;
pub(crate) mod log;
mod log_state;
pub(crate) mod machine;
pub(crate) mod record;
pub(crate) mod snapshot_file;
pub(crate) mod snapshots;
#[cfg(test)]
mod suite_test;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};

use crate::config::{Config, Limits, Start};
use crate::consensus::{RaftId, StopCause};
use crate::crypto::{KeyEncryptionKey, KeyRing};
use crate::disk;
use crate::error::StoreError;
use crate::keys;
use crate::lock::DirLock;
use crate::space::{self, Place};
use db::Db;
use files::Files;
use floor::Floor;

const ADVICE_RESTORE: &str =
    "restore the directory from a backup, or move it away and join the cluster again as a new node";

/// An open data directory. Everything that reads or writes it holds an `Arc` of this; the directory is free for
/// another process when the last one is gone.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) dir: PathBuf,
    pub(crate) ring: Arc<KeyRing>,
    pub(crate) db: Db,
    pub(crate) floor: Floor,
    pub(crate) files: Files,
    /// The first failure that makes going on unsafe, in words for the operator.
    failure: OnceLock<(StopCause, Arc<str>)>,
    /// How often the group was recovered from lost quorum.
    epoch: AtomicU64,
    /// None in a simulation.
    lock: Option<DirLock>,
    /// Last field: dropped, and so seen by [`Closed`], when the others are gone.
    _closed: mpsc::Sender<()>,
}

/// Tells when a store is closed.
#[derive(Debug)]
pub(crate) struct Closed(mpsc::Receiver<()>);

impl Closed {
    /// Waits until the store is gone; false when that took too long.
    pub(crate) fn wait(&self, at_most: std::time::Duration) -> bool {
        matches!(self.0.recv_timeout(at_most), Err(mpsc::RecvTimeoutError::Disconnected))
    }
}

/// Whether the directory holds the state of a node that was completely made. Takes no lock and opens nothing.
pub(crate) fn exists(dir: &Path) -> bool {
    (dir.join("keys").exists() || dir.join("db").exists()) && !dir.join("initializing").exists()
}

impl Store {
    /// Opens or makes the directory as `start` says. A directory made stays marked as unfinished until
    /// [`Self::finish_creation`]; one left unfinished by a crash counts as empty.
    pub(crate) fn open(
        dir: &Path,
        node: RaftId,
        start: &Start,
        kek: Option<&KeyEncryptionKey>,
        limits: &Limits,
    ) -> Result<(Self, Closed), StoreError> {
        let existing = matches!(start, Start::Existing);
        if existing && !dir.exists() {
            return Err(StoreError::Empty { dir: dir.to_owned() });
        }
        disk::make_private_dir(dir)?;
        space::check(dir)?;
        let lock = DirLock::take(dir)?;
        let parts = ["keys", "kek", "floor", "db", "snapshots"].map(|name| dir.join(name));
        match (existing, exists(dir)) {
            (true, false) => return Err(StoreError::Empty { dir: dir.to_owned() }),
            (false, true) => return Err(StoreError::NotEmpty { dir: dir.to_owned() }),
            (false, false) => {
                disk::write_whole(&dir.join("initializing"), b"this directory is being made by skep\n")?;
                for part in &parts {
                    disk::remove(part)?;
                }
            }
            (true, true) => {
                for part in &parts[2..] {
                    if !part.exists() {
                        return Err(StoreError::Missing { path: part.clone(), advice: ADVICE_RESTORE });
                    }
                }
            }
        }
        let ring = Arc::new(if existing { keys::open(dir, kek)? } else { keys::create(dir, kek)? });
        let floor = if existing { Floor::open } else { Floor::create }(dir, Arc::clone(&ring))?;
        disk::make_private_dir(&dir.join("snapshots"))?;
        let db = Db::open(&dir.join("db"), limits.database_cache_bytes, !existing)?;
        if existing {
            record::check_identity(&db, &ring, dir, node)?;
        } else {
            record::write_identity(&db, &ring, node)?;
            disk::sync_dir(dir)?;
        }
        let epoch = AtomicU64::new(record::get_epoch(&db, &ring)?);
        let files = Files::Folder(dir.join("snapshots"));
        let (closed, closes) = mpsc::channel();
        let failure = OnceLock::new();
        Ok((
            Self { dir: dir.to_owned(), ring, db, floor, files, failure, epoch, lock: Some(lock), _closed: closed },
            Closed(closes),
        ))
    }

    /// Opens what the configuration names: a directory, or a simulation's disk.
    pub(crate) fn open_configured(config: &Config) -> Result<(Self, Closed), StoreError> {
        #[cfg(feature = "sim")]
        if let Some(disk) = &config.sim_disk {
            return Self::open_simulated(config, &config.start, disk);
        }
        let kek = config.key_encryption_key.as_ref();
        Self::open(&config.dir, config.node_id, &config.start, kek, &config.limits)
    }

    /// As [`Self::open_configured`], whatever `config.start` says: the state must be there.
    pub(crate) fn open_existing(config: &Config) -> Result<(Self, Closed), StoreError> {
        #[cfg(feature = "sim")]
        if let Some(disk) = &config.sim_disk {
            return Self::open_simulated(config, &Start::Existing, disk);
        }
        let kek = config.key_encryption_key.as_ref();
        Self::open(&config.dir, config.node_id, &Start::Existing, kek, &config.limits)
    }

    /// The same content with the same checks, but for keys, floor and lock, which belong to real disks.
    #[cfg(feature = "sim")]
    fn open_simulated(
        config: &Config,
        start: &Start,
        disk: &crate::sim::SimDisk,
    ) -> Result<(Self, Closed), StoreError> {
        disk.check_room()?;
        disk.crash();
        let dir = Path::new("/simulated");
        let existing = matches!(start, Start::Existing);
        match (existing, disk.holds_a_node()) {
            (true, false) => return Err(StoreError::Empty { dir: dir.to_owned() }),
            (false, true) => return Err(StoreError::NotEmpty { dir: dir.to_owned() }),
            (true, true) | (false, false) => {}
        }
        let keys = vec![(1, crate::crypto::Cipher::new(&[0; 32]))];
        let ring = Arc::new(KeyRing::new(1, keys).expect("the key in use is the only one"));
        let db = Db::simulated(disk.clone());
        if existing {
            record::check_identity(&db, &ring, dir, config.node_id)?;
        } else {
            record::write_identity(&db, &ring, config.node_id)?;
        }
        let (floor, files) = (Floor::absent(Arc::clone(&ring)), Files::Memory(disk.clone()));
        let epoch = AtomicU64::new(record::get_epoch(&db, &ring)?);
        let (closed, closes) = mpsc::channel();
        let (dir, failure) = (dir.to_owned(), OnceLock::new());
        Ok((Self { dir, ring, db, floor, files, failure, epoch, lock: None, _closed: closed }, Closed(closes)))
    }

    /// Marks a directory just made as complete.
    pub(crate) fn finish_creation(&self) -> Result<(), StoreError> {
        if self.lock.is_none() {
            return Ok(());
        }
        disk::remove(&self.dir.join("initializing"))?;
        disk::sync_dir(&self.dir)
    }

    /// Notes why the node has to stop. The first reason stays.
    pub(crate) fn fail(&self, cause: StopCause, why: impl Into<Arc<str>>) {
        let _ = self.failure.set((cause, why.into()));
    }

    /// Why the node has to stop; None while all is well.
    pub(crate) fn failure(&self) -> Option<(StopCause, Arc<str>)> {
        self.failure.get().cloned()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Stores a higher recovery epoch.
    pub(crate) async fn set_epoch(&self, epoch: u64) -> Result<(), StoreError> {
        let mut batch = db::Batch::default();
        record::put_epoch(&mut batch, &self.ring, epoch);
        self.db.apply(batch)?;
        self.db.flush_async().await?;
        self.epoch.fetch_max(epoch, Ordering::AcqRel);
        Ok(())
    }

    /// Where to look for free space.
    pub(crate) fn place(&self) -> Place {
        match &self.files {
            Files::Folder(_) => Place::Folder(self.dir.clone()),
            #[cfg(feature = "sim")]
            Files::Memory(disk) => Place::Memory(disk.clone()),
        }
    }

    pub(crate) fn snapshots_dir(&self) -> PathBuf {
        self.files.dir().to_owned()
    }
}
