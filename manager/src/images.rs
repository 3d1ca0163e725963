//! How image names become digests. The manager declares what it needs; the daemon gives it an implementation that can
//! speak to registries. A name becomes a digest only through a registry or through a record that an operator wrote.

use futures::future::BoxFuture;
use skep_proto::v1::{Platform, RegistryAuth};

/// What a registry says of a reference.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteImage {
    /// `sha256:…` of the manifest or index.
    pub digest: String,
    /// Platforms it offers; empty: not said.
    pub platforms: Vec<Platform>,
}

/// A reference, taken apart by Docker's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// `docker.io/library/web:1`, without a digest.
    pub canonical: String,
    /// Registry host (`docker.io`, `registry.example:5000`).
    pub registry: String,
    /// The digest that the reference itself carries.
    pub digest: Option<String>,
}

/// Why a reference does not become a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// It is not a reference.
    #[error("{0}")]
    Invalid(String),
    /// The registry has no such image, or does not show it to this caller.
    #[error("{0}")]
    NotFound(String),
    /// The registry wants another credential.
    #[error("{0}")]
    Unauthorized(String),
    /// The registry does not answer, or not sensibly.
    #[error("{0}")]
    Unavailable(String),
}

/// Speaks to registries for the manager.
pub trait Registries: Send + Sync + 'static {
    /// Takes a reference apart. Pure.
    fn parse(&self, reference: &str) -> Result<Name, ResolveError>;

    /// Asks the reference's registry. Bounded in time by the implementation.
    fn resolve(
        &self,
        reference: String,
        auth: Option<RegistryAuth>,
    ) -> BoxFuture<'static, Result<RemoteImage, ResolveError>>;
}
