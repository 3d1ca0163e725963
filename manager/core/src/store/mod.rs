//! The replicated state: typed tables with secondary indexes over persistent maps, so that a clone is a snapshot and
//! costs nothing. Read by everything; written by `apply` and by snapshot restore only. It stores and indexes; it never
//! decides: what may be stored is `apply`'s question, what should be is the loops'.

mod clients;
mod find;
mod images;
mod networks;
mod nodes;
mod object;
mod parcels;
mod requests;
mod services;
mod taken;
mod tasks;

#[cfg(test)]
mod store_test;

use std::sync::Arc;

pub use find::{FindError, Kind};
pub use networks::Holder;
pub use object::{Object, ObjectKey};
pub(crate) use parcels::payload_ref_count;
pub use parcels::{PayloadRef, payload_refs};
pub use requests::RequestRecord;
pub use taken::TakenAddresses;
pub use tasks::{HostPort, TaskCounts};

use skep_proto::id::NetworkId;
use skep_proto::v1::TaskTemplate;

use crate::object::Cluster;

/// The whole state. Cloning is O(1): the clone shares everything and never sees later changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    version: u64,
    cluster: Option<Arc<Cluster>>,
    nodes: nodes::NodeTable,
    services: services::ServiceTable,
    tasks: tasks::TaskTable,
    images: images::ImageTable,
    networks: networks::NetworkTable,
    parcels: parcels::ParcelTable,
    clients: clients::ClientTable,
    requests: requests::RequestTable,
}

impl State {
    /// Store version: how many transactions were applied. 0: nothing yet.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The swarm object; `None` before `swarm init`'s transaction.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    /// The stored object of that key.
    pub fn get(&self, key: &ObjectKey) -> Option<Object> {
        match key {
            ObjectKey::Cluster => self.cluster().cloned().map(Object::Cluster),
            ObjectKey::Node(id) => self.node(*id).cloned().map(Object::Node),
            ObjectKey::Service(id) => self.service(*id).cloned().map(Object::Service),
            ObjectKey::Revision(key) => self.revision(*key).cloned().map(Object::Revision),
            ObjectKey::Task(id) => self.task(*id).cloned().map(Object::Task),
            ObjectKey::ImageName(name) => self.image_name(name).cloned().map(Object::ImageName),
            ObjectKey::Credential(id) => self.credential(*id).cloned().map(Object::Credential),
            ObjectKey::Network(id) => self.network(*id).cloned().map(Object::Network),
            ObjectKey::Parcel(id) => self.parcel(*id).cloned().map(Object::Parcel),
            ObjectKey::Payload(key) => self.payload(*key).cloned().map(Object::Payload),
            ObjectKey::Client(id) => self.client(*id).cloned().map(Object::Client),
        }
    }

