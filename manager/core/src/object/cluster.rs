//! The swarm itself.

use std::fmt;
use std::sync::Arc;

use skep_proto::id::ClusterId;
use skep_proto::time::UnixMs;
use skep_proto::v1::ClusterSpec;

use super::Meta;

/// The one swarm object: settings, root CA, join tokens.
#[derive(Clone, PartialEq)]
pub struct Cluster {
    pub id: ClusterId,
    pub meta: Meta,
    pub spec: ClusterSpec,
    /// Root certificate, PEM.
    pub root_cert_pem: String,
    /// Root key, PEM; never leaves the managers.
    pub root_key_pem: String,
    /// Secret parts of the join tokens.
    pub worker_token_secret: [u8; 16],
    pub manager_token_secret: [u8; 16],
    /// Smallest feature level of all managers.
    pub feature_level: u32,
    /// Highest Raft id ever given to a manager; ids are never used twice.
    pub last_raft_id: u64,
    /// Raised by every recovery from a lost quorum.
    pub recovery_epoch: u64,
    /// With autolock: what seals managers' keys on their disks; never leaves the managers but for an operator who asks for it.
    pub unlock_key: Option<[u8; 32]>,
    /// Raised when every manager is to replace its data key.
    pub data_key_epoch: u64,
    /// The change to another root that is under way.
    pub root_rotation: Option<Arc<RootRotation>>,
}

/// A change of the root certificate; see `ca.rs`.
#[derive(Clone, PartialEq, Eq)]
pub struct RootRotation {
    /// The new root certificate, PEM.
    pub root_cert_pem: String,
    /// Its key, PEM; never leaves the managers.
    pub root_key_pem: String,
    /// The new root as the one in force signed it, PEM.
    pub cross_signed_pem: String,
    /// SHA-256 of the new root certificate's DER form.
    pub digest: [u8; 32],
    pub started_at: UnixMs,
}

impl Cluster {
    /// A cluster with nothing in it but its id: no root, no client, the same token secrets each time. What founding gives a
    /// swarm is put in before anybody is served.
    pub fn bare(id: ClusterId) -> Self {
        Self {
            id,
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            root_cert_pem: String::new(),
            root_key_pem: String::new(),
            worker_token_secret: [0; 16],
            manager_token_secret: [1; 16],
            feature_level: 0,
            last_raft_id: 1,
            recovery_epoch: 0,
            unlock_key: None,
            data_key_epoch: 0,
            root_rotation: None,
        }
    }

    /// All certificates whose signature is trusted, PEM: the root in force first.
    pub fn trusted_roots_pem(&self) -> String {
        let next = self.root_rotation.as_ref().map_or("", |rotation| &rotation.root_cert_pem);
        format!("{}{next}", self.root_cert_pem)
    }
}

impl fmt::Debug for RootRotation {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootRotation").field("started_at", &self.started_at).finish_non_exhaustive()
    }
}

impl fmt::Debug for Cluster {
    /// Without keys and tokens, so that no log line carries them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("id", &self.id)
            .field("meta", &self.meta)
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}
