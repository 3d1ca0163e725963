//! The validator must find what is wrong: each rule against a state that breaks it.

use std::sync::Arc;

use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::v1::{PortSpec, Severity, TaskState, TaskStatus, UpdateState, UpdateStatus, WantedState};

use super::{check, report};
use crate::example::{START, carry_out, replicated, swarm, with_service};
use crate::ids::Ids;
use crate::object::{Revision, RevisionKey, Service, Slot, Task};
use crate::orchestrate;
use crate::store::{ObjectKey, State};

/// A healthy swarm with three placed tasks.
fn healthy() -> (State, Vec<Task>) {
    let mut state = swarm(3);
    let service = with_service(&mut state, replicated(3), |_| {});
    state.set_version(5);
    let plan = orchestrate::plan(&state, service, START, &mut Ids::new(1));
    carry_out(&mut state, &plan, START);
    let tasks: Vec<Task> = state.tasks().map(|task| Task::clone(task)).collect();
    for (number, task) in (1..).zip(&tasks) {
        let status = TaskStatus { state: TaskState::Running.into(), ..TaskStatus::default() };
        let node = Some(NodeId::new(number));
        state.put(Task { node, state: TaskState::Running, status: Arc::new(status), ..task.clone() });
    }
    let tasks = state.tasks().map(|task| Task::clone(task)).collect();
    (state, tasks)
}

/// The only finding, as severity and message.
fn only(state: &State) -> (Severity, String) {
    match &check(state)[..] {
        [finding] => (finding.severity, finding.message.clone()),
        others => panic!("one finding was expected, not {others:#?}"),
    }
}

#[test]
fn a_healthy_state_has_no_findings() {
    let (state, _) = healthy();
    assert_eq!(check(&state), vec![]);
    let report = report(&state, None, START);
    assert!(report.findings.is_empty());
    assert_eq!(report.checked.get("tasks"), Some(&3));
    assert_eq!(check(&State::default()), vec![]);
}

#[test]
fn autolock_and_its_key_go_together() {
    let (mut state, _) = healthy();
    let mut cluster = state.cluster().map(|cluster| crate::object::Cluster::clone(cluster)).expect("there is one");
    cluster.spec.autolock = true;
    state.put(cluster.clone());
    let (severity, message) = only(&state);
    assert!(
        severity == Severity::Error && message.starts_with("autolock is on, and there is no unlock key"),
        "{message}"
    );
    cluster.unlock_key = Some([1; 32]);
    state.put(cluster.clone());
    assert_eq!(check(&state), vec![]);
    cluster.spec.autolock = false;
    state.put(cluster);
    assert!(only(&state).1.starts_with("autolock is off, and there is an unlock key"));
}

#[test]
fn it_finds_what_the_store_must_never_hold() {
    let broken = |change: &dyn Fn(&mut Task)| {
        let (mut state, mut tasks) = healthy();
        change(&mut tasks[0]);
        state.put(tasks[0].clone());
        only(&state)
    };
    let port = PortSpec { published_port: 80, ..PortSpec::default() };
    let cases: [(&str, (Severity, String)); 6] = [
        ("status says", broken(&|task| task.state = TaskState::Ready)),
        ("no wanted state", broken(&|task| task.wanted = WantedState::Unspecified)),
        ("on no node", broken(&|task| task.node = None)),
        ("numbered from 1", broken(&|task| task.slot = Slot::Replica(0))),
        ("revision 9", broken(&|task| task.revision.number = 9)),
        ("version 99", broken(&|task| task.meta.version = 99)),
    ];
    for (expected, (severity, message)) in cases {
        assert_eq!(severity, Severity::Error, "{message}");
        assert!(message.contains(expected), "{message}");
    }
    let (mut state, mut tasks) = healthy();
    for task in &mut tasks[..2] {
        task.node = Some(NodeId::new(1));
        task.ports = vec![port];
        state.put(task.clone());
    }
    // The port index keeps the first claim: both the claim and nothing else is found.
    let (severity, message) = only(&state);
    assert_eq!(severity, Severity::Error);
    assert!(message.contains("claims port 80"), "{message}");
}

#[test]
fn it_finds_what_a_loop_has_to_repair() {
    let (mut state, tasks) = healthy();
    state.put(Task { id: TaskId::new(1), replaces: None, ..tasks[0].clone() });
    let (severity, message) = only(&state);
    assert_eq!(severity, Severity::Warning);
    assert!(message.contains("2 tasks are to run in slot"), "{message}");
    // A replacement that waits is no duplicate.
    state.put(Task { id: TaskId::new(1), wanted: WantedState::Ready, ..tasks[0].clone() });
    assert_eq!(check(&state), vec![]);

    let (mut state, tasks) = healthy();
    let revision = Revision::clone(state.revision(tasks[0].revision).unwrap());
    state.put(Revision { key: RevisionKey { number: 2, ..revision.key }, ..revision });
    let (severity, message) = only(&state);
    assert_eq!(severity, Severity::Warning);
    assert!(message.contains("at revision 1, though there is a revision 2"), "{message}");
    // Two tasks of different revisions share their place during an update.
    let update =
        Some(UpdateStatus { state: UpdateState::Updating.into(), from_revision: 1, ..UpdateStatus::default() });
    let service = Service::clone(state.service(tasks[0].service()).unwrap());
    state.put(Service { revision: 2, update: update.map(Arc::new), ..service.clone() });
    let key = RevisionKey { number: 2, ..tasks[0].revision };
    state.put(Task { id: TaskId::new(1), revision: key, ..tasks[0].clone() });
    assert_eq!(check(&state), vec![]);
    let update = UpdateStatus { state: UpdateState::Updating.into(), from_revision: 2, ..UpdateStatus::default() };
    state.put(Service { revision: 2, update: Some(Arc::new(update)), ..service });
    assert!(only(&state).1.contains("numbers only rise"));

    let (mut state, _) = healthy();
    state.remove(&ObjectKey::Node(NodeId::new(2)));
    let (severity, message) = only(&state);
    assert_eq!(severity, Severity::Warning);
    assert!(message.contains("which was removed"), "{message}");
}

#[test]
fn it_finds_leftovers_and_what_is_missing() {
    let (mut state, tasks) = healthy();
    let service = tasks[0].service();
    let key = RevisionKey { service, number: 1 };
    state.remove(&ObjectKey::Revision(key));
    let errors = check(&state);
    assert_eq!(errors.len(), 4, "service and three tasks: {errors:#?}");
    for task in &tasks {
        state.remove(&ObjectKey::Task(task.id));
    }
    state.remove(&ObjectKey::Service(service));
    assert_eq!(check(&state), vec![]);
    let (mut state, tasks) = healthy();
    for task in &tasks {
        state.remove(&ObjectKey::Task(task.id));
    }
    state.remove(&ObjectKey::Service(ServiceId::new(100)));
    assert_eq!(only(&state).0, Severity::Note);
    state.remove(&ObjectKey::Cluster);
    assert!(check(&state).iter().any(|finding| finding.message.contains("not initialised")));
}
