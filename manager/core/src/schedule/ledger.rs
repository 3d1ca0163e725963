//! What the tasks on each node have reserved. Kept beside the state by the scheduler's driver and changed with each
//! task's event, so that a pass costs nothing for the tasks that did not change.

use std::collections::BTreeMap;

use skep_proto::id::{NodeId, TaskId};

use crate::object::{Revision, Task};
use crate::store::State;

/// Sums of what a node's tasks hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Tasks that occupy the node.
    pub tasks: u64,
    pub nano_cpus: i64,
    pub memory_bytes: i64,
}

/// Reservations by node, with the tasks they come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    loads: BTreeMap<NodeId, Load>,
    held: BTreeMap<TaskId, (NodeId, Load)>,
}

impl Ledger {
    /// Counts everything anew.
    pub fn of(state: &State) -> Self {
        let mut ledger = Self::default();
        for task in state.tasks() {
            ledger.update(state, task.id, Some(task));
        }
        ledger
    }

    /// Takes note of a task's present form; `None` when it was removed.
    pub fn update(&mut self, state: &State, id: TaskId, task: Option<&Task>) {
        let held = task.filter(|task| task.occupies_node()).and_then(|task| {
            let reserved = state.revision(task.revision).map(|revision| reserved_by(revision)).unwrap_or_default();
            Some((task.node?, Load { tasks: 1, ..reserved }))
        });
        if self.held.get(&id) == held.as_ref() {
            return;
        }
        if let Some((node, load)) = self.held.remove(&id) {
            self.add(node, load, -1);
        }
        if let Some((node, load)) = held {
            self.add(node, load, 1);
            self.held.insert(id, (node, load));
        }
    }

    /// What a node's tasks hold.
    pub fn load(&self, node: NodeId) -> Load {
        self.loads.get(&node).copied().unwrap_or_default()
    }

    fn add(&mut self, node: NodeId, load: Load, sign: i64) {
        let sum = self.loads.entry(node).or_default();
        sum.tasks = sum.tasks.saturating_add_signed(sign * load.tasks.cast_signed());
        sum.nano_cpus += sign * load.nano_cpus;
        sum.memory_bytes += sign * load.memory_bytes;
        if *sum == Load::default() {
            self.loads.remove(&node);
        }
    }
}

/// What one task of a revision reserves; `tasks` is 0.
pub fn reserved_by(revision: &Revision) -> Load {
    let mut sum = Load::default();
    for container in &revision.template.containers {
        if let Some(reserved) = container.resources.as_ref().and_then(|resources| resources.reservations.as_ref()) {
            sum.nano_cpus = sum.nano_cpus.saturating_add(reserved.nano_cpus);
            sum.memory_bytes = sum.memory_bytes.saturating_add(reserved.memory_bytes);
        }
    }
    sum
}