    /// Whether there is an object of that key.
    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.get(key).is_some()
    }

    /// How many objects there are.
    pub fn object_count(&self) -> usize {
        usize::from(self.cluster.is_some())
            + self.node_count()
            + self.service_count()
            + self.revision_count()
            + self.task_count()
            + self.image_names().count()
            + self.credentials().count()
            + self.network_count()
            + self.parcel_count()
            + self.payload_count()
            + self.client_count()
    }

    /// Every stored object, kind by kind in the order of `Object`, each kind in the order of its keys.
    pub fn objects(&self) -> impl Iterator<Item = Object> {
        let cluster = self.cluster.iter().cloned().map(Object::Cluster);
        cluster
            .chain(self.nodes().cloned().map(Object::Node))
            .chain(self.services().cloned().map(Object::Service))
            .chain(self.revisions().cloned().map(Object::Revision))
            .chain(self.tasks().cloned().map(Object::Task))
            .chain(self.image_names().cloned().map(Object::ImageName))
            .chain(self.credentials().cloned().map(Object::Credential))
            .chain(self.networks().cloned().map(Object::Network))
            .chain(self.parcels().cloned().map(Object::Parcel))
            .chain(self.payloads().cloned().map(Object::Payload))
            .chain(self.clients().cloned().map(Object::Client))
    }

    /// Stores an object as it is, unchecked, in all its indexes; returns what it replaced. For `apply`, snapshot
    /// restore, and tests that build a state. Unique keys (names, host ports) must have been checked.
    pub fn put(&mut self, object: impl Into<Object>) -> Option<Object> {
        let object = object.into();
        let old = self.put_in_table(object.clone());
        self.networks.reindex(old.as_ref(), Some(&object));
        self.parcels.reindex(old.as_ref(), Some(&object));
        self.reattach(&object.key());
        old
    }

    fn put_in_table(&mut self, object: Object) -> Option<Object> {
        match object {
            Object::Cluster(cluster) => self.cluster.replace(cluster).map(Object::Cluster),
            Object::Node(node) => self.nodes.put(node).map(Object::Node),
            Object::Service(service) => self.services.put(service).map(Object::Service),
            Object::Revision(revision) => self.services.put_revision(revision).map(Object::Revision),
            Object::Task(task) => self.tasks.put(task).map(Object::Task),
            Object::ImageName(name) => self.images.put_name(name).map(Object::ImageName),
            Object::Credential(credential) => self.images.put_credential(credential).map(Object::Credential),
            Object::Network(network) => self.networks.put(network).map(Object::Network),
            Object::Parcel(parcel) => self.parcels.put(parcel).map(Object::Parcel),
            Object::Payload(payload) => self.parcels.put_payload(payload).map(Object::Payload),
            Object::Client(client) => self.clients.put(client).map(Object::Client),
        }
    }

    /// Removes an object from all its indexes, unchecked; returns it.
    pub fn remove(&mut self, key: &ObjectKey) -> Option<Object> {
        let old = self.remove_from_table(key)?;
        self.networks.reindex(Some(&old), None);
        self.parcels.reindex(Some(&old), None);
        self.reattach(key);
        Some(old)
    }

    /// Takes note of the networks that a service's current template attaches to, after the service or a revision changed.
    fn reattach(&mut self, key: &ObjectKey) {
        let id = match key {
            ObjectKey::Service(id) => *id,
            ObjectKey::Revision(key) => key.service,
            _ => return,
        };
        let current = self.service(id).and_then(|service| self.revision(service.current()));
        let attached = current.map(|revision| attached_networks(&revision.template)).unwrap_or_default();
        self.networks.attach(id, attached);
    }

    fn remove_from_table(&mut self, key: &ObjectKey) -> Option<Object> {
        match key {
            ObjectKey::Cluster => self.cluster.take().map(Object::Cluster),
            ObjectKey::Node(id) => self.nodes.remove(*id).map(Object::Node),
            ObjectKey::Service(id) => self.services.remove(*id).map(Object::Service),
            ObjectKey::Revision(key) => self.services.remove_revision(*key).map(Object::Revision),
            ObjectKey::Task(id) => self.tasks.remove(*id).map(Object::Task),
            ObjectKey::ImageName(name) => self.images.remove_name(name).map(Object::ImageName),
            ObjectKey::Credential(id) => self.images.remove_credential(*id).map(Object::Credential),
            ObjectKey::Network(id) => self.networks.remove(*id).map(Object::Network),
            ObjectKey::Parcel(id) => self.parcels.remove(*id).map(Object::Parcel),
            ObjectKey::Payload(key) => self.parcels.remove_payload(*key).map(Object::Payload),
            ObjectKey::Client(id) => self.clients.remove(*id).map(Object::Client),
        }
    }

    /// Sets the store version. For `apply`, snapshot restore, and tests.
    pub fn set_version(&mut self, version: u64) {
        self.version = version;
    }

    /// Builds all indexes anew and compares. For the validator; the message names the table that differs.
    pub(crate) fn check_indexes(&self) -> Result<(), String> {
        let mut fresh = Self::default();
        for object in self.objects() {
            fresh.put(object);
        }
        for request in self.requests() {
            fresh.put_request(request.clone());
        }
        for (node, until) in self.denied() {
            fresh.deny(node, until);
        }
        let tables = [
            ("nodes", self.nodes == fresh.nodes),
            ("services", self.services == fresh.services),
            ("tasks", self.tasks == fresh.tasks),
            ("images", self.images == fresh.images),
            ("networks", self.networks == fresh.networks),
            ("secrets and configs", self.parcels == fresh.parcels),
            ("clients", self.clients == fresh.clients),
            ("requests", self.requests == fresh.requests),
        ];
        match tables.into_iter().find(|(_, same)| !same) {
            Some((table, _)) => {
                Err(format!("the indexes of the {table} do not match the objects: restart this manager"))
            }
            None => Ok(()),
        }
    }
}

/// The networks that tasks of a template attach to, in its order. An id that does not parse, which the API refuses, is
/// left out.
pub fn attached_networks(template: &TaskTemplate) -> Vec<NetworkId> {
    template.networks.iter().filter_map(|one| NetworkId::from_wire(&one.network_id).ok()).collect()
}
