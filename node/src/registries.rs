//! What the manager needs of registries, given by the image crate.

use futures::future::BoxFuture;
use skep_image::{FetchError, PullError, Reference, Registry, RegistryAuth};
use skep_manager::images::{Name, Registries, RemoteImage, ResolveError};
use skep_proto::v1;

/// Speaks to registries as this daemon is configured to.
pub(crate) struct DaemonRegistries(pub Registry);

impl Registries for DaemonRegistries {
    fn parse(&self, reference: &str) -> Result<Name, ResolveError> {
        let reference = parse(reference)?;
        Ok(Name {
            canonical: reference.without_digest().canonical(),
            registry: reference.domain().to_owned(),
            digest: reference.digest().map(ToString::to_string),
        })
    }

    fn resolve(
        &self,
        reference: String,
        auth: Option<v1::RegistryAuth>,
    ) -> BoxFuture<'static, Result<RemoteImage, ResolveError>> {
        let registry = self.0.clone();
        Box::pin(async move {
            let reference = parse(&reference)?;
            let resolved = registry.resolve(&reference, &credential(auth)).await.map_err(explain)?;
            Ok(RemoteImage {
                digest: resolved.digest.to_string(),
                platforms: resolved.platforms.into_iter().map(platform).collect(),
            })
        })
    }
}

fn parse(reference: &str) -> Result<Reference, ResolveError> {
    Reference::parse(reference).map_err(|error| ResolveError::Invalid(error.to_string()))
}

fn explain(error: PullError) -> ResolveError {
    let message = skep_image::chain(&error);
    match error {
        PullError::Fetch(FetchError::NotFound { .. }) => ResolveError::NotFound(message),
        PullError::Fetch(FetchError::Unauthorized { .. }) => ResolveError::Unauthorized(message),
        PullError::Fetch(_) | PullError::Blob(_) | PullError::Layer(_) | PullError::Store(_) => {
            ResolveError::Unavailable(message)
        }
        PullError::Manifest { .. }
        | PullError::Config { .. }
        | PullError::Platform { .. }
        | PullError::NestedIndex { .. }
        | PullError::DocumentTooLarge { .. }
        | PullError::Size { .. } => ResolveError::Invalid(message),
    }
}

/// A credential as the image crate wants it.
pub(crate) fn credential(auth: Option<v1::RegistryAuth>) -> RegistryAuth {
    match auth {
        None => RegistryAuth::Anonymous,
        Some(auth) if !auth.token.is_empty() => RegistryAuth::IdentityToken { token: auth.token },
        Some(auth) if auth.username.is_empty() => RegistryAuth::Anonymous,
        Some(auth) => RegistryAuth::Password { username: auth.username, password: auth.password },
    }
}

/// A platform in the API's form.
pub(crate) fn platform(platform: skep_image::Platform) -> v1::Platform {
    v1::Platform { os: platform.os, architecture: platform.architecture, variant: platform.variant.unwrap_or_default() }
}
