//! What secrets and configs have in common, which is nearly everything: the two services translate, this decides and
//! writes. Data come in here and go on to the store; only a config's come out.

use std::sync::Arc;

use skep_core::apply::{self, Refused};
use skep_core::change::{Change, Op};
use skep_core::object::{Data, Parcel, ParcelId, ParcelKind, ParcelSpec, PayloadVersion};
use skep_core::parcels::{self, NewVersion, Rollout};
use skep_core::store::{State, payload_refs};
use skep_proto::id::{ConfigId, RequestId, SecretId, ServiceId};
use skep_proto::v1::{
    PayloadUse, ReadOptions, RemovePayloadsRequest, RemovePayloadsResponse, RollbackPayloadRequest, RolloutOptions,
    RotateRequest, RotateResponse, WriteOptions,
};
use skep_proto::validate::{self, files};
use tonic::Status;

use super::error::IntoStatus;
use super::services::request_id;
use super::{ATTEMPTS, Control, read};
use crate::store::{WriteError, Written};

/// Services named in a message; enough to know where to look.
const NAMED: usize = 5;

/// Where the data of a new version come from.
enum Source {
    Given(Data),
    /// Another version of the same; `None`: the one before the newest.
    Version(Option<u64>),
}

/// A rotation as it was asked for.
struct Asked {
    reference: String,
    source: Source,
    rollout: Rollout,
    expect_version: u64,
    request: Option<RequestId>,
}

impl Control {
    /// All of one kind, and the version of the state.
    pub(super) async fn list_parcels(
        &self,
        kind: ParcelKind,
        read: Option<ReadOptions>,
    ) -> Result<(Vec<Arc<Parcel>>, u64), Status> {
        let state = read::state(&self.store, read).await?;
        Ok((state.parcels_of(kind).cloned().collect(), state.version()))
    }

    /// One of them, and the state that it is in.
    pub(super) async fn get_parcel(
        &self,
        kind: ParcelKind,
        reference: &str,
        read: Option<ReadOptions>,
    ) -> Result<(Arc<Parcel>, State), Status> {
        let state = read::state(&self.store, read).await?;
        let parcel = state.find_parcel(kind, reference).map_err(IntoStatus::into_status)?;
        Ok((Arc::clone(parcel), state))
    }

    /// Makes one. The spec was validated.
    pub(super) async fn create_parcel(
        &self,
        kind: ParcelKind,
        spec: ParcelSpec,
        data: Vec<u8>,
        write: Option<WriteOptions>,
    ) -> Result<Written, Status> {
        let data = Data::new(data);
        check_size(kind, &data)?;
        let request = request_id(write)?;
        let state = read::fresh(&self.store).await?;
        if let Some(written) = answered(&state, request) {
            // The first try took the name.
            return Ok(written);
        }
        if !parcels::all_managers_know(&state) {
            let message = format!("some managers run a version that knows no {kind}s: upgrade skep on all managers");
            return Err(Status::failed_precondition(message));
        }
        // Early refusal; the store checks again when it applies.
        if let Some(other) = state.parcel_by_name(kind, &spec.name) {
            return Err(name_taken(other));
        }
        let id = match kind {
            ParcelKind::Secret => ParcelId::Secret(SecretId::new(rand::random())),
            ParcelKind::Config => ParcelId::Config(ConfigId::new(rand::random())),
        };
        let changes = parcels::creation(id, spec, data, self.store.now());
        self.store.write(request, id.to_vec(), changes).await.map_err(IntoStatus::into_status)
    }

    /// Gives one other labels.
    pub(super) async fn relabel_parcel(
        &self,
        kind: ParcelKind,
        reference: &str,
        spec: ParcelSpec,
        expect_version: u64,
        write: Option<WriteOptions>,
    ) -> Result<Written, Status> {
        let request = request_id(write)?;
        let mut attempts = 0;
        loop {
            let state = read::fresh(&self.store).await?;
            if let Some(written) = answered(&state, request) {
                return Ok(written);
            }
            let parcel = state.find_parcel(kind, reference).map_err(IntoStatus::into_status)?;
            check_version(parcel, expect_version)?;
            let relabelled = ParcelSpec { labels: spec.labels.clone(), ..ParcelSpec::clone(&parcel.spec) };
            if relabelled != spec {
                let message = format!(
                    "only the labels of {} can change: for other data use `skep {kind} rotate {}`",
                    parcel.title(),
                    parcel.spec.name
                );
                return Err(Status::invalid_argument(message));
            }
            let id = parcel.id.to_vec();
            if relabelled == *parcel.spec {
                return Ok(Written { version: state.version(), object_id: id, refused: Vec::new() });
            }
            let changed = Parcel { spec: Arc::new(relabelled), ..Parcel::clone(parcel) };
            let changes = vec![Change::update(parcel.meta.version, Op::PutParcel(changed))];
            attempts += 1;
            match self.store.write(request, id, changes).await {
                Err(WriteError::Refused(Refused::OutOfSequence { .. }))
                    if expect_version == 0 && attempts < ATTEMPTS => {}
                written => return written.map_err(IntoStatus::into_status),
            }
        }
    }

