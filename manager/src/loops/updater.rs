//! Rolls revisions out: `orchestrate::update` for the services whose roll-out something may have moved on.

use skep_core::change::Plan;
use skep_core::event::Event;
use skep_core::object::Task;
use skep_core::orchestrate;
use skep_core::store::{Object, State};
use skep_proto::time::UnixMs;
use skep_proto::v1::{TaskState, UpdateState};

use super::Loop;
use super::orchestrator::{as_node, as_task, changes_fitness};
use super::services::DirtyServices;

/// The loop.
#[derive(Default)]
pub(super) struct Updater {
    dirty: DirtyServices,
}

impl Loop for Updater {
    fn name(&self) -> &'static str {
        "updater"
    }

    fn note(&mut self, event: &Event, state: &State) {
        match (&event.before, &event.after) {
            (_, Some(Object::Service(service))) => {
                self.dirty.insert(service.id);
            }
            (Some(Object::Service(service)), None) => {
                self.dirty.forget(service.id);
            }
            (before, Some(Object::Task(after))) => {
                let before = before.as_ref().and_then(as_task);
                if before.is_none_or(|before| ends_or_turns(before, after)) || goes_on(before, after, state) {
                    self.dirty.insert(after.service());
                }
            }
            (Some(Object::Task(before)), None) => {
                self.dirty.insert(before.service());
            }
            (before, Some(Object::Node(after))) => {
                let before = before.as_ref().and_then(as_node);
                if before.is_none_or(|before| changes_fitness(before, after)) {
                    self.dirty.extend(state.tasks_on_node(after.id).map(|task| task.service()));
                }
            }
            // Its tasks change or go as well.
            _ => {}
        }
    }

    fn look_at_all(&mut self, state: &State) {
        self.dirty.extend(state.services().map(|service| service.id));
    }

    fn plan(&mut self, state: &State, now: UnixMs) -> Plan {
        self.dirty.plan(state, now, orchestrate::update)
    }
}

/// Whether a task's change can concern any service: something ended, or something else is wanted.
fn ends_or_turns(before: &Task, after: &Task) -> bool {
    before.wanted != after.wanted
        || before.start_at != after.start_at
        || before.state.is_terminal() != after.state.is_terminal()
}

/// Whether a task's progress moves a roll-out on: it runs now, or is told why it finds no node. Services that are not
/// being updated are not looked at for that.
fn goes_on(before: Option<&Task>, after: &Task, state: &State) -> bool {
    let was = before.map_or(TaskState::New, |before| before.state);
    let runs_now = after.state == TaskState::Running && was != TaskState::Running;
    let told =
        after.state == TaskState::Pending && before.is_none_or(|before| before.status.error != after.status.error);
    let rolls_out = || {
        let service = state.service(after.service());
        let rolling = service.is_some_and(|service| {
            matches!(service.update_state(), UpdateState::Updating | UpdateState::RollbackStarted)
        });
        // Else it is a task left over from an update, on a node that came back.
        rolling || after.replaces.is_some()
    };
    (runs_now || told) && rolls_out()
}
