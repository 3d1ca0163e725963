//! sled, held to what RAFT needs: bytes by key, atomic batches, and a flush that reaches the disk.
//!
//! Two habits of sled 0.34 are worked around here, and nowhere else:
//! - Its flush ends in sync_file_range(2) on Linux, which syncs neither the file's length nor the drive's cache ("not
//!   suitable for durability", says the manual page). So the flusher calls fdatasync(2) on sled's file after it.
//! - Values near a quarter of a segment (128 KiB; a tree leaf of 16 values counts as one) go to files of their own which
//!   sled never syncs. So no value here is longer than [`MAX_VALUE`].
//!
//! One thread flushes; all who asked in the meantime share the next flush (group fsync). After a failed flush nothing
//! can be said about the disk's content, so every later one fails too and the node stops.

use std::fs::File;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use crate::disk;
use crate::error::{StoreError, chain};
use crate::priority;
#[cfg(feature = "sim")]
use crate::sim::SimDisk;

/// Longest value, in bytes: 16 and a few of them in one leaf stay below sled's threshold.
pub(crate) const MAX_VALUE: usize = 4096;

type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// The open database.
pub(crate) struct Db {
    path: PathBuf,
    engine: Engine,
    flusher: Option<mpsc::Sender<Done>>,
    thread: Option<JoinHandle<()>>,
}

enum Engine {
    Sled(sled::Db),
    #[cfg(feature = "sim")]
    Memory(SimDisk),
}

/// A key and its new value; None removes it.
pub(crate) type Change = (sled::IVec, Option<sled::IVec>);

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Db {
    /// Opens the database in folder `path`; makes it if `create`.
    pub(crate) fn open(path: &Path, cache_bytes: u64, create: bool) -> Result<Self, StoreError> {
        let data = path.join("db");
        if !create && !data.exists() {
            return Err(StoreError::Missing { path: data, advice: super::ADVICE_RESTORE });
        }
        disk::make_private_dir(path)?;
        // sled panics on some kinds of damage instead of returning an error; both mean that the file cannot be used.
        let config = sled::Config::new().path(path).cache_capacity(cache_bytes).flush_every_ms(None);
        let opened = std::panic::catch_unwind(AssertUnwindSafe(|| config.open()));
        let sled = match opened {
            Ok(Ok(sled)) => sled,
            Ok(Err(sled::Error::Io(source))) => {
                return Err(StoreError::Io { action: "open database", path: path.to_owned(), source });
            }
            Ok(Err(error)) => return Err(StoreError::damaged(path, chain(&error))),
            Err(_) => return Err(StoreError::damaged(path, "the database engine could not read it")),
        };
        if !create && !sled.was_recovered() {
            return Err(StoreError::damaged(path, "the database is empty"));
        }
        let file = File::open(&data).map_err(StoreError::io("open", &data))?;
        if create {
            sled.flush().map_err(|source| StoreError::Database { path: path.to_owned(), source })?;
            file.sync_all().map_err(StoreError::io("sync", &data))?;
            disk::sync_dir(path)?;
        }
        let (sender, requests) = mpsc::channel();
        let thread = {
            let sled = sled.clone();
            thread::Builder::new()
                .name("skep-raft-fsync".to_owned())
                .spawn(move || {
                    // Every acknowledgement waits for it.
                    priority::raise();
                    flush_loop(&sled, &file, &requests);
                })
                .map_err(StoreError::io("start the flusher of", path))?
        };
        Ok(Self { path: path.to_owned(), engine: Engine::Sled(sled), flusher: Some(sender), thread: Some(thread) })
    }

    /// A database in a simulation's memory. It flushes in the calling task.
    #[cfg(feature = "sim")]
    pub(crate) fn simulated(disk: SimDisk) -> Self {
        Self { path: PathBuf::from("/simulated/db"), engine: Engine::Memory(disk), flusher: None, thread: None }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, StoreError> {
        match &self.engine {
            Engine::Sled(sled) => sled.get(key).map_err(|source| self.failed(source)),
            #[cfg(feature = "sim")]
            Engine::Memory(disk) => Ok(disk.get(key).map(Into::into)),
        }
    }

    /// Keys and values of a range, in order.
    pub(crate) fn range<'a>(
        &'a self,
        range: std::ops::Range<Vec<u8>>,
    ) -> Box<dyn Iterator<Item = Result<(sled::IVec, sled::IVec), StoreError>> + 'a> {
        match &self.engine {
            Engine::Sled(sled) => Box::new(sled.range(range).map(|item| item.map_err(|source| self.failed(source)))),
            #[cfg(feature = "sim")]
            Engine::Memory(disk) => {
                Box::new(disk.range(range).into_iter().map(|(key, value)| Ok((key.into(), value.into()))))
            }
        }
    }

    /// Puts a batch into memory; a later flush makes it durable.
    pub(crate) fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        match &self.engine {
            Engine::Sled(sled) => {
                let mut all = sled::Batch::default();
                for (key, value) in batch.0 {
                    match value {
                        Some(value) => all.insert(key, value),
                        None => all.remove(key),
                    }
                }
                sled.apply_batch(all).map_err(|source| self.failed(source))
            }
            #[cfg(feature = "sim")]
            Engine::Memory(disk) => {
                disk.apply(batch.0);
                Ok(())
            }
        }
    }

    /// Calls `done` from the flusher's thread once everything applied before this call is on disk, or failed to get
    /// there.
    pub(crate) fn flush(&self, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        #[cfg(feature = "sim")]
        if let Engine::Memory(disk) = &self.engine {
            let (upto, delay) = disk.newest();
            if delay.is_zero() {
                return done(disk.flush(upto));
            }
            let disk = disk.clone();
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                done(disk.flush(upto));
            });
            return;
        }
        let sender = self.flusher.as_ref().expect("the flusher lives until drop");
        if let Err(mpsc::SendError(done)) = sender.send(Box::new(done)) {
            done(Err(io::Error::other("the flusher thread has ended")));
        }
    }

    /// Flushes and waits. Blocks: not for async code.
    pub(crate) fn flush_and_wait(&self) -> Result<(), StoreError> {
        #[cfg(feature = "sim")]
        if let Engine::Memory(disk) = &self.engine {
            return disk.flush(disk.newest().0).map_err(StoreError::io("flush database", &self.path));
        }
        let (sender, answer) = mpsc::sync_channel(1);
        self.flush(move |result| {
            // The other end waits below.
            let _ = sender.send(result);
        });
        answer
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the flusher thread has ended")))
            .map_err(StoreError::io("flush database", &self.path))
    }

    /// Flushes without blocking the runtime.
    pub(crate) async fn flush_async(&self) -> Result<(), StoreError> {
        let (sender, answer) = tokio::sync::oneshot::channel();
        self.flush(move |result| {
            // A caller that went away needs no answer.
            let _ = sender.send(result);
        });
        answer
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the flusher thread has ended")))
            .map_err(StoreError::io("flush database", &self.path))
    }

    fn failed(&self, source: sled::Error) -> StoreError {
        StoreError::Database { path: self.path.clone(), source }
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        drop(self.flusher.take());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!(path = %self.path.display(), "the flusher thread panicked");
        }
    }
}

