//! Networks: list, get, create, remove.

use skep_core::apply::Refused;
use skep_core::change::{Change, Op};
use skep_core::network::table::{self, Row};
use skep_core::network::{self, NetworkError};
use skep_core::object::{Network, Subnet};
use skep_core::store::State;
use skep_core::{apply, codec};
use skep_proto::id::{NetworkId, RequestId};
use skep_proto::v1::networks_server::Networks;
use skep_proto::v1::{
    AddressUse, CreateNetworkRequest, CreateNetworkResponse, GetNetworkRequest, GetNetworkResponse,
    ListNetworksRequest, ListNetworksResponse, MeshHealthRequest, MeshHealthResponse, NetworkDoctorRequest,
    NetworkDoctorResponse, NetworkSpec, RemoveNetworkRequest, RemoveNetworkResponse,
};
use skep_proto::validate;
use tonic::{Request, Response, Status};

use super::error::IntoStatus;
use super::services::request_id;
use super::{Control, read};
use crate::store::{WriteError, Written};

/// How often a network is chosen anew when another write took what was chosen.
const ATTEMPTS: u32 = 8;

#[tonic::async_trait]
impl Networks for Control {
    async fn list(&self, request: Request<ListNetworksRequest>) -> Result<Response<ListNetworksResponse>, Status> {
        let state = read::state(&self.store, request.into_inner().read).await?;
        let networks = state.networks().map(|network| codec::network_to_wire(network)).collect();
        let unused = state.networks().filter(|network| !apply::network_has_users(&state, network));
        let unused_ids = unused.map(|network| network.id.to_vec()).collect();
        Ok(Response::new(ListNetworksResponse { networks, version: state.version(), unused_ids }))
    }

    async fn get(&self, request: Request<GetNetworkRequest>) -> Result<Response<GetNetworkResponse>, Status> {
        let GetNetworkRequest { reference, read } = request.into_inner();
        let state = read::state(&self.store, read).await?;
        let network = state.find_network(&reference).map_err(IntoStatus::into_status)?;
        Ok(Response::new(described(&state, network)))
    }

    async fn create(&self, request: Request<CreateNetworkRequest>) -> Result<Response<CreateNetworkResponse>, Status> {
        let CreateNetworkRequest { spec, write } = request.into_inner();
        let request = request_id(write)?;
        let spec = spec.ok_or_else(|| Status::invalid_argument("a network spec is needed"))?;
        validate::network_spec(&spec).map_err(IntoStatus::into_status)?;
        let state = read::fresh(&self.store).await?;
        if let Some(first) = request.and_then(|id| state.request(id)) {
            // The first try took the name.
            let (id, version) = (first.object_id.clone(), first.version);
            return Ok(Response::new(CreateNetworkResponse { id, version }));
        }
        let Written { object_id: id, version, .. } = self.make_network(spec, request).await?;
        Ok(Response::new(CreateNetworkResponse { id, version }))
    }

    async fn remove(&self, request: Request<RemoveNetworkRequest>) -> Result<Response<RemoveNetworkResponse>, Status> {
        let RemoveNetworkRequest { reference, write } = request.into_inner();
        let request = request_id(write)?;
        let state = read::fresh(&self.store).await?;
        if let Some(first) = request.and_then(|id| state.request(id)) {
            // The first try removed it: it is not to be found any more.
            let (id, version) = (first.object_id.clone(), first.version);
            return Ok(Response::new(RemoveNetworkResponse { id, version, name: reference }));
        }
        let network = state.find_network(&reference).map_err(IntoStatus::into_status)?;
        let name = network.spec.name.clone();
        if let Some(users) = apply::network_users(&state, network) {
            let message = format!("network {name} is in use by {users}: {}", users.advice());
            // A client that is patient has its way in the end.
            return Err(match users.are_leaving() {
                true => Status::unavailable(message),
                false => Status::failed_precondition(message),
            });
        }
        let changes = vec![Change::update(network.meta.version, Op::RemoveNetwork(network.id))];
        let written = self.store.write(request, network.id.to_vec(), changes).await.map_err(IntoStatus::into_status)?;
        Ok(Response::new(RemoveNetworkResponse { id: written.object_id, version: written.version, name }))
    }

    async fn doctor(&self, request: Request<NetworkDoctorRequest>) -> Result<Response<NetworkDoctorResponse>, Status> {
        self.examine(request.into_inner()).await.map(Response::new)
    }

    async fn mesh(&self, request: Request<MeshHealthRequest>) -> Result<Response<MeshHealthResponse>, Status> {
        self.mesh_of(request.into_inner()).await.map(Response::new)
    }
}

impl Control {
    /// Chooses what the spec leaves open and stores the network; chooses anew where another write came first.
    async fn make_network(&self, spec: NetworkSpec, request: Option<RequestId>) -> Result<Written, Status> {
        let id = NetworkId::new(rand::random());
        let mut attempts = 0;
        loop {
            let state = read::fresh(&self.store).await?;
            let network = network::make(&state, id, spec.clone()).map_err(IntoStatus::into_status)?;
            attempts += 1;
            match self.store.write(request, id.to_vec(), vec![Change::create(Op::PutNetwork(network))]).await {
                Err(WriteError::Refused(Refused::Taken { .. } | Refused::Overlaps { .. })) if attempts < ATTEMPTS => {}
                written => return written.map_err(IntoStatus::into_status),
            }
        }
    }
}

impl IntoStatus for NetworkError {
    fn into_status(self) -> Status {
        let message = self.to_string();
        match self {
            Self::NameTaken { .. } | Self::IngressTaken { .. } => Status::already_exists(message),
            Self::Malformed(_) => Status::invalid_argument(message),
            Self::Overlaps { .. } | Self::HostWithin { .. } | Self::OldManagers => Status::failed_precondition(message),
            Self::PoolsExhausted | Self::NoVni => Status::resource_exhausted(message),
        }
    }
}

/// A network with everybody who is on it.
fn described(state: &State, network: &Network) -> GetNetworkResponse {
    let mut answer = GetNetworkResponse {
        network: Some(codec::network_to_wire(network)),
        version: state.version(),
        addresses: network.subnets.iter().map(|subnet| address_use(state, network, subnet)).collect(),
        ..GetNetworkResponse::default()
    };
    for row in table::rows(state, network.id).into_values() {
        match row {
            Row::Endpoint(endpoint) => answer.endpoints.push(endpoint),
            Row::Service(service) => answer.services.push(service),
            Row::Peer(peer) => answer.peers.push(peer),
        }
    }
    answer
}

/// How full a subnet is: of the addresses that may be given, without gateway and reservations.
fn address_use(state: &State, network: &Network, subnet: &Subnet) -> AddressUse {
    let (total, taken) = network::health::address_use(state, network, subnet);
    let told = |count: u128| u64::try_from(count).unwrap_or(u64::MAX).min(i64::MAX as u64);
    AddressUse { subnet: subnet.cidr.to_string(), total: told(total), taken: told(taken) }
}
