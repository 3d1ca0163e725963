//! Stops tasks that have drained: `orchestrate::drained` for the tasks that drain, whenever nodes have applied more of their
//! tables, and when their time is up. Which nodes are connected and what they have applied is the dispatcher's.

use std::collections::BTreeSet;

use skep_core::change::Plan;
use skep_core::event::Event;
use skep_core::orchestrate;
use skep_core::store::{Object, ObjectKey, State};
use skep_proto::id::TaskId;
use skep_proto::time::UnixMs;
use skep_proto::v1::WantedState;

use super::Loop;
use crate::dispatch::{Behind, Dispatcher};

/// Tasks that drain.
pub(super) struct Drainer {
    dispatcher: Dispatcher,
    draining: BTreeSet<TaskId>,
    behind: Behind,
}

impl Drainer {
    pub(super) fn new(dispatcher: Dispatcher) -> Self {
        Self { dispatcher, draining: BTreeSet::new(), behind: Behind::default() }
    }
}

impl Loop for Drainer {
    fn name(&self) -> &'static str {
        "drainer"
    }

    fn note(&mut self, event: &Event, _: &State) {
        let ObjectKey::Task(id) = &event.key else { return };
        let drains = matches!(&event.after, Some(Object::Task(task)) if task.wanted == WantedState::Draining);
        if drains {
            self.draining.insert(*id);
        } else {
            self.draining.remove(id);
        }
    }

    fn look_at_all(&mut self, state: &State) {
        let draining = state.tasks().filter(|task| task.wanted == WantedState::Draining);
        self.draining = draining.map(|task| task.id).collect();
        self.behind.clear();
    }

    fn plan(&mut self, state: &State, now: UnixMs) -> Plan {
        if self.draining.is_empty() {
            self.behind.clear();
            return Plan::default();
        }
        let (dispatcher, behind) = (&self.dispatcher, &mut self.behind);
        let applied = |network, since| dispatcher.drained(state, network, since, behind);
        orchestrate::drained(state, &self.draining, applied, now)
    }

    fn waits_for_nodes(&self) -> bool {
        !self.draining.is_empty()
    }
}
