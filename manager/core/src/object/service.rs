//! Services and their revisions.

use std::sync::Arc;

use skep_proto::id::ServiceId;
use skep_proto::time::UnixMs;
use skep_proto::v1::{PortSpec, ServiceSpec, TaskTemplate, UpdateStatus};

use super::{Meta, NetworkAddresses};

/// A service. Its template is in the revision that `revision` names; `spec.template` is empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub id: ServiceId,
    pub meta: Meta,
    pub spec: Arc<ServiceSpec>,
    /// Number of the current revision; rises only.
    pub revision: u64,
    /// Resolved ports, in the order of the spec's.
    pub ports: Vec<PortSpec>,
    /// The newest update or rollback. `None`: never updated.
    pub update: Option<Arc<UpdateStatus>>,
    /// Its virtual addresses, one entry for each network. Empty with dnsrr.
    pub virtual_addresses: Vec<NetworkAddresses>,
}

/// Names one revision of one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevisionKey {
    pub service: ServiceId,
    pub number: u64,
}

/// An immutable task template.
#[derive(Clone, Debug, PartialEq)]
pub struct Revision {
    pub key: RevisionKey,
    pub template: Arc<TaskTemplate>,
    pub created_at: UnixMs,
    /// The revision that a rollback copied.
    pub copied_from: Option<u64>,
    /// For tasks that outlive their service.
    pub service_name: Arc<str>,
    /// Running tasks of an earlier revision take this one over in place: only versions of secrets and configs differ.
    pub live: Option<LiveChange>,
}

/// How running tasks take over new versions of secrets and configs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveChange {
    /// The revision whose tasks do.
    pub from_revision: u64,
    /// Signal to the first process of each container whose files changed. Empty: none.
    pub signal: String,
}

impl Service {
    /// Key of the current revision.
    pub fn current(&self) -> RevisionKey {
        RevisionKey { service: self.id, number: self.revision }
    }
}
