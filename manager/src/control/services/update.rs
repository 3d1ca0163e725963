//! `Services.Update`: a new spec for a service, and the roll-out that follows from it.

use std::sync::Arc;

use skep_core::apply::Refused;
use skep_core::change::{Change, Op};
use skep_core::network::Endpoint;
use skep_core::object::{Credential, Service};
use skep_core::orchestrate::{self, RollOut};
use skep_core::store::State;
use skep_proto::id::{RequestId, ServiceId};
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    PublishMode, ServiceSpec, TaskTemplate, UpdateOrder, UpdateServiceRequest, UpdateServiceResponse,
};
use skep_proto::validate;
use tonic::Status;

use super::create::new_credential;
use super::images::Login;
use super::{files, networks, request_id};
use crate::control::error::IntoStatus;
use crate::control::{ATTEMPTS, Control, read};
use crate::store::{WriteError, Written};

impl Control {
    pub(super) async fn update_service(&self, request: UpdateServiceRequest) -> Result<UpdateServiceResponse, Status> {
        let UpdateServiceRequest { reference, spec, expect_version, auth, store_auth, write } = request;
        let request_id = request_id(write)?;
        let mut spec = spec.ok_or_else(|| Status::invalid_argument("a service spec is needed"))?;
        validate::service_spec(&spec).map_err(IntoStatus::into_status)?;
        let state = read::fresh(&self.store).await?;
        if let Some((id, version)) = read::first_answer(&state, request_id) {
            let revision = self.revision_of(&id);
            return Ok(UpdateServiceResponse { id, version, warnings: Vec::new(), revision });
        }
        let service = state.find_service(&reference).map_err(IntoStatus::into_status)?;
        let id = service.id;
        check_version(service, expect_version)?;
        check_fixed(service, &spec)?;
        let mut template = spec.template.take().unwrap_or_default();
        let present = present_template(&state, service)?;
        networks::resolve_names(&state, &mut template)?;
        files::resolve_names(&state, &mut template, Some(&present))?;
        networks::resolve_endpoint(&state, &spec, &template, Some(service))?;
        let given = self.login(&template, auth)?;
        let login = given.clone().or_else(|| Login::stored(&state, &present));
        let mut warnings = self.resolve_images(&state, &mut template, Some(&present), login.as_ref()).await?;
        warnings.extend(port_warning(&spec));
        let draft = Draft { spec, template, login: given.filter(|_| store_auth) };
        let written = self.change_service(id, expect_version, request_id, |state, service| {
            revised(state, service, draft.clone(), self.store.now())
        });
        let written = written.await?;
        let revision = self.revision_of(&written.object_id);
        Ok(UpdateServiceResponse { id: written.object_id, version: written.version, warnings, revision })
    }

    /// Writes what `change` makes of a service; no change, no write. With `expect_version` 0 it is made again when another
    /// write (the updater's, say) came between.
    pub(super) async fn change_service(
        &self,
        id: ServiceId,
        expect_version: u64,
        request: Option<RequestId>,
        change: impl Fn(&State, &Service) -> Result<Vec<Change>, Status>,
    ) -> Result<Written, Status> {
        let mut attempts = 0;
        loop {
            let state = read::fresh(&self.store).await?;
            if let Some((object_id, version)) = read::first_answer(&state, request) {
                // The first try has come true while this one was being decided on.
                return Ok(Written { version, object_id, refused: Vec::new() });
            }
            let gone = || Status::not_found(format!("service {id} was removed meanwhile"));
            let service = state.service(id).ok_or_else(gone)?;
            check_version(service, expect_version)?;
            let changes = change(&state, service)?;
            if changes.is_empty() {
                let (version, object_id) = (state.version(), id.to_vec());
                return Ok(Written { version, object_id, refused: Vec::new() });
            }
            attempts += 1;
            match self.store.write(request, id.to_vec(), changes).await {
                Ok(written) => return Ok(written),
                Err(WriteError::Refused(Refused::OutOfSequence { .. } | Refused::Exists { .. }))
                    if expect_version == 0 && attempts < ATTEMPTS => {}
                // Chosen anew, or told why it cannot be had.
                Err(WriteError::Refused(Refused::Taken { .. } | Refused::Missing { .. })) if attempts < ATTEMPTS => {}
                Err(error) => return Err(error.into_status()),
            }
        }
    }

    /// The current revision of a service; 0 where it is gone.
    pub(super) fn revision_of(&self, id: &[u8]) -> u64 {
        let id = ServiceId::from_wire(id).ok();
        id.and_then(|id| self.store.state().service(id).map(|service| service.revision)).unwrap_or(0)
    }
}

/// What a client wants of a service, with its images resolved.
#[derive(Clone)]
struct Draft {
    /// Without its template.
    spec: ServiceSpec,
    template: TaskTemplate,
    /// To be stored.
    login: Option<Login>,
}

