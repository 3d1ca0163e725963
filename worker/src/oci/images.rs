//! Makes images be here for tasks: own store, then other nodes, then the registry.
//!
//! An image that is here is used without asking anybody, so neither a silent registry nor a lost manager delays its start.
//! Of many tasks that need the same missing image one fetches; the others wait for it. Fetches are bounded; unpacking is
//! bounded by the store.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use skep_image::{BlobSource, Digest, EnsureError, Held, Images, Progress, Reference, RegistryAuth, Wish};
use skep_proto::v1::{ContainerSpec, Credential};
use tokio::sync::{Semaphore, watch};

use super::peers;
use super::progress::PullProgress;
use crate::executor::{ExecError, HeldImages, Supplies, TaskJob};
use crate::session::Connector;

/// Different images fetched at the same time.
const MAX_PULLS: usize = 8;
/// A node may have told its managers of an image only just now: they are asked once more after this.
const SECOND_ASK: Duration = Duration::from_millis(700);

/// Images for this node's tasks.
pub(super) struct ImageKeeper {
    images: Images,
    connector: Arc<dyn Connector>,
    pulls: Semaphore,
    /// One lock for each image being fetched.
    flights: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    held: watch::Sender<HeldImages>,
}

impl ImageKeeper {
    pub(super) fn new(images: Images, connector: Arc<dyn Connector>) -> Arc<Self> {
        let keeper = Self {
            held: watch::channel(HeldImages::default()).0,
            images,
            connector,
            pulls: Semaphore::new(MAX_PULLS),
            flights: Mutex::default(),
        };
        keeper.look();
        Arc::new(keeper)
    }

    pub(super) fn images(&self) -> &Images {
        &self.images
    }

    /// An image was in use until now.
    pub(super) fn used(&self, digest: &Digest) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.images.store().touch(digest, now);
    }

    /// Digests of held images, now and later.
    pub(super) fn held(&self) -> watch::Receiver<HeldImages> {
        self.held.subscribe()
    }

    /// Looks for images that came or went.
    fn look(&self) {
        let held: BTreeSet<String> = self.images.store().held().iter().map(ToString::to_string).collect();
        self.held.send_if_modified(|known| {
            let changed = **known != held;
            if changed {
                *known = Arc::new(held);
            }
            changed
        });
    }

    /// Follows what comes and goes in the store, by whatever hand, until the keeper is gone.
    pub(super) async fn keep_looking(keeper: Weak<Self>) {
        let Some(mut changes) = keeper.upgrade().map(|keeper| keeper.images.store().changes()) else { return };
        while let Some(keeper) = keeper.upgrade() {
            keeper.look();
            drop(keeper);
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Makes one container's image be here.
    pub(super) async fn ensure(
        &self,
        job: &TaskJob,
        spec: &ContainerSpec,
        supplies: &Arc<dyn Supplies>,
    ) -> Result<Held, ExecError> {
        let reference = Reference::parse(&spec.image)
            .map_err(|error| ExecError::caused(format!("image {:?} cannot be used", spec.image), error))?;
        let digest = if spec.image_digest.is_empty() {
            reference.digest().copied()
        } else {
            let parsed = spec.image_digest.parse::<Digest>();
            Some(parsed.map_err(|error| ExecError::caused("the manager sent a bad image digest", error))?)
        };
        let Some(digest) = digest else {
            // Only without a manager's resolving; the tag's present meaning is taken.
            let auth = self.auth(job, &reference, supplies).await;
            let wish = Wish { reference: Some(reference), auth, ..Wish::default() };
            return self.images.ensure(wish).await.map_err(|error| failed(spec, &[], error));
        };
        let pin = self.images.store().pin(&digest);
        if self.images.store().image(&digest).is_none() {
            supplies.progress(format!("pulling image {}", reference.familiar()));
            let wanted = Wanted { spec, reference: &reference, digest, supplies };
            let auth = self.auth(job, &reference, supplies).now_or_never();
            if let Fetched::WantsCredential(reasons) = self.fetch(&wanted, auth, Vec::new()).await? {
                // Waits without holding up any other fetch.
                let auth = self.auth(job, &reference, supplies).await;
                self.fetch(&wanted, Some(auth), reasons).await?;
            }
            self.look();
        }
        let here = Wish { digest: Some(digest), ..Wish::default() };
        let held = self.images.ensure(here).await.map_err(|error| failed(spec, &[], error));
        drop(pin);
        held
    }

    /// Fetches an image from other nodes or, with `auth`, its registry. `reasons` are failures so far.
    async fn fetch(
        &self,
        wanted: &Wanted<'_>,
        auth: Option<RegistryAuth>,
        mut reasons: Vec<String>,
    ) -> Result<Fetched, ExecError> {
        let flight = self.flight(wanted.digest);
        let _turn = flight.lock().await;
        if self.images.store().image(&wanted.digest).is_some() {
            return Ok(Fetched::Here);
        }
        let permit = self.pulls.acquire().await;
        let _permit = permit.map_err(|_| ExecError::new("the node is shutting down"))?;
        let peers = self.peers(wanted).await;
        let none_known = peers.is_empty();
        let Some(auth) = auth else {
            // A credential that is not there yet must not keep an image away that a node has.
            return match self.try_peers(wanted, peers, &mut reasons).await {
                true => Ok(Fetched::Here),
                false => Ok(Fetched::WantsCredential(reasons)),
            };
        };
        let wish = Wish {
            digest: Some(wanted.digest),
            reference: Some(wanted.reference.clone()),
            auth,
            peers,
            progress: teller(wanted.reference, wanted.supplies),
        };
        let Err(error) = self.images.ensure(wish).await else { return Ok(Fetched::Here) };
        if none_known {
            tokio::time::sleep(SECOND_ASK).await;
            let peers = self.peers(wanted).await;
            if self.try_peers(wanted, peers, &mut reasons).await {
                return Ok(Fetched::Here);
            }
        }
        Err(failed(wanted.spec, &reasons, error))
    }

    /// The nodes that a manager names.
    async fn peers(&self, wanted: &Wanted<'_>) -> Vec<Arc<dyn BlobSource>> {
        let image = wanted.digest.to_string();
        match wanted.supplies.image_sources(&image).await {
            Ok(answer) => peers::sources(&image, answer, &self.connector, wanted.supplies),
            Err(error) => {
                let image = wanted.reference.familiar();
                tracing::debug!(%image, error = %error.sentence(), "no other node is known to hold the image");
                Vec::new()
            }
        }
    }

    /// Whether one of `peers` gave it. Why not goes to `reasons`.
    async fn try_peers(&self, wanted: &Wanted<'_>, peers: Vec<Arc<dyn BlobSource>>, reasons: &mut Vec<String>) -> bool {
        if peers.is_empty() {
            return false;
        }
        let wish = Wish {
            digest: Some(wanted.digest),
            peers,
            progress: teller(wanted.reference, wanted.supplies),
            ..Wish::default()
        };
        let outcome = self.images.ensure(wish).await;
        if let Err(error) = &outcome {
            reasons.push(format!("from other nodes: {}", skep_image::chain(error)));
        }
        outcome.is_ok()
    }

    /// The stored credential, if it is for the image's registry.
    async fn auth(&self, job: &TaskJob, reference: &Reference, supplies: &Arc<dyn Supplies>) -> RegistryAuth {
        let Some(id) = job.credential_id() else { return RegistryAuth::Anonymous };
        registry_auth(&supplies.credential(id).await, reference.domain())
    }

    fn flight(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&digest).and_then(Weak::upgrade) {
            return flight;
        }
        flights.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::new(tokio::sync::Mutex::new(()));
        flights.insert(digest, Arc::downgrade(&flight));
        flight
    }
}

