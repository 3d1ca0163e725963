//! Deletes what nobody needs any more: `orchestrate::reap` for the services with ended or unwanted tasks, `parcels::reap` for
//! secrets and configs with versions that nobody goes back to.

use std::collections::{BTreeMap, BTreeSet};

use skep_core::change::Plan;
use skep_core::event::Event;
use skep_core::object::ParcelId;
use skep_core::store::{Object, State, payload_refs};
use skep_core::{orchestrate, parcels};
use skep_proto::id::ServiceId;
use skep_proto::time::UnixMs;
use skep_proto::v1::NodeState;

use super::Loop;

/// Services, secrets and configs to look at, and when to look at other services again.
#[derive(Default)]
pub(super) struct Reaper {
    dirty: BTreeSet<ServiceId>,
    wakes: BTreeMap<ServiceId, UnixMs>,
    parcels: BTreeSet<ParcelId>,
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
            (_, Some(Object::Parcel(parcel))) => {
                self.parcels.insert(parcel.id);
            }
            (Some(Object::Revision(revision)), None) => {
                self.parcels.extend(payload_refs(&revision.template).map(|one| one.key.owner));
            }
            _ => {}
        }
    }

    fn look_at_all(&mut self, state: &State) {
        self.dirty.extend(state.services().map(|service| service.id));
        self.dirty.extend(state.services_with_tasks());
        self.dirty.extend(state.revisions().map(|revision| revision.key.service));
        self.dirty.extend(state.credentials().map(|credential| credential.service));
        self.parcels.extend(state.parcels().map(|parcel| parcel.id));
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
        for parcel in std::mem::take(&mut self.parcels) {
            whole.groups.extend(parcels::reap(state, parcel).groups);
        }
        whole.wake_at = self.wakes.values().min().copied();
        whole
    }
}