/// The template that a service's current revision has.
#[allow(clippy::result_large_err)]
pub(super) fn present_template(state: &State, service: &Service) -> Result<Arc<TaskTemplate>, Status> {
    let revision = state.revision(service.current());
    let missing = || Status::internal(format!("revision {} of service {} is missing", service.revision, service.id));
    revision.map(|revision| Arc::clone(&revision.template)).ok_or_else(missing)
}

/// Refuses a write that was decided on an older version.
#[allow(clippy::result_large_err)]
pub(super) fn check_version(service: &Service, expected: u64) -> Result<(), Status> {
    let (name, stored) = (&service.spec.name, service.meta.version);
    if expected == 0 || expected == stored {
        return Ok(());
    }
    let message =
        format!("update out of sequence: service {name} is at version {stored}, not {expected}; read it again");
    Err(Status::aborted(message))
}

/// Refuses what stays as it was made.
#[allow(clippy::result_large_err)]
fn check_fixed(service: &Service, spec: &ServiceSpec) -> Result<(), Status> {
    let name = &service.spec.name;
    if *name != spec.name {
        let new = &spec.name;
        return Err(Status::invalid_argument(format!(
            "invalid name: service {name} cannot be renamed to {new}; create {new} and remove {name}"
        )));
    }
    let (Some(old), Some(new)) = (&service.spec.mode, &spec.mode) else {
        return Ok(());
    };
    if std::mem::discriminant(old) == std::mem::discriminant(new) {
        return Ok(());
    }
    let (old, new) = (mode_word(old), mode_word(new));
    Err(Status::invalid_argument(format!(
        "invalid mode: service {name} is {old} and cannot become {new}; remove it and create it anew"
    )))
}

fn mode_word(mode: &Mode) -> &'static str {
    match mode {
        Mode::Replicated(_) => "replicated",
        Mode::Global(_) => "global",
    }
}

/// What a person should know before the update begins to wait.
fn port_warning(spec: &ServiceSpec) -> Option<String> {
    let starts_first = spec.update.is_some_and(|policy| policy.order() == UpdateOrder::StartFirst);
    let ports = &spec.endpoint.as_ref()?.ports;
    let port = ports.iter().find(|port| starts_first && port.mode() == PublishMode::Host)?.target_port;
    let remedy = match &spec.mode {
        Some(Mode::Global(_)) => "an update can never start the new task first: use stop-first",
        _ => "an update that starts the new task first needs another node for it",
    };
    Some(format!("one task of a node can hold port {port}: {remedy}"))
}

/// The changes that put `draft` in a service's place; empty where nothing differs. Another template, and ports
/// that its tasks must be replaced for, are a new revision; what else changes takes effect at once.
#[allow(clippy::result_large_err)]
fn revised(state: &State, service: &Service, draft: Draft, now: UnixMs) -> Result<Vec<Change>, Status> {
    let Draft { spec, mut template, login } = draft;
    let present = present_template(state, service)?;
    // A rotation may have come since.
    files::resolve_names(state, &mut template, Some(&present))?;
    // Raised by who wants all tasks replaced; who leaves it out wants nothing.
    template.force_update = template.force_update.max(present.force_update);
    let (credential_id, credential) = credential(state, service, &present, login);
    template.credential_id = credential_id;
    let endpoint = networks::resolve_endpoint(state, &spec, &template, Some(service))?;
    let rolls_out = template != *present || networks::ports_roll_out(service, &endpoint);
    let Endpoint { ports, virtual_addresses } = endpoint;
    let is_same =
        spec == *service.spec && !rolls_out && ports == service.ports && virtual_addresses == service.virtual_addresses;
    let revised = Service { spec: Arc::new(spec), ports, virtual_addresses, ..service.clone() };
    let mut changes = match (rolls_out, is_same) {
        (true, _) => orchestrate::begin_roll_out(state, revised, Arc::new(template), RollOut::Update, now),
        (false, false) => vec![Change::update(service.meta.version, Op::PutService(revised))],
        (false, true) => Vec::new(),
    };
    changes.extend(credential);
    Ok(changes)
}

/// Which credential the tasks will use, and the change that stores it. One for the same registry takes the old one's
/// place: tasks that run already use it as well when they pull again.
fn credential(
    state: &State,
    service: &Service,
    present: &TaskTemplate,
    login: Option<Login>,
) -> (Vec<u8>, Option<Change>) {
    let Some(login) = login else {
        return (present.credential_id.clone(), None);
    };
    let mut stored = state.credentials_of(service.id);
    match stored.find(|stored| stored.id.to_vec() == present.credential_id && stored.registry == login.registry) {
        Some(stored) if stored.auth == login.auth => (stored.id.to_vec(), None),
        Some(stored) => {
            let newer = Credential { auth: login.auth, ..Credential::clone(stored) };
            (stored.id.to_vec(), Some(Change::update(stored.meta.version, Op::PutCredential(newer))))
        }
        None => {
            let new = new_credential(service.id, login);
            (new.id.to_vec(), Some(Change::create(Op::PutCredential(new))))
        }
    }
}

#[cfg(test)]
#[path = "update_test.rs"]
mod tests;
