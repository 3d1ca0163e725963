//! How the images of a template become digests, and whose credential is shown to which registry.

use skep_core::store::State;
use skep_proto::id::CredentialId;
use skep_proto::v1::{ContainerSpec, Platform, RegistryAuth, TaskTemplate};
use tonic::Status;

use crate::control::Control;
use crate::control::error::IntoStatus;
use crate::images::ResolveError;

/// A credential and the one registry that it is for.
#[derive(Clone, PartialEq)]
pub(super) struct Login {
    /// Registry host.
    pub(super) registry: String,
    pub(super) auth: RegistryAuth,
}

impl Login {
    /// The credential that is stored for a template.
    pub(super) fn stored(state: &State, template: &TaskTemplate) -> Option<Self> {
        let id = CredentialId::from_wire_opt(&template.credential_id).ok().flatten()?;
        let credential = state.credential(id)?;
        Some(Self { registry: credential.registry.clone(), auth: credential.auth.clone() })
    }
}

/// What all tasks of a container will run.
type Resolved = (String, Vec<Platform>);

impl Control {
    /// A client's credential is for the registry of the first image.
    #[allow(clippy::result_large_err)]
    pub(super) fn login(&self, template: &TaskTemplate, auth: Option<RegistryAuth>) -> Result<Option<Login>, Status> {
        let (Some(auth), Some(first)) = (auth, template.containers.first()) else {
            return Ok(None);
        };
        let name = self.registries.parse(&first.image).map_err(IntoStatus::into_status)?;
        Ok(Some(Login { registry: name.registry, auth }))
    }

    /// Gives every container the digest that all its tasks will run. A container of `present` with the same image keeps
    /// its digest, unless the client left the digest out, which asks for a new look. Returns what a person should know.
    pub(super) async fn resolve_images(
        &self,
        state: &State,
        template: &mut TaskTemplate,
        present: Option<&TaskTemplate>,
        login: Option<&Login>,
    ) -> Result<Vec<String>, Status> {
        let mut warnings = Vec::new();
        for container in &mut template.containers {
            let kept = present.and_then(|present| digest_of(present, container));
            let is_asked = container.image_digest.is_empty();
            let (digest, platforms) = match kept {
                Some(kept) if !is_asked => kept,
                kept => match (self.resolve(state, &container.image, login).await, kept) {
                    (Ok(resolved), _) => resolved,
                    // What runs needs no registry to run on.
                    (Err(ResolveError::Unavailable(why)), Some(kept)) => {
                        warnings.push(format!("image {} stays at {}: {why}", container.image, kept.0));
                        kept
                    }
                    (Err(error), _) => return Err(error.into_status()),
                },
            };
            (container.image_digest, container.image_platforms) = (digest, platforms);
        }
        Ok(warnings)
    }

    /// Asks who may give a name to a digest: the reference itself, an operator's record, the registry.
    async fn resolve(&self, state: &State, image: &str, login: Option<&Login>) -> Result<Resolved, ResolveError> {
        let name = self.registries.parse(image)?;
        if let Some(digest) = name.digest {
            // A digest needs no one's word: whoever serves it is checked against it.
            return Ok((digest, Vec::new()));
        }
        if let Some(record) = state.image_name(&name.canonical) {
            return Ok((record.digest.clone(), record.platforms.clone()));
        }
        let auth = login.filter(|login| login.registry == name.registry).map(|login| login.auth.clone());
        let resolved = self.registries.resolve(image.to_owned(), auth).await?;
        Ok((resolved.digest, resolved.platforms))
    }
}

/// The digest that the same container runs now.
fn digest_of(present: &TaskTemplate, container: &ContainerSpec) -> Option<Resolved> {
    let is_same = |other: &&ContainerSpec| other.name == container.name && other.image == container.image;
    let same = present.containers.iter().find(is_same).filter(|same| !same.image_digest.is_empty())?;
    Some((same.image_digest.clone(), same.image_platforms.clone()))
}
