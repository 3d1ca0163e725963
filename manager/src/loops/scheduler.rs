//! Places pending tasks: `schedule::plan`, with the ledger of reservations kept by events; and gives nodes what they need
//! on networks. It is the only writer of tasks' and nodes' addresses, so they do not race; where the last address of each
//! network was is kept here.

use std::sync::Arc;

use skep_core::change::Plan;
use skep_core::event::Event;
use skep_core::network::{self, Cursors};
use skep_core::object::{Node, Service};
use skep_core::schedule::{self, Ledger};
use skep_core::store::{Object, ObjectKey, State};
use skep_proto::time::UnixMs;

use super::Loop;
use super::orchestrator::as_task;

/// The ledger, and whether anything changed that could place a task.
#[derive(Default)]
pub(super) struct Scheduler {
    ledger: Ledger,
    cursors: Cursors,
    dirty: bool,
    /// Whether a node may lack something.
    nodes_dirty: bool,
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
            ObjectKey::Node(_) => {
                self.dirty = true;
                self.nodes_dirty |=
                    network::concerns_nodes(as_node(event.before.as_ref()), as_node(event.after.as_ref()));
            }
            // A virtual address may have become free.
            ObjectKey::Service(_) => {
                let addresses = |object| as_service(object).map_or(&[][..], |service| &service.virtual_addresses);
                self.dirty |= addresses(event.before.as_ref()) != addresses(event.after.as_ref());
            }
            ObjectKey::Network(_) => {
                self.cursors.prune(state);
                self.dirty = true;
                self.nodes_dirty = true;
            }
            _ => {}
        }
    }

    fn look_at_all(&mut self, state: &State) {
        self.ledger = Ledger::of(state);
        self.cursors.prune(state);
        self.dirty = true;
        self.nodes_dirty = true;
    }

    fn plan(&mut self, state: &State, now: UnixMs) -> Plan {
        // Progress of a pending task (its explanation) comes back as an event and must not wake another pass.
        let mut plan = match std::mem::take(&mut self.dirty) {
            true => schedule::plan(state, &self.ledger, &mut self.cursors, now, rand::random()),
            false => Plan::default(),
        };
        if std::mem::take(&mut self.nodes_dirty) {
            plan.groups.extend(network::plan_nodes(state, &mut self.cursors).groups);
        }
        plan
    }
}

fn as_node(object: Option<&Object>) -> Option<&Arc<Node>> {
    match object {
        Some(Object::Node(node)) => Some(node),
        _ => None,
    }
}

fn as_service(object: Option<&Object>) -> Option<&Service> {
    match object {
        Some(Object::Service(service)) => Some(service),
        _ => None,
    }
}
