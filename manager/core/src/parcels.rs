//! Decisions about secrets and configs: what making, rotating and removing one writes, which services follow a rotation,
//! and which payloads nobody needs any more. Pure; called by the control API and by the reaper.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_proto::id::ServiceId;
use skep_proto::template::{Facts, Inside, render_data};
use skep_proto::time::UnixMs;
use skep_proto::v1::TaskTemplate;
use skep_proto::validate::files;

use crate::change::{Change, Group, Op, Plan, Transaction};
use crate::codec;
use crate::head::{MAX_ENTRY_CHANGES, MAX_TRANSACTION_BYTES};
use crate::object::{
    Data, Meta, Parcel, ParcelId, ParcelKind, ParcelSpec, Payload, PayloadKey, PayloadVersion, Service,
};
use crate::orchestrate::{RollOut, begin_roll_out};
use crate::store::{PayloadRef, State, payload_refs};

/// From which feature level of the swarm on there are secrets and configs: managers below it could not read them.
pub const FEATURE_LEVEL: u32 = 3;
/// Versions kept of each, where the cluster says nothing; the same setting as for services' revisions.
const DEFAULT_HISTORY: i32 = 10;
/// Left free in a transaction for what is around its changes.
const FRAME_BYTES: usize = 1024;

/// Whether all managers understand secrets and configs. A swarm that is being made has only the one.
pub fn all_managers_know(state: &State) -> bool {
    state.cluster().is_none_or(|cluster| cluster.feature_level >= FEATURE_LEVEL)
}

/// A new version of a secret or config.
#[derive(Clone, Debug)]
pub struct NewVersion {
    pub data: Data,
    /// The version whose data they are.
    pub copied_from: Option<u64>,
    /// How services get it.
    pub rollout: Rollout,
}

/// How services get a new version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rollout {
    /// By their update policies, as after `service update`.
    Rolling,
    /// Running tasks take it over in place.
    Live {
        /// To the first process of each container whose files changed. Empty: none.
        signal: String,
    },
}

/// Why a rotation cannot be live.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{title} cannot be rotated live: service {service} has it at {path}, and only files under {} can be swapped while a \
     container runs; rotate it without --live",
    files::SECRETS_DIR
)]
pub struct NotLive {
    title: String,
    service: String,
    path: String,
}

/// What a rotation writes first.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// Number of the new version.
    pub version: u64,
    /// All or none: the new version, and the services that fit into the same transaction. In all but huge swarms that is
    /// every one.
    pub changes: Vec<Change>,
    /// The services among them.
    pub services: Vec<ServiceId>,
}

/// The changes that make a secret or config.
pub fn creation(id: ParcelId, spec: ParcelSpec, data: Data, now: UnixMs) -> Vec<Change> {
    let version = PayloadVersion { number: 1, created_at: now, size: data.len() as u64, copied_from: None };
    let parcel = Parcel { id, meta: Meta::default(), spec: Arc::new(spec), versions: vec![version] };
    let payload = Payload { key: parcel.payload(1), data };
    vec![Change::create(Op::PutParcel(parcel)), Change::create(Op::PutPayload(payload))]
}

/// The changes that remove a secret or config with all its data.
pub fn removal(state: &State, parcel: &Parcel) -> Vec<Change> {
    let payloads = state.payloads_of(parcel.id).map(|payload| Change::any(Op::RemovePayload(payload.key)));
    std::iter::once(Change::update(parcel.meta.version, Op::RemoveParcel(parcel.id))).chain(payloads).collect()
}

/// What a rotation writes. Services that do not fit into the transaction are [`behind`] afterwards.
pub fn rotation(state: &State, parcel: &Parcel, new: NewVersion, now: UnixMs) -> Result<Rotation, NotLive> {
    let NewVersion { data, copied_from, rollout } = new;
    let users: Vec<_> = followers(state, parcel.id).collect();
    if let Rollout::Live { .. } = rollout
        && let Some(refusal) = users.iter().find_map(|(service, template)| not_live(state, parcel, service, template))
    {
        return Err(refusal);
    }
    let number = parcel.newest().map_or(0, |newest| newest.number) + 1;
    let mut rotated = parcel.clone();
    rotated.versions.push(PayloadVersion { number, created_at: now, size: data.len() as u64, copied_from });
    let payload = Payload { key: parcel.payload(number), data };
    let mut changes =
        vec![Change::update(parcel.meta.version, Op::PutParcel(rotated)), Change::create(Op::PutPayload(payload))];
    let mut bytes = size(&changes) + FRAME_BYTES;
    let mut services = Vec::new();
    for (service, template) in users {
        let follow = follow(state, (service, template), (parcel.id, number), &rollout, now);
        bytes += size(&follow);
        if bytes > MAX_TRANSACTION_BYTES || changes.len() + follow.len() > MAX_ENTRY_CHANGES {
            break;
        }
        changes.extend(follow);
        services.push(service.id);
    }
    Ok(Rotation { version: number, changes, services })
}

