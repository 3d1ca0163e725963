//! The worker's way to images: makes sure that one is here, from the nearest place that has it: the own disk, another node,
//! the registry. Equal wishes are served once. A silent registry never delays an image that is here.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::digest::Digest;
use crate::flight::Flights;
use crate::platform::Platform;
use crate::progress::Progress;
use crate::pull::{Downloads, NoSource, PullError, PullJob, now, pull};
use crate::reference::Reference;
use crate::registry::{Registry, RegistryAuth};
use crate::source::BlobSource;
use crate::store::{ImageRecord, Pin, ResolvedImage, Store, StoreError, StoredBlob, blocking};
use crate::transfer::Timeouts;

/// What is wanted.
#[derive(Clone, Default)]
pub struct Wish {
    /// The image's identity, resolved once by the managers.
    pub digest: Option<Digest>,
    /// Its name: where the registry is asked, and what messages call it. Its digest, if it has one, is the identity.
    pub reference: Option<Reference>,
    /// For the registry.
    pub auth: RegistryAuth,
    /// Other nodes that hold it, the nearest first.
    pub peers: Vec<Arc<dyn BlobSource>>,
    /// Who looks.
    pub progress: Progress,
}

/// An image that is here, and stays while this exists.
#[derive(Debug)]
pub struct Held {
    /// How to run it.
    pub image: Arc<ResolvedImage>,
    /// Keeps it: the container's owner holds this.
    pub lease: Pin,
}

/// Why an image could not be made to be here. Cheap to clone.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EnsureError {
    /// The wish names nothing.
    #[error("no image is named")]
    Nothing,
    /// It is not here, and there is nobody to ask.
    #[error("image {0} is not on this node, and no other node or registry is known to have it")]
    NoSource(String),
    /// The only place to ask failed.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// Every place to ask failed.
    #[error("image {image} could not be fetched: {}", .reasons.join("; "))]
    AllFailed {
        /// What the user calls it.
        image: String,
        /// One sentence for each place.
        reasons: Vec<String>,
    },
}

impl From<StoreError> for EnsureError {
    fn from(error: StoreError) -> Self {
        Self::Pull(error.into())
    }
}

/// Store, registries and what is being fetched. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    store: Store,
    registry: Registry,
    downloads: Arc<Downloads>,
    flights: Arc<Flights<Digest, Result<ImageRecord, EnsureError>>>,
    timeouts: Timeouts,
    platform: Platform,
}

impl Images {
    /// Images for this machine's platform, with the registry's time limits for other nodes too.
    pub fn new(store: Store, registry: Registry) -> Self {
        let timeouts = registry.timeouts();
        Self {
            store,
            registry,
            downloads: Arc::default(),
            flights: Arc::default(),
            timeouts,
            platform: Platform::host(),
        }
    }

    /// The store itself, for listing, serving and collecting.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// For resolving names.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Makes the image be here and tells how to run it. Asks nobody if it is here. A wish without a digest asks the
    /// registry what the name means now: tasks always have the digest. The lease keeps it from being collected
    /// until it is dropped.
    pub async fn ensure(&self, wish: Wish) -> Result<Held, EnsureError> {
        let pinned = wish.reference.as_ref().and_then(Reference::digest).copied();
        let lease = match wish.digest.or(pinned) {
            Some(digest) => {
                let lease = self.store.pin(&digest);
                if self.store.image(&digest).is_none() {
                    self.fetch(digest, wish).await?;
                }
                lease
            }
            None => {
                let reference = wish.reference.ok_or(EnsureError::Nothing)?;
                self.pull_leased(&reference, &wish.auth, wish.progress).await?
            }
        };
        let digest = *lease.digest();
        self.store.touch(&digest, now());
        let store = self.store.clone();
        let image = blocking::<_, StoreError>(move || store.resolve(&digest)).await?;
        Ok(Held { image, lease })
    }

