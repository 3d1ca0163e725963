//! The data directory: what is in it, and how it is opened without ever guessing.
//!
//! ```text
//! lock           who uses the directory (lock.rs)
//! initializing   present while the directory is being made; whatever else is there is then worthless
//! keys, kek      the data key, and what wraps it (keys.rs)
//! db/            sled: log, vote, marks (db.rs, log.rs)
//! floor          how far log and vote once reached, to notice a database that went back (floor.rs)
//! snapshots/     one file for each snapshot, and files on their way (snapshots.rs, snapshot_file.rs)
//! ```
//! After the data key was replaced for the n-th time the parts that it seals are `db-<n+1>`, `floor-<n+1>`, `kek-<n+1>`;
//! `keys` says which count, and the next start removes the others (rekey.rs).

pub(crate) mod db;
pub(crate) mod files;
mod floor;
pub(crate) mod log;
mod log_state;
pub(crate) mod machine;
pub(crate) mod record;
pub(crate) mod rekey;
#[cfg(test)]
mod rekey_test;
pub(crate) mod snapshot_file;
pub(crate) mod snapshots;
#[cfg(test)]
mod suite_test;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use crate::config::{Config, Limits, Start};
use crate::consensus::{RaftId, StopCause};
use crate::crypto::{KeyEncryptionKey, KeyRing};
use crate::disk;
use crate::error::StoreError;
use crate::keys::{self, Held, Keys};
use crate::lock::DirLock;
use crate::space::{self, Place};
use db::Db;
use files::Files;
use floor::{Floor, Mark};

const ADVICE_RESTORE: &str =
    "restore the directory from a backup, or move it away and join the cluster again as a new node";

/// An open data directory. Everything that reads or writes it holds an `Arc` of this; the directory is free for
/// another process when the last one is gone.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) dir: PathBuf,
    pub(crate) files: Files,
    /// What the present data key seals.
    vault: RwLock<Arc<Vault>>,
    /// The keys in use; held while they are replaced. None in a simulation.
    held: Mutex<Option<Held>>,
    /// What of them is told: the data key's number, and whether the caller keeps what wraps it.
    shown: Mutex<(u64, bool)>,
    /// Lowest index whose entry was cut off since the copying of the log began.
    cut_since: AtomicU64,
    /// The first failure that makes going on unsafe, in words for the operator.
    failure: OnceLock<(StopCause, Arc<str>)>,
    /// How often the group was recovered from lost quorum.
    epoch: AtomicU64,
    /// None in a simulation.
    lock: Option<DirLock>,
    /// Last field: dropped, and so seen by [`Closed`], when the others are gone.
    _closed: mpsc::Sender<()>,
}

/// The parts that are sealed with one data key. They are replaced together, so that nobody mixes two keys.
#[derive(Debug)]
pub(crate) struct Vault {
    pub(crate) ring: Arc<KeyRing>,
    pub(crate) db: Db,
    pub(crate) floor: Floor,
}

