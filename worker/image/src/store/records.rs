//! Which images a store holds: `images.json`, and every change to it. Part of [`Store`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Store, StoreError};
use crate::digest::Digest;
use crate::platform::Platform;
use crate::reference::Reference;

/// Format of `images.json`; another one is refused.
const FORMAT: u32 = 1;

/// One held image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Its identity: the digest of the index, or of the manifest where there is no index.
    pub digest: Digest,
    /// The manifest for this node's platform; equal to `digest` where there is no index.
    pub manifest: Digest,
    /// The config blob.
    pub config: Digest,
    /// What it runs on.
    pub platform: Platform,
    /// Lowest first.
    pub layers: Vec<LayerRecord>,
    /// What users call it: `app:1`, or `app@sha256:…` if it came by its digest. A name belongs to one image of a store at
    /// most.
    pub names: BTreeSet<Reference>,
    /// When it was built, RFC 3339, as the builder said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// When it came here, in seconds since 1970.
    pub held_since: u64,
    /// When it was last run or pulled, in seconds since 1970.
    pub last_used: u64,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The blob as it came.
    pub blob: Digest,
    /// Its bytes.
    pub blob_bytes: u64,
    /// sha256 of the uncompressed layer: names the unpacked directory.
    pub diff_id: Digest,
    /// Bytes of the unpacked files.
    pub content_bytes: u64,
}

impl ImageRecord {
    /// Every blob of the image: what a peer may fetch with a ticket for it.
    pub fn blobs(&self) -> impl Iterator<Item = Digest> + '_ {
        let documents = [self.digest, self.manifest, self.config];
        let index = usize::from(self.digest == self.manifest);
        documents.into_iter().skip(index).chain(self.layers.iter().map(|layer| layer.blob))
    }

    /// The names with a tag. An image without any is dangling, as Docker calls it.
    pub fn tags(&self) -> impl Iterator<Item = &Reference> {
        self.names.iter().filter(|name| name.tag().is_some())
    }

    /// Bytes of the unpacked files: what listings call the size.
    pub fn content_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.content_bytes).sum()
    }

    /// Bytes of the blobs, without manifest and config.
    pub fn blob_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.blob_bytes).sum()
    }
}

#[derive(Serialize, Deserialize)]
struct RecordsFile {
    format: u32,
    images: Vec<ImageRecord>,
}

pub(super) type Records = BTreeMap<Digest, ImageRecord>;

impl Store {
    /// Changes the records: `change` gets a copy, which is written and synced before it counts. If that fails, nothing has
    /// changed. Blocks.
    pub(crate) fn update_records<T, E: From<StoreError>>(
        &self,
        change: impl FnOnce(&mut Records) -> Result<T, E>,
    ) -> Result<T, E> {
        let _saving = self.inner.saving.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut records: Records = {
            let state = self.inner.state();
            state.records.iter().map(|(digest, record)| (*digest, state.with_last_use(record))).collect()
        };
        let outcome = change(&mut records)?;
        self.write_records(&records)?;
        // Somebody may have begun to use what was to go: it stays.
        if self.install(&mut records) {
            self.write_records(&records)?;
        }
        self.inner.changes.send_modify(|count| *count += 1);
        Ok(outcome)
    }

    /// Writes the last uses noted since the records were written. Call it now and then, and before the process ends.
    pub async fn save_uses(&self) -> Result<(), StoreError> {
        if self.inner.state().used.is_empty() {
            return Ok(());
        }
        let store = self.clone();
        super::blocking(move || store.update_records(|_| Ok(()))).await
    }

    /// Adds an image, or names and a last use to the one held. Names are taken from other images. Blocks.
    pub(crate) fn add_record(&self, record: ImageRecord) -> Result<ImageRecord, StoreError> {
        // Blobs and layers must be on the disk before a record says so.
        self.sync_file_system()?;
        self.update_records(|records| {
            for other in records.values_mut().filter(|other| other.digest != record.digest) {
                other.names.retain(|name| !record.names.contains(name));
            }
            let entry = match records.remove(&record.digest) {
                None => record,
                Some(held) => ImageRecord {
                    names: held.names.union(&record.names).cloned().collect(),
                    held_since: held.held_since,
                    last_used: held.last_used.max(record.last_used),
                    ..record
                },
            };
            records.insert(entry.digest, entry.clone());
            Ok(entry)
        })
    }

