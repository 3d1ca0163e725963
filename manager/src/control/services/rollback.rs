//! `Services.Rollback` and `Services.History`.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_core::change::Change;
use skep_core::codec;
use skep_core::network::Endpoint;
use skep_core::object::{Revision, RevisionKey, Service, Task};
use skep_core::orchestrate::{self, RollOut};
use skep_core::store::State;
use skep_proto::time::UnixMs;
use skep_proto::v1::{RevisionSummary, RollbackServiceRequest, RollbackServiceResponse, TaskState, UpdateState};
use tonic::Status;

use super::update::check_version;
use super::{files, networks, request_id};
use crate::control::error::IntoStatus;
use crate::control::{Control, read};

impl Control {
    pub(super) async fn roll_back_service(
        &self,
        request: RollbackServiceRequest,
    ) -> Result<RollbackServiceResponse, Status> {
        let RollbackServiceRequest { reference, to_revision, expect_version, write } = request;
        let request_id = request_id(write)?;
        let state = read::fresh(&self.store).await?;
        if let Some((id, version)) = read::first_answer(&state, request_id) {
            let revision = self.revision_of(&id);
            return Ok(RollbackServiceResponse { id, version, revision });
        }
        let service = state.find_service(&reference).map_err(IntoStatus::into_status)?;
        check_version(service, expect_version)?;
        // Which one is "the one before" is decided once: a retry after the updater's write must not move on.
        let to = target(&state, service, to_revision)?;
        let id = service.id;
        let back = |state: &State, service: &Service| rolled_back(state, service, to, self.store.now());
        let written = self.change_service(id, expect_version, request_id, back).await?;
        let revision = self.revision_of(&written.object_id);
        Ok(RollbackServiceResponse { id: written.object_id, version: written.version, revision })
    }
}

/// The revision to go back to: the one that is named, or the one that was current before.
#[allow(clippy::result_large_err)]
fn target(state: &State, service: &Service, to_revision: u64) -> Result<u64, Status> {
    let name = &service.spec.name;
    let number = match (to_revision, service.update.as_ref()) {
        (0, Some(update)) if update.state() != UpdateState::None => update.from_revision,
        (0, _) => {
            let message = format!("service {name} was never updated: there is nothing to go back to");
            return Err(Status::failed_precondition(message));
        }
        (number, _) => number,
    };
    if number == service.revision {
        return Err(Status::failed_precondition(format!("service {name} is at revision {number} already")));
    }
    match state.revision(RevisionKey { service: service.id, number }) {
        Some(_) => Ok(number),
        None => {
            let kept: Vec<String> =
                state.revisions_of(service.id).map(|revision| revision.key.number.to_string()).collect();
            let kept = kept.join(", ");
            Err(Status::not_found(format!("service {name} has no revision {number} (any more); kept are {kept}")))
        }
    }
}

/// The changes that begin the way back.
#[allow(clippy::result_large_err)]
fn rolled_back(state: &State, service: &Service, to: u64, now: UnixMs) -> Result<Vec<Change>, Status> {
    target(state, service, to)?;
    let key = RevisionKey { service: service.id, number: to };
    let target = state.revision(key).ok_or_else(|| Status::not_found(format!("revision {to} is gone")))?;
    if let Some(gone) = files::missing(state, &target.template) {
        let name = &service.spec.name;
        let message =
            format!("service {name} cannot go back to revision {to}: it uses {gone}, which is not there any more");
        return Err(Status::failed_precondition(message));
    }
    let mut template = Arc::clone(&target.template);
    if state.credentials_of(service.id).all(|credential| credential.id.to_vec() != template.credential_id) {
        Arc::make_mut(&mut template).credential_id.clear();
    }
    let roll_out = RollOut::Rollback { copied_from: to, message: "manually requested rollback".to_owned() };
    let Endpoint { ports, virtual_addresses } =
        networks::resolve_endpoint(state, &service.spec, &template, Some(service))?;
    let back = Service { ports, virtual_addresses, ..service.clone() };
    Ok(orchestrate::begin_roll_out(state, back, template, roll_out, now))
}

/// The kept revisions, newest first, with how they are used.
pub(super) fn history(state: &State, service: &Service) -> Vec<RevisionSummary> {
    let mut running: BTreeMap<u64, u64> = BTreeMap::new();
    let runs = |task: &&Arc<Task>| task.state == TaskState::Running && task.wanted.wants_to_run();
    for task in state.tasks_of_service(service.id).filter(runs) {
        *running.entry(task.revision.number).or_default() += 1;
    }
    let summary = |revision: &Arc<Revision>| RevisionSummary {
        revision: Some(codec::revision_to_wire(revision)),
        running: running.get(&revision.key.number).copied().unwrap_or(0),
        current: revision.key.number == service.revision,
    };
    state.revisions_of(service.id).rev().map(summary).collect()
}

#[cfg(test)]
#[path = "rollback_test.rs"]
mod tests;
