//! The content-addressed image store of one node. Used by the pull engine, archives and the agent; the runtime mounts what
//! [`ResolvedImage::layer_paths`] names.
//!
//! ```text
//! <dir>/lock                     held by the one process that uses the store
//! <dir>/images.json              which images are held: written to a temporary file, synced, renamed
//! <dir>/blobs/sha256/<hex>       manifests, configs and compressed layers, verified, as they came
//! <dir>/layers/<hex of diff id>/fs     one unpacked layer, a lower directory for overlayfs
//! <dir>/layers/<hex of diff id>/layer.json   its size
//! <dir>/tmp/                     work in progress; emptied when the store is opened
//! ```
//!
//! What is in `blobs` and `layers` is complete: it got there by rename. A layer counts only if a record names it, since
//! records are written after the file system was synced: layers without one are removed when the store is opened.

mod blobs;
mod find;
mod layers;
pub(crate) mod records;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};

pub use blobs::{BlobError, BlobWriter, StoredBlob};
pub use find::FindError;
pub use layers::LayerError;
pub use records::{ImageRecord, LayerRecord};

use crate::config::{ConfigError, ImageConfig};
use crate::digest::Digest;
use crate::layer::unpack::Limits;

/// Why the store could not do something. Cheap to clone: several callers may share one failure.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk or the quota is full.
    #[error("no space left on the disk of {}: free some, or run skep image prune", .0.display())]
    DiskFull(PathBuf),
    /// The kernel refused.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: Arc<io::Error>,
    },
    /// Another process has it open.
    #[error("the image store {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// A file of the store is not what we wrote.
    #[error("the image store's file {} is damaged: {detail}", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The image is not here.
    #[error("image {0} is not on this node")]
    NoImage(Digest),
    /// The blob is not here.
    #[error("blob {0} is not on this node")]
    NoBlob(Digest),
    /// A worker thread ended early.
    #[error("the image store's worker thread failed: {0}")]
    Worker(String),
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull(path),
            _ => Self::Io { action, path, source: Arc::new(source) },
        }
    }
}

/// How a store works.
#[derive(Debug, Clone, Copy)]
pub struct StoreOptions {
    /// Against layer bombs.
    pub limits: Limits,
    /// Layers unpacked at the same time: each takes a core.
    pub unpackers: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { limits: Limits::default(), unpackers: cores }
    }
}

/// An image ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// Its identity: index or manifest digest.
    pub digest: Digest,
    /// How to run it, and for which platform it is.
    pub config: ImageConfig,
    /// Lower directories for overlayfs, top first.
    pub layer_paths: Vec<PathBuf>,
}

/// A handle to the store of one node. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    options: StoreOptions,
    state: Mutex<State>,
    /// Held while the records are changed and written, so that writes keep the order of changes.
    saving: Mutex<()>,
    unpackers: tokio::sync::Semaphore,
    flights: layers::LayerFlights,
    /// Counts the changes of the records.
    changes: tokio::sync::watch::Sender<u64>,
    _lock: Flock<File>,
}

#[derive(Default)]
struct State {
    records: BTreeMap<Digest, ImageRecord>,
    /// Every blob that a record names: what peers may be served.
    blobs: HashSet<Digest>,
    /// What must not be collected though no record names it: pulls in progress, containers.
    pins: HashMap<Digest, usize>,
    /// Parsed images, so that a container start reads no file.
    resolved: HashMap<Digest, Arc<ResolvedImage>>,
    /// Last uses since the records were written, in seconds since 1970.
    used: HashMap<Digest, u64>,
}

/// Keeps an image, blob or layer from being collected while it exists.
pub struct Pin {
    inner: Arc<Inner>,
    digest: Digest,
}

impl Pin {
    /// What it keeps.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pin({})", self.digest)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        if let Some(count) = state.pins.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                state.pins.remove(&self.digest);
            }
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }
}

