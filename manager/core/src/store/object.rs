//! Any stored object, for what treats all kinds alike: events, undo, snapshots, digests.

use std::fmt;
use std::sync::Arc;

use skep_proto::id::{ClientId, CredentialId, NetworkId, NodeId, ServiceId, TaskId};

use crate::object::{
    Client, Cluster, Credential, ImageName, Meta, Network, Node, Parcel, ParcelId, Payload, PayloadKey, Revision,
    RevisionKey, Service, Task,
};

/// A stored object of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Cluster(Arc<Cluster>),
    Node(Arc<Node>),
    Service(Arc<Service>),
    Revision(Arc<Revision>),
    Task(Arc<Task>),
    ImageName(Arc<ImageName>),
    Credential(Arc<Credential>),
    Network(Arc<Network>),
    Parcel(Arc<Parcel>),
    Payload(Arc<Payload>),
    Client(Arc<Client>),
}

/// What an object is stored under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// There is one.
    Cluster,
    Node(NodeId),
    Service(ServiceId),
    Revision(RevisionKey),
    Task(TaskId),
    ImageName(String),
    Credential(CredentialId),
    Network(NetworkId),
    Parcel(ParcelId),
    Payload(PayloadKey),
    Client(ClientId),
}

impl Object {
    /// What it is stored under.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Cluster(_) => ObjectKey::Cluster,
            Self::Node(node) => ObjectKey::Node(node.id),
            Self::Service(service) => ObjectKey::Service(service.id),
            Self::Revision(revision) => ObjectKey::Revision(revision.key),
            Self::Task(task) => ObjectKey::Task(task.id),
            Self::ImageName(name) => ObjectKey::ImageName(name.name.clone()),
            Self::Credential(credential) => ObjectKey::Credential(credential.id),
            Self::Network(network) => ObjectKey::Network(network.id),
            Self::Parcel(parcel) => ObjectKey::Parcel(parcel.id),
            Self::Payload(payload) => ObjectKey::Payload(payload.key),
            Self::Client(client) => ObjectKey::Client(client.id),
        }
    }

    /// Version and times; `None` for revisions and payloads, which never change.
    pub fn meta(&self) -> Option<Meta> {
        match self {
            Self::Cluster(cluster) => Some(cluster.meta),
            Self::Node(node) => Some(node.meta),
            Self::Service(service) => Some(service.meta),
            Self::Revision(_) | Self::Payload(_) => None,
            Self::Task(task) => Some(task.meta),
            Self::ImageName(name) => Some(name.meta),
            Self::Credential(credential) => Some(credential.meta),
            Self::Network(network) => Some(network.meta),
            Self::Parcel(parcel) => Some(parcel.meta),
            Self::Client(client) => Some(client.meta),
        }
    }
}

impl fmt::Display for ObjectKey {
    /// "task 3kd…", "service …", as messages name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("the cluster object"),
            Self::Node(id) => write!(f, "node {id}"),
            Self::Service(id) => write!(f, "service {id}"),
            Self::Revision(key) => write!(f, "revision {} of service {}", key.number, key.service),
            Self::Task(id) => write!(f, "task {id}"),
            Self::ImageName(name) => write!(f, "image name {name}"),
            Self::Credential(id) => write!(f, "credential {id}"),
            Self::Network(id) => write!(f, "network {id}"),
            Self::Parcel(id) => write!(f, "{id}"),
            Self::Payload(key) => write!(f, "{key}"),
            Self::Client(id) => write!(f, "client {id}"),
        }
    }
}

macro_rules! into_object {
    ($($kind:ident),+) => {$(
        impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Arc::new(object))
            }
        }
        impl From<Arc<$kind>> for Object {
            fn from(object: Arc<$kind>) -> Self {
                Self::$kind(object)
            }
        }
    )+};
}

into_object!(Cluster, Node, Service, Revision, Task, ImageName, Credential, Network, Parcel, Payload, Client);
