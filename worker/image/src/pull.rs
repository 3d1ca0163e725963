//! The pull engine: from the digest of an image to a held record, whatever the source. Used for registries, peers, and, with
//! everything already in the store, for archives and imports. Each piece is pinned before it is looked for, checked when it
//! comes, and shared with other pulls that want it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};

use crate::config::{ConfigError, ImageConfig};
use crate::digest::Digest;
use crate::flight::Flights;
use crate::manifest::{self, Document, MAX_DOCUMENT_BYTES, Manifest, ManifestError};
use crate::platform::{self, Platform};
use crate::progress::{LayerStatus, Progress};
use crate::reference::Reference;
use crate::source::{BlobKind, BlobRequest, BlobSource, BlobStream, FetchError};
use crate::store::{BlobError, ImageRecord, LayerError, LayerRecord, Pin, Store, StoreError, StoredBlob, blocking};
use crate::transfer::{Wanted, fetch_blob, fetch_document};

/// Layers of one image that are fetched and unpacked at the same time, as Docker does.
const PARALLEL_LAYERS: usize = 3;

/// Why an image did not come. Cheap to clone: callers that wait for the same image share the failure.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The source.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The bytes that came.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A layer.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manifest or index.
    #[error("image {image} cannot be used")]
    Manifest {
        /// What the user calls it.
        image: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The config.
    #[error("image {image} cannot be used")]
    Config {
        /// What the user calls it.
        image: String,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// Nothing for this machine.
    #[error("image {image} has no manifest for {wanted}; it offers {offered}")]
    Platform {
        /// What the user calls it.
        image: String,
        /// This machine's.
        wanted: Platform,
        /// The image's.
        offered: String,
    },
    /// An index that leads to an index.
    #[error("image {image} cannot be used: its index leads to another index")]
    NestedIndex {
        /// What the user calls it.
        image: String,
    },
    /// A manifest or config that never ends.
    #[error("document {digest} is larger than {MAX_DOCUMENT_BYTES} bytes")]
    DocumentTooLarge {
        /// Which.
        digest: Digest,
    },
    /// A blob that is here has another size than the manifest says.
    #[error("image {image} cannot be used: its manifest says that {digest} has {stated} bytes, it has {actual}")]
    Size {
        /// What the user calls it.
        image: String,
        /// Which blob.
        digest: Digest,
        /// In the manifest.
        stated: u64,
        /// In the store.
        actual: u64,
    },
}

impl PullError {
    /// Whether another source may do better: not if the disk is full, or if the image itself, whose digest is right, is not
    /// usable.
    pub(crate) fn is_the_sources(&self) -> bool {
        match self {
            Self::Fetch(_) | Self::DocumentTooLarge { .. } => true,
            Self::Blob(error) => !matches!(error, BlobError::Store(_)),
            Self::Layer(_)
            | Self::Store(_)
            | Self::Manifest { .. }
            | Self::Config { .. }
            | Self::Platform { .. }
            | Self::NestedIndex { .. }
            | Self::Size { .. } => false,
        }
    }
}

/// What to pull.
#[derive(Debug, Clone)]
pub(crate) struct PullJob {
    /// Index or manifest.
    pub(crate) digest: Digest,
    /// What the user calls it, for messages.
    pub(crate) image: String,
    /// This machine's.
    pub(crate) platform: Platform,
    /// Names to give it.
    pub(crate) names: Vec<Reference>,
    pub(crate) progress: Progress,
    /// Longest silence of a source.
    pub(crate) idle: Duration,
}

/// Downloads in progress, shared by all pulls of a store.
pub(crate) type Downloads = Flights<Digest, Result<(), PullError>>;

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Pulls an image and records it.
pub(crate) async fn pull(
    store: &Store,
    downloads: &Arc<Downloads>,
    source: Arc<dyn BlobSource>,
    job: PullJob,
) -> Result<ImageRecord, PullError> {
    let mut engine = Engine { store, downloads, source, job, pins: Vec::new() };
    let (manifest_digest, manifest) = engine.manifest().await?;
    let (config_digest, config) = engine.config(&manifest).await?;
    let layers = engine.layers(&manifest, &config).await?;
    let now = now();
    let record = ImageRecord {
        digest: engine.job.digest,
        manifest: manifest_digest,
        config: config_digest,
        platform: config.platform,
        layers,
        names: engine.job.names.iter().cloned().collect(),
        created: config.created,
        held_since: now,
        last_used: now,
    };
    let recording = store.clone();
    let record = blocking(move || recording.add_record(record)).await?;
    drop(engine.pins);
    Ok(record)
}

struct Engine<'a> {
    store: &'a Store,
    downloads: &'a Arc<Downloads>,
    source: Arc<dyn BlobSource>,
    job: PullJob,
    /// Everything of this image, until its record is written.
    pins: Vec<Pin>,
}

