//! Deletes what nobody needs any more: `orchestrate::reap` for the services with ended or unwanted tasks.

use std::collections::{BTreeMap, BTreeSet};

use skep_core::change::Plan;
use skep_core::event::Event;
use skep_core::orchestrate;
use skep_core::store::{Object, State};
use skep_proto::id::ServiceId;
use skep_proto::time::UnixMs;
use skep_proto::v1::NodeState;

use super::Loop;

/// Services to look at, and when to look at others again.
#[derive(Default)]
pub(super) struct Reaper {
    dirty: BTreeSet<ServiceId>,
    wakes: BTreeMap<ServiceId, UnixMs>,
}

impl Loop for Reaper {
    fn name(&self) -> &'static str {
        "reaper"
    }

    fn note(&mut self, event: &Event, state: &State) {
        match (&event.before, &event.after) {
            (_, Some(Object::Task(task))) if task.state.is_terminal() || task.wanted.wants_to_stop() => {
                self.dirty.insert(task.service());
            }
            (Some(Object::Task(task)), None) => {
                self.dirty.insert(task.service());
            }
            // Its limits may have changed.
            (Some(Object::Cluster(_)), _) => self.look_at_all(state),
            (Some(Object::Service(service)), _) => {
                self.dirty.insert(service.id);
            }
            (Some(Object::Node(node)), after) => {
                let down = matches!(after, Some(Object::Node(node)) if node.status.state == NodeState::Down);
                if after.is_none() || down {
                    self.dirty.extend(state.tasks_on_node(node.id).map(|task| task.service()));
                }
            }
            _ => {}
        }
    }

    fn look_at_all(&mut self, state: &State) {
        self.dirty.extend(state.services().map(|service| service.id));
        self.dirty.extend(state.services_with_tasks());
        self.dirty.extend(state.revisions().map(|revision| revision.key.service));
        self.dirty.extend(state.credentials().map(|credential| credential.service));
    }

    fn plan(&mut self, state: &State, now: UnixMs) -> Plan {
        let due = self.wakes.iter().filter(|(_, at)| **at <= now).map(|(service, _)| *service);
        self.dirty.extend(due);
        let mut whole = Plan::default();
        for service in std::mem::take(&mut self.dirty) {
            self.wakes.remove(&service);
            let plan = orchestrate::reap(state, service, now);
            whole.groups.extend(plan.groups);
            if let Some(at) = plan.wake_at {
                self.wakes.insert(service, at);
            }
        }
        whole.wake_at = self.wakes.values().min().copied();
        whole
    }
}
