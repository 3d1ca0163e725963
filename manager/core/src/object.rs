//! Objects as the managers hold them: typed ids, shared specs. Their wire forms are in `proto/v1/objects.proto`, the
//! conversions in `codec`.

mod client;
mod cluster;
mod image_name;
mod network;
mod node;
mod parcel;
mod service;
mod task;

pub use client::Client;
pub use cluster::{Cluster, RootRotation};
pub use image_name::{Credential, ImageName};
pub use network::{Network, NetworkAddresses, Subnet};
pub use node::{ManagerStatus, Node, NodeStatus};
pub use parcel::{Data, Parcel, ParcelId, ParcelKind, ParcelSpec, Payload, PayloadKey, PayloadVersion};
pub use service::{LiveChange, Revision, RevisionKey, Service};
pub use task::{Slot, Task};

use skep_proto::time::UnixMs;

/// What the store knows of any object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Store version at the last change of the wanted part; 0 before it is stored.
    pub version: u64,
    /// When it was created; set by `apply`.
    pub created_at: UnixMs,
    /// When the wanted part last changed; set by `apply`.
    pub updated_at: UnixMs,
}
