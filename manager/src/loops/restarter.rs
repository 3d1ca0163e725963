//! Starts replacements whose restart delay has run out: `orchestrate::due`.

use skep_core::change::Plan;
use skep_core::event::Event;
use skep_core::orchestrate;
use skep_core::store::{Object, State};
use skep_proto::time::UnixMs;
use skep_proto::v1::WantedState;

use super::Loop;

/// Whether a task began to wait, and when the first wait ends.
#[derive(Default)]
pub(super) struct Restarter {
    dirty: bool,
    wake_at: Option<UnixMs>,
}

impl Loop for Restarter {
    fn name(&self) -> &'static str {
        "restarter"
    }

    fn note(&mut self, event: &Event, _: &State) {
        if let Some(Object::Task(task)) = &event.after {
            self.dirty |= task.wanted == WantedState::Ready;
        }
    }

    fn look_at_all(&mut self, _: &State) {
        self.dirty = true;
    }

    fn plan(&mut self, state: &State, now: UnixMs) -> Plan {
        if !self.dirty && self.wake_at.is_none_or(|at| at > now) {
            return Plan { wake_at: self.wake_at, ..Plan::default() };
        }
        self.dirty = false;
        let plan = orchestrate::due(state, now);
        self.wake_at = plan.wake_at;
        plan
    }
}
