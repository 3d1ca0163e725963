//! Blobs: writing with verification, reading, and serving to peers. Part of [`Store`].

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;

use tempfile::NamedTempFile;

use super::records::sync_dir;
use super::{Pin, Store, StoreError};
use crate::digest::{Digest, Hasher};

/// Why bytes did not become a blob.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BlobError {
    /// The content is not what its name says.
    #[error("wrong digest: expected {expected}, got {actual}")]
    WrongDigest {
        /// The name.
        expected: Digest,
        /// The content's.
        actual: Digest,
    },
    /// Too few bytes came.
    #[error("blob {digest} is truncated: {got} of {size} bytes")]
    Truncated {
        /// Which blob.
        digest: Digest,
        /// Bytes that came.
        got: u64,
        /// Bytes expected.
        size: u64,
    },
    /// Too many bytes came.
    #[error("blob {digest} is longer than the {size} bytes its manifest states")]
    TooLong {
        /// Which blob.
        digest: Digest,
        /// Bytes expected.
        size: u64,
    },
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Takes the bytes of one blob, in order. Dropped before [`BlobWriter::finish`], it leaves nothing. Blocks.
pub struct BlobWriter {
    store: Store,
    file: NamedTempFile,
    hasher: Hasher,
    written: u64,
    expected: Option<(Digest, u64)>,
}

/// A blob just written, which stays until the pin goes or a record names it.
#[derive(Debug)]
pub struct StoredBlob {
    /// What it is.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Keeps it.
    pub pin: Pin,
}

impl BlobWriter {
    /// Adds the next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let written = self.written + bytes.len() as u64;
        if let Some((digest, size)) = self.expected
            && written > size
        {
            return Err(BlobError::TooLong { digest, size });
        }
        self.file.write_all(bytes).map_err(StoreError::io("write a blob in", &self.store.inner.root))?;
        self.hasher.update(bytes);
        self.written = written;
        Ok(())
    }

    /// Checks size and digest, syncs, and gives the blob its name.
    pub fn finish(self) -> Result<StoredBlob, BlobError> {
        let Self { store, file, hasher, written, expected } = self;
        let actual = hasher.finish();
        match expected {
            Some((digest, size)) if written < size => {
                return Err(BlobError::Truncated { digest, got: written, size });
            }
            Some((digest, _)) if digest != actual => {
                return Err(BlobError::WrongDigest { expected: digest, actual });
            }
            _ => {}
        }
        let path = store.inner.blob_path(&actual);
        let pin = store.pin(&actual);
        file.as_file().sync_all().map_err(StoreError::io("sync", &path))?;
        file.persist(&path).map_err(|error| StoreError::io("rename to", &path)(error.error))?;
        sync_dir(&path)?;
        Ok(StoredBlob { digest: actual, size: written, pin })
    }
}

impl Store {
    /// Starts a blob. With `expected`, digest and size are enforced. Blocks.
    pub fn blob_writer(&self, expected: Option<(Digest, u64)>) -> Result<BlobWriter, StoreError> {
        let temporary = self.inner.temporary();
        let file = NamedTempFile::new_in(&temporary).map_err(StoreError::io("create a file in", &temporary))?;
        Ok(BlobWriter { store: self.clone(), file, hasher: Hasher::new(), written: 0, expected })
    }

    /// Stores a small document whose digest is known to be right, or not known. Blocks.
    pub(crate) fn put_document(&self, bytes: &[u8], expected: Option<Digest>) -> Result<StoredBlob, BlobError> {
        let mut writer = self.blob_writer(expected.map(|digest| (digest, bytes.len() as u64)))?;
        writer.write(bytes)?;
        writer.finish()
    }

    /// The size of a blob, whether an image names it or not. `None` if it is not here.
    pub(crate) fn blob_size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.inner.blob_path(digest)).ok().filter(fs::Metadata::is_file).map(|found| found.len())
    }

    pub(crate) fn blob_file(&self, digest: &Digest) -> Result<(File, PathBuf), StoreError> {
        let path = self.inner.blob_path(digest);
        File::open(&path).map(|file| (file, path.clone())).map_err(StoreError::io("open", &path))
    }

    /// A small blob's content; more than `limit` bytes is an error. Blocks.
    pub(crate) fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let (file, path) = self.blob_file(digest)?;
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(StoreError::io("read", &path))?;
        if bytes.len() as u64 > limit {
            return Err(StoreError::Damaged { path, detail: format!("more than {limit} bytes") });
        }
        Ok(bytes)
    }

    /// Opens a blob for a peer: only one that a held image is made of. The file stays readable if the image is removed
    /// meanwhile.
    pub async fn open_blob(&self, digest: &Digest) -> Result<(u64, tokio::fs::File), StoreError> {
        if !self.inner.state().blobs.contains(digest) {
            return Err(StoreError::NoBlob(*digest));
        }
        let (store, digest) = (self.clone(), *digest);
        super::blocking(move || {
            let (file, path) = store.blob_file(&digest)?;
            let size = file.metadata().map_err(StoreError::io("inspect", &path))?.len();
            Ok((size, tokio::fs::File::from_std(file)))
        })
        .await
    }

    /// Every blob of a held image: index, manifest, config, layers. A ticket for the image covers exactly these.
    /// `None` if the image is not held.
    pub fn image_closure(&self, image: &Digest) -> Option<Vec<Digest>> {
        self.inner.state().records.get(image).map(|record| record.blobs().collect())
    }
}
