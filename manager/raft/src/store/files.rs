//! Where snapshot files lie: a folder, or a simulation's memory. Paths name them in both, for messages too.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk;
use crate::error::StoreError;
#[cfg(feature = "sim")]
use crate::sim::SimDisk;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) enum Files {
    Folder(PathBuf),
    #[cfg(feature = "sim")]
    Memory(SimDisk),
}

/// A file being written.
#[derive(Debug)]
pub(crate) enum Sink {
    File(BufWriter<File>),
    #[cfg(feature = "sim")]
    Memory(SimDisk, PathBuf, Vec<u8>),
}

/// A complete file, open for readers with positions of their own.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    File(Arc<File>),
    #[cfg(feature = "sim")]
    Memory(Arc<Vec<u8>>),
}

impl Files {
    pub(crate) fn dir(&self) -> &Path {
        match self {
            Self::Folder(dir) => dir,
            #[cfg(feature = "sim")]
            Self::Memory(_) => Path::new("/simulated"),
        }
    }

    /// Opens a new file, replacing a leftover of the same name.
    pub(crate) fn create(&self, path: &Path) -> Result<Sink, StoreError> {
        Ok(match self {
            Self::Folder(_) => Sink::File(BufWriter::new(disk::create_private(path)?)),
            #[cfg(feature = "sim")]
            Self::Memory(disk) => Sink::Memory(disk.clone(), path.to_owned(), Vec::new()),
        })
    }

    pub(crate) fn open(&self, path: &Path) -> Result<Body, StoreError> {
        let opened = match self {
            Self::Folder(_) => File::open(path).map(|file| Body::File(Arc::new(file))),
            #[cfg(feature = "sim")]
            Self::Memory(disk) => disk.file(path).map(Body::Memory).ok_or(io::ErrorKind::NotFound.into()),
        };
        opened.map_err(StoreError::io("open", path))
    }

    pub(crate) fn exists(&self, path: &Path) -> bool {
        match self {
            Self::Folder(_) => path.exists(),
            #[cfg(feature = "sim")]
            Self::Memory(disk) => disk.file(path).is_some(),
        }
    }

    /// Gives a synced file its name, durably.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        match self {
            Self::Folder(_) => disk::rename(from, to),
            #[cfg(feature = "sim")]
            Self::Memory(disk) => {
                disk.rename(from, to);
                Ok(())
            }
        }
    }

    /// Removes a file; absent is fine.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), StoreError> {
        match self {
            Self::Folder(_) => disk::remove(path),
            #[cfg(feature = "sim")]
            Self::Memory(disk) => {
                disk.remove(path);
                Ok(())
            }
        }
    }

    pub(crate) fn list(&self) -> Result<Vec<PathBuf>, StoreError> {
        match self {
            Self::Folder(dir) => {
                let failed = || StoreError::io("list", dir);
                let entries = fs::read_dir(dir).map_err(failed())?;
                entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed())).collect()
            }
            #[cfg(feature = "sim")]
            Self::Memory(disk) => Ok(disk.files()),
        }
    }
}

impl Sink {
    /// Writes what is buffered and makes it durable.
    pub(crate) fn sync(self) -> io::Result<()> {
        match self {
            Self::File(buffer) => buffer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all(),
            #[cfg(feature = "sim")]
            Self::Memory(disk, path, bytes) => disk.put(path, bytes),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            #[cfg(feature = "sim")]
            Self::Memory(_, _, all) => all.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            #[cfg(feature = "sim")]
            Self::Memory(..) => Ok(()),
        }
    }
}

impl Body {
    pub(crate) fn len(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata()?.len()),
            #[cfg(feature = "sim")]
            Self::Memory(bytes) => Ok(bytes.len() as u64),
        }
    }

    pub(crate) fn read_at(&self, out: &mut [u8], position: u64) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read_at(out, position),
            #[cfg(feature = "sim")]
            Self::Memory(bytes) => {
                let rest = usize::try_from(position).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
                let count = rest.len().min(out.len());
                out[..count].copy_from_slice(&rest[..count]);
                Ok(count)
            }
        }
    }
}
