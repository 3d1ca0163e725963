//! Names that operators gave to image digests, and credentials that came with services.

use std::fmt;

use skep_proto::id::{CredentialId, ServiceId};
use skep_proto::v1::{Platform, RegistryAuth};

use super::Meta;

/// A name that an operator gave to a digest.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageName {
    /// Canonical reference with tag.
    pub name: String,
    pub meta: Meta,
    /// `sha256:…` of a manifest or index.
    pub digest: String,
    pub platforms: Vec<Platform>,
}

/// A registry credential. Write-only: the API never returns it.
#[derive(Clone, PartialEq)]
pub struct Credential {
    pub id: CredentialId,
    pub meta: Meta,
    pub service: ServiceId,
    /// Registry host.
    pub registry: String,
    pub auth: RegistryAuth,
}

impl fmt::Debug for Credential {
    /// Without the secret part.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("id", &self.id).field("registry", &self.registry).finish_non_exhaustive()
    }
}
