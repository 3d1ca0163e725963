//! Which tasks a reader reads, where they are, and what people call them. Pure.

use skep_core::object::{Slot, Task};
use skep_core::store::State;
use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::v1::{NodeState, TaskState};

/// What a reader asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// All tasks of a service, also those that come later.
    Service(ServiceId),
    /// These tasks.
    Tasks(Vec<TaskId>),
}

/// A task that has, or may have, lines on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) task: TaskId,
    /// `web.1`; for a global service `web.host2`.
    pub(super) name: String,
    pub(super) node: NodeId,
    /// No line can come after those that are there.
    pub(super) ended: bool,
}

/// The selected tasks whose containers were started at some time, in the order of their slots.
pub(super) fn sources(state: &State, selection: &Selection) -> Vec<Source> {
    match selection {
        Selection::Service(id) => state.tasks_of_service(*id).filter_map(|task| source(state, task)).collect(),
        Selection::Tasks(ids) => ids.iter().filter_map(|id| source(state, state.task(*id)?)).collect(),
    }
}

/// Whether nothing can ever join or go on: all that was selected is over.
pub(super) fn is_over(state: &State, selection: &Selection) -> bool {
    match selection {
        Selection::Service(id) => state.service(*id).is_none() && state.tasks_of_service(*id).next().is_none(),
        Selection::Tasks(ids) => ids.iter().filter_map(|id| state.task(*id)).all(|task| task.state.is_terminal()),
    }
}

fn source(state: &State, task: &Task) -> Option<Source> {
    let node = task.node?;
    // A rejected task never had a container that wrote anything.
    if task.state < TaskState::Starting || task.state == TaskState::Rejected {
        return None;
    }
    Some(Source { task: task.id, name: task_name(state, task), node, ended: task.state.is_terminal() })
}

/// What people call a task.
fn task_name(state: &State, task: &Task) -> String {
    let revision = state.revision(task.revision).map(|revision| revision.service_name.to_string());
    let named = || state.service(task.service()).map(|service| service.spec.name.clone());
    let service = revision.filter(|name| !name.is_empty()).or_else(named).unwrap_or_else(|| task.service().short());
    match task.slot {
        Slot::Replica(number) => format!("{service}.{number}"),
        Slot::Node(node) => format!("{service}.{}", node_name(state, node)),
    }
}

/// What people call a node.
pub(super) fn node_name(state: &State, id: NodeId) -> String {
    let hostname = state.node(id).map(|node| node.hostname().to_owned());
    hostname.filter(|name| !name.is_empty()).unwrap_or_else(|| id.short())
}

/// Why a node that has no session cannot be asked.
pub(super) fn absence(state: &State, id: NodeId) -> &'static str {
    match state.node(id).map(|node| node.status.state) {
        None => "the node was removed",
        Some(NodeState::Down) => "node is down",
        Some(NodeState::Disconnected) => "the node's daemon is stopped",
        Some(NodeState::Ready | NodeState::Unknown) => "the node has no session right now",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use skep_core::object::{Meta, Node, NodeStatus, Revision, RevisionKey};
    use skep_proto::time::UnixMs;
    use skep_proto::v1::{NodeDescription, NodeRole, WantedState};

    use super::*;

    const WEB: ServiceId = ServiceId::new(9);

    fn state() -> State {
        let mut state = State::default();
        let description = NodeDescription { hostname: "host2".into(), ..NodeDescription::default() };
        state.put(Node {
            id: NodeId::new(2),
            meta: Meta::default(),
            spec: Arc::default(),
            description: Some(Arc::new(description)),
            status: NodeStatus { state: NodeState::Down, ..NodeStatus::default() },
            role: NodeRole::Worker,
            manager: None,
            fabric_number: None,
            ingress: None,
        });
        state.put(Revision {
            key: RevisionKey { service: WEB, number: 1 },
            template: Arc::default(),
            created_at: UnixMs::ZERO,
            copied_from: None,
            service_name: "web".into(),
            live: None,
        });
        state
    }

    fn put(state: &mut State, id: u128, slot: Slot, node: Option<u128>, task_state: TaskState) {
        state.put(Task {
            id: TaskId::new(id),
            meta: Meta::default(),
            revision: RevisionKey { service: WEB, number: 1 },
            slot,
            node: node.map(NodeId::new),
            wanted: WantedState::Running,
            state: task_state,
            status: Arc::default(),
            ports: Vec::new(),
            start_at: None,
            replaces: None,
            policy_restart: false,
            networks: Vec::new(),
        });
    }

    #[test]
    fn tasks_that_started_are_read_under_their_names() {
        let mut state = state();
        put(&mut state, 1, Slot::Replica(2), Some(2), TaskState::Running);
        put(&mut state, 2, Slot::Replica(1), Some(2), TaskState::Failed);
        put(&mut state, 3, Slot::Replica(3), None, TaskState::Pending);
        put(&mut state, 4, Slot::Replica(4), Some(2), TaskState::Preparing);
        put(&mut state, 5, Slot::Replica(5), Some(2), TaskState::Rejected);
        put(&mut state, 6, Slot::Node(NodeId::new(2)), Some(2), TaskState::Running);
        let found = sources(&state, &Selection::Service(WEB));
        let names: Vec<(&str, bool)> = found.iter().map(|source| (source.name.as_str(), source.ended)).collect();
        assert_eq!(names, [("web.1", true), ("web.2", false), ("web.host2", false)]);
        let named = Selection::Tasks(vec![TaskId::new(6), TaskId::new(4)]);
        assert_eq!(sources(&state, &named).len(), 1);
    }

    #[test]
    fn a_service_is_over_when_it_and_its_tasks_are_gone() {
        let mut state = state();
        assert!(is_over(&state, &Selection::Service(WEB)));
        put(&mut state, 1, Slot::Replica(1), Some(2), TaskState::Failed);
        assert!(!is_over(&state, &Selection::Service(WEB)));
        assert!(is_over(&state, &Selection::Tasks(vec![TaskId::new(1)])));
        put(&mut state, 1, Slot::Replica(1), Some(2), TaskState::Running);
        assert!(!is_over(&state, &Selection::Tasks(vec![TaskId::new(1)])));
    }

    #[test]
    fn nodes_are_named_and_their_absence_explained() {
        let state = state();
        assert_eq!(node_name(&state, NodeId::new(2)), "host2");
        assert_eq!(node_name(&state, NodeId::new(3)), NodeId::new(3).short());
        assert_eq!(absence(&state, NodeId::new(2)), "node is down");
        assert_eq!(absence(&state, NodeId::new(3)), "the node was removed");
    }
}