    /// Removes one that nobody uses.
    pub(super) async fn remove_parcel(
        &self,
        kind: ParcelKind,
        request: RemovePayloadsRequest,
    ) -> Result<RemovePayloadsResponse, Status> {
        let RemovePayloadsRequest { reference, write } = request;
        let request = request_id(write)?;
        let mut attempts = 0;
        loop {
            let state = read::fresh(&self.store).await?;
            if let Some(Written { object_id: id, version, .. }) = answered(&state, request) {
                // The first try removed it: it is not to be found any more.
                return Ok(RemovePayloadsResponse { id, version, name: reference });
            }
            let parcel = state.find_parcel(kind, &reference).map_err(IntoStatus::into_status)?;
            if let Some(users) = apply::parcel_users(&state, parcel.id) {
                return Err(Status::failed_precondition(format!(
                    "{} is in use by {users}: take it away there with `skep service update --{kind}-rm {}`",
                    parcel.title(),
                    parcel.spec.name
                )));
            }
            let changes = parcels::removal(&state, parcel);
            attempts += 1;
            match self.store.write(request, parcel.id.to_vec(), changes).await {
                // It was rotated or relabelled meanwhile.
                Err(WriteError::Refused(Refused::OutOfSequence { .. })) if attempts < ATTEMPTS => {}
                Err(error) => return Err(error.into_status()),
                Ok(Written { object_id: id, version, .. }) => {
                    return Ok(RemovePayloadsResponse { id, version, name: parcel.spec.name.clone() });
                }
            }
        }
    }

    /// Gives one new data.
    pub(super) async fn rotate_parcel(
        &self,
        kind: ParcelKind,
        request: RotateRequest,
    ) -> Result<RotateResponse, Status> {
        let RotateRequest { reference, data, rollout, expect_version, write } = request;
        let data = Data::new(data);
        check_size(kind, &data)?;
        let (rollout, request) = (rollout_of(rollout)?, request_id(write)?);
        self.new_version(kind, Asked { reference, source: Source::Given(data), rollout, expect_version, request }).await
    }

    /// Gives one the data of an earlier version again.
    pub(super) async fn roll_back_parcel(
        &self,
        kind: ParcelKind,
        request: RollbackPayloadRequest,
    ) -> Result<RotateResponse, Status> {
        let RollbackPayloadRequest { reference, to_version, rollout, expect_version, write } = request;
        let (rollout, request) = (rollout_of(rollout)?, request_id(write)?);
        let source = Source::Version((to_version != 0).then_some(to_version));
        self.new_version(kind, Asked { reference, source, rollout, expect_version, request }).await
    }

