//! Replaces the data key: a new key, a copy of the snapshot and a new database sealed with it, then the old files go.
//!
//! Raft goes on meanwhile. The log is copied while it grows; then, in a short pause in which nobody can write, the rest
//! of it, the vote and the marks follow, all of it is synced, and the keys file is replaced. That one rename decides: a
//! crash before it leaves the old files in use, one after it the new ones, and the next start removes the others. What
//! was acknowledged is in the new database because the old one's flushes are waited for before the rest is copied.
//!
//! Called on a thread of its own, by one caller at a time. Nothing here knows why a key is replaced.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::db::{Batch, Db};
use super::floor::{Floor, Mark};
use super::log;
use super::record::BadEntry;
use super::snapshots::SnapshotStore;
use super::{Store, Vault, record};
use crate::codec;
use crate::crypto::KeyEncryptionKey;
use crate::disk;
use crate::error::StoreError;
use crate::keys::{self, Held, Keys, Made, Staged};

/// Entries are copied so many at a time.
const COPY_STEP: usize = 256;
/// And at most this many bytes, so that a step is short.
const COPY_BYTES: usize = 1 << 20;
/// The pause begins when no more than this is left to copy.
const REST: u64 = 64;
/// How often the log's growth is followed before the pause begins anyway.
const CHASES: u32 = 20;
/// How often a snapshot that was replaced during its copy is copied again.
const COPIES: u32 = 5;
/// How long whoever reads the old database may take to let go of it.
const LET_GO: Duration = Duration::from_secs(10);

/// What the keys of a directory should be.
#[derive(Debug)]
pub struct Wanted {
    /// Number of the data key: with a higher one than the directory's it is replaced. 0: as it is.
    pub epoch: u64,
    /// What wraps it: a key that the caller keeps, or None: one in a file beside it.
    pub key: Option<KeyEncryptionKey>,
}

/// What was done about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rekeyed {
    /// The data key was replaced.
    pub data_key: bool,
    /// It is wrapped by another key now.
    pub wrapped: bool,
    /// How long nobody could write.
    pub pause: Duration,
    /// Bytes of log and snapshot that were sealed anew.
    pub bytes: u64,
}

/// Why the keys are as they were.
#[derive(Debug, thiserror::Error)]
pub enum RekeyError {
    /// The node has stopped, or stops.
    #[error("this manager is stopping")]
    Stopped,
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Points at which tests look at the directory, as a crash there would leave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The new key's file is there, if it has one.
    Keys,
    /// The new database is there, empty.
    Database,
    /// The log is copied, but for its end.
    Log,
    /// The snapshot's copy is there.
    Snapshot,
    /// All is in the new database, flushed.
    Moved,
    /// The new floor is there.
    Floor,
    /// The keys file says that the new ones count.
    Committed,
    /// The new ones are in use.
    Swapped,
    /// The old key file is gone.
    KeyFile,
    /// The old database is gone.
    OldDatabase,
    /// The old snapshot is gone.
    OldSnapshot,
}

/// Makes the directory's keys what is wanted. What they replace is gone when this returns.
pub(crate) fn rekey(
    store: &Store,
    snapshots: &SnapshotStore,
    wanted: &Wanted,
    cache_bytes: u64,
) -> Result<Rekeyed, StoreError> {
    rekey_seen(store, snapshots, wanted, cache_bytes, &mut |_| {})
}

