//! Observed parts: how a node's report merges into what is stored. A report that is late, repeated, another node's, or
//! of a task that is gone changes nothing and is no error: reports cross with what the managers decide.

use std::sync::Arc;

use skep_proto::v1::{ContainerState, ContainerStatus, TaskState, TaskStatus};

use crate::change::{NodeObserved, TaskObserved};
use crate::object::{Node, Task};
use crate::store::State;

/// The task after a node's report; `None` where it changes nothing.
pub(super) fn task(state: &State, report: &TaskObserved) -> Option<Task> {
    let stored = state.task(report.task)?;
    let placed = stored.node == Some(report.node) && stored.state >= TaskState::Assigned;
    if !placed || !report.status.state().belongs_to_node() {
        return None;
    }
    let known = state.revision(stored.revision)?;
    let is_known = |name: &str| known.template.containers.iter().any(|container| container.name == name);
    let status = merged(&stored.status, &report.status, is_known);
    if status == *stored.status {
        return None;
    }
    Some(Task { state: status.state(), status: Arc::new(status), ..Task::clone(stored) })
}

/// The node after a report; `None` where it changes nothing.
pub(super) fn node(state: &State, report: &NodeObserved) -> Option<Node> {
    let stored = state.node(report.node?)?;
    let mut node = Node::clone(stored);
    if let Some(description) = &report.description {
        node.description = Some(Arc::clone(description));
    }
    if let Some(status) = &report.status {
        node.status.clone_from(status);
    }
    if let Some(role) = report.role {
        node.role = role;
    }
    (node != **stored).then_some(node)
}

/// Puts the stored observed part into a task whose wanted part is being replaced: from `ACCEPTED` on the state is the
/// node's, and the loops' copy of it may be old. Only a task that was given up for lost is ended by the managers.
pub(super) fn keep_observed(stored: &Task, new: &mut Task) {
    let given_up = new.state == TaskState::Orphaned && !stored.state.is_terminal();
    if stored.state.belongs_to_node() && !given_up {
        new.state = stored.state;
        new.status = Arc::clone(&stored.status);
    }
}

/// Both statuses as one: the state goes forward only, and an end is final.
fn merged(stored: &TaskStatus, report: &TaskStatus, is_known: impl Fn(&str) -> bool) -> TaskStatus {
    let (old, new) = (stored.state(), report.state());
    let forward = new > old && !old.is_terminal();
    let mut status = stored.clone();
    if forward {
        status.set_state(new);
        status.since_ms = report.since_ms;
        status.host_lost = report.host_lost;
        status.refusals.clear();
    }
    if forward || new == old {
        status.message.clone_from(&report.message);
        status.error.clone_from(&report.error);
    }
    for container in report.containers.iter().filter(|container| is_known(&container.name)) {
        merge_container(&mut status.containers, container);
    }
    status
}

fn merge_container(containers: &mut Vec<ContainerStatus>, report: &ContainerStatus) {
    match containers.iter_mut().find(|stored| stored.name == report.name) {
        None => containers.push(report.clone()),
        Some(stored) => {
            let ended = matches!(stored.state(), ContainerState::Exited | ContainerState::Lost);
            if !ended && report.state() >= stored.state() {
                stored.clone_from(report);
            }
        }
    }
}