/// The vault in use, and that it stays so. Whoever changes the database holds it from before he seals until the change is
/// applied: what is applied to a vault that was given up is lost. Never taken twice by one thread.
pub(crate) type InUse<'a> = RwLockReadGuard<'a, Arc<Vault>>;

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
    /// Opens or makes the directory as `start` says; `keks` are the caller's keys: one of them opens it, the first one wraps
    /// the data key of a new one, which gets the number `data_key_epoch`. A directory made stays marked as unfinished until
    /// [`Self::finish_creation`]; one left unfinished by a crash counts as empty.
    pub(crate) fn open(
        dir: &Path,
        node: RaftId,
        start: &Start,
        keks: &[&KeyEncryptionKey],
        data_key_epoch: u64,
        limits: &Limits,
    ) -> Result<(Self, Closed), StoreError> {
        let existing = matches!(start, Start::Existing);
        if existing && !dir.exists() {
            return Err(StoreError::Empty { dir: dir.to_owned() });
        }
        disk::make_private_dir(dir)?;
        space::check(dir)?;
        let lock = DirLock::take(dir)?;
        match (existing, exists(dir)) {
            (true, false) => return Err(StoreError::Empty { dir: dir.to_owned() }),
            (false, true) => return Err(StoreError::NotEmpty { dir: dir.to_owned() }),
            (false, false) => {
                disk::write_whole(&dir.join("initializing"), b"this directory is being made by skep\n")?;
                let parts = ["floor", "db", "snapshots"];
                for name in disk::names(dir)? {
                    if ["keys", "kek"].iter().any(|part| keys::is_part(&name, part)) {
                        disk::shred(&dir.join(name))?;
                    } else if parts.iter().any(|part| keys::is_part(&name, part)) {
                        disk::remove(&dir.join(name))?;
                    }
                }
            }
            (true, true) => {}
        }
        let Keys { ring, held } = match existing {
            true => keys::open(dir, keks)?,
            false => keys::create(dir, keks.first().copied(), data_key_epoch)?,
        };
        let [floor_path, db_path] = ["floor", "db"].map(|name| dir.join(held.part(name)));
        let snapshots = dir.join("snapshots");
        if existing {
            for part in [&floor_path, &db_path, &snapshots] {
                if !part.exists() {
                    return Err(StoreError::Missing { path: part.clone(), advice: ADVICE_RESTORE });
                }
            }
        }
        let floor = match existing {
            true => Floor::open(&floor_path, Arc::clone(&ring))?,
            false => Floor::create(&floor_path, Arc::clone(&ring), Mark::default())?,
        };
        disk::make_private_dir(&snapshots)?;
        let db = Db::open(&db_path, limits.database_cache_bytes, !existing)?;
        if existing {
            record::check_identity(&db, &ring, dir, node)?;
            rekey::remove_leftovers(dir, &held)?;
        } else {
            record::write_identity(&db, &ring, node)?;
            disk::sync_dir(dir)?;
        }
        let epoch = record::get_epoch(&db, &ring)?;
        let vault = Vault { ring, db, floor };
        let (mut store, closed) = Self::new(dir, Files::Folder(snapshots), vault, epoch);
        store.show_keys(&held);
        (store.held, store.lock) = (Mutex::new(Some(held)), Some(lock));
        Ok((store, closed))
    }

    fn new(dir: &Path, files: Files, vault: Vault, epoch: u64) -> (Self, Closed) {
        let (closed, closes) = mpsc::channel();
        let store = Self {
            dir: dir.to_owned(),
            files,
            vault: RwLock::new(Arc::new(vault)),
            held: Mutex::new(None),
            shown: Mutex::default(),
            cut_since: AtomicU64::new(u64::MAX),
            failure: OnceLock::new(),
            epoch: AtomicU64::new(epoch),
            lock: None,
            _closed: closed,
        };
        (store, Closed(closes))
    }

    /// What is in use now. See [`InUse`].
    pub(crate) fn in_use(&self) -> InUse<'_> {
        // A panic while it was held left the old vault or the new one.
        self.vault.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in use now, for reading: it may be given up meanwhile, and its content stays what it was.
    pub(crate) fn vault(&self) -> Arc<Vault> {
        Arc::clone(&self.in_use())
    }

    /// Entries from `since` on are about to be removed from the vault that the caller holds.
    pub(crate) fn note_cut(&self, since: u64) {
        self.cut_since.fetch_min(since, Ordering::AcqRel);
    }

    fn show_keys(&self, held: &Held) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = (held.epoch, held.caller_key().is_some());
    }

    /// The number of the data key in use, and whether the caller keeps what wraps it.
    pub(crate) fn shown_keys(&self) -> (u64, bool) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the database is, for messages.
    pub(crate) fn db_path(&self) -> PathBuf {
        self.in_use().db.path().to_owned()
    }

    /// Opens what the configuration names: a directory, or a simulation's disk.
    pub(crate) fn open_configured(config: &Config) -> Result<(Self, Closed), StoreError> {
        #[cfg(feature = "sim")]
        if let Some(disk) = &config.sim_disk {
            return Self::open_simulated(config, &config.start, disk);
        }
        let epoch = config.data_key_epoch;
        Self::open(&config.dir, config.node_id, &config.start, &config.keys(), epoch, &config.limits)
    }

    /// As [`Self::open_configured`], whatever `config.start` says: the state must be there.
    pub(crate) fn open_existing(config: &Config) -> Result<(Self, Closed), StoreError> {
        #[cfg(feature = "sim")]
        if let Some(disk) = &config.sim_disk {
            return Self::open_simulated(config, &Start::Existing, disk);
        }
        let epoch = config.data_key_epoch;
        Self::open(&config.dir, config.node_id, &Start::Existing, &config.keys(), epoch, &config.limits)
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
        let epoch = record::get_epoch(&db, &ring)?;
        Ok(Self::new(dir, files, Vault { ring, db, floor }, epoch))
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
        let vault = {
            let vault = self.in_use();
            let mut batch = db::Batch::default();
            record::put_epoch(&mut batch, &vault.ring, epoch);
            vault.db.apply(batch)?;
            Arc::clone(&vault)
        };
        vault.db.flush_async().await?;
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
