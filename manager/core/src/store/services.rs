//! Services, by id and by name, and their revisions.

use std::sync::Arc;

use imbl::OrdMap;
use skep_proto::id::ServiceId;

use super::State;
use crate::object::{Revision, RevisionKey, Service};

/// Services, the unique index by name, and all kept revisions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ServiceTable {
    by_id: OrdMap<ServiceId, Arc<Service>>,
    by_name: OrdMap<String, ServiceId>,
    revisions: OrdMap<RevisionKey, Arc<Revision>>,
}

impl ServiceTable {
    pub(super) fn put(&mut self, service: Arc<Service>) -> Option<Arc<Service>> {
        let old = self.by_id.insert(service.id, Arc::clone(&service));
        if let Some(old) = &old {
            if old.spec.name == service.spec.name {
                return Some(Arc::clone(old));
            }
            self.by_name.remove(&old.spec.name);
        }
        self.by_name.insert(service.spec.name.clone(), service.id);
        old
    }

    pub(super) fn remove(&mut self, id: ServiceId) -> Option<Arc<Service>> {
        let old = self.by_id.remove(&id)?;
        self.by_name.remove(&old.spec.name);
        Some(old)
    }

    pub(super) fn put_revision(&mut self, revision: Arc<Revision>) -> Option<Arc<Revision>> {
        self.revisions.insert(revision.key, revision)
    }

    pub(super) fn remove_revision(&mut self, key: RevisionKey) -> Option<Arc<Revision>> {
        self.revisions.remove(&key)
    }
}

impl State {
    /// The service of that id.
    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.by_id.get(&id)
    }

    /// All services, by id.
    pub fn services(&self) -> impl DoubleEndedIterator<Item = &Arc<Service>> {
        self.services.by_id.values()
    }

    /// How many services there are.
    pub fn service_count(&self) -> usize {
        self.services.by_id.len()
    }

    /// The service of that exact name.
    pub fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        self.service(*self.services.by_name.get(name)?)
    }

    /// Services whose ids lie in the range, by id.
    pub(super) fn services_between(&self, low: ServiceId, high: ServiceId) -> impl Iterator<Item = &Arc<Service>> {
        self.services.by_id.range(low..=high).map(|(_, service)| service)
    }

    /// One revision.
    pub fn revision(&self, key: RevisionKey) -> Option<&Arc<Revision>> {
        self.services.revisions.get(&key)
    }

    /// All kept revisions, by service and number.
    pub fn revisions(&self) -> impl DoubleEndedIterator<Item = &Arc<Revision>> {
        self.services.revisions.values()
    }

    /// How many revisions are kept.
    pub fn revision_count(&self) -> usize {
        self.services.revisions.len()
    }

    /// Kept revisions of a service, also of one that is gone, oldest first.
    pub fn revisions_of(&self, service: ServiceId) -> impl DoubleEndedIterator<Item = &Arc<Revision>> {
        let key = |number| RevisionKey { service, number };
        self.services.revisions.range(key(0)..=key(u64::MAX)).map(|(_, revision)| revision)
    }
}
