//! The rules about secrets and configs: unique names, a payload for each version and no other, and all that services use
//! is there.

use super::Finding;
use super::rules::{Report, twice};
use crate::store::{ObjectKey, State, payload_refs};

/// Secrets and configs, and their payloads.
pub(super) fn parcels(state: &State, findings: &mut Vec<Finding>) {
    for parcel in state.parcels() {
        let mut report = Report::on(findings, parcel.title());
        report.meta(state, parcel.meta);
        report.error(parcel.versions.is_empty(), || "it has no version".to_owned());
        let ordered = parcel.versions.is_sorted_by(|a, b| a.number < b.number);
        report.error(!ordered, || "its versions are not in order".to_owned());
        for version in &parcel.versions {
            let number = version.number;
            let payload = state.payload(parcel.payload(number));
            report.error(payload.is_none(), || format!("the data of its version {number} are missing"));
            report.error(payload.is_some_and(|payload| payload.data.len() as u64 != version.size), || {
                format!("the data of its version {number} are not as long as is said of them")
            });
        }
    }
    for payload in state.payloads() {
        let owner = state.parcel(payload.key.owner);
        let named = owner.is_some_and(|owner| owner.version(payload.key.version).is_some());
        let mut report = Report::on(findings, ObjectKey::Payload(payload.key));
        report.error(!named, || "nothing says that there is such a version".to_owned());
    }
    let names = state.parcels().map(|parcel| (parcel.id.kind(), parcel.spec.name.as_str()));
    twice(names, |(kind, name)| {
        Report::on(findings, format!("{kind} {name}")).error(true, || format!("two {kind}s have this name"));
    });
}

/// What services use.
pub(super) fn uses(state: &State, findings: &mut Vec<Finding>) {
    for revision in state.revisions() {
        let Some(service) = state.service(revision.key.service) else { continue };
        let is_current = service.current() == revision.key;
        let tasks = state.live_tasks_of_revision(revision.key);
        for one in payload_refs(&revision.template).filter(|one| state.payload(one.key).is_none()) {
            let what = || format!("version {} of {} {}", one.key.version, one.key.owner.kind(), one.name);
            let mut report = Report::on(findings, format!("service {}", service.spec.name));
            report.error(is_current, || format!("it uses {}, which is not there", what()));
            report.warning(!is_current && tasks > 0, || {
                format!("{tasks} of its tasks are to use {}, which is not there: update it", what())
            });
        }
    }
}
