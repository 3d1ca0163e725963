//! The rules, by kind of object.

use std::collections::{BTreeMap, BTreeSet};

use skep_proto::v1::{Severity, UpdateState, WantedState};

use super::Finding;
use crate::object::{Meta, Slot, Task};
use crate::store::{HostPort, ObjectKey, State};

/// Collects what is wrong with one object.
pub(super) struct Report<'a> {
    findings: &'a mut Vec<Finding>,
    object: String,
}

impl<'a> Report<'a> {
    pub(super) fn on(findings: &'a mut Vec<Finding>, object: impl ToString) -> Self {
        Self { findings, object: object.to_string() }
    }

    fn add(&mut self, severity: Severity, wrong: bool, message: impl FnOnce() -> String) {
        if wrong {
            self.findings.push(Finding { severity, object: self.object.clone(), message: message() });
        }
    }

    pub(super) fn error(&mut self, wrong: bool, message: impl FnOnce() -> String) {
        self.add(Severity::Error, wrong, || format!("{}; please report this as a bug", message()));
    }

    pub(super) fn warning(&mut self, wrong: bool, message: impl FnOnce() -> String) {
        self.add(Severity::Warning, wrong, message);
    }

    fn note(&mut self, wrong: bool, message: impl FnOnce() -> String) {
        self.add(Severity::Note, wrong, message);
    }

    pub(super) fn meta(&mut self, state: &State, meta: Meta) {
        let (version, newest) = (meta.version, state.version());
        self.error(version > newest, || format!("it has version {version}, the store only {newest}"));
    }
}

pub(super) fn cluster(state: &State, findings: &mut Vec<Finding>) {
    let mut report = Report::on(findings, "the cluster object");
    match state.cluster() {
        Some(cluster) => {
            report.meta(state, cluster.meta);
            let (wanted, has_key) = (cluster.spec.autolock, cluster.unlock_key.is_some());
            report.error(wanted != has_key, || {
                let what = |is: bool, on: &'static str, off: &'static str| if is { on } else { off };
                format!(
                    "autolock is {}, and there is {} unlock key: switch it with `skep swarm update --autolock={}`",
                    what(wanted, "on", "off"),
                    what(has_key, "an", "no"),
                    what(wanted, "false", "true")
                )
            });
        }
        None => report.warning(state.object_count() > 0, || {
            "it is missing, though there are other objects: the swarm was not initialised".to_owned()
        }),
    }
}

pub(super) fn nodes(state: &State, findings: &mut Vec<Finding>) {
    let given = state.cluster().map_or(u64::MAX, |cluster| cluster.last_raft_id);
    for node in state.nodes() {
        let mut report = Report::on(findings, ObjectKey::Node(node.id));
        report.meta(state, node.meta);
        report.error(state.is_denied(node.id), || "it was removed, and yet is stored".to_owned());
        if let Some(raft_id) = node.manager.as_ref().map(|manager| manager.raft_id) {
            report.error(raft_id == 0 || raft_id > given, || {
                format!("it has Raft id {raft_id}, but the last one given is {given}: another may get the same")
            });
        }
    }
    twice(state.nodes().filter_map(|node| Some(node.manager.as_ref()?.raft_id)), |raft_id| {
        let mut report = Report::on(findings, "the managers");
        report.warning(true, || format!("two of them have Raft id {raft_id}: one must leave and join again"));
    });
}

pub(super) fn services(state: &State, findings: &mut Vec<Finding>) {
    for service in state.services() {
        let name = &service.spec.name;
        let mut report = Report::on(findings, format!("service {name}"));
        report.meta(state, service.meta);
        let number = service.revision;
        report.error(state.revision(service.current()).is_none(), || format!("its revision {number} is missing"));
        let newest = state.revisions_of(service.id).next_back().map_or(0, |revision| revision.key.number);
        report.warning(newest > number, || {
            format!("it is at revision {number}, though there is a revision {newest}: update it once more")
        });
        let from = service.update.as_ref().map_or(0, |update| update.from_revision);
        report.error(from >= number && from != 0, || {
            format!("its update leads from revision {from} to {number}: numbers only rise")
        });
        let begun = service.update_state() != UpdateState::None;
        report.error(begun && from == 0, || "its update does not say from which revision".to_owned());
        report.warning(service.spec.template.is_some(), || "it holds a template beside its revision's".to_owned());
        report.warning(service.spec.mode.is_none(), || "it has no mode that this version knows".to_owned());
    }
    twice(state.services().map(|service| &service.spec.name), |name| {
        Report::on(findings, format!("service {name}")).error(true, || "two services have this name".to_owned());
    });
}

