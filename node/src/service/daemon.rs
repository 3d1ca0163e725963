//! This host's place in a swarm: info, init, join, leave, unlock.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use skep_identity::Role;
use skep_proto::v1::daemon_server::Daemon;
use skep_proto::v1::{
    InfoRequest, InfoResponse, NodeRole, SwarmInitRequest, SwarmInitResponse, SwarmJoinRequest, SwarmJoinResponse,
    SwarmLeaveRequest, SwarmLeaveResponse, UnlockRequest, UnlockResponse,
};
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use crate::host::Host;
use crate::membership::{Joined, Membership};

/// Serves `skep.v1.Daemon`.
pub(crate) struct DaemonService {
    pub(crate) host: Arc<Host>,
    pub(crate) membership: Arc<Membership>,
}

#[tonic::async_trait]
impl Daemon for DaemonService {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let standing = self.membership.standing();
        let role = standing.role.unwrap_or(Role::Worker);
        let expires = self.membership.credentials().map(|credentials| credentials.not_after());
        let expires = expires.and_then(|end| end.duration_since(UNIX_EPOCH).ok());
        Ok(Response::new(InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: standing.state.into(),
            error: match self.membership.way_back() {
                Some(way_back) => way_back,
                None if standing.error.is_empty() => self.membership.trouble(),
                None => standing.error,
            },
            node_id: standing.node.map(|node| node.to_vec()).unwrap_or_default(),
            cluster_id: standing.cluster.map(|cluster| cluster.to_vec()).unwrap_or_default(),
            role: wire_role(role).into(),
            control_available: standing.control,
            node_addr: standing.node_addr,
            manager_addrs: self.membership.managers(),
            description: Some(self.host.description()),
            data_dir: self.host.config.data_dir.display().to_string(),
            containers_running: u32::try_from(self.membership.containers_running()).unwrap_or(u32::MAX),
            images: u32::try_from(self.host.images.store().images().len()).unwrap_or(u32::MAX),
            cgroup_layout: self.host.cgroup_layout(),
            runtime: self.host.config.runtime.clone(),
            security_options: self.host.confinement(),
            cert_expires_at_ms: expires.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX)),
        }))
    }

    async fn swarm_init(&self, request: Request<SwarmInitRequest>) -> Result<Response<SwarmInitResponse>, Status> {
        let (membership, request) = (Arc::clone(&self.membership), request.into_inner());
        let founded = to_its_end(async move { membership.init(request).await }).await?;
        let unlock_key = founded.unlock_key.map(|key| key.to_text().as_str().to_owned());
        Ok(Response::new(SwarmInitResponse {
            node_id: founded.node.to_vec(),
            worker_token: founded.token.to_string(),
            manager_addr: founded.advertise_addr.to_string(),
            unlock_key: unlock_key.unwrap_or_default(),
        }))
    }

    async fn swarm_join(&self, request: Request<SwarmJoinRequest>) -> Result<Response<SwarmJoinResponse>, Status> {
        let (membership, request) = (Arc::clone(&self.membership), request.into_inner());
        let Joined { node, role, returned } = to_its_end(async move { membership.join(request).await }).await?;
        Ok(Response::new(SwarmJoinResponse { node_id: node.to_vec(), role: wire_role(role).into(), returned }))
    }

    async fn swarm_leave(&self, request: Request<SwarmLeaveRequest>) -> Result<Response<SwarmLeaveResponse>, Status> {
        let (membership, force) = (Arc::clone(&self.membership), request.into_inner().force);
        to_its_end(async move { membership.leave(force).await }).await?;
        Ok(Response::new(SwarmLeaveResponse {}))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let (membership, key) = (Arc::clone(&self.membership), Zeroizing::new(request.into_inner().unlock_key));
        to_its_end(async move { membership.unlock(&key).await }).await?;
        Ok(Response::new(UnlockResponse {}))
    }
}

/// Runs a transition in a task of its own: a caller who goes away drops the call, and must not leave this host halfway
/// in or out of a swarm.
async fn to_its_end<T: Send + 'static>(
    transition: impl Future<Output = anyhow::Result<T>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(transition).await {
        Ok(ended) => ended.map_err(|error| refused(&error)),
        Err(broken) => Err(Status::internal(format!("the daemon failed ({broken}): see its log, and restart it"))),
    }
}

fn wire_role(role: Role) -> NodeRole {
    match role {
        Role::Worker => NodeRole::Worker,
        Role::Manager => NodeRole::Manager,
    }
}

/// The whole chain of reasons as one sentence.
fn refused(error: &anyhow::Error) -> Status {
    Status::failed_precondition(crate::backoff::words(error))
}
