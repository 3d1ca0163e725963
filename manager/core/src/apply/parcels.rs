//! What secrets and configs ask of a change: unique names, versions that stay what they are, a payload for each version and
//! no other, and none removed that a service uses.

use std::sync::Arc;

use skep_proto::time::UnixMs;

use super::networks::list;
use super::refused::Refused;
use crate::object::{Parcel, ParcelId, Payload, PayloadKey, PayloadVersion, Revision, Service};
use crate::store::{ObjectKey, State, payload_ref_count, payload_refs};

/// What is wrong with a secret or config whatever else is stored.
pub(super) fn parcel_flaw(parcel: &Parcel) -> Option<&'static str> {
    let numbers: Vec<u64> = parcel.versions.iter().map(|version| version.number).collect();
    let flaws = [
        (parcel.spec.name.is_empty(), "it has no name"),
        (numbers.is_empty(), "it has no version"),
        (numbers.first() == Some(&0), "versions are numbered from 1"),
        (!numbers.is_sorted_by(|a, b| a < b), "its versions are not in order"),
        (parcel.versions.iter().any(|one| one.copied_from == Some(0)), "versions are numbered from 1"),
    ];
    flaws.into_iter().find_map(|(wrong, why)| wrong.then_some(why))
}

/// What is wrong with a payload whatever else is stored.
pub(super) fn payload_flaw(payload: &Payload) -> Option<&'static str> {
    let kind = payload.key.owner.kind();
    let flaws = [
        (payload.key.version == 0, "versions are numbered from 1"),
        (payload.data.len() < kind.min_bytes(), "it is empty"),
        (payload.data.len() > kind.max_bytes(), "it is too large"),
    ];
    flaws.into_iter().find_map(|(wrong, why)| wrong.then_some(why))
}

/// What is wrong with the secrets and configs that a revision names, and with how tasks get them.
pub(super) fn revision_flaw(revision: &Revision) -> Option<&'static str> {
    let well_named = payload_refs(&revision.template).count() == payload_ref_count(&revision.template);
    let number = revision.key.number;
    let flaws = [
        (!well_named, "it uses a secret or config without its id"),
        (
            revision.live.as_ref().is_some_and(|live| live.from_revision == 0 || live.from_revision >= number),
            "it is to be taken over from a revision that is not before it",
        ),
    ];
    flaws.into_iter().find_map(|(wrong, why)| wrong.then_some(why))
}

/// Whether a secret's or config's name is free, and what it has is what it had.
pub(super) fn parcel_fits(state: &State, parcel: &Parcel) -> Result<(), Refused> {
    let (kind, name) = (parcel.id.kind(), &parcel.spec.name);
    if let Some(holder) = state.parcel_by_name(kind, name).filter(|holder| holder.id != parcel.id) {
        return Err(Refused::Taken { what: format!("name {name}"), holder: holder.id.to_string() });
    }
    let Some(stored) = state.parcel(parcel.id) else {
        return Ok(());
    };
    let fixed = |part| Err(Refused::Fixed { object: stored.title(), part });
    if stored.spec.name != *name {
        return fixed("name");
    }
    if stored.spec.templated != parcel.spec.templated {
        return fixed("template driver");
    }
    let newest = |parcel: &Parcel| parcel.newest().map_or(0, |version| version.number);
    let (from, to) = (newest(stored), newest(parcel));
    if from > to {
        let object = stored.title();
        return Err(Refused::Backwards { object, part: "version", from: from.to_string(), to: to.to_string() });
    }
    let changed = |new: &PayloadVersion| {
        let same = |old: &PayloadVersion| old.size == new.size && old.copied_from == new.copied_from;
        match stored.version(new.number) {
            Some(old) => !same(old),
            // A number that was left out, or whose payload was deleted, does not come back.
            None => new.number <= from,
        }
    };
    if parcel.versions.iter().any(changed) { fixed("history") } else { Ok(()) }
}

/// A new version's time is that of the write; a stored one keeps its own.
pub(super) fn date(state: &State, parcel: &mut Parcel, at: UnixMs) {
    let stored = state.parcel(parcel.id);
    for version in &mut parcel.versions {
        let known = stored.and_then(|stored| stored.version(version.number));
        version.created_at = known.map_or(at, |known| known.created_at);
    }
}

