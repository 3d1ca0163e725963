//! Image names, and registry credentials with the index by service.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use skep_proto::id::{CredentialId, ServiceId};

use super::State;
use crate::object::{Credential, ImageName};

/// Image names and credentials.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ImageTable {
    names: OrdMap<String, Arc<ImageName>>,
    credentials: OrdMap<CredentialId, Arc<Credential>>,
    by_service: OrdSet<(ServiceId, CredentialId)>,
}

impl ImageTable {
    pub(super) fn put_name(&mut self, name: Arc<ImageName>) -> Option<Arc<ImageName>> {
        self.names.insert(name.name.clone(), name)
    }

    pub(super) fn remove_name(&mut self, name: &str) -> Option<Arc<ImageName>> {
        self.names.remove(name)
    }

    pub(super) fn put_credential(&mut self, credential: Arc<Credential>) -> Option<Arc<Credential>> {
        let (service, id) = (credential.service, credential.id);
        let old = self.credentials.insert(id, credential);
        if let Some(old) = &old {
            self.by_service.remove(&(old.service, id));
        }
        self.by_service.insert((service, id));
        old
    }

    pub(super) fn remove_credential(&mut self, id: CredentialId) -> Option<Arc<Credential>> {
        let old = self.credentials.remove(&id)?;
        self.by_service.remove(&(old.service, id));
        Some(old)
    }
}

impl State {
    /// The digest that an operator gave this canonical name to.
    pub fn image_name(&self, name: &str) -> Option<&Arc<ImageName>> {
        self.images.names.get(name)
    }

    /// All image names, sorted.
    pub fn image_names(&self) -> impl DoubleEndedIterator<Item = &Arc<ImageName>> {
        self.images.names.values()
    }

    /// The credential of that id.
    pub fn credential(&self, id: CredentialId) -> Option<&Arc<Credential>> {
        self.images.credentials.get(&id)
    }

    /// All credentials, by id.
    pub fn credentials(&self) -> impl DoubleEndedIterator<Item = &Arc<Credential>> {
        self.images.credentials.values()
    }

    /// Credentials that came with a service, by id.
    pub fn credentials_of(&self, service: ServiceId) -> impl Iterator<Item = &Arc<Credential>> {
        let low = (service, CredentialId::new(0));
        let high = (service, CredentialId::new(u128::MAX));
        self.images.by_service.range(low..=high).filter_map(|(_, id)| self.images.credentials.get(id))
    }

    /// The newest credential of a service.
    pub fn credential_of(&self, service: ServiceId) -> Option<&Arc<Credential>> {
        self.credentials_of(service).max_by_key(|credential| credential.meta.version)
    }
}