    /// Writes a new version and has the services follow. The version, and as many services as one transaction can hold
    /// (hundreds), are written together or not at all; the rest follow at once, each by itself. If that is cut short, the
    /// answer says who is left behind.
    async fn new_version(&self, kind: ParcelKind, mut asked: Asked) -> Result<RotateResponse, Status> {
        let mut attempts = 0;
        let (id, payload_version, mut services) = loop {
            let state = read::fresh(&self.store).await?;
            if let Some(Written { object_id, .. }) = answered(&state, asked.request) {
                // The first try wrote the version, and maybe not all that follows.
                let parcel = state.find_parcel(kind, &printed(kind, &object_id)).map_err(IntoStatus::into_status)?;
                let version = written(&state, parcel, &asked.source);
                break (parcel.id, version, parcels::reached(&state, parcel.id, version));
            }
            let parcel = state.find_parcel(kind, &asked.reference).map_err(IntoStatus::into_status)?;
            check_version(parcel, asked.expect_version)?;
            let (data, copied_from) = source(&state, parcel, &mut asked.source)?;
            let new = NewVersion { data, copied_from, rollout: asked.rollout.clone() };
            let rotation = parcels::rotation(&state, parcel, new, self.store.now())
                .map_err(|refusal| Status::failed_precondition(refusal.to_string()))?;
            attempts += 1;
            match self.store.write(asked.request, parcel.id.to_vec(), rotation.changes).await {
                Ok(_) => break (parcel.id, rotation.version, rotation.services),
                // Another write came between: of it, or of a service that uses it.
                Err(WriteError::Refused(
                    Refused::OutOfSequence { .. }
                    | Refused::Exists { .. }
                    | Refused::Backwards { .. }
                    | Refused::Gone { .. },
                )) if attempts < ATTEMPTS => {}
                Err(error) => return Err(error.into_status()),
            }
        };
        services.extend(self.bring_along(id, payload_version, &asked.rollout).await?);
        let state = self.store.state();
        let warnings = parcels::pinned(&state, id)
            .into_iter()
            .filter(|(_, version)| *version != payload_version)
            .map(|(service, version)| {
                format!("service {service} has version {version} pinned: it does not get version {payload_version}")
            })
            .collect();
        let service_ids = services.into_iter().map(ServiceId::to_vec).collect();
        Ok(RotateResponse { id: id.to_vec(), version: state.version(), payload_version, service_ids, warnings })
    }

    /// Has those services follow that did not yet. Returns which did.
    async fn bring_along(&self, id: ParcelId, version: u64, rollout: &Rollout) -> Result<Vec<ServiceId>, Status> {
        let mut followed = Vec::new();
        let mut trouble = String::new();
        for _ in 0..ATTEMPTS {
            let state = read::fresh(&self.store).await?;
            let is_newest =
                state.parcel(id).is_some_and(|parcel| parcel.newest().is_some_and(|one| one.number == version));
            let behind = parcels::behind(&state, id, version, rollout, self.store.now());
            // The rotation that came after takes the rest along.
            if behind.is_empty() || !is_newest {
                return Ok(followed);
            }
            let (ids, groups): (Vec<ServiceId>, Vec<_>) = behind.into_iter().unzip();
            match self.store.write_groups(groups).await {
                Ok(written) => {
                    self.store.applied(written.version).await;
                    let is_refused = |index: usize| written.refused.iter().any(|(refused, _)| *refused == index);
                    followed.extend(ids.iter().enumerate().filter(|(index, _)| !is_refused(*index)).map(|(_, id)| *id));
                    trouble =
                        written.refused.into_iter().map(|(_, refused)| refused.to_string()).next().unwrap_or_default();
                }
                Err(error) => trouble = error.to_string(),
            }
        }
        let state = self.store.state();
        let behind = parcels::behind(&state, id, version, rollout, self.store.now());
        let named = behind.iter().filter_map(|(id, _)| Some(state.service(*id)?.spec.name.as_str())).take(NAMED);
        let title = state.parcel(id).map_or_else(|| id.to_string(), |parcel| parcel.title());
        let left: Vec<&str> = named.collect();
        if left.is_empty() {
            return Ok(followed);
        }
        Err(Status::aborted(format!(
            "{title} has version {version} now, but {} services do not use it yet ({}): {trouble}; rotate it again",
            behind.len(),
            left.join(", ")
        )))
    }
}

/// The data of a new version. Which version is "the one before" is decided once: a retry must not move on.
#[allow(clippy::result_large_err)]
fn source(state: &State, parcel: &Parcel, source: &mut Source) -> Result<(Data, Option<u64>), Status> {
    let to = match source {
        Source::Given(data) => return Ok((data.clone(), None)),
        Source::Version(to) => to,
    };
    let (kind, name) = (parcel.id.kind(), &parcel.spec.name);
    let newest = parcel.newest().map_or(0, |newest| newest.number);
    let before = parcel.versions.iter().rev().nth(1);
    let Some(number) = to.or(before.map(|version| version.number)) else {
        let message = format!("{kind} {name} was never rotated: there is nothing to go back to");
        return Err(Status::failed_precondition(message));
    };
    if number == newest {
        return Err(Status::failed_precondition(format!("{kind} {name} is at version {number} already")));
    }
    *to = Some(number);
    match state.payload(parcel.payload(number)) {
        Some(payload) => Ok((payload.data.clone(), Some(number))),
        None => Err(Status::not_found(no_version(parcel, number))),
    }
}

