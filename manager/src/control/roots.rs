//! A change of the root certificate: begun here, carried on by `ca/rotation.rs` on the leader, and how far it is.

use std::time::SystemTime;

use skep_core::apply::Refused;
use skep_core::ca;
use skep_core::change::{Change, Op};
use skep_core::object::{Cluster, RootRotation};
use skep_core::store::State;
use skep_identity::{CaError, GivenError, NextRoot, RootBundle, RootCa};
use skep_proto::time::UnixMs;
use skep_proto::v1::{RootRotationStatus, RootRotationWait, RotateRootRequest, RotateRootResponse};
use skep_proto::validate;
use tonic::Status;
use tracing::{info, warn};

use super::clusters::{known_everywhere, no_cluster};
use super::error::IntoStatus;
use super::services::request_id;
use super::{ATTEMPTS, Control, read};
use crate::ca::validity;
use crate::store::WriteError;

/// Nodes in one answer.
const WAITS: usize = 100;

impl Control {
    /// Begins a change of the root; one that is under way ends without an effect.
    pub(super) async fn change_root(&self, request: RotateRootRequest) -> Result<RotateRootResponse, Status> {
        let id = request_id(request.write.clone())?;
        let mut attempts = 0;
        loop {
            let state = read::fresh(&self.store).await?;
            let cluster = state.cluster().ok_or_else(no_cluster)?;
            if let Some((_, version)) = read::first_answer(&state, id) {
                // What the first try began may be over: then a root that was given is the swarm's own already.
                return Ok(RotateRootResponse { version, digest: newest_digest(&state)? });
            }
            known_everywhere(cluster)?;
            let next = next(cluster, &request, self.store.now())?;
            let version = cluster.meta.version;
            let changes = vec![Change::update(version, Op::PutCluster(next))];
            attempts += 1;
            match self.store.write(id, cluster.id.to_vec(), changes).await {
                Ok(written) => {
                    self.store.applied(written.version).await;
                    let digest = newest_digest(&self.store.state())?;
                    info!("the change of the root certificate has begun");
                    return Ok(RotateRootResponse { version: written.version, digest });
                }
                // Another write came between.
                Err(WriteError::Refused(Refused::OutOfSequence { .. })) if attempts < ATTEMPTS => {}
                Err(error) => return Err(error.into_status()),
            }
        }
    }
}

/// The cluster with the next root.
#[allow(clippy::result_large_err)]
fn next(cluster: &Cluster, request: &RotateRootRequest, now: UnixMs) -> Result<Cluster, Status> {
    let mut cluster = cluster.clone();
    if request.node_cert_expiry_ms != 0 {
        cluster.spec.node_cert_expiry_ms = request.node_cert_expiry_ms;
        validate::cluster_spec(&cluster.spec).map_err(IntoStatus::into_status)?;
    }
    let current =
        RootCa::from_pem(&cluster.root_cert_pem, &cluster.root_key_pem).map_err(|error| unreadable(&error))?;
    // As certificates of nodes: by this host's clock.
    let clock = SystemTime::now();
    let (cert, key) = (&request.root_cert_pem, &request.root_key_pem);
    let next = match (cert.is_empty(), key.is_empty()) {
        (true, true) => NextRoot::generate(&current, clock),
        (false, false) => NextRoot::given(&current, cert, key, validity(&cluster), clock),
        _ => {
            return Err(Status::invalid_argument(
                "a CA certificate and its key go together: external CAs are not supported yet",
            ));
        }
    };
    let next = next.map_err(refused)?;
    let digest = next.root.cert().digest();
    if digest == current.cert().digest() {
        return Err(Status::failed_precondition("the CA certificate is the swarm's root already"));
    }
    let rotation = RootRotation {
        root_cert_pem: next.root.cert().to_pem(),
        root_key_pem: next.root.key_pem().to_string(),
        cross_signed_pem: next.cross_signed_pem,
        digest: *digest.as_bytes(),
        started_at: now,
    };
    Ok(ca::begun(&cluster, rotation))
}

/// What was given may be wrong; what was made here cannot be.
fn refused(error: GivenError) -> Status {
    use std::error::Error as _;
    let why = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    Status::invalid_argument(format!("{error}{why}"))
}

fn unreadable(error: &CaError) -> Status {
    warn!(%error, "the swarm's authority cannot be read");
    Status::internal("the swarm's authority cannot be read: see the manager's log")
}

#[allow(clippy::result_large_err)]
fn newest_digest(state: &State) -> Result<Vec<u8>, Status> {
    let cluster = state.cluster().ok_or_else(no_cluster)?;
    if let Some(rotation) = &cluster.root_rotation {
        return Ok(rotation.digest.to_vec());
    }
    let roots = RootBundle::from_pem(&cluster.root_cert_pem).map_err(|error| unreadable(&CaError::Root(error)))?;
    Ok(roots.certs()[0].digest().as_bytes().to_vec())
}

/// How far a change of the root is. Looks at every node.
pub(super) fn status(state: &State, now: UnixMs) -> Option<RootRotationStatus> {
    let rotation = state.cluster()?.root_rotation.as_ref()?;
    let progress = ca::progress(state, now)?;
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let waiting = progress.waiting.iter().take(WAITS).map(|(id, why)| RootRotationWait {
        node_id: id.to_vec(),
        hostname: state.node(*id).map(|node| node.hostname().to_owned()).unwrap_or_default(),
        reason: why.to_string(),
    });
    Some(RootRotationStatus {
        digest: rotation.digest.to_vec(),
        started_at_ms: rotation.started_at.0,
        done: count(progress.done),
        total: count(progress.done + progress.waiting.len()),
        waiting: waiting.collect(),
    })
}
