//! `Clients`: people with certificates. A certificate says who its holder is; what he may do is in the state, where the gate
//! reads it at each call (`callers.rs`).

use std::time::{Duration, SystemTime};

use skep_core::apply::Refused;
use skep_core::change::{Change, Op};
use skep_core::object::{Client, Meta};
use skep_core::store::State;
use skep_core::{clients, codec};
use skep_identity::ca::DEFAULT_NODE_VALIDITY;
use skep_identity::{ClientGrant, IssuedCertificate};
use skep_proto::id::ClientId;
use skep_proto::time::UnixMs;
use skep_proto::v1::clients_server::Clients;
use skep_proto::v1::{
    ClientRole, CreateClientRequest, CreateClientResponse, GetClientRequest, GetClientResponse, ListClientsRequest,
    ListClientsResponse, RemoveClientRequest, RemoveClientResponse, RenewClientRequest,
};
use skep_proto::validate;
use tonic::{Request, Response, Status};
use tracing::info;

use super::clusters::no_cluster;
use super::error::IntoStatus;
use super::services::request_id;
use super::{ATTEMPTS, Control, read};
use crate::store::WriteError;

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
            return self.certified(&state, &id, version, &request.csr_pem, validity);
        }
        // Signed first: a request that cannot be signed makes no client.
        let id = ClientId::new(rand::random());
        let cert_not_after = self.sign(&state, &request.csr_pem, id, validity)?.not_after;
        let (name, cert_not_after) = (request.name, UnixMs(unix_ms(cert_not_after)));
        let changes =
            vec![Change::create(Op::PutClient(Client { id, meta: Meta::default(), name, role, cert_not_after }))];
        let written = self.store.write(request_id, id.to_vec(), changes).await.map_err(IntoStatus::into_status)?;
        self.store.applied(written.version).await;
        let state = self.store.state();
        if let Some(client) = state.client(id) {
            info!(client = client.name, %id, role = role.as_str_name(), "a client was made");
        }
        // Its id is another one where another try of the same request was first.
        self.certified(&state, &written.object_id, written.version, &request.csr_pem, validity)
    }

    async fn renew(&self, request: Request<RenewClientRequest>) -> Result<Response<CreateClientResponse>, Status> {
        let RenewClientRequest { reference, csr_pem, cert_expiry_ms, write } = request.into_inner();
        let (validity, request_id) = (validity(cert_expiry_ms)?, request_id(write)?);
        let mut attempts = 0;
        loop {
            let state = read::fresh(&self.store).await?;
            if let Some((id, version)) = read::first_answer(&state, request_id) {
                return self.certified(&state, &id, version, &csr_pem, validity);
            }
            let client = state.find_client(&reference).map_err(IntoStatus::into_status)?;
            let cert_not_after = UnixMs(unix_ms(self.sign(&state, &csr_pem, client.id, validity)?.not_after));
            let renewed = Client { cert_not_after, ..Client::clone(client) };
            let changes = vec![Change::update(client.meta.version, Op::PutClient(renewed))];
            attempts += 1;
            match self.store.write(request_id, client.id.to_vec(), changes).await {
                Ok(written) => {
                    self.store.applied(written.version).await;
                    info!(client = client.name, id = %client.id, "a client has a new certificate");
                    let state = self.store.state();
                    return self.certified(&state, &written.object_id, written.version, &csr_pem, validity);
                }
                // Another one came between.
                Err(WriteError::Refused(Refused::OutOfSequence { .. })) if attempts < ATTEMPTS => {}
                Err(error) => return Err(error.into_status()),
            }
        }
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
    /// A certificate for a client that the state has, by the authority of that state: it may be another one than at the
    /// begin of the call. A retry gets one of its own.
    #[allow(clippy::result_large_err)]
    fn certified(
        &self,
        state: &State,
        id: &[u8],
        version: u64,
        csr_pem: &str,
        validity: Duration,
    ) -> Result<Response<CreateClientResponse>, Status> {
        let id = ClientId::from_wire(id).ok().filter(|id| state.client(*id).is_some());
        let id = id.ok_or_else(|| {
            Status::invalid_argument("the client was removed since, or the request id was used for something else")
        })?;
        let signed = self.sign(state, csr_pem, id, validity)?;
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
