//! Services: list, get, scale, remove; the longer calls are in files of their own.

mod create;
mod files;
mod images;
mod networks;
mod rollback;
mod update;

use std::sync::Arc;

use skep_core::change::{Change, Op};
use skep_core::object::Service;
use skep_core::store::State;
use skep_proto::id::RequestId;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::services_server::Services;
use skep_proto::v1::{
    CreateServiceRequest, CreateServiceResponse, GetServiceRequest, GetServiceResponse, ListServicesRequest,
    ListServicesResponse, RemoveServiceRequest, RemoveServiceResponse, ReplicatedMode, RollbackServiceRequest,
    RollbackServiceResponse, ScaleServiceRequest, ScaleServiceResponse, ServiceHistoryRequest, ServiceHistoryResponse,
    UpdateServiceRequest, UpdateServiceResponse, WriteOptions,
};
use skep_proto::validate;
use tonic::{Request, Response, Status};

use super::error::IntoStatus;
use super::{Control, read, summary};

const PIECE: usize = 100;

#[tonic::async_trait]
impl Services for Control {
    type ListStream = read::Answers<ListServicesResponse>;

    async fn list(&self, request: Request<ListServicesRequest>) -> Result<Response<Self::ListStream>, Status> {
        let state = read::state(&self.store, request.into_inner().read).await?;
        let version = state.version();
        let services = state.services().map(|service| summary::service(&state, service)).collect();
        let answer = move |services| ListServicesResponse { services, version };
        Ok(Response::new(read::pieces(services, PIECE, answer)))
    }

    async fn get(&self, request: Request<GetServiceRequest>) -> Result<Response<GetServiceResponse>, Status> {
        let GetServiceRequest { reference, read } = request.into_inner();
        let state = read::state(&self.store, read).await?;
        let service = state.find_service(&reference).map_err(IntoStatus::into_status)?;
        let service = Some(summary::service(&state, service));
        Ok(Response::new(GetServiceResponse { service, version: state.version() }))
    }

    async fn create(&self, request: Request<CreateServiceRequest>) -> Result<Response<CreateServiceResponse>, Status> {
        self.create_service(request.into_inner()).await.map(Response::new)
    }

    async fn update(&self, request: Request<UpdateServiceRequest>) -> Result<Response<UpdateServiceResponse>, Status> {
        self.update_service(request.into_inner()).await.map(Response::new)
    }

    async fn rollback(
        &self,
        request: Request<RollbackServiceRequest>,
    ) -> Result<Response<RollbackServiceResponse>, Status> {
        self.roll_back_service(request.into_inner()).await.map(Response::new)
    }

    async fn history(
        &self,
        request: Request<ServiceHistoryRequest>,
    ) -> Result<Response<ServiceHistoryResponse>, Status> {
        let ServiceHistoryRequest { reference, read } = request.into_inner();
        let state = read::state(&self.store, read).await?;
        let service = state.find_service(&reference).map_err(IntoStatus::into_status)?;
        let revisions = rollback::history(&state, service);
        Ok(Response::new(ServiceHistoryResponse { revisions, version: state.version() }))
    }

    async fn scale(&self, request: Request<ScaleServiceRequest>) -> Result<Response<ScaleServiceResponse>, Status> {
        let ScaleServiceRequest { reference, replicas, expect_version, write } = request.into_inner();
        let request_id = request_id(write)?;
        validate::replicas(replicas).map_err(IntoStatus::into_status)?;
        let state = read::fresh(&self.store).await?;
        if let Some((id, version)) = read::first_answer(&state, request_id) {
            return Ok(Response::new(ScaleServiceResponse { id, version }));
        }
        let id = state.find_service(&reference).map_err(IntoStatus::into_status)?.id;
        let scale = |state: &State, service: &Service| scaled(state, service, replicas);
        let written = self.change_service(id, expect_version, request_id, scale).await?;
        Ok(Response::new(ScaleServiceResponse { id: written.object_id, version: written.version }))
    }

    async fn remove(&self, request: Request<RemoveServiceRequest>) -> Result<Response<RemoveServiceResponse>, Status> {
        let RemoveServiceRequest { reference, write } = request.into_inner();
        let request_id = request_id(write)?;
        let state = read::fresh(&self.store).await?;
        if let Some((id, version)) = read::first_answer(&state, request_id) {
            // The first try removed it: it is not to be found any more.
            return Ok(Response::new(RemoveServiceResponse { id, version, name: reference }));
        }
        let service = state.find_service(&reference).map_err(IntoStatus::into_status)?;
        let changes = vec![Change::update(service.meta.version, Op::RemoveService(service.id))];
        let written =
            self.store.write(request_id, service.id.to_vec(), changes).await.map_err(IntoStatus::into_status)?;
        Ok(Response::new(RemoveServiceResponse {
            id: written.object_id,
            version: written.version,
            name: service.spec.name.clone(),
        }))
    }
}

/// The change that sets the number of replicas.
#[allow(clippy::result_large_err)]
fn scaled(state: &State, service: &Service, replicas: u64) -> Result<Vec<Change>, Status> {
    let mode = Some(Mode::Replicated(ReplicatedMode { replicas }));
    if !matches!(service.spec.mode, Some(Mode::Replicated(_))) {
        let name = &service.spec.name;
        return Err(Status::failed_precondition(format!("service {name} is global: only replicated services scale")));
    }
    if service.spec.mode == mode {
        return Ok(Vec::new());
    }
    let mut scaled = service.clone();
    Arc::make_mut(&mut scaled.spec).mode = mode;
    let template = update::present_template(state, service)?;
    if template.networks.iter().any(|attachment| !attachment.addresses.is_empty()) {
        validate::network::fixed_addresses(&scaled.spec).map_err(IntoStatus::into_status)?;
    }
    Ok(vec![Change::update(service.meta.version, Op::PutService(scaled))])
}

/// The client's id of a write.
pub(super) fn request_id(write: Option<WriteOptions>) -> Result<Option<RequestId>, Status> {
    RequestId::from_wire_opt(&write.unwrap_or_default().request_id)
        .map_err(|error| Status::invalid_argument(format!("request_id: {error}")))
}
