//! Services that a loop has to look at: those that something happened to, and those whose time has come. Shared by the
//! loops that plan one service at a time; which events concern a service is theirs to say.

use std::collections::{BTreeMap, BTreeSet};

use skep_core::change::Plan;
use skep_core::ids::Ids;
use skep_core::store::State;
use skep_proto::id::ServiceId;
use skep_proto::time::UnixMs;

/// Services to look at, and when to look at others again.
#[derive(Default)]
pub(super) struct DirtyServices {
    dirty: BTreeSet<ServiceId>,
    wakes: BTreeMap<ServiceId, UnixMs>,
}

impl DirtyServices {
    /// Looks at it next.
    pub(super) fn insert(&mut self, service: ServiceId) {
        self.dirty.insert(service);
    }

    /// Looks at them next.
    pub(super) fn extend(&mut self, services: impl IntoIterator<Item = ServiceId>) {
        self.dirty.extend(services);
    }

    /// Does not look at it any more: it is gone.
    pub(super) fn forget(&mut self, service: ServiceId) {
        self.dirty.remove(&service);
        self.wakes.remove(&service);
    }

    /// Plans for each service that is due, and remembers when to look at it again.
    pub(super) fn plan(
        &mut self,
        state: &State,
        now: UnixMs,
        plan: impl Fn(&State, ServiceId, UnixMs, &mut Ids) -> Plan,
    ) -> Plan {
        let due = self.wakes.iter().filter(|(_, at)| **at <= now).map(|(service, _)| *service);
        self.dirty.extend(due);
        let mut ids = Ids::new(rand::random());
        let mut whole = Plan::default();
        for service in std::mem::take(&mut self.dirty) {
            self.wakes.remove(&service);
            let part = plan(state, service, now, &mut ids);
            whole.groups.extend(part.groups);
            if let Some(at) = part.wake_at {
                self.wakes.insert(service, at);
            }
        }
        whole.wake_at = self.wakes.values().min().copied();
        whole
    }
}
