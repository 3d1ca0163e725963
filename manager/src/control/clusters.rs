//! The swarm: get, update, join tokens, doctor.

use skep_core::apply::Refused;
use skep_core::change::{Change, Op};
use skep_core::object::Cluster;
use skep_core::{codec, doctor};
use skep_identity::{JoinToken, RootBundle, TokenSecret};
use skep_proto::id::RequestId;
use skep_proto::v1::clusters_server::Clusters;
use skep_proto::v1::{
    DoctorRequest, DoctorResponse, GetClusterRequest, GetClusterResponse, JoinTokenRequest, JoinTokenResponse,
    NodeRole, UpdateClusterRequest, UpdateClusterResponse,
};
use skep_proto::validate;
use tonic::{Request, Response, Status};

use super::error::IntoStatus;
use super::services::request_id;
use super::{ATTEMPTS, Control, read};
use crate::callers;
use crate::store::{WriteError, Written};

#[tonic::async_trait]
impl Clusters for Control {
    async fn get(&self, request: Request<GetClusterRequest>) -> Result<Response<GetClusterResponse>, Status> {
        callers::operator(&self.store, &request)?;
        let state = read::state(&self.store, request.into_inner().read).await?;
        let managers = state.nodes().filter(|node| node.manager.is_some()).count();
        Ok(Response::new(GetClusterResponse {
            cluster: state.cluster().map(|cluster| codec::cluster_to_api(cluster)),
            version: state.version(),
            nodes: u32::try_from(state.node_count()).unwrap_or(u32::MAX),
            managers: u32::try_from(managers).unwrap_or(u32::MAX),
        }))
    }

    async fn join_token(&self, request: Request<JoinTokenRequest>) -> Result<Response<JoinTokenResponse>, Status> {
        callers::operator(&self.store, &request)?;
        let request = request.into_inner();
        let role = request.role();
        if request.rotate {
            self.rotate_token(role, request.write).await?;
        }
        // A token that was rotated elsewhere is of no use.
        let state = read::fresh(&self.store).await?;
        let cluster = state.cluster().ok_or_else(no_cluster)?;
        // The manager that answers lives: it comes first.
        let own = state.node(self.node).and_then(|node| node.manager.as_ref());
        let manager = own.or_else(|| state.nodes().find_map(|node| node.manager.as_ref()));
        let manager_addr = manager.map(|manager| manager.addr.clone());
        Ok(Response::new(JoinTokenResponse {
            token: token(cluster, role)?.to_string(),
            manager_addr: manager_addr.unwrap_or_default(),
        }))
    }

    async fn update(&self, request: Request<UpdateClusterRequest>) -> Result<Response<UpdateClusterResponse>, Status> {
        callers::operator(&self.store, &request)?;
        let UpdateClusterRequest { spec, expect_version, write } = request.into_inner();
        let request_id = request_id(write)?;
        let spec = spec.ok_or_else(|| Status::invalid_argument("a cluster spec is needed"))?;
        validate::cluster_spec(&spec).map_err(IntoStatus::into_status)?;
        let state = read::fresh(&self.store).await?;
        let stored = state.cluster().ok_or_else(no_cluster)?;
        validate::cluster_fixed(&stored.spec, &spec).map_err(IntoStatus::into_status)?;
        let respec = |cluster: &Cluster| Cluster { spec: spec.clone(), ..cluster.clone() };
        let written = self.change_cluster(expect_version, request_id, respec).await?;
        Ok(Response::new(UpdateClusterResponse { version: written.version }))
    }

    async fn doctor(&self, request: Request<DoctorRequest>) -> Result<Response<DoctorResponse>, Status> {
        callers::operator(&self.store, &request)?;
        let state = self.store.state();
        // It looks at everything: not on a thread that serves others.
        let report = tokio::task::spawn_blocking(move || doctor::report(&state)).await;
        report.map(Response::new).map_err(|error| Status::internal(format!("the validator failed: {error}")))
    }
}

impl Control {
    async fn rotate_token(&self, role: NodeRole, write: Option<skep_proto::v1::WriteOptions>) -> Result<(), Status> {
        let secret = rand::random();
        let rotate = |cluster: &Cluster| match role {
            NodeRole::Worker => Cluster { worker_token_secret: secret, ..cluster.clone() },
            NodeRole::Manager => Cluster { manager_token_secret: secret, ..cluster.clone() },
        };
        let written = self.change_cluster(0, request_id(write)?, rotate).await?;
        self.store.applied(written.version).await;
        Ok(())
    }

    /// Writes the swarm's object. With `expect_version` 0 it is tried again when another write (a manager that enters,
    /// say) came between.
    async fn change_cluster(
        &self,
        expect_version: u64,
        request: Option<RequestId>,
        change: impl Fn(&Cluster) -> Cluster,
    ) -> Result<Written, Status> {
        let mut attempts = 0;
        loop {
            let state = read::fresh(&self.store).await?;
            let cluster = state.cluster().ok_or_else(no_cluster)?;
            let version = if expect_version == 0 { cluster.meta.version } else { expect_version };
            let changes = vec![Change::update(version, Op::PutCluster(change(cluster)))];
            attempts += 1;
            match self.store.write(request, cluster.id.to_vec(), changes).await {
                Ok(written) => return Ok(written),
                Err(WriteError::Refused(Refused::OutOfSequence { .. }))
                    if expect_version == 0 && attempts < ATTEMPTS => {}
                Err(error) => return Err(error.into_status()),
            }
        }
    }
}

/// The join token of a role, as printed.
pub(crate) fn token(cluster: &Cluster, role: NodeRole) -> Result<JoinToken, Status> {
    let roots = RootBundle::from_pem(&cluster.root_cert_pem)
        .map_err(|error| Status::internal(format!("the swarm's root certificate cannot be read: {error}")))?;
    let root = roots.certs().first().ok_or_else(no_cluster)?;
    let secret = match role {
        NodeRole::Worker => cluster.worker_token_secret,
        NodeRole::Manager => cluster.manager_token_secret,
    };
    Ok(JoinToken::new(root.digest(), TokenSecret::new(secret)))
}

fn no_cluster() -> Status {
    Status::unavailable("the swarm's state is not loaded yet: try again in a moment")
}
