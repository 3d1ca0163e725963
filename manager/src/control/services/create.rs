//! `Services.Create`.

use std::sync::Arc;

use skep_core::apply::Refused;
use skep_core::change::{Change, Op};
use skep_core::network::Endpoint;
use skep_core::object::{Credential, Meta, Revision, Service};
use skep_core::store::State;
use skep_proto::id::{CredentialId, RequestId, ServiceId};
use skep_proto::time::UnixMs;
use skep_proto::v1::{CreateServiceRequest, CreateServiceResponse, ServiceSpec, TaskTemplate};
use skep_proto::validate;
use tonic::Status;

use super::images::Login;
use super::{files, networks, request_id};
use crate::control::error::IntoStatus;
use crate::control::{Control, read};
use crate::store::{WriteError, Written};

/// How often a service is written anew when another write took what was chosen for it.
const ATTEMPTS: u32 = 8;

impl Control {
    pub(super) async fn create_service(&self, request: CreateServiceRequest) -> Result<CreateServiceResponse, Status> {
        let CreateServiceRequest { spec, auth, store_auth, write } = request;
        let request_id = request_id(write)?;
        let mut spec = spec.ok_or_else(|| Status::invalid_argument("a service spec is needed"))?;
        validate::service_spec(&spec).map_err(IntoStatus::into_status)?;
        let state = read::fresh(&self.store).await?;
        if let Some((id, version)) = read::first_answer(&state, request_id) {
            // The first try took the name; nor does its retry need a registry.
            return Ok(CreateServiceResponse { id, version, warnings: Vec::new() });
        }
        name_is_free(&state, &spec.name)?;
        let mut template = spec.template.take().unwrap_or_default();
        // Early refusal: a registry may take long to answer.
        networks::resolve_names(&state, &mut template)?;
        files::resolve_names(&state, &mut template, None)?;
        networks::resolve_endpoint(&state, &spec, &template, None)?;
        let login = self.login(&template, auth)?;
        let warnings = self.resolve_images(&state, &mut template, None, login.as_ref()).await?;
        let id = ServiceId::new(rand::random());
        let credential = login.filter(|_| store_auth).map(|login| new_credential(id, login));
        template.credential_id = credential.as_ref().map(|credential| credential.id.to_vec()).unwrap_or_default();
        let draft = Draft { id, spec, template, credential };
        let written = self.write_new(request_id, draft).await?;
        Ok(CreateServiceResponse { id: written.object_id, version: written.version, warnings })
    }

    /// Stores a new service; chooses its addresses and ports anew where another write took them, and the
    /// versions of secrets.
    async fn write_new(&self, request: Option<RequestId>, mut draft: Draft) -> Result<Written, Status> {
        let mut attempts = 0;
        loop {
            let state = read::fresh(&self.store).await?;
            files::resolve_names(&state, &mut draft.template, None)?;
            let endpoint = networks::resolve_endpoint(&state, &draft.spec, &draft.template, None)?;
            attempts += 1;
            let changes = creation(draft.clone(), endpoint, self.store.now());
            match self.store.write(request, draft.id.to_vec(), changes).await {
                // A secret that was rotated meanwhile is out of sequence.
                Err(WriteError::Refused(
                    Refused::Taken { .. } | Refused::Missing { .. } | Refused::OutOfSequence { .. },
                )) if attempts < ATTEMPTS => {}
                written => return written.map_err(IntoStatus::into_status),
            }
        }
    }
}

/// A service that is to be made.
#[derive(Clone)]
struct Draft {
    id: ServiceId,
    /// Without its template.
    spec: ServiceSpec,
    template: TaskTemplate,
    credential: Option<Credential>,
}

/// Early refusal; the store checks again when it applies.
#[allow(clippy::result_large_err)]
fn name_is_free(state: &State, name: &str) -> Result<(), Status> {
    match state.service_by_name(name) {
        None => Ok(()),
        Some(other) => Err(Status::already_exists(format!(
            "name {name} is taken by service {}: choose another, or remove it with `skep service rm {name}`",
            other.id.short()
        ))),
    }
}

/// A credential to be stored for a service.
pub(super) fn new_credential(service: ServiceId, login: Login) -> Credential {
    let Login { registry, auth } = login;
    Credential { id: CredentialId::new(rand::random()), meta: Meta::default(), service, registry, auth }
}

/// The changes that make a service: itself, its first revision, its credential.
fn creation(draft: Draft, endpoint: Endpoint, now: UnixMs) -> Vec<Change> {
    let Draft { id, spec, template, credential } = draft;
    let Endpoint { ports, virtual_addresses } = endpoint;
    let service_name = spec.name.as_str().into();
    let service = Service {
        id,
        meta: Meta::default(),
        spec: Arc::new(spec),
        revision: 1,
        ports,
        update: None,
        virtual_addresses,
    };
    let revision = Revision {
        key: service.current(),
        template: Arc::new(template),
        created_at: now,
        copied_from: None,
        service_name,
        live: None,
    };
    let mut changes = vec![Change::create(Op::PutService(service)), Change::create(Op::PutRevision(revision))];
    changes.extend(credential.map(|credential| Change::create(Op::PutCredential(credential))));
    changes
}
