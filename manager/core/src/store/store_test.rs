//! Reading: indexes, snapshots, and what people type.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::v1::{TaskState, TaskStatus, WantedState};

use super::{FindError, ObjectKey, State};
use crate::example::{START, carry_out, change_service, node, observe, replicated, swarm, with_service};
use crate::ids::Ids;
use crate::object::{Node, Service, Slot, Task};
use crate::orchestrate;

/// Service `web` with three pending tasks.
fn example() -> (State, ServiceId) {
    let mut state = swarm(3);
    let service = with_service(&mut state, replicated(3), |_| {});
    state.set_version(5);
    let plan = orchestrate::plan(&state, service, START, &mut Ids::new(1));
    carry_out(&mut state, &plan, START);
    (state, service)
}

fn place(state: &mut State, id: TaskId, on: u128) {
    let status = TaskStatus { state: TaskState::Assigned.into(), ..TaskStatus::default() };
    let task = Task::clone(state.task(id).unwrap());
    state.put(Task { node: Some(NodeId::new(on)), state: TaskState::Assigned, status: Arc::new(status), ..task });
}

#[test]
fn a_task_moves_through_the_work_lists_as_it_lives() {
    let (mut state, service) = example();
    let id = state.tasks().next().unwrap().id;
    let lists = |state: &State| {
        let has = |mut list: Box<dyn Iterator<Item = &Arc<Task>> + '_>| list.any(|task| task.id == id);
        [
            has(Box::new(state.pending_tasks())),
            has(Box::new(state.waiting_tasks())),
            has(Box::new(state.tasks_wanted_removed())),
            has(Box::new(state.ended_unreaped())),
        ]
    };
    let want = |state: &mut State, wanted| {
        let task = Task::clone(state.task(id).unwrap());
        state.put(Task { wanted, ..task });
    };
    assert_eq!(lists(&state), [true, false, false, false]);
    want(&mut state, WantedState::Ready);
    assert_eq!(lists(&state), [true, true, false, false]);
    place(&mut state, id, 1);
    want(&mut state, WantedState::Running);
    assert_eq!(lists(&state), [false, false, false, false]);
    observe(&mut state, id, TaskState::Running, START);
    assert_eq!((state.running_of(service), state.tasks_on_node(NodeId::new(1)).count()), (1, 1));
    want(&mut state, WantedState::Remove);
    assert_eq!(lists(&state), [false, false, true, false]);
    observe(&mut state, id, TaskState::Shutdown, START);
    assert_eq!(lists(&state), [false, false, true, true]);
    assert_eq!(state.running_of(service), 0);
    state.remove(&ObjectKey::Task(id));
    assert_eq!(lists(&state), [false; 4]);
    assert_eq!((state.task_count(), state.task_counts(service).wanted), (2, 2));
}

#[test]
fn a_snapshot_never_sees_later_changes() {
    let (mut state, service) = example();
    let snapshot = state.clone();
    let ids: Vec<TaskId> = state.tasks().map(|task| task.id).collect();
    for id in &ids {
        state.remove(&ObjectKey::Task(*id));
    }
    assert_eq!((state.task_count(), snapshot.task_count()), (0, 3));
    assert_eq!(snapshot.tasks_of_service(service).count(), 3);
    assert_eq!(state.services_with_tasks().count(), 0);
}

#[test]
fn revisions_stay_reachable_without_their_service() {
    let (mut state, id) = example();
    let key = state.service(id).unwrap().current();
    state.remove(&ObjectKey::Service(id));
    assert_eq!((state.revisions_of(id).count(), state.revision_in_use(key)), (1, 3));
    assert_eq!(state.services_with_tasks().collect::<Vec<_>>(), [id]);
    assert!(state.service_by_name("web").is_none());
}

#[test]
fn services_are_found_by_id_name_and_prefix() {
    let (mut state, id) = example();
    let printed = id.to_string();
    for reference in [&*printed, "web", &printed[..24]] {
        assert_eq!(state.find_service(reference).unwrap().id, id, "{reference}");
    }
    let other = Service { id: ServiceId::new(101), ..Service::clone(state.service(id).unwrap()) };
    state.put(other);
    change_service(&mut state, ServiceId::new(101), |spec| spec.name = "web.1".into());
    let error = state.find_service("000").unwrap_err();
    let matches = vec![printed, ServiceId::new(101).to_string()];
    assert!(matches!(&error, FindError::Ambiguous { matches: found, .. } if *found == matches), "{error}");
    let missing = state.find_service("nope").unwrap_err();
    assert_eq!(missing.to_string(), "no service \"nope\": give its id, its name, or the start of its id");
    for odd in ["", "ü", "ZZZ", &"z".repeat(25), &"z".repeat(26)] {
        assert!(matches!(state.find_service(odd), Err(FindError::NotFound { .. })), "{odd}");
    }
}

#[test]
fn nodes_are_found_by_hostname_and_two_of_one_name_are_told_apart() {
    let mut state = swarm(3);
    assert_eq!(state.find_node("host2").unwrap().id, NodeId::new(2));
    let twin = Node { id: NodeId::new(9), ..node(2).build() };
    state.put(twin);
    assert!(matches!(state.find_node("host2"), Err(FindError::Ambiguous { .. })));
    assert_eq!(state.find_node(&NodeId::new(9).to_string()).unwrap().hostname(), "host2");
    state.remove(&ObjectKey::Node(NodeId::new(9)));
    assert_eq!(state.find_node("host2").unwrap().id, NodeId::new(2));
}

#[test]
fn a_place_names_its_newest_task() {
    let (mut state, service) = example();
    let old = Task::clone(state.tasks_in_slot(service, Slot::Replica(2)).next().unwrap());
    state.put(Task { wanted: WantedState::Shutdown, ..old.clone() });
    let mut new = Task { id: TaskId::new(1), ..old };
    new.meta.created_at = START.plus(std::time::Duration::from_secs(1));
    state.put(new);
    assert_eq!(state.find_task("web.2").unwrap().id, TaskId::new(1));
    let global = Task {
        id: TaskId::new(2),
        slot: Slot::Node(NodeId::new(3)),
        node: Some(NodeId::new(3)),
        ..Task::clone(state.task(TaskId::new(1)).unwrap())
    };
    state.put(global);
    assert_eq!(state.find_task("web.host3").unwrap().id, TaskId::new(2));
    change_service(&mut state, service, |spec| spec.name = "web.one".into());
    assert_eq!(state.find_task("web.one.2").unwrap().id, TaskId::new(1));
    assert!(matches!(state.find_task("web.9"), Err(FindError::NotFound { .. })));
}