pub(super) fn revisions(state: &State, findings: &mut Vec<Finding>) {
    for revision in state.revisions() {
        let mut report = Report::on(findings, ObjectKey::Revision(revision.key));
        let unused = state.revision_in_use(revision.key) == 0;
        report.note(unused && state.service(revision.key.service).is_none(), || {
            "its service is gone and no task needs it: the reaper will delete it".to_owned()
        });
        report.error(revision.key.number == 0, || "revisions are numbered from 1".to_owned());
        let (number, copied) = (revision.key.number, revision.copied_from.unwrap_or(0));
        report.error(copied >= number && copied != 0, || {
            format!("it says that it copies revision {copied}, a later one")
        });
    }
}

pub(super) fn tasks(state: &State, findings: &mut Vec<Finding>) {
    let mut claims: BTreeMap<HostPort, &Task> = BTreeMap::new();
    for task in state.tasks() {
        let mut report = Report::on(findings, ObjectKey::Task(task.id));
        report.meta(state, task.meta);
        task_alone(task, &mut report);
        let number = task.revision.number;
        report.error(state.revision(task.revision).is_none(), || {
            format!("its revision {number} of service {} is missing", task.service())
        });
        report.warning(task.wanted.wants_to_run() && state.service(task.service()).is_none(), || {
            format!("it is wanted to run, but its service {} is gone: the orchestrator must stop it", task.service())
        });
        let lost = task.node.filter(|node| task.occupies_node() && state.node(*node).is_none());
        report.warning(lost.is_some(), || {
            let node = lost.expect("checked just before");
            format!("it is on node {node}, which was removed: the reaper must give it up")
        });
        for claim in task.claimed_ports() {
            if let Some(other) = claims.insert(claim, task).filter(|other| other.id != task.id) {
                report.error(true, || {
                    format!("it claims port {} of node {}, and so does task {}", claim.port, claim.node, other.id)
                });
            }
        }
    }
}

/// What must hold of a task whatever else is stored.
fn task_alone(task: &Task, report: &mut Report<'_>) {
    let (state, told) = (task.state, task.status.state());
    report.error(state != told, || {
        format!("its state is {}, its status says {}", state.as_str_name(), told.as_str_name())
    });
    report.error(task.wanted == WantedState::Unspecified, || "it has no wanted state".to_owned());
    let unplaced = task.node.is_none() && task.state.belongs_to_node() && !task.state.is_terminal();
    report.error(unplaced, || format!("it is {} on no node", task.state.as_str_name()));
    match task.slot {
        Slot::Replica(0) => report.error(true, || "slots are numbered from 1".to_owned()),
        Slot::Replica(_) => {}
        Slot::Node(node) => {
            report.error(task.node != Some(node), || format!("its place is node {node}, but that is not its node"))
        }
    }
}

/// One task at most is to run in a place; two while one replaces the other.
pub(super) fn places(state: &State, findings: &mut Vec<Finding>) {
    for service in state.services_with_tasks() {
        let mut places: BTreeMap<Slot, Vec<&Task>> = BTreeMap::new();
        let live =
            state.tasks_of_service(service).filter(|task| task.wanted.wants_to_run() && !task.state.is_terminal());
        for task in live {
            places.entry(task.slot).or_default().push(task);
        }
        for (slot, tasks) in places.iter().filter(|(_, tasks)| tasks.len() > 1 && !is_surge(tasks)) {
            let ids: Vec<String> = tasks.iter().map(|task| task.id.to_string()).collect();
            let mut report = Report::on(findings, format!("service {service}"));
            report.warning(true, || {
                let ids = ids.join(", ");
                format!(
                    "{} tasks are to run in {}: {ids}; the orchestrator must stop all but one",
                    tasks.len(),
                    place(*slot)
                )
            });
        }
    }
}

/// Whether two tasks share their place for the time of an update: the new one waits, or starts first.
fn is_surge(tasks: &[&Task]) -> bool {
    let [a, b] = tasks else { return false };
    let waits = a.wanted == WantedState::Ready || b.wanted == WantedState::Ready;
    waits || a.revision != b.revision
}

fn place(slot: Slot) -> String {
    match slot {
        Slot::Replica(number) => format!("slot {number}"),
        Slot::Node(node) => format!("the place on node {node}"),
    }
}

pub(super) fn credentials(state: &State, findings: &mut Vec<Finding>) {
    for credential in state.credentials() {
        let mut report = Report::on(findings, ObjectKey::Credential(credential.id));
        report.meta(state, credential.meta);
        let service = credential.service;
        let unused = state.service(service).is_none() && state.task_counts(service).stored == 0;
        report.note(unused, || format!("its service {service} is gone: the reaper will delete it"));
    }
}

/// Calls `found` for each value that comes more than once.
pub(super) fn twice<T: Ord + Copy>(values: impl Iterator<Item = T>, mut found: impl FnMut(T)) {
    let mut seen = BTreeSet::new();
    for value in values {
        if !seen.insert(value) {
            found(value);
        }
    }
}