    /// Makes `records` count; puts back what is pinned and would go, and tells whether there was such.
    fn install(&self, records: &mut Records) -> bool {
        let mut state = self.inner.state();
        let pinned =
            |record: &&ImageRecord| !records.contains_key(&record.digest) && state.pins.contains_key(&record.digest);
        let back: Vec<ImageRecord> = state.records.values().filter(pinned).cloned().collect();
        let any = !back.is_empty();
        records.extend(back.into_iter().map(|record| (record.digest, record)));
        state.blobs = records.values().flat_map(ImageRecord::blobs).collect();
        state.resolved.retain(|digest, _| records.contains_key(digest));
        // Uses noted while the file was written stay noted.
        state.used.retain(|digest, used| records.get(digest).is_some_and(|record| record.last_used < *used));
        state.records = records.clone();
        any
    }

    fn write_records(&self, records: &Records) -> Result<(), StoreError> {
        let path = self.inner.root.join("images.json");
        let file = RecordsFile { format: FORMAT, images: records.values().cloned().collect() };
        let json = serde_json::to_vec_pretty(&file)
            .map_err(|error| StoreError::Damaged { path: path.clone(), detail: error.to_string() })?;
        write_durably(&self.inner.temporary(), &path, &json)
    }

    /// Reads the records at start. An image of which a blob or layer is missing is forgotten: it will be fetched again.
    pub(super) fn load_records(&self) -> Result<(), StoreError> {
        let path = self.inner.root.join("images.json");
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        let damaged = |detail: String| StoreError::Damaged { path: path.clone(), detail };
        let mut records = Records::new();
        for record in parse(&json).map_err(damaged)? {
            let missing = record.blobs().find(|blob| !self.inner.blob_path(blob).is_file());
            let unpacked = record.layers.iter().all(|layer| self.inner.layer_path(&layer.diff_id).join("fs").is_dir());
            if missing.is_some() || !unpacked {
                tracing::warn!(image = %record.digest, "part of a held image is missing: it will be fetched again when needed");
                continue;
            }
            records.insert(record.digest, record);
        }
        self.install(&mut records);
        Ok(())
    }

    /// Removes layers that no record names: the file system may not have been synced when they were written.
    pub(super) fn remove_orphaned_layers(&self) -> Result<(), StoreError> {
        let held: HashSet<String> = self
            .inner
            .state()
            .records
            .values()
            .flat_map(|r| r.layers.iter().map(|layer| layer.diff_id.hex()))
            .collect();
        let layers = self.layers_dir();
        for entry in fs::read_dir(&layers).map_err(StoreError::io("list", &layers))? {
            let entry = entry.map_err(StoreError::io("list", &layers))?;
            if !entry.file_name().to_str().is_some_and(|name| held.contains(name)) {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    fn sync_file_system(&self) -> Result<(), StoreError> {
        let root = &self.inner.root;
        let dir = File::open(root).map_err(StoreError::io("open", root))?;
        nix::unistd::syncfs(&dir).map_err(|errno| StoreError::io("sync", root)(errno.into()))
    }
}

/// Reads the records' file. The error says what is wrong with it.
pub(crate) fn parse(json: &[u8]) -> Result<Vec<ImageRecord>, String> {
    let file: RecordsFile = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    match file.format {
        FORMAT => Ok(file.images),
        other => Err(format!("its format is {other}, this program knows {FORMAT}")),
    }
}

/// Replaces `path` so that after a crash either the old or the new content is there.
fn write_durably(temporary: &Path, path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let mut file = tempfile::NamedTempFile::new_in(temporary).map_err(StoreError::io("create a file in", temporary))?;
    file.write_all(content).map_err(StoreError::io("write", path))?;
    file.as_file().sync_all().map_err(StoreError::io("sync", path))?;
    file.persist(path).map_err(|error| StoreError::io("rename to", path)(error.error))?;
    sync_dir(path)
}

/// Makes a rename in the directory of `path` durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(StoreError::io("sync", dir))
}
