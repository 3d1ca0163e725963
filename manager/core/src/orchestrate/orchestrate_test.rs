//! Services, node losses and restarts over example states; then any history of events as a property. Here is the world in
//! which they happen.
#![allow(clippy::unwrap_used)]

mod globals;
mod histories;
mod nodes;
mod replicas;
mod restarts;

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::{Availability, NodeState, RestartCondition, RestartPolicy, TaskState, WantedState};

use super::{due, plan, reap, update};
use crate::example::{
    START, carry_out, change_service, global, node, observe, replicated, set_availability, set_mode, set_node, swarm,
    with_service,
};
use crate::ids::Ids;
use crate::network::Cursors;
use crate::object::{Revision, Service, Slot, Task};
use crate::schedule::{self, Ledger};
use crate::store::{ObjectKey, State};

/// A state, a clock and a source of seeds; the loops run until none of them has anything to do.
struct World {
    state: State,
    service: ServiceId,
    now: UnixMs,
    seed: u128,
}

impl World {
    fn new(state: State, service: ServiceId) -> Self {
        let mut world = Self { state, service, now: START, seed: 1 };
        world.settle();
        world
    }

    fn pass(&mut self) -> usize {
        self.seed += 1;
        let mut ids = Ids::new(self.seed);
        let mut changes = 0;
        for round in 0..5 {
            let plan = match round {
                0 => plan(&self.state, self.service, self.now, &mut ids),
                1 => due(&self.state, self.now),
                2 => update(&self.state, self.service, self.now, &mut ids),
                3 => schedule::plan(&self.state, &Ledger::of(&self.state), &mut Cursors::default(), self.now, 1),
                _ => reap(&self.state, self.service, self.now),
            };
            changes += plan.groups.len();
            carry_out(&mut self.state, &plan, self.now);
        }
        changes
    }

    /// Runs the loops until they are done; panics when they do not come to rest.
    fn settle(&mut self) {
        for _ in 0..50 {
            if self.pass() == 0 {
                return;
            }
        }
        panic!("the loops do not come to rest");
    }

    /// Nodes that are up do as they are told.
    fn nodes_obey(&mut self) {
        let tasks: Vec<_> = self.state.tasks().cloned().collect();
        for task in tasks {
            let up = task
                .node
                .and_then(|node| self.state.node(node))
                .is_some_and(|node| node.status.state == NodeState::Ready);
            if !up || task.state < TaskState::Assigned || task.state.is_terminal() {
                continue;
            }
            let state = match task.wanted {
                WantedState::Running | WantedState::Draining => TaskState::Running,
                WantedState::Ready => TaskState::Ready,
                _ => TaskState::Shutdown,
            };
            observe(&mut self.state, task.id, state, self.now);
        }
    }

    fn run(&mut self) {
        for _ in 0..10 {
            self.settle();
            self.nodes_obey();
        }
        self.settle();
    }

    fn live(&self) -> Vec<Task> {
        self.state.tasks().filter(|task| task.wanted.wants_to_run()).map(|task| Task::clone(task)).collect()
    }

    fn running(&self) -> usize {
        self.state.tasks().filter(|task| task.state == TaskState::Running && task.wanted.wants_to_run()).count()
    }

    fn slots(&self) -> BTreeSet<Slot> {
        self.live().iter().map(|task| task.slot).collect()
    }
}

fn web(nodes: u128, replicas: u64) -> World {
    let mut state = swarm(nodes);
    let service = with_service(&mut state, replicated(replicas), |_| {});
    World::new(state, service)
}
