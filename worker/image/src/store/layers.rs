//! Layers: unpacking blobs once, however many images and callers want them. Part of [`Store`].

use std::fs;
use std::path::Path;
use std::sync::Arc;

use futures::FutureExt;
use serde::{Deserialize, Serialize};

use super::{Pin, Store, StoreError, blocking};
use crate::digest::Digest;
use crate::flight::Flights;
use crate::layer::decode::Compression;
use crate::layer::unpack::{UnpackError, Unpacked, unpack};

pub(super) type LayerFlights = Flights<Digest, Result<u64, LayerError>>;

/// Why a blob did not become a layer. Cheap to clone.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LayerError {
    /// The layer is to blame.
    #[error("cannot unpack layer {blob}")]
    Unpack {
        /// The blob.
        blob: Digest,
        /// Why.
        #[source]
        source: Arc<UnpackError>,
    },
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// `layer.json`.
#[derive(Serialize, Deserialize)]
struct LayerFile {
    content_bytes: u64,
    entries: u64,
}

impl Store {
    /// The content size of a layer unpacked before. `None` if it is not here. Blocks.
    pub(crate) fn layer_size(&self, diff_id: &Digest) -> Option<u64> {
        let json = fs::read(self.inner.layer_path(diff_id).join("layer.json")).ok()?;
        serde_json::from_slice::<LayerFile>(&json).ok().map(|file| file.content_bytes)
    }

    /// Unpacks `blob` as the layer `diff_id`, unless that is here; gives its content size and whether another caller did the
    /// work. The caller pins both.
    pub(crate) async fn ensure_layer(&self, blob: Digest, diff_id: Digest) -> (Result<u64, LayerError>, bool) {
        let store = self.clone();
        let run = move || {
            async move {
                let permit = store.inner.unpackers.acquire().await;
                let _permit = permit.map_err(|_| StoreError::Worker("the store is closed".to_owned()))?;
                let store = store.clone();
                blocking(move || match store.layer_size(&diff_id) {
                    Some(size) => Ok(size),
                    None => store.unpack_blob(&blob, Some(&diff_id)).map(|(unpacked, _)| unpacked.content_bytes),
                })
                .await
            }
            .boxed()
        };
        self.inner.flights.run(diff_id, run).await
    }

    /// Unpacks a blob whose diff id is not known yet: for imports. The pin keeps the layer.
    pub(crate) async fn unpack_unknown(&self, blob: Digest) -> Result<(Unpacked, Pin), LayerError> {
        let permit = self.inner.unpackers.acquire().await;
        let _permit = permit.map_err(|_| StoreError::Worker("the store is closed".to_owned()))?;
        let store = self.clone();
        blocking(move || store.unpack_blob(&blob, None)).await
    }

    fn unpack_blob(&self, blob: &Digest, diff_id: Option<&Digest>) -> Result<(Unpacked, Pin), LayerError> {
        let temporary = self.inner.temporary();
        let (file, path) = self.blob_file(blob)?;
        let size = file.metadata().map_err(StoreError::io("inspect", &path))?.len();
        let dir = tempfile::TempDir::new_in(&temporary).map_err(StoreError::io("create a directory in", &temporary))?;
        let root = dir.path().join("fs");
        fs::create_dir(&root).map_err(StoreError::io("create", &root))?;
        set_default_mode(&root)?;
        let unpacked = unpack(file, size, diff_id, &root, &self.inner.options.limits).map_err(|source| match source
            .is_disk_full()
        {
            true => StoreError::DiskFull(self.inner.root.clone()).into(),
            false => LayerError::Unpack { blob: *blob, source: Arc::new(source) },
        })?;
        let note = LayerFile { content_bytes: unpacked.content_bytes, entries: unpacked.entries };
        let note_path = dir.path().join("layer.json");
        let json = serde_json::to_vec(&note)
            .map_err(|error| StoreError::Damaged { path: note_path.clone(), detail: error.to_string() })?;
        fs::write(&note_path, json).map_err(StoreError::io("write", &note_path))?;
        let target = self.inner.layer_path(&unpacked.diff_id);
        let pin = self.pin(&unpacked.diff_id);
        match fs::rename(dir.path(), &target) {
            Ok(()) => {
                // Renamed away: nothing is left to remove.
                let _ = dir.keep();
            }
            // An import of the same content was faster.
            Err(_) if target.join("layer.json").is_file() => {}
            Err(error) => return Err(StoreError::io("rename to", &target)(error).into()),
        }
        Ok((unpacked, pin))
    }

    /// The form of a blob's compression, by its first bytes. Blocks.
    pub(crate) fn blob_compression(&self, digest: &Digest) -> Result<Compression, StoreError> {
        use std::io::Read;
        let (file, path) = self.blob_file(digest)?;
        let mut start = Vec::new();
        file.take(6).read_to_end(&mut start).map_err(StoreError::io("read", &path))?;
        Ok(Compression::sniff(&start).unwrap_or(Compression::None))
    }
}

/// The root of a layer that does not say otherwise is 0755 whatever the umask.
fn set_default_mode(root: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).map_err(StoreError::io("set the mode of", root))
}
