//! `Clients`: people with certificates. A certificate says who its holder is; what he may do is in the state, where the gate
//! reads it at each call (`callers.rs`).

use std::time::{Duration, SystemTime};

use skep_core::change::{Change, Op};
use skep_core::object::{Client, Meta};
use skep_core::store::State;
use skep_core::{clients, codec};
use skep_identity::ca::DEFAULT_NODE_VALIDITY;
use skep_identity::{ClientGrant, IssuedCertificate};
use skep_proto::id::{ClientId, RequestId};
use skep_proto::time::UnixMs;
use skep_proto::v1::clients_server::Clients;
use skep_proto::v1::{
    ClientRole, CreateClientRequest, CreateClientResponse, GetClientRequest, GetClientResponse, ListClientsRequest,
    ListClientsResponse, RemoveClientRequest, RemoveClientResponse,
};
use skep_proto::validate;
use tonic::{Request, Response, Status};
use tracing::info;

use super::error::IntoStatus;
use super::services::request_id;
use super::{Control, read};

/// The shortest life of a person's certificate, and the longest that is taken for one: it ends with the root anyway.
const CERT_EXPIRY: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(3600)..=Duration::from_secs(20 * 365 * 24 * 3600);

#[tonic::async_trait]
impl Clients for Control {
    async fn list(&self, request: Request<ListClientsRequest>) -> Result<Response<ListClientsResponse>, Status> {
        let state = read::state(&self.store, request.into_inner().read).await?;
        let clients = state.clients().map(|client| codec::client_to_wire(client)).collect();
        Ok(Response::new(ListClientsResponse { clients, version: state.version() }))
    }

    async fn get(&self, request: Request<GetClientRequest>) -> Result<Response<GetClientResponse>, Status> {
        let GetClientRequest { reference, read } = request.into_inner();
        let state = read::state(&self.store, read).await?;
        let client = state.find_client(&reference).map_err(IntoStatus::into_status)?;
        let client = Some(codec::client_to_wire(client));
        Ok(Response::new(GetClientResponse { client, version: state.version() }))
    }

    async fn create(&self, request: Request<CreateClientRequest>) -> Result<Response<CreateClientResponse>, Status> {
        let request = request.into_inner();
        validate::name("name", &request.name).map_err(IntoStatus::into_status)?;
        let role = ClientRole::try_from(request.role)
            .map_err(|_| Status::invalid_argument("role: it is none of viewer, operator, admin"))?;
        let validity = validity(request.cert_expiry_ms)?;
        let request_id = request_id(request.write.clone())?;
        let state = read::fresh(&self.store).await?;
        if !clients::all_managers_know(&state) {
            let message = "some managers run a version that knows no clients: upgrade skep on all managers";
            return Err(Status::failed_precondition(message));
        }
        if let Some((id, version)) = read::first_answer(&state, request_id) {
            return self.made_before(&state, &id, version, &request.csr_pem, validity);
        }
        // Signed first: a request that cannot be signed makes no client.
        let id = ClientId::new(rand::random());
        let signed = self.sign(&state, &request.csr_pem, id, validity)?;
        let client = Client {
            id,
            meta: Meta::default(),
            name: request.name.clone(),
            role,
            cert_not_after: UnixMs(unix_ms(signed.not_after)),
        };
        self.store_client(client, request_id, signed, &request.csr_pem, validity).await
    }

    async fn remove(&self, request: Request<RemoveClientRequest>) -> Result<Response<RemoveClientResponse>, Status> {
        let RemoveClientRequest { reference, write } = request.into_inner();
        let request_id = request_id(write)?;
        let state = read::fresh(&self.store).await?;
        if let Some((id, version)) = read::first_answer(&state, request_id) {
            // The first try removed it: it is not to be found any more.
            return Ok(Response::new(RemoveClientResponse { id, version, name: reference }));
        }
        let client = state.find_client(&reference).map_err(IntoStatus::into_status)?;
        let changes = vec![Change::update(client.meta.version, Op::RemoveClient(client.id))];
        let written =
            self.store.write(request_id, client.id.to_vec(), changes).await.map_err(IntoStatus::into_status)?;
        info!(client = client.name, id = %client.id, "a client was removed");
        let name = client.name.clone();
        Ok(Response::new(RemoveClientResponse { id: written.object_id, version: written.version, name }))
    }
}