    /// Pulls by name from the registry, as `image pull` does: the tag's present meaning, and the name is kept.
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: &RegistryAuth,
        progress: Progress,
    ) -> Result<ImageRecord, EnsureError> {
        let lease = self.pull_leased(reference, auth, progress).await?;
        Ok(self.store.image(lease.digest()).ok_or(StoreError::NoImage(*lease.digest()))?)
    }

    async fn pull_leased(
        &self,
        reference: &Reference,
        auth: &RegistryAuth,
        progress: Progress,
    ) -> Result<Pin, EnsureError> {
        let resolved = self.registry.resolve(reference, auth).await?;
        let lease = self.store.pin(&resolved.digest);
        let name = reference.without_digest();
        if self.store.image(&resolved.digest).is_none() {
            let (store, document, digest) = (self.store.clone(), resolved.document, resolved.digest);
            let put = move || Ok(store.put_document(&document, Some(digest))?);
            let _document = blocking::<StoredBlob, PullError>(put).await?;
            let wish = Wish { reference: Some(name.clone()), auth: auth.clone(), progress, ..Wish::default() };
            self.fetch(resolved.digest, wish).await?;
        }
        // A name stands for a digest only if it was asked for by name.
        if reference.digest().is_none() {
            self.store.tag(&resolved.digest, &name).await?;
        }
        self.store.touch(&resolved.digest, now());
        Ok(lease)
    }

    /// Records an image whose blobs are all in the store (archives and imports).
    pub(crate) async fn adopt(
        &self,
        digest: Digest,
        names: Vec<Reference>,
        progress: Progress,
    ) -> Result<ImageRecord, PullError> {
        let image = names.first().map_or_else(|| digest.to_string(), Reference::familiar);
        let job = self.job(digest, image, names, progress);
        pull(&self.store, &self.downloads, Arc::new(NoSource("the archive")), job).await
    }

    /// Fetches from the first source that delivers, shared with others who want the same.
    async fn fetch(&self, digest: Digest, wish: Wish) -> Result<ImageRecord, EnsureError> {
        let again = wish.clone();
        let run = |wish: Wish| -> BoxFuture<'static, Result<ImageRecord, EnsureError>> {
            let images = self.clone();
            async move { images.fetch_from_any(digest, wish).await }.boxed()
        };
        match self.flights.run(digest, || run(wish)).await {
            // The shared attempt had other peers or credentials than ours.
            (Err(_), true) => self.flights.run(digest, || run(again)).await.0,
            (outcome, _) => outcome,
        }
    }

    async fn fetch_from_any(&self, digest: Digest, wish: Wish) -> Result<ImageRecord, EnsureError> {
        let image = wish.reference.as_ref().map_or_else(|| digest.to_string(), |name| name.without_digest().familiar());
        let mut sources = wish.peers;
        if let Some(reference) = &wish.reference {
            sources.push(self.registry.source(&reference.with_digest(digest), &wish.auth));
        }
        let mut failures: Vec<(String, PullError)> = Vec::new();
        for source in sources {
            let name = source.describe();
            // What the tag means now is not known here: the name it gets says so.
            let names = wish.reference.iter().map(|name| name.pinned(digest)).collect();
            let job = self.job(digest, image.clone(), names, wish.progress.clone());
            match pull(&self.store, &self.downloads, source, job).await {
                Ok(record) => return Ok(record),
                Err(error) if !error.is_the_sources() => return Err(error.into()),
                Err(error) => {
                    tracing::info!(%image, %digest, source = %name, reason = %chain(&error), "image not fetched from here");
                    failures.push((name, error));
                }
            }
        }
        match failures.len() {
            0 => Err(EnsureError::NoSource(image)),
            1 => Err(failures.remove(0).1.into()),
            _ => {
                let reasons = failures.iter().map(|(name, error)| format!("from {name}: {}", chain(error))).collect();
                Err(EnsureError::AllFailed { image, reasons })
            }
        }
    }

    fn job(&self, digest: Digest, image: String, names: Vec<Reference>, progress: Progress) -> PullJob {
        PullJob { digest, image, platform: self.platform.clone(), names, progress, idle: self.timeouts.idle }
    }
}

/// An error with its sources in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        out = format!("{out}: {inner}");
        source = inner.source();
    }
    out
}
