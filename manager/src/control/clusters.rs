//! The swarm: get, update, join tokens, doctor.

use skep_core::change::{Change, Op};
use skep_core::object::Cluster;
use skep_core::{codec, doctor};
use skep_identity::{Caller, JoinToken, RootBundle, TokenSecret};
use skep_proto::v1::clusters_server::Clusters;
use skep_proto::v1::{
    DoctorRequest, DoctorResponse, GetClusterRequest, GetClusterResponse, JoinTokenRequest, JoinTokenResponse,
    NodeRole, UpdateClusterRequest, UpdateClusterResponse,
};
use skep_proto::validate;
use tonic::{Request, Response, Status};

use super::error::IntoStatus;
use super::services::request_id;
use super::{Control, read};

#[tonic::async_trait]
impl Clusters for Control {
    async fn get(&self, request: Request<GetClusterRequest>) -> Result<Response<GetClusterResponse>, Status> {
        Caller::of(&request)?.require_operator()?;
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
        Caller::of(&request)?.require_operator()?;
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
        Caller::of(&request)?.require_operator()?;
        let UpdateClusterRequest { spec, expect_version, write } = request.into_inner();
        let request_id = request_id(write)?;
        let spec = spec.ok_or_else(|| Status::invalid_argument("a cluster spec is needed"))?;
        validate::cluster_spec(&spec).map_err(IntoStatus::into_status)?;
        let state = read::fresh(&self.store).await?;
        let cluster = state.cluster().ok_or_else(no_cluster)?;
        validate::cluster_fixed(&cluster.spec, &spec).map_err(IntoStatus::into_status)?;
        let version = if expect_version == 0 { cluster.meta.version } else { expect_version };
        let changes = vec![Change::update(version, Op::PutCluster(Cluster { spec, ..Cluster::clone(cluster) }))];
        let written =
            self.store.write(request_id, cluster.id.to_vec(), changes).await.map_err(IntoStatus::into_status)?;
        Ok(Response::new(UpdateClusterResponse { version: written.version }))
    }

    async fn doctor(&self, request: Request<DoctorRequest>) -> Result<Response<DoctorResponse>, Status> {
        Caller::of(&request)?.require_operator()?;
        let state = self.store.state();
        // It looks at everything: not on a thread that serves others.
        let report = tokio::task::spawn_blocking(move || doctor::report(&state)).await;
        report.map(Response::new).map_err(|error| Status::internal(format!("the validator failed: {error}")))
    }
}

impl Control {
    async fn rotate_token(&self, role: NodeRole, write: Option<skep_proto::v1::WriteOptions>) -> Result<(), Status> {
        let state = read::fresh(&self.store).await?;
        let cluster = state.cluster().ok_or_else(no_cluster)?;
        let mut rotated = Cluster::clone(cluster);
        match role {
            NodeRole::Worker => rotated.worker_token_secret = rand::random(),
            NodeRole::Manager => rotated.manager_token_secret = rand::random(),
        }
        let changes = vec![Change::update(cluster.meta.version, Op::PutCluster(rotated))];
        let id = request_id(write)?;
        let written = self.store.write(id, Vec::new(), changes).await.map_err(IntoStatus::into_status)?;
        self.store.applied(written.version).await;
        Ok(())
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