/// What a rotation to `version` has still to write, one group for each service that did not follow yet: those whose
/// revision is older than the version. A service that was updated or rolled back since keeps what it was given then.
pub fn behind(state: &State, id: ParcelId, version: u64, rollout: &Rollout, now: UnixMs) -> Vec<(ServiceId, Group)> {
    let Some(since) = state.parcel(id).and_then(|parcel| Some(parcel.version(version)?.created_at)) else {
        return Vec::new();
    };
    let is_older =
        |service: &Service| state.revision(service.current()).is_some_and(|revision| revision.created_at <= since);
    followers(state, id)
        .filter(|(service, template)| is_older(service) && uses_other(template, id, version))
        .map(|(service, template)| (service.id, Group(follow(state, (service, template), (id, version), rollout, now))))
        .collect()
}

/// Services that a version has reached, or that were made with it: whom a rotation to it took along, by id.
pub fn reached(state: &State, id: ParcelId, version: u64) -> Vec<ServiceId> {
    let has = |template: &TaskTemplate| !uses_other(template, id, version);
    followers(state, id).filter(|(_, template)| has(template)).map(|(service, _)| service.id).collect()
}

/// Services that have a secret or config pinned: a rotation passes them by. Names and versions, in order.
pub fn pinned(state: &State, id: ParcelId) -> Vec<(String, u64)> {
    let mut pinned = BTreeSet::new();
    for (service, template) in users(state, id) {
        let own = payload_refs(template).filter(|one| one.key.owner == id && one.pinned);
        pinned.extend(own.map(|one| (service.spec.name.clone(), one.key.version)));
    }
    pinned.into_iter().collect()
}

/// Services whose current revision uses a secret or config, with its template, by id.
pub fn users(state: &State, id: ParcelId) -> impl Iterator<Item = (&Arc<Service>, &Arc<TaskTemplate>)> {
    let current: BTreeMap<ServiceId, _> = state
        .revisions_with_parcel(id)
        .filter_map(|revision| {
            let service = state.service(revision.key.service)?;
            (service.current() == revision.key).then_some((service.id, (service, &revision.template)))
        })
        .collect();
    current.into_values()
}

/// Those of them that rotations reach.
fn followers(state: &State, id: ParcelId) -> impl Iterator<Item = (&Arc<Service>, &Arc<TaskTemplate>)> {
    users(state, id).filter(move |(_, template)| payload_refs(template).any(|one| follows(&one, id)))
}

fn follows(one: &PayloadRef<'_>, id: ParcelId) -> bool {
    one.key.owner == id && !one.pinned
}

fn uses_other(template: &TaskTemplate, id: ParcelId, version: u64) -> bool {
    payload_refs(template).any(|one| follows(&one, id) && one.key.version != version)
}

fn not_live(state: &State, parcel: &Parcel, service: &Service, template: &TaskTemplate) -> Option<NotLive> {
    let refs: Vec<_> = payload_refs(template).collect();
    let own = || refs.iter().filter(|one| follows(one, parcel.id));
    let changes = |one: &&PayloadRef<'_>| {
        let beside = own().filter(|own| own.container == one.container);
        follows(one, parcel.id) || beside.map(target).any(|target| fills_in(state, one.key, parcel.id.kind(), target))
    };
    let path = |one: &PayloadRef<'_>| match one.key.owner.kind() {
        ParcelKind::Secret => files::secret_path(target(one)),
        ParcelKind::Config => files::config_path(target(one)),
    };
    let outside = refs.iter().filter(changes).map(path).find(|path| !files::is_secrets_path(path))?;
    Some(NotLive { title: parcel.title(), service: service.spec.name.clone(), path: outside })
}