/// Changes that are applied together.
#[derive(Debug, Default)]
pub(crate) struct Batch(Vec<Change>);

impl Batch {
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) {
        debug_assert!(value.len() <= MAX_VALUE, "{} bytes under one key", value.len());
        self.0.push((key.into(), Some(value.into())));
    }

    pub(crate) fn remove(&mut self, key: &[u8]) {
        self.0.push((key.into(), None));
    }
}

fn flush_loop(sled: &sled::Db, file: &File, requests: &mpsc::Receiver<Done>) {
    let mut broken: Option<(io::ErrorKind, String)> = None;
    while let Ok(first) = requests.recv() {
        let mut waiting = vec![first];
        waiting.extend(requests.try_iter());
        if broken.is_none() {
            broken = flush_once(sled, file).err();
        }
        for done in waiting {
            done(match &broken {
                None => Ok(()),
                Some((kind, why)) => Err(io::Error::new(*kind, why.clone())),
            });
        }
    }
}

fn flush_once(sled: &sled::Db, file: &File) -> Result<(), (io::ErrorKind, String)> {
    let kind = |error: &sled::Error| match error {
        sled::Error::Io(error) => error.kind(),
        _ => io::ErrorKind::Other,
    };
    // sled panics on some failed writes; the thread must live to say so.
    let flushed = std::panic::catch_unwind(AssertUnwindSafe(|| sled.flush()));
    let flushed = flushed.map_err(|_| (io::ErrorKind::Other, "the database engine panicked".to_owned()))?;
    flushed.map_err(|error| (kind(&error), chain(&error)))?;
    file.sync_data().map_err(|error| (error.kind(), error.to_string()))
}
