//! Free space on the disk of the data directory: a node stops taking entries before a write fails.
//!
//! A failed write ends the engine for good, as nothing can be said about the disk's content after it. So a task looks at
//! the free space several times a second; below the limit the leader refuses proposals and hands over, and a follower
//! refuses entries and gives no votes. The room below the limit is for what cannot be refused: a newer leader's term,
//! the database's own bookkeeping. All of it ends by itself when there is space.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::error::StoreError;

/// Pause between two looks.
pub(crate) const PERIOD: Duration = Duration::from_millis(200);
/// Needed for opening a directory: the database writes when it recovers.
const OPEN_BYTES: u64 = 2 << 20;
/// The limit on small file systems is this part of them.
const SMALL: u64 = 16;

/// Whose free space it is.
#[derive(Debug)]
pub(crate) enum Place {
    Folder(PathBuf),
    #[cfg(feature = "sim")]
    Memory(crate::sim::SimDisk),
}

impl Place {
    /// Free bytes and size.
    fn measure(&self) -> io::Result<(u64, u64)> {
        match self {
            Self::Folder(dir) => measure(dir),
            #[cfg(feature = "sim")]
            Self::Memory(disk) => Ok((disk.free(), u64::MAX)),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Space {
    place: Place,
    needed: u64,
    free: AtomicU64,
    full: AtomicBool,
}

/// Free bytes for this process and size of the file system.
fn measure(dir: &Path) -> io::Result<(u64, u64)> {
    let found = nix::sys::statvfs::statvfs(dir)?;
    let unit = found.fragment_size();
    Ok((found.blocks_available().saturating_mul(unit), found.blocks().saturating_mul(unit)))
}

impl Space {
    /// Watches over a place, of which `wanted` bytes are to stay free; less on a small file system.
    pub(crate) fn new(place: Place, wanted: u64) -> Self {
        let total = place.measure().map_or(u64::MAX, |(_, total)| total);
        let needed = wanted.min(total / SMALL);
        let space = Self { place, needed, free: AtomicU64::new(u64::MAX), full: AtomicBool::new(false) };
        space.look();
        space
    }

    /// Looks, and answers whether it changed between enough and too little.
    pub(crate) fn look(&self) -> bool {
        let Ok((free, _)) = self.place.measure() else { return false };
        self.free.store(free, Ordering::Relaxed);
        let was = self.is_full();
        // A quarter more before it counts as enough again, so that it does not flicker.
        let full = free < if was { self.needed + self.needed / 4 } else { self.needed };
        self.full.store(full, Ordering::Release);
        full != was
    }

    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Free bytes at the last look, and how many are needed.
    pub(crate) fn figures(&self) -> (u64, u64) {
        (self.free.load(Ordering::Relaxed), self.needed)
    }
}

/// Refuses to open a directory whose disk is so full that opening could fail halfway.
pub(crate) fn check(dir: &Path) -> Result<(), StoreError> {
    let (free_bytes, _) = measure(dir).map_err(StoreError::io("measure the free space of", dir))?;
    if free_bytes < OPEN_BYTES {
        return Err(StoreError::DiskFull { dir: dir.to_owned(), free_bytes, needed_bytes: OPEN_BYTES });
    }
    Ok(())
}
