//! Registries by the distribution specification, v2 (opencontainers/distribution-spec). The managers call
//! [`Registry::resolve`] when a service is made; workers pull through [`Registry::source`]. Credentials are used for the one
//! call they are given for: nothing is cached between callers, so one service never pulls with another's login.
//!
//! Which scheme: HTTPS with the system's certificates; for registries on the insecure list and on loopback, as in Docker,
//! HTTPS without verification and then plain HTTP.

pub(crate) mod auth;
mod insecure;
pub(crate) mod session;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};

pub use auth::{AuthParseError, RegistryAuth};
pub use insecure::{InsecureEntry, InsecureEntryError};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::manifest::{self, Document, MAX_DOCUMENT_BYTES};
use crate::platform::Platform;
use crate::pull::PullError;
use crate::reference::Reference;
use crate::source::{BlobKind, BlobRequest, BlobSource, BlobStream, FetchError};
use crate::transfer::{Timeouts, fetch_document};
use session::Session;

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    /// Registries that may be spoken to without verified TLS (`--insecure-registry`). Loopback always is.
    pub insecure: Vec<InsecureEntry>,
    /// Certificates (PEM, one or more each) trusted besides the system's.
    pub extra_roots_pem: Vec<Vec<u8>>,
    /// How long silence is borne.
    pub timeouts: Timeouts,
}

/// What a reference means now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The image's identity: of the index if there is one, else of the manifest.
    pub digest: Digest,
    /// What it runs on; empty if its index does not say.
    pub platforms: Vec<Platform>,
    /// The document with that digest, so that a pull need not fetch it again.
    pub document: Vec<u8>,
}

/// Why a reference could not be resolved. The same as for a pull.
pub type ResolveError = PullError;

/// Speaks to all registries. Cheap to clone; connections are pooled.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    config: RegistryConfig,
    /// Made when first used: reading the system's certificates costs milliseconds and memory.
    verified: OnceLock<Result<reqwest::Client, String>>,
    unverified: OnceLock<Result<reqwest::Client, String>>,
    /// The scheme that an insecure registry answered to last.
    schemes: Mutex<HashMap<String, Scheme>>,
}

/// How a registry is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// With verification.
    Https,
    /// TLS without verification.
    UnverifiedHttps,
    /// Plain.
    Http,
}

impl Registry {
    /// Nothing is connected yet. Installs *ring* as the process's TLS provider if none is.
    pub fn new(config: RegistryConfig) -> Self {
        // Err: another one is installed already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            inner: Arc::new(Inner {
                config,
                verified: OnceLock::new(),
                unverified: OnceLock::new(),
                schemes: Mutex::default(),
            }),
        }
    }

    /// Longest silences borne.
    pub fn timeouts(&self) -> Timeouts {
        self.inner.config.timeouts
    }

    /// Asks the registry what `reference` means: its digest and platforms. A reference with a digest is checked to exist.
    pub async fn resolve(&self, reference: &Reference, auth: &RegistryAuth) -> Result<Resolved, ResolveError> {
        let source = RegistrySource::new(self, reference, auth);
        let idle = self.inner.config.timeouts.idle;
        let (digest, bytes) = match reference.digest() {
            Some(digest) => (*digest, fetch_document(&source, *digest, BlobKind::Manifest, idle).await?),
            None => source.session.manifest_by_tag(reference.tag().unwrap_or(crate::reference::DEFAULT_TAG)).await?,
        };
        let image = reference.familiar();
        let parsed =
            manifest::parse(&bytes).map_err(|error| PullError::Manifest { image: image.clone(), source: error })?;
        let platforms = match parsed {
            Document::Index(index) => index.platforms(),
            Document::Manifest(manifest) => {
                let config = fetch_document(&source, manifest.config.digest, BlobKind::Blob, idle).await?;
                let config = ImageConfig::parse(&config).map_err(|error| PullError::Config { image, source: error })?;
                vec![config.platform]
            }
        };
        Ok(Resolved { digest, platforms, document: bytes })
    }

    /// The registry's repository of `reference` as a source of its blobs.
    pub fn source(&self, reference: &Reference, auth: &RegistryAuth) -> Arc<dyn BlobSource> {
        Arc::new(RegistrySource::new(self, reference, auth))
    }
}

/// One repository, with the credentials of one call.
struct RegistrySource {
    session: Session,
}

impl RegistrySource {
    fn new(registry: &Registry, reference: &Reference, auth: &RegistryAuth) -> Self {
        Self { session: Session::new(registry.inner.clone(), reference, auth.clone()) }
    }
}

impl BlobSource for RegistrySource {
    fn describe(&self) -> String {
        self.session.describe()
    }

    fn fetch(&self, request: BlobRequest) -> BoxFuture<'_, Result<BlobStream, FetchError>> {
        self.session.fetch(request).boxed()
    }
}

impl Inner {
    /// The schemes to try for a registry, in order.
    fn schemes(&self, domain: &str) -> Vec<Scheme> {
        if let Some(scheme) = self.schemes.lock().unwrap_or_else(PoisonError::into_inner).get(domain) {
            return vec![*scheme];
        }
        match insecure::is_insecure(domain, &self.config.insecure) {
            true => vec![Scheme::UnverifiedHttps, Scheme::Http],
            false => vec![Scheme::Https],
        }
    }

    fn remember(&self, domain: &str, scheme: Scheme) {
        self.schemes.lock().unwrap_or_else(PoisonError::into_inner).insert(domain.to_owned(), scheme);
    }

    /// Forgets the scheme after a failed connection: the registry may come back with another.
    fn forget(&self, domain: &str) {
        self.schemes.lock().unwrap_or_else(PoisonError::into_inner).remove(domain);
    }

    fn client(&self, scheme: Scheme) -> Result<&reqwest::Client, String> {
        let verify = scheme == Scheme::Https;
        let slot = if verify { &self.verified } else { &self.unverified };
        slot.get_or_init(|| self.build_client(verify)).as_ref().map_err(Clone::clone)
    }

    fn build_client(&self, verify: bool) -> Result<reqwest::Client, String> {
        let mut roots = Vec::new();
        for pem in &self.config.extra_roots_pem {
            roots.extend(reqwest::Certificate::from_pem_bundle(pem).map_err(|error| session::innermost(&error))?);
        }
        let redirects = reqwest::redirect::Policy::custom(move |attempt| {
            let downgrade = verify && attempt.url().scheme() != "https";
            match attempt.previous().len() {
                _ if downgrade => attempt.error("it redirects from https to plain http"),
                0..=5 => attempt.follow(),
                _ => attempt.error("it redirects too often"),
            }
        });
        let builder = reqwest::Client::builder();
        // Insecure registries are on loopback or the own network: not behind a proxy of the environment.
        let builder = if verify { builder } else { builder.no_proxy() };
        builder
            .user_agent(concat!("skep/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.config.timeouts.connect)
            // A backstop: each wait is bounded, more tightly, where it happens.
            .read_timeout(self.config.timeouts.idle * 2)
            .redirect(redirects)
            .tls_certs_merge(roots)
            .tls_danger_accept_invalid_certs(!verify)
            .build()
            .map_err(|error| session::innermost(&error))
    }
}

/// Reads the body of a small answer, at most [`MAX_DOCUMENT_BYTES`]. `None` if it is larger.
async fn small_body(response: reqwest::Response) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut bytes = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece?);
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            return Ok(None);
        }
    }
    Ok(Some(bytes))
}
