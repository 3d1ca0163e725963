//! Single rules of apply, each with the sentence that a user reads.

use std::sync::Arc;

use skep_proto::id::{NodeId, RequestId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::{ContainerState, ContainerStatus, PortSpec, PublishMode, TaskState, TaskStatus, WantedState};

use super::{REQUEST_MEMORY, REQUESTS_KEPT, Refused};
use crate::change::{Change, Expect, Group, NodeObserved, Op, TaskObserved, Transaction};
use crate::example::{START, node, replicated, swarm, with_service};
use crate::object::{Meta, NodeStatus, Service, Slot, Task};
use crate::store::State;

/// A swarm of two nodes with service `web`.
fn example() -> State {
    let mut state = swarm(2);
    with_service(&mut state, replicated(3), |_| {});
    state.set_version(10);
    state
}

fn transaction(changes: Vec<Change>) -> Transaction {
    Transaction { at: START, groups: vec![Group(changes)], ..Transaction::default() }
}

/// Applies one group that must be accepted.
fn accept(state: &mut State, changes: Vec<Change>) {
    assert_eq!(state.apply(&transaction(changes)).refused, vec![]);
}

/// Why one group is refused.
fn refusal(state: &mut State, changes: Vec<Change>) -> String {
    let before = state.clone();
    let applied = state.apply(&transaction(changes));
    assert_eq!(&before, state);
    applied.refused.first().map(|(_, reason)| reason.to_string()).unwrap_or_default()
}

fn task(state: &State, id: u128) -> Task {
    let status = TaskStatus { state: TaskState::Pending.into(), ..TaskStatus::default() };
    Task {
        id: TaskId::new(id),
        meta: Meta::default(),
        revision: state.services().next().expect("the example has one").current(),
        slot: Slot::Replica(1),
        node: None,
        wanted: WantedState::Running,
        state: TaskState::Pending,
        status: Arc::new(status),
        ports: Vec::new(),
        start_at: None,
        replaces: None,
        policy_restart: false,
        networks: Vec::new(),
    }
}

fn in_state(task: Task, state: TaskState) -> Task {
    let status = TaskStatus { state: state.into(), ..TaskStatus::default() };
    Task { state, status: Arc::new(status), ..task }
}

fn placed(state: &State, id: u128, on: u128) -> Task {
    in_state(Task { node: Some(NodeId::new(on)), ..task(state, id) }, TaskState::Assigned)
}

fn report(id: u128, node: u128, state: TaskState) -> TaskObserved {
    let status = TaskStatus { state: state.into(), since_ms: 77, message: "as told".into(), ..TaskStatus::default() };
    TaskObserved { task: TaskId::new(id), node: NodeId::new(node), status: Arc::new(status) }
}

fn observe(state: &mut State, report: TaskObserved) -> Task {
    let id = report.task;
    accept(state, vec![Change::any(Op::ObserveTask(report))]);
    Task::clone(state.task(id).expect("it was put"))
}

#[test]
fn an_update_needs_the_version_it_was_decided_on() {
    let mut state = example();
    let service = Service::clone(state.service_by_name("web").expect("the example has it"));
    accept(&mut state, vec![Change::update(1, Op::PutService(service.clone()))]);
    assert_eq!(state.service(service.id).map(|service| service.meta.version), Some(11));
    let stale = refusal(&mut state, vec![Change::update(1, Op::PutService(service))]);
    assert_eq!(stale, "update out of sequence: service web is at version 11, not 1; read it again");
}

#[test]
fn a_name_is_free_as_soon_as_its_service_is_removed() {
    let mut state = example();
    let old = Service::clone(state.service_by_name("web").expect("the example has it"));
    let mut revision = crate::object::Revision::clone(state.revisions().next().expect("the example has one"));
    let new = Service { id: skep_proto::id::ServiceId::new(7), ..old.clone() };
    revision.key = new.current();
    let create = vec![Change::create(Op::PutService(new)), Change::create(Op::PutRevision(revision))];
    let taken = refusal(&mut state, create.clone());
    assert_eq!(taken, format!("name web is in use by service {}", old.id));
    accept(&mut state, vec![Change::update(1, Op::RemoveService(old.id))]);
    accept(&mut state, create);
}

#[test]
fn a_port_is_claimed_until_its_task_is_known_to_have_ended() {
    let mut state = example();
    let port = PortSpec { published_port: 80, mode: PublishMode::Host.into(), ..PortSpec::default() };
    let claiming = |task| Task { ports: vec![port], ..task };
    let first = claiming(placed(&state, 1, 1));
    let second = claiming(placed(&state, 2, 1));
    let elsewhere = claiming(placed(&state, 3, 2));
    accept(&mut state, vec![Change::create(Op::PutTask(first))]);
    let taken = refusal(&mut state, vec![Change::create(Op::PutTask(second.clone()))]);
    let (node, task) = (NodeId::new(1), TaskId::new(1));
    assert_eq!(taken, format!("port 80/tcp of node {node} is in use by task {task}"));
    accept(&mut state, vec![Change::create(Op::PutTask(elsewhere))]);
    observe(&mut state, report(1, 1, TaskState::Failed));
    accept(&mut state, vec![Change::create(Op::PutTask(second))]);
}

#[test]
fn a_report_goes_forward_only_and_an_end_is_final() {
    let mut state = example();
    let new = placed(&state, 1, 1);
    accept(&mut state, vec![Change::create(Op::PutTask(new))]);
    let version = state.task(TaskId::new(1)).map(|task| task.meta.version);
    assert_eq!(observe(&mut state, report(1, 2, TaskState::Running)).state, TaskState::Assigned);
    assert_eq!(observe(&mut state, report(1, 1, TaskState::Running)).state, TaskState::Running);
    assert_eq!(observe(&mut state, report(1, 1, TaskState::Preparing)).state, TaskState::Running);
    assert_eq!(observe(&mut state, report(1, 1, TaskState::Complete)).state, TaskState::Complete);
    let last = observe(&mut state, report(1, 1, TaskState::Failed));
    assert_eq!((last.state, last.status.since_ms), (TaskState::Complete, 77));
    assert_eq!(Some(last.meta.version), version, "a report is no change of the wanted part");
}

#[test]
fn a_report_without_news_changes_nothing() {
    let mut state = example();
    let new = placed(&state, 1, 1);
    accept(&mut state, vec![Change::create(Op::PutTask(new))]);
    observe(&mut state, report(1, 1, TaskState::Running));
    let version = state.version();
    observe(&mut state, report(1, 1, TaskState::Running));
    assert_eq!(state.version(), version);
}

#[test]
fn containers_merge_by_name_and_strangers_are_left_out() {
    let mut state = example();
    let new = placed(&state, 1, 1);
    accept(&mut state, vec![Change::create(Op::PutTask(new))]);
    let told = |container: ContainerState, code: i32, name: &str| {
        let one = ContainerStatus {
            name: name.into(),
            state: container.into(),
            exit_code: code,
            ..ContainerStatus::default()
        };
        let mut report = report(1, 1, TaskState::Running);
        Arc::make_mut(&mut report.status).containers = vec![one];
        report
    };
    observe(&mut state, told(ContainerState::Exited, 3, "main"));
    observe(&mut state, told(ContainerState::Running, 0, "main"));
    observe(&mut state, told(ContainerState::Lost, 0, "main"));
    let task = observe(&mut state, told(ContainerState::Running, 0, "stranger"));
    let seen: Vec<_> = task.status.containers.iter().map(|one| (&*one.name, one.state(), one.exit_code)).collect();
    assert_eq!(seen, [("main", ContainerState::Exited, 3)]);
}

#[test]
fn a_loop_cannot_undo_what_a_node_reported() {
    let mut state = example();
    let new = placed(&state, 1, 1);
    accept(&mut state, vec![Change::create(Op::PutTask(new.clone()))]);
    observe(&mut state, report(1, 1, TaskState::Running));
    // The loop saw it as assigned.
    let stop = Task { wanted: WantedState::Shutdown, ..new.clone() };
    accept(&mut state, vec![Change::update(11, Op::PutTask(stop.clone()))]);
    let stored = state.task(TaskId::new(1)).expect("it was put");
    assert_eq!((stored.wanted, stored.state), (WantedState::Shutdown, TaskState::Running));
    let run_again = Change::any(Op::PutTask(new));
    let why = refusal(&mut state, vec![run_again]);
    let id = TaskId::new(1);
    assert_eq!(why, format!("the wanted state of task {id} cannot go back from shutdown to running"));
    let given_up = in_state(stop, TaskState::Orphaned);
    accept(&mut state, vec![Change::any(Op::PutTask(given_up))]);
    assert_eq!(state.task(id).map(|task| task.state), Some(TaskState::Orphaned));
    assert_eq!(observe(&mut state, report(1, 1, TaskState::Complete)).state, TaskState::Orphaned);
}

#[test]
fn a_task_cannot_be_forgotten_while_its_node_may_run_it() {
    let mut state = example();
    let new = placed(&state, 1, 1);
    accept(&mut state, vec![Change::create(Op::PutTask(new))]);
    let forget = Change::any(Op::RemoveTask(TaskId::new(1)));
    let (id, on) = (TaskId::new(1), NodeId::new(1));
    assert_eq!(refusal(&mut state, vec![forget.clone()]), format!("task {id} is in use by node {on}"));
    accept(&mut state, vec![Change::any(Op::RemoveNode(on))]);
    accept(&mut state, vec![forget]);
}

#[test]
fn a_removed_node_is_denied_and_cannot_come_back() {
    let mut state = example();
    let id = NodeId::new(1);
    accept(&mut state, vec![Change::any(Op::RemoveNode(id))]);
    assert!(state.is_denied(id));
    let back = refusal(&mut state, vec![Change::create(Op::PutNode(node(1).build()))]);
    assert_eq!(back, format!("node {id} was removed from the swarm: it has to join again"));
    // Removing one that never was denies nothing.
    accept(&mut state, vec![Change::any(Op::RemoveNode(NodeId::new(9)))]);
    assert!(!state.is_denied(NodeId::new(9)));
    // A refused group does not deny either.
    let changes = vec![Change::any(Op::RemoveNode(NodeId::new(2))), Change::create(Op::PutTask(placed(&state, 1, 2)))];
    assert!(refusal(&mut state, changes).starts_with("task"));
    assert!(!state.is_denied(NodeId::new(2)));
}

#[test]
fn a_node_keeps_what_is_observed_of_it_when_an_operator_changes_it() {
    let mut state = example();
    let id = NodeId::new(1);
    let status = NodeStatus { message: "seen".into(), ..NodeStatus::default() };
    let seen = NodeObserved { node: Some(id), status: Some(status.clone()), ..NodeObserved::default() };
    accept(&mut state, vec![Change::any(Op::ObserveNode(seen))]);
    accept(&mut state, vec![Change::update(1, Op::PutNode(node(1).label("zone", "a").build()))]);
    let stored = state.node(id).expect("it is there");
    assert_eq!((&stored.status, stored.hostname()), (&status, "host1"));
    assert_eq!(stored.spec.labels.len(), 1);
}

#[test]
fn references_are_checked_when_the_group_is_whole() {
    let mut state = example();
    let nowhere = placed(&state, 1, 9);
    let lost = refusal(&mut state, vec![Change::create(Op::PutTask(nowhere))]);
    assert_eq!(lost, format!("task {} needs node {}, which is not there (any more)", TaskId::new(1), NodeId::new(9)));
    let service = Service::clone(state.service_by_name("web").expect("the example has it"));
    let in_use = refusal(&mut state, vec![Change::any(Op::RemoveRevision(service.current()))]);
    assert_eq!(in_use, format!("revision 1 of service {} is in use by service web", service.id));
    // Both together are fine, in this order too.
    let both = vec![Change::any(Op::RemoveRevision(service.current())), Change::any(Op::RemoveService(service.id))];
    accept(&mut state, both);
}

#[test]
fn what_could_not_be_read_back_is_not_written() {
    let mut state = example();
    let nowhere = Task { slot: Slot::Node(NodeId::new(1)), ..task(&state, 1) };
    let why = refusal(&mut state, vec![Change::create(Op::PutTask(nowhere))]);
    assert_eq!(why, format!("task {} is malformed: its place is a node, but not its node", TaskId::new(1)));
    let mut strange = report(1, 1, TaskState::Running);
    Arc::make_mut(&mut strange.status).state = 1_000;
    assert!(refusal(&mut state, vec![Change::any(Op::ObserveTask(strange))]).contains("malformed"));
}

#[test]
fn answers_are_kept_for_ten_minutes_and_the_last_ones_longer() {
    let mut state = example();
    let write = |request: u128, at: UnixMs, state: &mut State| {
        let labelled = node(1).label("request", &request.to_string()).build();
        state.apply(&Transaction {
            request: Some(RequestId::new(request)),
            at,
            groups: vec![Group(vec![Change { expect: Expect::Any, op: Op::PutNode(labelled) }])],
            object_id: vec![1],
        })
    };
    let first = write(1, START, &mut state);
    write(2, START.plus(REQUEST_MEMORY), &mut state);
    let again = write(1, START.plus(REQUEST_MEMORY), &mut state);
    assert_eq!(again.repeated.map(|record| (record.version, record.object_id)), Some((first.version, vec![1])));
    // Both are too old from here on, as where a new leader's clock is ahead; but few are kept.
    let late = START.plus(REQUEST_MEMORY * 2).plus(std::time::Duration::from_millis(1));
    let others = 3..1 + REQUESTS_KEPT as u128;
    others.for_each(|request| drop(write(request, late, &mut state)));
    assert!(write(1, late, &mut state).repeated.is_some());
    write(1_000_000, late, &mut state);
    write(1_000_001, late, &mut state);
    assert_eq!(state.request(RequestId::new(1)), None);
    assert_eq!(state.requests().count(), REQUESTS_KEPT + 1);
}

#[test]
fn a_refused_request_may_be_tried_again() {
    let mut state = example();
    let mut write = transaction(vec![Change::update(9, Op::RemoveNode(NodeId::new(1)))]);
    write.request = Some(RequestId::new(1));
    let refused = state.apply(&write).refused;
    assert!(matches!(refused[..], [(0, Refused::OutOfSequence { .. })]), "{refused:?}");
    write.groups[0].0[0].expect = Expect::Version(1);
    assert_eq!(state.apply(&write).refused, vec![]);
}