pub(super) fn rekey_seen(
    store: &Store,
    snapshots: &SnapshotStore,
    wanted: &Wanted,
    cache_bytes: u64,
    seen: &mut dyn FnMut(Step),
) -> Result<Rekeyed, StoreError> {
    let mut held = store.held.lock().unwrap_or_else(PoisonError::into_inner);
    // A simulation has no keys.
    let Some(now) = held.as_ref() else { return Ok(Rekeyed::default()) };
    let same_key = match (now.caller_key(), &wanted.key) {
        (Some(now), Some(wanted)) => now.is(wanted),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    // What lay open was open to whoever had the disk: it gets a key that never did.
    let was_open = now.caller_key().is_none() && wanted.key.is_some();
    let epoch = wanted.epoch.max(now.epoch);
    if epoch > now.epoch || was_open {
        remove_leftovers(&store.dir, now)?;
        let made = keys::succeed(&store.dir, now, wanted.key.as_ref(), epoch)?;
        let (old, done) = match replace(store, snapshots, &made, cache_bytes, seen) {
            Ok(replaced) => replaced,
            Err(Undone::Yes(error)) => {
                // What was begun takes up space; where that fails too, the next try or the next start removes it.
                if let Err(error) = remove_leftovers(&store.dir, now) {
                    tracing::warn!(error = error.text(), "what is left of the new data key could not be removed");
                }
                return Err(error);
            }
            Err(Undone::Unknown(error)) => {
                store.fail(error.cause(), error.text());
                return Err(error);
            }
        };
        let next = held.insert(made.keys.held);
        store.show_keys(next);
        clear(store, snapshots, old, next, seen)?;
        return Ok(Rekeyed { wrapped: !same_key, ..done });
    }
    if !same_key {
        let (next, former) = keys::rewrap(&store.dir, now, wanted.key.as_ref(), epoch)?;
        // In use, whatever becomes of the rest: the next try does that.
        store.show_keys(&next);
        let next = held.insert(next);
        disk::sync_dir(&store.dir)?;
        former.overwrite()?;
        keys::clear(&store.dir, next)?;
        return Ok(Rekeyed { wrapped: true, ..Rekeyed::default() });
    }
    // A try before may have failed at the very end.
    remove_leftovers(&store.dir, now)?;
    snapshots.remove_foreign()?;
    Ok(Rekeyed::default())
}

/// Why a data key was not replaced.
enum Undone {
    /// The old files are in use as before.
    Yes(StoreError),
    /// A restart finds the old files or the new ones, all of them.
    Unknown(StoreError),
}

impl From<StoreError> for Undone {
    fn from(error: StoreError) -> Self {
        Self::Yes(error)
    }
}

fn replace(
    store: &Store,
    snapshots: &SnapshotStore,
    made: &Made,
    cache_bytes: u64,
    seen: &mut dyn FnMut(Step),
) -> Result<(Arc<Vault>, Rekeyed), Undone> {
    seen(Step::Keys);
    let old = store.vault();
    let next = begin(store, made, cache_bytes)?;
    seen(Step::Database);
    {
        // Who cuts holds the vault from its note until the entries are gone: no note is lost here that still counts.
        let _nobody_cuts = store.vault.write().unwrap_or_else(PoisonError::into_inner);
        store.cut_since.store(u64::MAX, Ordering::Release);
    }
    let mut copied = Copied::begin(&old)?;
    for _ in 0..CHASES {
        if copied.follow(&old, &next, false)? <= REST {
            break;
        }
    }
    next.db.flush_and_wait()?;
    let staged = keys::stage(&store.dir, made)?;
    seen(Step::Log);
    let done = change(store, snapshots, &old, next, copied, &staged, seen)?;
    // The new ones count whatever becomes of this.
    if let Err(error) = staged.overwrite_old() {
        tracing::warn!(error = error.text(), "the former keys file could not be overwritten: it is tried again");
    }
    Ok((old, done))
}

/// A new database and floor, empty.
fn begin(store: &Store, made: &Made, cache_bytes: u64) -> Result<Vault, StoreError> {
    let Keys { ring, held } = &made.keys;
    let db = Db::open(&store.dir.join(held.part("db")), cache_bytes, true)?;
    // Its bound is known in the pause.
    let floor = Floor::create(&store.dir.join(held.part("floor")), Arc::clone(ring), Mark::default())?;
    Ok(Vault { ring: Arc::clone(ring), db, floor })
}

/// The pause: what is left is copied, all is synced, the keys file is replaced, and the new vault takes the old one's
/// place.
fn change(
    store: &Store,
    snapshots: &SnapshotStore,
    old: &Vault,
    mut next: Vault,
    mut copied: Copied,
    staged: &Staged,
    seen: &mut dyn FnMut(Step),
) -> Result<Rekeyed, Undone> {
    for _ in 0..COPIES {
        let snapshot = snapshots.copy_current(&next)?;
        // It took its time.
        copied.follow(old, &next, false)?;
        next.db.flush_and_wait()?;
        seen(Step::Snapshot);
        let mut in_use = store.vault.write().unwrap_or_else(PoisonError::into_inner);
        let since = Instant::now();
        if !snapshots.is_current(snapshot.as_ref()) {
            continue;
        }
        // Nobody can ask for a flush any more; those that were asked for end first.
        old.db.flush_and_wait()?;
        copied.finish(old, &next, store.cut_since.load(Ordering::Acquire))?;
        let snapshot = snapshots.move_into(&next, snapshot.as_ref())?;
        next.db.flush_and_wait()?;
        seen(Step::Moved);
        let path = next.floor.path().to_owned();
        next.floor = Floor::create(&path, Arc::clone(&next.ring), old.floor.mark())?;
        seen(Step::Floor);
        staged.commit(&store.dir).map_err(Undone::Unknown)?;
        seen(Step::Committed);
        let bytes = copied.bytes + snapshot.as_ref().map_or(0, |snapshot| snapshot.bytes);
        *in_use = Arc::new(next);
        snapshots.changed(snapshot);
        drop(in_use);
        let pause = since.elapsed();
        seen(Step::Swapped);
        return Ok(Rekeyed { data_key: true, pause, bytes, ..Rekeyed::default() });
    }
    Err(Undone::Yes(StoreError::Busy { dir: store.dir.clone() }))
}

/// Removes what the old key sealed.
fn clear(
    store: &Store,
    snapshots: &SnapshotStore,
    old: Arc<Vault>,
    next: &Held,
    seen: &mut dyn FnMut(Step),
) -> Result<(), StoreError> {
    keys::clear(&store.dir, next)?;
    seen(Step::KeyFile);
    let begun = Instant::now();
    while Arc::strong_count(&old) > 1 && begun.elapsed() < LET_GO {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Closed, if nobody reads it any more; otherwise what it still writes has no name.
    drop(old);
    remove_leftovers(&store.dir, next)?;
    seen(Step::OldDatabase);
    snapshots.remove_foreign()?;
    disk::sync_dir(&store.snapshots_dir())?;
    seen(Step::OldSnapshot);
    Ok(())
}

/// Removes the parts of the directory that belong to no data key in use.
pub(super) fn remove_leftovers(dir: &Path, held: &Held) -> Result<(), StoreError> {
    keys::clear(dir, held)?;
    let mut removed = false;
    for name in disk::names(dir)? {
        let is_old = |part| keys::is_part(&name, part) && name != held.part(part);
        if is_old("db") || is_old("floor") {
            disk::remove(&dir.join(&name))?;
            removed = true;
        }
    }
    if removed { disk::sync_dir(dir) } else { Ok(()) }
}

/// How far the log is copied.
struct Copied {
    /// The first entry that is not.
    next: u64,
    /// Sealed anew.
    bytes: u64,
}

impl Copied {
    fn begin(old: &Vault) -> Result<Self, StoreError> {
        Ok(Self { next: purged(old)?.map_or(0, |index| index + 1), bytes: 0 })
    }

    /// Copies what is there by now. Answers how many entries that were. Unless it is `last`, entries may be removed
    /// meanwhile, record by record: one of which only a part is left is looked at again the next time.
    fn follow(&mut self, old: &Vault, new: &Vault, last: bool) -> Result<u64, StoreError> {
        let (mut batch, mut entries, mut size, mut all) = (Batch::default(), 0, 0, 0);
        for item in log::entry_parts(old, self.next, None) {
            let (index, parts) = item?;
            let bytes = match record::reseal_entry(&mut batch, &old.ring, &new.ring, index, &parts) {
                Ok(bytes) => bytes,
                // Purged entries wait for the sweeper.
                Err(BadEntry::Incomplete) if purged(old)?.is_some_and(|purged| index <= purged) => 0,
                Err(BadEntry::Incomplete) if !last => break,
                Err(bad) => return Err(log::unreadable(old, index, bad)),
            };
            (self.next, entries, size, all) = (index + 1, entries + 1, size + bytes, all + 1);
            self.bytes += bytes as u64;
            if entries >= COPY_STEP || size >= COPY_BYTES {
                new.db.apply(std::mem::take(&mut batch))?;
                (entries, size) = (0, 0);
            }
        }
        new.db.apply(batch)?;
        Ok(all)
    }

    /// Copies the rest, with nobody writing: entries that were cut off since `cut` and written again, and the marks.
    fn finish(&mut self, old: &Vault, new: &Vault, cut: u64) -> Result<(), StoreError> {
        if cut < self.next {
            let mut batch = Batch::default();
            for item in new.db.range(record::entry_range(cut, None)) {
                batch.remove(&item?.0);
            }
            new.db.apply(batch)?;
            self.next = cut;
        }
        self.follow(old, new, true)?;
        let mut batch = Batch::default();
        record::reseal_marks(&mut batch, &old.db, &old.ring, &new.ring)?;
        new.db.apply(batch)
    }
}

/// The last entry that was purged.
fn purged(vault: &Vault) -> Result<Option<u64>, StoreError> {
    let mark = record::get_mark(&vault.db, &vault.ring, record::PURGED, codec::get_log_id)?;
    Ok(mark.map(|id| id.index))
}
