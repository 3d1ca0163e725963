//! The validator of the whole state: whatever must hold of it, checked object by object, and the indexes against a
//! fresh build. Used by tests, by debug builds and by `skep swarm doctor`. It reads only; what to do about a finding is
//! said in its message.

mod certificates;
mod networks;
mod parcels;
mod rules;

#[cfg(test)]
mod doctor_test;

use std::collections::BTreeMap;

use skep_proto::time::UnixMs;
use skep_proto::v1::{self, Severity};

use crate::ca::RootLife;
use crate::store::State;

/// Something wrong with the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `Error`: the store broke a rule of its own, a bug. `Warning`: a loop has to act and should do so soon; a bug if it
    /// stays. `Note`: a leftover that the reaper deletes.
    pub severity: Severity,
    /// `task 3kd…`, `service web`.
    pub object: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// Looks at everything. O(n); nothing wrong is an empty list.
pub fn check(state: &State) -> Vec<Finding> {
    let mut findings = Vec::new();
    rules::cluster(state, &mut findings);
    rules::nodes(state, &mut findings);
    rules::services(state, &mut findings);
    rules::revisions(state, &mut findings);
    rules::tasks(state, &mut findings);
    rules::places(state, &mut findings);
    rules::credentials(state, &mut findings);
    networks::networks(state, &mut findings);
    networks::addresses(state, &mut findings);
    networks::ports(state, &mut findings);
    parcels::parcels(state, &mut findings);
    parcels::uses(state, &mut findings);
    if let Err(message) = state.check_indexes() {
        findings.push(Finding { severity: Severity::Error, object: "the store".to_owned(), message });
    }
    findings
}

/// Looks at what only networks have: names, subnets, numbers.
pub fn networks(state: &State) -> Vec<Finding> {
    let mut findings = Vec::new();
    networks::networks(state, &mut findings);
    findings
}

/// The answer to `skep swarm doctor`: also what time does to certificates. `root` is the life of the root that signs.
pub fn report(state: &State, root: Option<RootLife>, now: UnixMs) -> v1::DoctorResponse {
    let mut findings = check(state);
    certificates::root(root, now, &mut findings);
    certificates::certificates(state, now, &mut findings);
    certificates::rotation(state, now, &mut findings);
    let findings = findings.into_iter().map(|finding| v1::Finding {
        severity: finding.severity.into(),
        object: finding.object,
        message: finding.message,
    });
    let counts = [
        ("nodes", state.node_count()),
        ("services", state.service_count()),
        ("revisions", state.revision_count()),
        ("tasks", state.task_count()),
        ("image names", state.image_names().count()),
        ("credentials", state.credentials().count()),
        ("networks", state.network_count()),
        ("secrets and configs", state.parcel_count()),
        ("payloads", state.payload_count()),
        ("clients", state.client_count()),
    ];
    let checked: BTreeMap<_, _> = counts.into_iter().map(|(kind, count)| (kind.to_owned(), count as u64)).collect();
    v1::DoctorResponse { findings: findings.collect(), checked }
}