impl Control {
    async fn store_client(
        &self,
        client: Client,
        request: Option<RequestId>,
        signed: IssuedCertificate,
        csr_pem: &str,
        validity: Duration,
    ) -> Result<Response<CreateClientResponse>, Status> {
        let (id, name, role) = (client.id, client.name.clone(), client.role);
        let changes = vec![Change::create(Op::PutClient(client))];
        let written = self.store.write(request, id.to_vec(), changes).await.map_err(IntoStatus::into_status)?;
        self.store.applied(written.version).await;
        let state = self.store.state();
        if written.object_id != id.to_vec() {
            // Another try of the same request was first.
            return self.made_before(&state, &written.object_id, written.version, csr_pem, validity);
        }
        info!(client = name, %id, role = role.as_str_name(), "a client was made");
        self.client_answer(&state, id, written.version, signed)
    }

    /// The answer for a client that an earlier try made: another certificate, for the same one.
    #[allow(clippy::result_large_err)]
    fn made_before(
        &self,
        state: &State,
        id: &[u8],
        version: u64,
        csr_pem: &str,
        validity: Duration,
    ) -> Result<Response<CreateClientResponse>, Status> {
        let id = ClientId::from_wire(id).ok().filter(|id| state.client(*id).is_some());
        let id = id.ok_or_else(|| Status::invalid_argument("the request id was used for something else"))?;
        let signed = self.sign(state, csr_pem, id, validity)?;
        self.client_answer(state, id, version, signed)
    }

    #[allow(clippy::result_large_err)]
    fn client_answer(
        &self,
        state: &State,
        id: ClientId,
        version: u64,
        signed: IssuedCertificate,
    ) -> Result<Response<CreateClientResponse>, Status> {
        let cluster = state.cluster().ok_or_else(no_cluster)?;
        // The manager that answers lives: it comes first.
        let own = state.node(self.node).into_iter();
        let others = state.nodes().filter(|node| node.id != self.node);
        let managers = own.chain(others).filter_map(|node| Some(node.manager.as_ref()?.addr.clone())).collect();
        Ok(Response::new(CreateClientResponse {
            id: id.to_vec(),
            version,
            cert_not_after_ms: unix_ms(signed.not_after),
            cert_chain_pem: signed.chain_pem,
            root_cert_pem: cluster.trusted_roots_pem(),
            managers,
        }))
    }

    #[allow(clippy::result_large_err)]
    fn sign(
        &self,
        state: &State,
        csr_pem: &str,
        client_id: ClientId,
        validity: Duration,
    ) -> Result<IssuedCertificate, Status> {
        let authority = self.authority.as_ref().ok_or_else(|| Status::unavailable("no authority signs here"))?;
        authority.sign_client(state.cluster().ok_or_else(no_cluster)?, csr_pem, &ClientGrant { client_id, validity })
    }
}

/// What was asked for, or 90 days.
#[allow(clippy::result_large_err)]
fn validity(ms: i64) -> Result<Duration, Status> {
    let validity = match u64::try_from(ms) {
        Ok(0) => DEFAULT_NODE_VALIDITY,
        Ok(ms) => Duration::from_millis(ms),
        Err(_) => Duration::ZERO,
    };
    match CERT_EXPIRY.contains(&validity) {
        true => Ok(validity),
        false => {
            Err(Status::invalid_argument("cert_expiry: a client's certificate lives at least 1h and at most 20 years"))
        }
    }
}

fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn no_cluster() -> Status {
    Status::unavailable("the swarm's state is not loaded yet: try again in a moment")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lives_have_limits() {
        assert_eq!(validity(0).unwrap(), DEFAULT_NODE_VALIDITY);
        assert_eq!(validity(3_600_000).unwrap(), Duration::from_secs(3600));
        for ms in [-1, 1, 3_599_999, i64::MIN, i64::MAX] {
            assert!(validity(ms).is_err(), "{ms}");
        }
    }
}