impl Store {
    /// Opens or makes the store in `root`: takes its lock, removes work in progress and layers that no record names, and
    /// forgets images of which something is missing. Blocks on the disk: call it before serving.
    pub fn open(root: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
        // Layers contain set-user-id programs: nobody but root may come near them.
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        for dir in ["", "blobs/sha256", "layers"] {
            let path = root.join(dir);
            private.create(&path).map_err(StoreError::io("create", &path))?;
        }
        fs::set_permissions(root, fs::Permissions::from_mode(0o700))
            .map_err(StoreError::io("set the mode of", root))?;
        let lock_path = root.join("lock");
        let file = File::options().create(true).write(true).truncate(false).open(&lock_path);
        let lock = Flock::lock(file.map_err(StoreError::io("open", &lock_path))?, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| match errno {
                nix::errno::Errno::EWOULDBLOCK => StoreError::Locked(root.to_owned()),
                errno => StoreError::io("lock", &lock_path)(errno.into()),
            })?;
        let temporary = root.join("tmp");
        match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("empty", &temporary)(error));
            }
            _ => {}
        }
        private.create(&temporary).map_err(StoreError::io("create", &temporary))?;
        let inner = Inner {
            root: root.to_owned(),
            options,
            state: Mutex::default(),
            saving: Mutex::default(),
            unpackers: tokio::sync::Semaphore::new(options.unpackers.max(1)),
            flights: layers::LayerFlights::default(),
            changes: tokio::sync::watch::channel(0).0,
            _lock: lock,
        };
        let store = Self { inner: Arc::new(inner) };
        store.load_records()?;
        store.remove_orphaned_layers()?;
        Ok(store)
    }

    /// The directory that holds the layers: for a runtime that mounts them by relative names, since the options of
    /// mount(2) end after one page.
    pub fn layers_dir(&self) -> PathBuf {
        self.inner.root.join("layers")
    }

    /// Keeps `digest` (an image's, a blob's, or a diff id) until the pin is dropped. Pin first, look second.
    pub fn pin(&self, digest: &Digest) -> Pin {
        *self.inner.state().pins.entry(*digest).or_insert(0) += 1;
        Pin { inner: self.inner.clone(), digest: *digest }
    }

    /// The record of a held image.
    pub fn image(&self, digest: &Digest) -> Option<ImageRecord> {
        let state = self.inner.state();
        state.records.get(digest).map(|record| state.with_last_use(record))
    }

    /// All records, by digest.
    pub fn images(&self) -> Vec<ImageRecord> {
        let state = self.inner.state();
        state.records.values().map(|record| state.with_last_use(record)).collect()
    }

    /// The digests of all held images: what the node reports to the managers.
    pub fn held(&self) -> Vec<Digest> {
        self.inner.state().records.keys().copied().collect()
    }

    /// Notes that an image is used now (`now` in seconds since 1970). Kept in memory and written with the next record.
    pub fn touch(&self, digest: &Digest, now: u64) {
        let mut state = self.inner.state();
        if state.records.contains_key(digest) {
            state.used.insert(*digest, now);
        }
    }

    /// All that is needed to run a held image. The answer is cached: only the first call reads the disk, a few kilobytes.
    pub fn resolve(&self, digest: &Digest) -> Result<Arc<ResolvedImage>, StoreError> {
        let record = {
            let state = self.inner.state();
            if let Some(resolved) = state.resolved.get(digest) {
                return Ok(resolved.clone());
            }
            state.records.get(digest).cloned().ok_or(StoreError::NoImage(*digest))?
        };
        let config = self.read_config(&record.config)?;
        let layer_paths =
            record.layers.iter().rev().map(|layer| self.inner.layer_path(&layer.diff_id).join("fs")).collect();
        let resolved = Arc::new(ResolvedImage { digest: *digest, config, layer_paths });
        let mut state = self.inner.state();
        if state.records.contains_key(digest) {
            state.resolved.insert(*digest, resolved.clone());
        }
        Ok(resolved)
    }

    /// Tells of every change of what is held: images that came, went, or changed their names.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Whether a lease or a pull in progress holds `digest`.
    pub fn is_pinned(&self, digest: &Digest) -> bool {
        self.inner.state().pins.contains_key(digest)
    }

    pub(crate) fn temporary(&self) -> PathBuf {
        self.inner.temporary()
    }

    /// Moves blobs and layers that no record names and nobody has pinned into `trash`; gives their new paths. Done under
    /// the state's lock, so that nobody can pin what is about to go.
    pub(crate) fn set_garbage_aside(&self, trash: &Path) -> Result<Vec<PathBuf>, StoreError> {
        let state = self.inner.state();
        let diff_ids = state.records.values().flat_map(|record| record.layers.iter().map(|layer| layer.diff_id));
        let layers: HashSet<Digest> = diff_ids.collect();
        let mut moved = Vec::new();
        for (dir, kept) in [("blobs/sha256", &state.blobs), ("layers", &layers)] {
            let dir = self.inner.root.join(dir);
            for entry in fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
                let path = entry.map_err(StoreError::io("list", &dir))?.path();
                let digest = path.file_name().and_then(|name| name.to_str()).and_then(Digest::from_hex);
                if digest.is_some_and(|digest| kept.contains(&digest) || state.pins.contains_key(&digest)) {
                    continue;
                }
                let aside = trash.join(moved.len().to_string());
                fs::rename(&path, &aside).map_err(StoreError::io("remove", &path))?;
                moved.push(aside);
            }
        }
        Ok(moved)
    }

    fn read_config(&self, digest: &Digest) -> Result<ImageConfig, StoreError> {
        let path = self.inner.blob_path(digest);
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        ImageConfig::parse(&bytes).map_err(|error: ConfigError| StoreError::Damaged { path, detail: error.to_string() })
    }
}

impl State {
    fn with_last_use(&self, record: &ImageRecord) -> ImageRecord {
        let mut record = record.clone();
        if let Some(used) = self.used.get(&record.digest) {
            record.last_used = record.last_used.max(*used);
        }
        record
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.inner.root).finish_non_exhaustive()
    }
}

/// Runs blocking store work off the async threads.
pub(crate) async fn blocking<T: Send + 'static, E: From<StoreError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(StoreError::Worker(error.to_string()).into()),
    }
}
