//! Places pending tasks: `schedule::plan`, with the ledger of reservations kept by events.

use skep_core::change::Plan;
use skep_core::event::Event;
use skep_core::schedule::{self, Ledger};
use skep_core::store::{ObjectKey, State};
use skep_proto::time::UnixMs;

use super::Loop;
use super::orchestrator::as_task;

/// The ledger, and whether anything changed that could place a task.
#[derive(Default)]
pub(super) struct Scheduler {
    ledger: Ledger,
    dirty: bool,
}

impl Loop for Scheduler {
    fn name(&self) -> &'static str {
        "scheduler"
    }

    fn note(&mut self, event: &Event, state: &State) {
        match &event.key {
            ObjectKey::Task(id) => {
                let after = event.after.as_ref().and_then(as_task);
                let before = event.before.as_ref().and_then(as_task);
                self.ledger.update(state, *id, after);
                let frees =
                    before.is_some_and(|task| task.occupies_node()) && !after.is_some_and(|task| task.occupies_node());
                let is_new = before.is_none() && after.is_some();
                self.dirty |= frees || is_new;
            }
            ObjectKey::Node(_) => self.dirty = true,
            _ => {}
        }
    }

    fn look_at_all(&mut self, state: &State) {
        self.ledger = Ledger::of(state);
        self.dirty = true;
    }

    fn plan(&mut self, state: &State, now: UnixMs) -> Plan {
        // Progress of a pending task (its explanation) comes back as an event and must not wake another pass.
        if !std::mem::take(&mut self.dirty) {
            return Plan::default();
        }
        schedule::plan(state, &self.ledger, now, rand::random())
    }
}