/// What a container calls it.
fn target<'a>(one: &PayloadRef<'a>) -> &'a str {
    one.target.map(|target| target.path.as_str()).filter(|path| !path.is_empty()).unwrap_or(one.name)
}

/// Whether a payload is a template with the data of its container's secret or config of that target.
fn fills_in(state: &State, key: PayloadKey, kind: ParcelKind, target: &str) -> bool {
    let Some(payload) = state.payload(key).filter(|_| is_templated(state, key.owner)) else { return false };
    let search = Search { kind, target, found: Cell::new(false) };
    let facts = Facts { service_labels: Some(BTreeMap::new()), ..Facts::default() };
    // One that does not render may have it behind what is wrong.
    render_data(payload.data.as_bytes(), &facts, &search, usize::MAX).is_err() || search.found.get()
}

fn is_templated(state: &State, id: ParcelId) -> bool {
    state.parcel(id).is_some_and(|parcel| parcel.spec.templated)
}

/// Finds out whether a template looks a secret or config up.
struct Search<'a> {
    kind: ParcelKind,
    target: &'a str,
    found: Cell<bool>,
}

impl Search<'_> {
    fn look(&self, kind: ParcelKind, target: &str) -> Option<&[u8]> {
        self.found.set(self.found.get() || (kind == self.kind && target == self.target));
        Some(b"")
    }
}

impl Inside for Search<'_> {
    fn env(&self, _name: &str) -> Option<&str> {
        None
    }

    fn secret(&self, target: &str) -> Option<&[u8]> {
        self.look(ParcelKind::Secret, target)
    }

    fn config(&self, target: &str) -> Option<&[u8]> {
        self.look(ParcelKind::Config, target)
    }
}

/// The changes by which a service gets a version.
fn follow(
    state: &State,
    (service, template): (&Arc<Service>, &TaskTemplate),
    (id, version): (ParcelId, u64),
    rollout: &Rollout,
    now: UnixMs,
) -> Vec<Change> {
    let mut template = template.clone();
    for container in &mut template.containers {
        match id {
            ParcelId::Secret(id) => {
                let own = container.secrets.iter_mut().filter(|one| !one.pinned && one.secret_id == id.to_vec());
                own.for_each(|one| one.version = version);
            }
            ParcelId::Config(id) => {
                let own = container.configs.iter_mut().filter(|one| !one.pinned && one.config_id == id.to_vec());
                own.for_each(|one| one.version = version);
            }
        }
    }
    let kind = match rollout {
        Rollout::Rolling => RollOut::Update,
        Rollout::Live { signal } => RollOut::Live { signal: signal.clone() },
    };
    begin_roll_out(state, Service::clone(service), Arc::new(template), kind, now)
}

fn size(changes: &[Change]) -> usize {
    codec::transaction_size(&Transaction { groups: vec![Group(changes.to_vec())], ..Transaction::default() })
}

/// Deletes the versions of a secret or config that are neither among the newest nor used by any kept revision.
pub fn reap(state: &State, id: ParcelId) -> Plan {
    let mut plan = Plan::default();
    let Some(parcel) = state.parcel(id) else {
        return plan;
    };
    let limit = state.cluster().map_or(0, |cluster| cluster.spec.revision_history_limit);
    let keep = usize::try_from(if limit == 0 { DEFAULT_HISTORY } else { limit }).unwrap_or(0).max(1);
    let beyond = parcel.versions.len().saturating_sub(keep);
    let is_unused = |version: &&PayloadVersion| state.revisions_with(parcel.payload(version.number)).next().is_none();
    let gone: BTreeSet<u64> =
        parcel.versions[..beyond].iter().filter(is_unused).map(|version| version.number).collect();
    if gone.is_empty() {
        return plan;
    }
    let mut shorter = Parcel::clone(parcel);
    shorter.versions.retain(|version| !gone.contains(&version.number));
    let mut changes = vec![Change::update(parcel.meta.version, Op::PutParcel(shorter))];
    changes.extend(gone.into_iter().map(|version| Change::any(Op::RemovePayload(parcel.payload(version)))));
    plan.push(changes);
    plan
}

#[cfg(test)]
#[path = "parcels/parcels_test.rs"]
mod tests;
