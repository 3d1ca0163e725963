//! The swarm: get, update, join tokens, doctor.

use std::time::Duration;

use skep_core::apply::Refused;
use skep_core::change::{Change, Op};
use skep_core::object::Cluster;
use skep_core::{codec, doctor};
use skep_identity::{JoinToken, RootBundle, TokenSecret, UnlockKey};
use skep_proto::id::RequestId;
use skep_proto::v1::clusters_server::Clusters;
use skep_proto::v1::{
    DataKeyRequest, DataKeyResponse, DoctorRequest, DoctorResponse, GetClusterRequest, GetClusterResponse,
    JoinTokenRequest, JoinTokenResponse, ManagerKeys, NodeRole, RotateRootRequest, RotateRootResponse,
    UnlockKeyRequest, UnlockKeyResponse, UpdateClusterRequest, UpdateClusterResponse,
};
use skep_proto::validate;
use tonic::{Request, Response, Status};

use super::error::IntoStatus;
use super::services::request_id;
use super::{ATTEMPTS, Control, read, roots};
use crate::ca::signing::life_of_signer;
use crate::keys;
use crate::store::{WriteError, Written};

#[tonic::async_trait]
impl Clusters for Control {
    async fn get(&self, request: Request<GetClusterRequest>) -> Result<Response<GetClusterResponse>, Status> {
        let state = read::state(&self.store, request.into_inner().read).await?;
        let managers = state.nodes().filter(|node| node.manager.is_some()).count();
        let root_rotation = roots::status(&state, self.store.now());
        Ok(Response::new(GetClusterResponse {
            root_rotation,
            cluster: state.cluster().map(|cluster| codec::cluster_to_api(cluster)),
            version: state.version(),
            nodes: u32::try_from(state.node_count()).unwrap_or(u32::MAX),
            managers: u32::try_from(managers).unwrap_or(u32::MAX),
        }))
    }

    async fn join_token(&self, request: Request<JoinTokenRequest>) -> Result<Response<JoinTokenResponse>, Status> {
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
        let UpdateClusterRequest { spec, expect_version, write } = request.into_inner();
        let request_id = request_id(write)?;
        let spec = spec.ok_or_else(|| Status::invalid_argument("a cluster spec is needed"))?;
        validate::cluster_spec(&spec).map_err(IntoStatus::into_status)?;
        let state = read::fresh(&self.store).await?;
        let stored = state.cluster().ok_or_else(no_cluster)?;
        validate::cluster_fixed(&stored.spec, &spec).map_err(IntoStatus::into_status)?;
        let is_switched = stored.spec.autolock != spec.autolock;
        if is_switched {
            known_everywhere(stored)?;
        }
        // Asked again after an answer that was lost: it may have been switched by the first try.
        let is_awaited = is_switched || read::first_answer(&state, request_id).is_some();
        let fresh = UnlockKey::generate();
        let respec = |cluster: &Cluster| keys::switched(Cluster { spec: spec.clone(), ..cluster.clone() }, &fresh);
        let written = self.change_cluster(expect_version, request_id, respec).await?;
        let managers = if is_awaited { self.keys_everywhere(written.version).await } else { Vec::new() };
        Ok(Response::new(UpdateClusterResponse { version: written.version, managers }))
    }

    async fn unlock_key(&self, request: Request<UnlockKeyRequest>) -> Result<Response<UnlockKeyResponse>, Status> {
        let UnlockKeyRequest { rotate, write } = request.into_inner();
        let not_locked = || Status::failed_precondition("no unlock key is set: autolock is not turned on");
        let mut managers = Vec::new();
        if rotate {
            let state = read::fresh(&self.store).await?;
            if state.cluster().is_none_or(|cluster| cluster.unlock_key.is_none()) {
                return Err(Status::failed_precondition("cannot rotate because autolock is not turned on"));
            }
            let fresh = UnlockKey::generate();
            // Switched off in between, it stays so.
            let rotated = |cluster: &Cluster| Cluster {
                unlock_key: cluster.unlock_key.map(|_| *fresh.expose()),
                ..cluster.clone()
            };
            let written = self.change_cluster(0, request_id(write)?, rotated).await?;
            managers = self.keys_everywhere(written.version).await;
        }
        let state = read::fresh(&self.store).await?;
        let key = state.cluster().ok_or_else(no_cluster)?.unlock_key.ok_or_else(not_locked)?;
        let unlock_key = UnlockKey::new(key).to_text().as_str().to_owned();
        Ok(Response::new(UnlockKeyResponse { unlock_key, managers }))
    }

    async fn data_key(&self, request: Request<DataKeyRequest>) -> Result<Response<DataKeyResponse>, Status> {
        let DataKeyRequest { rotate, write } = request.into_inner();
        let state = read::fresh(&self.store).await?;
        let managers = if rotate {
            known_everywhere(state.cluster().ok_or_else(no_cluster)?)?;
            let written = self.change_cluster(0, request_id(write)?, keys::replaced).await?;
            self.keys_everywhere(written.version).await
        } else {
            self.keys_now(Duration::ZERO).await
        };
        let state = read::fresh(&self.store).await?;
        let epoch = state.cluster().ok_or_else(no_cluster)?.data_key_epoch;
        Ok(Response::new(DataKeyResponse { epoch, managers }))
    }

    async fn rotate_root(&self, request: Request<RotateRootRequest>) -> Result<Response<RotateRootResponse>, Status> {
        self.change_root(request.into_inner()).await.map(Response::new)
    }

    async fn doctor(&self, _: Request<DoctorRequest>) -> Result<Response<DoctorResponse>, Status> {
        let (state, now) = (self.store.state(), self.store.now());
        // It looks at everything: not on a thread that serves others.
        let root = state.cluster().and_then(|cluster| life_of_signer(cluster));
        let report = tokio::task::spawn_blocking(move || doctor::report(&state, root, now)).await;
        report.map(Response::new).map_err(|error| Status::internal(format!("the validator failed: {error}")))
    }
}

impl Control {
    /// Waits until the managers that answer have their keys as the state after a write of version `version` wants them.
    pub(super) async fn keys_everywhere(&self, version: u64) -> Vec<ManagerKeys> {
        self.store.applied(version).await;
        self.keys_now(keys::PATIENCE).await
    }

    async fn keys_now(&self, patience: Duration) -> Vec<ManagerKeys> {
        match &self.keys {
            Some(board) => keys::everywhere(&self.store, self.node, board, patience).await,
            None => Vec::new(),
        }
    }

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

#[allow(clippy::result_large_err)]
pub(super) fn known_everywhere(cluster: &Cluster) -> Result<(), Status> {
    if keys::is_known(cluster) {
        return Ok(());
    }
    Err(Status::failed_precondition(
        "not every manager runs a version of skep that knows this: upgrade them, and try again in a minute",
    ))
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

pub(super) fn no_cluster() -> Status {
    Status::unavailable("the swarm's state is not loaded yet: try again in a moment")
}
