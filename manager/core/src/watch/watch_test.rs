//! Which topics an event wakes.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use skep_proto::id::{NodeId, TaskId};
use skep_proto::v1::{TaskState, TaskStatus};

use super::{Topic, topics};
use crate::change::{Change, Group, Op, TaskObserved, Transaction};
use crate::example::{START, node, replicated, swarm, with_service};
use crate::ids::Ids;
use crate::object::Task;
use crate::orchestrate;
use crate::store::State;

fn write(state: &mut State, op: Op) -> Vec<Topic> {
    let groups = vec![Group(vec![Change::any(op)])];
    let applied = state.apply(&Transaction { at: START, groups, ..Transaction::default() });
    assert_eq!(applied.refused, vec![]);
    topics(&applied.events, state).into_iter().collect()
}

#[test]
fn progress_of_a_task_does_not_wake_its_node() {
    let mut state = swarm(2);
    let service = with_service(&mut state, replicated(1), |_| {});
    state.set_version(5);
    let plan = orchestrate::plan(&state, service, START, &mut Ids::new(3));
    let Op::PutTask(task) = plan.groups[0].0[0].op.clone() else { panic!("it makes a task") };
    assert_eq!(write(&mut state, Op::PutTask(task.clone())), [Topic::All, Topic::Service(service)]);
    let on = NodeId::new(1);
    let status = TaskStatus { state: TaskState::Assigned.into(), ..TaskStatus::default() };
    let assigned = Task { node: Some(on), state: TaskState::Assigned, status: Arc::new(status), ..task.clone() };
    let woken = write(&mut state, Op::PutTask(assigned));
    assert_eq!(woken, [Topic::All, Topic::Service(service), Topic::Node(on)]);
    let report = |state: &mut State, to: TaskState| {
        let status = TaskStatus { state: to.into(), ..TaskStatus::default() };
        write(state, Op::ObserveTask(TaskObserved { task: task.id, node: on, status: Arc::new(status) }))
    };
    assert_eq!(report(&mut state, TaskState::Running), [Topic::All, Topic::Service(service)]);
    let ended = report(&mut state, TaskState::Failed);
    assert_eq!(ended, [Topic::All, Topic::Service(service), Topic::Node(on)], "it must not be started again");
    let removed = write(&mut state, Op::RemoveTask(TaskId::new(task.id.value())));
    assert_eq!(removed, [Topic::All, Topic::Service(service), Topic::Node(on)]);
}

#[test]
fn nodes_and_services_wake_their_watchers() {
    let mut state = swarm(1);
    let service = with_service(&mut state, replicated(1), |_| {});
    state.set_version(5);
    let changed = write(&mut state, Op::PutNode(node(1).label("a", "b").build()));
    assert_eq!(changed, [Topic::All, Topic::Node(NodeId::new(1)), Topic::Nodes]);
    assert_eq!(write(&mut state, Op::RemoveService(service)), [Topic::All, Topic::Service(service), Topic::Services]);
}
