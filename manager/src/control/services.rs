//! Services: list, get, create, scale, remove.

use std::sync::Arc;

use skep_core::change::{Change, Op};
use skep_core::object::{Credential, Meta, Revision, Service};
use skep_core::store::State;
use skep_identity::Caller;
use skep_proto::id::{CredentialId, RequestId, ServiceId};
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::services_server::Services;
use skep_proto::v1::{
    CreateServiceRequest, CreateServiceResponse, GetServiceRequest, GetServiceResponse, ListServicesRequest,
    ListServicesResponse, PortSpec, RegistryAuth, RemoveServiceRequest, RemoveServiceResponse, ReplicatedMode,
    ScaleServiceRequest, ScaleServiceResponse, ServiceSpec, TaskTemplate, WriteOptions,
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
        Caller::of(&request)?.require_operator()?;
        let state = read::state(&self.store, request.into_inner().read).await?;
        let version = state.version();
        let services = state.services().map(|service| summary::service(&state, service)).collect();
        let answer = move |services| ListServicesResponse { services, version };
        Ok(Response::new(read::pieces(services, PIECE, answer)))
    }

    async fn get(&self, request: Request<GetServiceRequest>) -> Result<Response<GetServiceResponse>, Status> {
        Caller::of(&request)?.require_operator()?;
        let GetServiceRequest { reference, read } = request.into_inner();
        let state = read::state(&self.store, read).await?;
        let service = state.find_service(&reference).map_err(IntoStatus::into_status)?;
        let service = Some(summary::service(&state, service));
        Ok(Response::new(GetServiceResponse { service, version: state.version() }))
    }

    async fn create(&self, request: Request<CreateServiceRequest>) -> Result<Response<CreateServiceResponse>, Status> {
        Caller::of(&request)?.require_operator()?;
        let CreateServiceRequest { spec, auth, store_auth, write } = request.into_inner();
        let request_id = request_id(write)?;
        let mut spec = spec.ok_or_else(|| Status::invalid_argument("a service spec is needed"))?;
        validate::service_spec(&spec).map_err(IntoStatus::into_status)?;
        let state = self.store.state();
        if let Some(first) = request_id.and_then(|id| state.request(id)) {
            // The first try took the name; nor does its retry need a registry.
            let (id, version) = (first.object_id.clone(), first.version);
            return Ok(Response::new(CreateServiceResponse { id, version, warnings: Vec::new() }));
        }
        name_is_free(&state, &spec.name)?;
        let mut template = spec.template.take().unwrap_or_default();
        let registry = self.resolve_images(&state, &mut template, auth.as_ref()).await?;
        let id = ServiceId::new(rand::random());
        let credential = auth.filter(|_| store_auth).map(|auth| new_credential(id, registry, auth));
        let changes = creation(id, spec, template, credential, self.store.now());
        let written = self.store.write(request_id, id.to_vec(), changes).await.map_err(IntoStatus::into_status)?;
        Ok(Response::new(CreateServiceResponse {
            id: written.object_id,
            version: written.version,
            warnings: Vec::new(),
        }))
    }

    async fn update(
        &self,
        _: Request<skep_proto::v1::UpdateServiceRequest>,
    ) -> Result<Response<skep_proto::v1::UpdateServiceResponse>, Status> {
        Err(Status::unimplemented("not supported yet: this call"))
    }

    async fn rollback(
        &self,
        _: Request<skep_proto::v1::RollbackServiceRequest>,
    ) -> Result<Response<skep_proto::v1::RollbackServiceResponse>, Status> {
        Err(Status::unimplemented("not supported yet: this call"))
    }

    async fn history(
        &self,
        _: Request<skep_proto::v1::ServiceHistoryRequest>,
    ) -> Result<Response<skep_proto::v1::ServiceHistoryResponse>, Status> {
        Err(Status::unimplemented("not supported yet: this call"))
    }

    async fn scale(&self, request: Request<ScaleServiceRequest>) -> Result<Response<ScaleServiceResponse>, Status> {
        Caller::of(&request)?.require_operator()?;
        let ScaleServiceRequest { reference, replicas, expect_version, write } = request.into_inner();
        let request_id = request_id(write)?;
        validate::replicas(replicas).map_err(IntoStatus::into_status)?;
        let state = self.store.state();
        let service = state.find_service(&reference).map_err(IntoStatus::into_status)?;
        if !matches!(service.spec.mode, Some(Mode::Replicated(_))) {
            let name = &service.spec.name;
            return Err(Status::failed_precondition(format!(
                "service {name} is global: only replicated services scale"
            )));
        }
        let version = if expect_version == 0 { service.meta.version } else { expect_version };
        let mut scaled = Service::clone(service);
        Arc::make_mut(&mut scaled.spec).mode = Some(Mode::Replicated(ReplicatedMode { replicas }));
        let id = service.id;
        let changes = vec![Change::update(version, Op::PutService(scaled))];
        let written = self.store.write(request_id, id.to_vec(), changes).await.map_err(IntoStatus::into_status)?;
        Ok(Response::new(ScaleServiceResponse { id: written.object_id, version: written.version }))
    }

    async fn remove(&self, request: Request<RemoveServiceRequest>) -> Result<Response<RemoveServiceResponse>, Status> {
        Caller::of(&request)?.require_operator()?;
        let RemoveServiceRequest { reference, write } = request.into_inner();
        let request_id = request_id(write)?;
        let state = self.store.state();
        if let Some(first) = request_id.and_then(|id| state.request(id)) {
            // The first try removed it: it is not to be found any more.
            return Ok(Response::new(RemoveServiceResponse {
                id: first.object_id.clone(),
                version: first.version,
                name: reference,
            }));
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

impl Control {
    /// Gives every container the digest that all tasks will run. Returns the registry of the first image, for its
    /// credential.
    async fn resolve_images(
        &self,
        state: &State,
        template: &mut TaskTemplate,
        auth: Option<&RegistryAuth>,
    ) -> Result<String, Status> {
        let mut first_registry = None;
        for container in &mut template.containers {
            let name = self.registries.parse(&container.image).map_err(IntoStatus::into_status)?;
            let record = state.image_name(&name.canonical).filter(|_| name.digest.is_none());
            (container.image_digest, container.image_platforms) = match (name.digest, record) {
                (_, Some(record)) => (record.digest.clone(), record.platforms.clone()),
                // A digest needs no one's word: whoever serves it is checked against it.
                (Some(digest), None) => (digest, Vec::new()),
                (None, None) => {
                    let resolved = self.registries.resolve(container.image.clone(), auth.cloned()).await;
                    let image = resolved.map_err(IntoStatus::into_status)?;
                    (image.digest, image.platforms)
                }
            };
            first_registry.get_or_insert(name.registry);
        }
        Ok(first_registry.unwrap_or_default())
    }
}

/// Early refusal; the store checks again when it applies.
fn name_is_free(state: &State, name: &str) -> Result<(), Status> {
    match state.service_by_name(name) {
        None => Ok(()),
        Some(other) => Err(Status::already_exists(format!(
            "name {name} is taken by service {}: choose another, or remove it with `skep service rm {name}`",
            other.id.short()
        ))),
    }
}

fn new_credential(service: ServiceId, registry: String, auth: RegistryAuth) -> Credential {
    Credential { id: CredentialId::new(rand::random()), meta: Meta::default(), service, registry, auth }
}

/// The changes that make a service: itself, its first revision, its credential.
fn creation(
    id: ServiceId,
    spec: ServiceSpec,
    mut template: TaskTemplate,
    credential: Option<Credential>,
    now: UnixMs,
) -> Vec<Change> {
    template.credential_id = credential.as_ref().map(|credential| credential.id.to_vec()).unwrap_or_default();
    let ports = spec.endpoint.as_ref().map(|endpoint| endpoint.ports.iter().map(resolved_port).collect());
    let service_name = spec.name.as_str().into();
    let service = Service {
        id,
        meta: Meta::default(),
        spec: Arc::new(spec),
        revision: 1,
        ports: ports.unwrap_or_default(),
        update: None,
    };
    let revision = Revision {
        key: service.current(),
        template: Arc::new(template),
        created_at: now,
        copied_from: None,
        service_name,
    };
    let mut changes = vec![Change::create(Op::PutService(service)), Change::create(Op::PutRevision(revision))];
    changes.extend(credential.map(|credential| Change::create(Op::PutCredential(credential))));
    changes
}

/// With the host's network a port is published where the container listens.
fn resolved_port(port: &PortSpec) -> PortSpec {
    PortSpec { published_port: if port.published_port == 0 { port.target_port } else { port.published_port }, ..*port }
}

/// The client's id of a write.
pub(super) fn request_id(write: Option<WriteOptions>) -> Result<Option<RequestId>, Status> {
    RequestId::from_wire_opt(&write.unwrap_or_default().request_id)
        .map_err(|error| Status::invalid_argument(format!("request_id: {error}")))
}