/// An image that is not here.
struct Wanted<'a> {
    spec: &'a ContainerSpec,
    reference: &'a Reference,
    digest: Digest,
    supplies: &'a Arc<dyn Supplies>,
}

/// How a fetch ended.
enum Fetched {
    Here,
    /// Not without the registry, which wants a credential that has not come. Why not otherwise.
    WantsCredential(Vec<String>),
}

/// A credential is shown to its own registry only.
fn registry_auth(credential: &Credential, domain: &str) -> RegistryAuth {
    let Some(auth) = &credential.auth else { return RegistryAuth::Anonymous };
    if credential.registry != domain {
        return RegistryAuth::Anonymous;
    }
    if !auth.token.is_empty() {
        return RegistryAuth::IdentityToken { token: auth.token.clone() };
    }
    if auth.username.is_empty() {
        return RegistryAuth::Anonymous;
    }
    RegistryAuth::Password { username: auth.username.clone(), password: auth.password.clone() }
}

/// Turns a pull's events into the task's message.
fn teller(reference: &Reference, supplies: &Arc<dyn Supplies>) -> Progress {
    let state = Mutex::new(PullProgress::new(reference.familiar()));
    let supplies = Arc::clone(supplies);
    Progress::new(move |event| {
        let line = state.lock().unwrap_or_else(PoisonError::into_inner).on(event, Instant::now());
        if let Some(line) = line {
            supplies.progress(line);
        }
    })
}

fn failed(spec: &ContainerSpec, before: &[String], error: EnsureError) -> ExecError {
    if before.is_empty() {
        return ExecError::caused(format!("cannot get image {}", spec.image), error);
    }
    ExecError::new(format!(
        "cannot get image {}: {}; from its registry: {}",
        spec.image,
        before.join("; "),
        skep_image::chain(&error)
    ))
}

#[cfg(test)]
#[path = "images_test.rs"]
mod images_test;