/// The version that the first try of a request wrote: the newest that is as it was asked for.
fn written(state: &State, parcel: &Parcel, source: &Source) -> u64 {
    let is_it = |version: &&PayloadVersion| match source {
        Source::Given(data) => {
            let payload = state.payload(parcel.payload(version.number));
            payload.is_some_and(|payload| payload.data == *data)
        }
        Source::Version(to) => version.copied_from.is_some() && (to.is_none() || version.copied_from == *to),
    };
    let found = parcel.versions.iter().rev().find(is_it).or(parcel.newest());
    found.map_or(0, |version| version.number)
}

/// Why a version cannot be had.
pub(super) fn no_version(parcel: &Parcel, number: u64) -> String {
    let kept: Vec<String> = parcel.versions.iter().map(|version| version.number.to_string()).collect();
    format!("{} has no version {number} (any more); kept are {}", parcel.title(), kept.join(", "))
}

/// Who uses it: a line for each use by a service's current revision, and for each service of which only earlier tasks do.
pub(super) fn uses(state: &State, parcel: &Parcel) -> Vec<PayloadUse> {
    let mut uses = Vec::new();
    for (service, template) in parcels::users(state, parcel.id) {
        let own = payload_refs(template).filter(|one| one.key.owner == parcel.id);
        uses.extend(own.map(|one| PayloadUse {
            service_id: service.id.to_vec(),
            service_name: service.spec.name.clone(),
            payload_version: one.key.version,
            pinned: one.pinned,
        }));
    }
    for revision in state.revisions_with_parcel(parcel.id) {
        let Some(service) = state.service(revision.key.service) else { continue };
        let id = service.id.to_vec();
        if state.live_tasks_of_revision(revision.key) > 0 && uses.iter().all(|one| one.service_id != id) {
            let service_name = service.spec.name.clone();
            uses.push(PayloadUse { service_id: id, service_name, payload_version: 0, pinned: false });
        }
    }
    uses
}

/// What the first try of a write came to.
fn answered(state: &State, request: Option<RequestId>) -> Option<Written> {
    let (object_id, version) = read::first_answer(state, request)?;
    Some(Written { version, object_id, refused: Vec::new() })
}

/// An id as it is printed.
fn printed(kind: ParcelKind, id: &[u8]) -> String {
    match kind {
        ParcelKind::Secret => SecretId::from_wire(id).map(|id| id.to_string()),
        ParcelKind::Config => ConfigId::from_wire(id).map(|id| id.to_string()),
    }
    .unwrap_or_default()
}

#[allow(clippy::result_large_err)]
fn check_size(kind: ParcelKind, data: &Data) -> Result<(), Status> {
    let checked = match kind {
        ParcelKind::Secret => files::secret_size(data.len()),
        ParcelKind::Config => files::config_size(data.len()),
    };
    checked.map_err(IntoStatus::into_status)
}

/// Refuses a write that was decided on an older version.
#[allow(clippy::result_large_err)]
fn check_version(parcel: &Parcel, expected: u64) -> Result<(), Status> {
    let stored = parcel.meta.version;
    if expected == 0 || expected == stored {
        return Ok(());
    }
    let title = parcel.title();
    Err(Status::aborted(format!(
        "update out of sequence: {title} is at version {stored}, not {expected}; read it again"
    )))
}

#[allow(clippy::result_large_err)]
fn rollout_of(options: Option<RolloutOptions>) -> Result<Rollout, Status> {
    let RolloutOptions { live, signal } = options.unwrap_or_default();
    if !live && signal.is_empty() {
        return Ok(Rollout::Rolling);
    }
    if !live {
        return Err(Status::invalid_argument("a signal goes with a live rotation only: tasks are restarted otherwise"));
    }
    if !signal.is_empty() && validate::signal_number(&signal).is_none() {
        return Err(Status::invalid_argument(format!("there is no signal {signal:?}")));
    }
    Ok(Rollout::Live { signal })
}

fn name_taken(other: &Parcel) -> Status {
    let (kind, name) = (other.id.kind(), &other.spec.name);
    let id = other.id.printed();
    Status::already_exists(format!(
        "name {name} is taken by {kind} {}: choose another, give that one other data with `skep {kind} rotate {name}`, or \
         remove it with `skep {kind} rm {name}`",
        &id[..skep_proto::id::SHORT_LEN.min(id.len())]
    ))
}

#[cfg(test)]
#[path = "parcels_test.rs"]
mod tests;