impl Engine<'_> {
    /// The manifest for the job's platform, through an index if there is one.
    async fn manifest(&mut self) -> Result<(Digest, Manifest), PullError> {
        let top = self.job.digest;
        let index = match self.parsed(top).await? {
            Document::Manifest(manifest) => return Ok((top, manifest)),
            Document::Index(index) => index,
        };
        let Some(entry) = index.choose(&self.job.platform) else {
            return Err(PullError::Platform {
                image: self.job.image.clone(),
                wanted: self.job.platform.clone(),
                offered: platform::list(&index.platforms()),
            });
        };
        match self.parsed(entry.digest).await? {
            Document::Manifest(manifest) => Ok((entry.digest, manifest)),
            Document::Index(_) => Err(PullError::NestedIndex { image: self.job.image.clone() }),
        }
    }

    async fn parsed(&mut self, digest: Digest) -> Result<Document, PullError> {
        let bytes = self.document(digest, BlobKind::Manifest).await?;
        manifest::parse(&bytes).map_err(|source| PullError::Manifest { image: self.job.image.clone(), source })
    }

    async fn config(&mut self, manifest: &Manifest) -> Result<(Digest, ImageConfig), PullError> {
        let image = self.job.image.clone();
        let digest = manifest.config.digest;
        let bytes = self.document(digest, BlobKind::Blob).await?;
        let failed = |source| PullError::Config { image: image.clone(), source };
        let config = ImageConfig::parse(&bytes).map_err(failed)?;
        config.check_layers(manifest.layers.len()).map_err(failed)?;
        if config.platform.fitness(&self.job.platform).is_none() {
            let offered = config.platform.to_string();
            return Err(PullError::Platform { image, wanted: self.job.platform.clone(), offered });
        }
        Ok((digest, config))
    }

    /// A small document from the store or the source, then kept in the store.
    async fn document(&mut self, digest: Digest, kind: BlobKind) -> Result<Vec<u8>, PullError> {
        self.pins.push(self.store.pin(&digest));
        let store = self.store.clone();
        if self.store.blob_size(&digest).is_some() {
            return blocking(move || Ok(store.read_blob(&digest, MAX_DOCUMENT_BYTES)?)).await;
        }
        let bytes = fetch_document(&*self.source, digest, kind, self.job.idle).await?;
        let copy = bytes.clone();
        blocking::<StoredBlob, PullError>(move || Ok(store.put_document(&copy, Some(digest))?)).await?;
        Ok(bytes)
    }

    async fn layers(&mut self, manifest: &Manifest, config: &ImageConfig) -> Result<Vec<LayerRecord>, PullError> {
        for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            self.pins.push(self.store.pin(&layer.digest));
            self.pins.push(self.store.pin(diff_id));
            self.job.progress.tell(layer.digest, LayerStatus::Waiting, 0, layer.size);
        }
        let engine = &*self;
        let layers = manifest.layers.iter().zip(&config.rootfs.diff_ids);
        let wanted: Vec<(Digest, u64, Digest)> =
            layers.map(|(layer, diff)| (layer.digest, layer.size, *diff)).collect();
        futures::stream::iter(wanted)
            .map(|(blob, size, diff_id)| engine.layer(blob, size, diff_id))
            .buffered(PARALLEL_LAYERS)
            .try_collect()
            .await
    }

    async fn layer(&self, blob: Digest, size: u64, diff_id: Digest) -> Result<LayerRecord, PullError> {
        let progress = &self.job.progress;
        let fetched = self.blob(blob, size).await?;
        progress.tell(blob, LayerStatus::Unpacking, size, size);
        let here = {
            let store = self.store.clone();
            blocking(move || Ok::<_, PullError>(store.layer_size(&diff_id))).await?
        };
        let content_bytes = match here {
            Some(bytes) => bytes,
            None => {
                let (outcome, joined) = self.store.ensure_layer(blob, diff_id).await;
                if joined {
                    progress.tell(blob, LayerStatus::Shared, size, size);
                }
                outcome?
            }
        };
        let status = if fetched || here.is_none() { LayerStatus::Done } else { LayerStatus::Held };
        progress.tell(blob, status, size, size);
        Ok(LayerRecord { blob, blob_bytes: size, diff_id, content_bytes })
    }

    /// Makes sure that a layer's blob is in the store; tells whether it had to be fetched.
    async fn blob(&self, digest: Digest, size: u64) -> Result<bool, PullError> {
        let check = |actual: u64| match actual == size {
            true => Ok(()),
            false => Err(PullError::Size { image: self.job.image.clone(), digest, stated: size, actual }),
        };
        if let Some(actual) = self.store.blob_size(&digest) {
            return check(actual).map(|()| false);
        }
        let run = || -> BoxFuture<'static, Result<(), PullError>> {
            let (store, source) = (self.store.clone(), self.source.clone());
            let (progress, idle) = (self.job.progress.clone(), self.job.idle);
            async move {
                let wanted = Wanted { digest, size };
                fetch_blob(&store, &*source, wanted, &progress, idle).await.map(drop)
            }
            .boxed()
        };
        let (mut outcome, joined) = self.downloads.run(digest, run).await;
        if joined {
            self.job.progress.tell(digest, LayerStatus::Shared, 0, size);
            // The other pull's source failed; ours may do better.
            if outcome.is_err() {
                outcome = self.downloads.run(digest, run).await.0;
            }
        }
        outcome?;
        check(self.store.blob_size(&digest).ok_or(StoreError::NoBlob(digest))?).map(|()| true)
    }
}

/// The source of images whose blobs are all in the store already.
pub(crate) struct NoSource(pub(crate) &'static str);

impl BlobSource for NoSource {
    fn describe(&self) -> String {
        self.0.to_owned()
    }

    fn fetch(&self, request: BlobRequest) -> BoxFuture<'_, Result<BlobStream, FetchError>> {
        let what = match request.kind {
            BlobKind::Manifest => format!("manifest {}", request.digest),
            BlobKind::Blob => format!("blob {}", request.digest),
        };
        futures::future::ready(Err(FetchError::NotFound { what, place: self.0.to_owned() })).boxed()
    }
}
