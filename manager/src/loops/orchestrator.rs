//! Replicated and global services: `orchestrate::plan` for the services whose spec, tasks or nodes changed.

use skep_core::change::Plan;
use skep_core::event::Event;
use skep_core::object::{Node, Task};
use skep_core::orchestrate;
use skep_core::store::{Object, State};
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;

use super::Loop;
use super::services::DirtyServices;

/// The loop.
#[derive(Default)]
pub(super) struct Orchestrator {
    dirty: DirtyServices,
}

impl Loop for Orchestrator {
    fn name(&self) -> &'static str {
        "orchestrator"
    }

    fn note(&mut self, event: &Event, state: &State) {
        match (&event.before, &event.after) {
            (Some(Object::Service(service)), None) | (_, Some(Object::Service(service))) => {
                self.dirty.insert(service.id);
            }
            (before, Some(Object::Task(after))) => {
                let before = before.as_ref().and_then(as_task);
                if before.is_none_or(|before| matters(before, after)) {
                    self.dirty.insert(after.service());
                }
            }
            (Some(Object::Task(before)), None) => {
                self.dirty.insert(before.service());
            }
            (before, Some(Object::Node(after))) => {
                let before = before.as_ref().and_then(as_node);
                if before.is_none_or(|before| changes_fitness(before, after)) {
                    self.node_changed(after, state);
                }
            }
            (Some(Object::Node(before)), None) => self.node_changed(before, state),
            _ => {}
        }
    }

    fn look_at_all(&mut self, state: &State) {
        self.dirty.extend(state.services().map(|service| service.id));
        self.dirty.extend(state.services_with_tasks());
    }

    fn plan(&mut self, state: &State, now: UnixMs) -> Plan {
        self.dirty.plan(state, now, orchestrate::plan)
    }
}

impl Orchestrator {
    /// A node change concerns the services with a task on it, and every global service.
    fn node_changed(&mut self, node: &Node, state: &State) {
        self.dirty.extend(state.tasks_on_node(node.id).map(|task| task.service()));
        let global = state.services().filter(|service| matches!(service.spec.mode, Some(Mode::Global(_))));
        self.dirty.extend(global.map(|service| service.id));
    }
}

/// Whether a task's change can ask for another task: its end, or another wish. Not its progress.
fn matters(before: &Task, after: &Task) -> bool {
    before.wanted != after.wanted
        || before.node != after.node
        || before.state.is_terminal() != after.state.is_terminal()
}

/// Whether a node's change can move tasks.
pub(super) fn changes_fitness(before: &Node, after: &Node) -> bool {
    let platform = |node: &Node| node.description.as_ref().map(|description| description.platform.clone());
    let labels = |node: &Node| node.description.as_ref().map(|description| description.engine_labels.clone());
    before.status.state != after.status.state
        || before.status.addr != after.status.addr
        || before.spec != after.spec
        || before.role != after.role
        || before.hostname() != after.hostname()
        || platform(before) != platform(after)
        || labels(before) != labels(after)
}

pub(super) fn as_task(object: &Object) -> Option<&Task> {
    match object {
        Object::Task(task) => Some(task),
        _ => None,
    }
}

pub(super) fn as_node(object: &Object) -> Option<&Node> {
    match object {
        Object::Node(node) => Some(node),
        _ => None,
    }
}