/// Whether each version of a secret or config has its payload, and each payload its version. Looks at the state after the
/// group.
pub(super) fn is_whole(state: &State, id: ParcelId) -> Result<(), Refused> {
    let missing = |object: String, needed_by: String| Err(Refused::Missing { object, needed_by });
    let Some(parcel) = state.parcel(id) else {
        return match state.payloads_of(id).next() {
            Some(payload) => missing(id.to_string(), ObjectKey::Payload(payload.key).to_string()),
            None => Ok(()),
        };
    };
    for version in &parcel.versions {
        let key = parcel.payload(version.number);
        match state.payload(key) {
            Some(payload) if payload.data.len() as u64 == version.size => {}
            Some(_) => {
                let object = ObjectKey::Payload(key).to_string();
                return Err(Refused::Malformed { object, why: "its size is not what is said of it" });
            }
            None => return missing(ObjectKey::Payload(key).to_string(), parcel.title()),
        }
    }
    match state.payloads_of(id).find(|payload| parcel.version(payload.key.version).is_none()) {
        Some(payload) => missing(format!("its version in {}", parcel.title()), payload.key.to_string()),
        None => Ok(()),
    }
}

/// Whether nobody uses a secret or config that was removed, and nothing of it is left. Looks at the state after the group.
pub(super) fn parcel_unused(state: &State, parcel: &Parcel) -> Result<(), Refused> {
    if state.parcel(parcel.id).is_some() {
        return Ok(());
    }
    match parcel_users(state, parcel.id) {
        Some(by) => Err(Refused::InUse { object: parcel.title(), by }),
        None => is_whole(state, parcel.id),
    }
}

/// Whether nobody uses a payload that was removed, and no version names it. Looks at the state after the group.
pub(super) fn payload_unused(state: &State, key: PayloadKey) -> Result<(), Refused> {
    if state.payload(key).is_some() {
        return Ok(());
    }
    match named(state, state.revisions_with(key)) {
        Some(by) => {
            let owner = state.parcel(key.owner).map_or_else(|| key.owner.to_string(), |parcel| parcel.title());
            Err(Refused::InUse { object: format!("version {} of {owner}", key.version), by })
        }
        None => is_whole(state, key.owner),
    }
}

/// Whether what a revision of the service uses is there. Looks at the state after the group.
pub(super) fn uses_fit(state: &State, service: &Service, revision: &Revision) -> Result<(), Refused> {
    let missing = payload_refs(&revision.template).find(|one| state.payload(one.key).is_none());
    match missing {
        Some(one) => Err(Refused::Missing {
            object: format!("version {} of {} {}", one.key.version, one.key.owner.kind(), one.name),
            needed_by: format!("service {}", service.spec.name),
        }),
        None => Ok(()),
    }
}

/// Whether what a new revision uses is there, and without a pin is the newest there is, or what an earlier one of the service had: it was
/// decided on before a rotation that could not know of it. Looks at the state after the group.
pub(super) fn versions_fit(state: &State, revision: &Revision) -> Result<(), Refused> {
    if let Some(service) = state.service(revision.key.service) {
        uses_fit(state, service, revision)?;
    }
    for one in payload_refs(&revision.template).filter(|one| !one.pinned) {
        let Some(parcel) = state.parcel(one.key.owner) else { continue };
        let stored = parcel.newest().map_or(0, |newest| newest.number);
        let had =
            |other: &Revision| payload_refs(&other.template).any(|before| before.key == one.key && !before.pinned);
        let mut earlier = state.revisions_of(revision.key.service).filter(|other| other.key != revision.key);
        if one.key.version != stored && !earlier.any(|other| had(other)) {
            return Err(Refused::OutOfSequence { object: parcel.title(), stored, expected: one.key.version });
        }
    }
    Ok(())
}

/// Who uses a secret or config, for a person: the services whose current revision names it, or that still have tasks to
/// run of an earlier one which does. `None`: nobody.
pub fn parcel_users(state: &State, id: ParcelId) -> Option<String> {
    named(state, state.revisions_with_parcel(id))
}

fn named<'a>(state: &'a State, revisions: impl Iterator<Item = &'a Arc<Revision>>) -> Option<String> {
    let mut services: Vec<&str> = revisions.filter_map(|revision| Some(&*user(state, revision)?.spec.name)).collect();
    services.sort_unstable();
    services.dedup();
    (!services.is_empty()).then(|| list(if services.len() == 1 { "service" } else { "services" }, &services))
}

/// The service that a revision counts for as a user. Tasks of a service that is gone are about to be stopped.
fn user<'a>(state: &'a State, revision: &Revision) -> Option<&'a Arc<Service>> {
    let service = state.service(revision.key.service)?;
    let counts = service.current() == revision.key || state.live_tasks_of_revision(revision.key) > 0;
    counts.then_some(service)
}

#[cfg(test)]
#[path = "parcels_test.rs"]
mod tests;
