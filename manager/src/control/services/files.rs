//! What a service asks of secrets and configs: names become ids, and the versions that its tasks get.

use std::sync::Arc;

use skep_core::object::{Parcel, ParcelId, ParcelKind, PayloadKey};
use skep_core::store::{State, payload_refs};
use skep_proto::id::{ConfigId, SecretId};
use skep_proto::v1::{FileTarget, TaskTemplate};
use skep_proto::validate::files;
use tonic::Status;

use crate::control::error::IntoStatus;
use crate::control::parcels::no_version;

/// Fills in ids, names, versions and targets of the secrets and configs that a template names. A use that `present` (the
/// service's template so far) has as well keeps its version: only rotations change it, so that an update of something else
/// restarts nobody for it. Any other gets the newest, unless it is pinned. Idempotent.
#[allow(clippy::result_large_err)]
pub(super) fn resolve_names(
    state: &State,
    template: &mut TaskTemplate,
    present: Option<&TaskTemplate>,
) -> Result<(), Status> {
    for container in &mut template.containers {
        let before = present.and_then(|present| present.containers.iter().find(|one| one.name == container.name));
        for one in &mut container.secrets {
            let id = SecretId::from_wire(&one.secret_id).ok().map(ParcelId::Secret);
            let parcel = find(state, ParcelKind::Secret, id, &one.name)?;
            let mut kept = before.into_iter().flat_map(|before| &before.secrets);
            let stays =
                kept.any(|was| !was.pinned && was.secret_id == parcel.id.to_vec() && was.version == one.version);
            one.version = version(state, parcel, one.version, one.pinned, stays)?;
            one.secret_id = parcel.id.to_vec();
            one.name.clone_from(&parcel.spec.name);
            fill_in(&mut one.target, &one.name);
        }
        for one in &mut container.configs {
            let id = ConfigId::from_wire(&one.config_id).ok().map(ParcelId::Config);
            let parcel = find(state, ParcelKind::Config, id, &one.name)?;
            let mut kept = before.into_iter().flat_map(|before| &before.configs);
            let stays =
                kept.any(|was| !was.pinned && was.config_id == parcel.id.to_vec() && was.version == one.version);
            one.version = version(state, parcel, one.version, one.pinned, stays)?;
            one.config_id = parcel.id.to_vec();
            one.name.clone_from(&parcel.spec.name);
            fill_in(&mut one.target, &one.name);
        }
        // Names may have been ids: only now is it known where everything lies.
        files::files(container)
            .map_err(|invalid| invalid.under(&format!("containers[{}]", container.name)).into_status())?;
    }
    Ok(())
}

#[allow(clippy::result_large_err)]
fn find<'a>(state: &'a State, kind: ParcelKind, id: Option<ParcelId>, name: &str) -> Result<&'a Arc<Parcel>, Status> {
    if let Some(parcel) = id.and_then(|id| state.parcel(id)) {
        return Ok(parcel);
    }
    let printed = id.map(ParcelId::printed).unwrap_or_default();
    let reference = if name.is_empty() { &printed } else { name };
    let named = |parcel: &&Arc<Parcel>| parcel.spec.name == reference || parcel.id.printed() == reference;
    // No beginning of an id: a mistyped name must not give a container another secret.
    state.find_parcel(kind, reference).ok().filter(named).ok_or_else(|| {
        Status::not_found(format!(
            "{kind} {reference} not found: see `skep {kind} ls`, make it with `skep {kind} create {reference} FILE`"
        ))
    })
}

#[allow(clippy::result_large_err)]
fn version(state: &State, parcel: &Parcel, asked: u64, pinned: bool, stays: bool) -> Result<u64, Status> {
    let newest = parcel.newest().map_or(0, |newest| newest.number);
    let is_there = |version| state.payload(parcel.payload(version)).is_some();
    match (pinned, stays) {
        (true, _) if !is_there(asked) => Err(Status::not_found(no_version(parcel, asked))),
        (true, _) => Ok(asked),
        (false, true) if is_there(asked) => Ok(asked),
        (false, _) => Ok(newest),
    }
}

fn fill_in(target: &mut Option<FileTarget>, name: &str) {
    let target = target.get_or_insert_default();
    if target.path.is_empty() {
        name.clone_into(&mut target.path);
    }
}

/// The first secret or config of a template that is not there any more, for a person.
pub(super) fn missing(state: &State, template: &TaskTemplate) -> Option<String> {
    let gone = payload_refs(template).find(|one| state.payload(one.key).is_none())?;
    let PayloadKey { owner, version } = gone.key;
    Some(format!("version {version} of {} {}", owner.kind(), gone.name))
}

#[cfg(test)]
#[path = "files_test.rs"]
mod tests;
