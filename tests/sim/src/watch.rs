//! Looks at every manager in every step: who leads, and whether one has stopped by itself.

use std::collections::{BTreeMap, BTreeSet};

use skep_raft::{RaftId, Role, StopCause};

use crate::world::World;

/// What is known of one manager.
type Known = (Role, u64, Option<RaftId>, Option<u64>, bool);

/// See the module.
#[derive(Default)]
pub(crate) struct Watch {
    /// Who led, and in which term: openraft orders leaders by both, and may have several in a term.
    led: BTreeSet<(u64, RaftId)>,
    known: BTreeMap<RaftId, Known>,
    /// What must not be.
    pub(crate) wrong: Vec<String>,
}

impl Watch {
    /// How often a manager came to lead.
    pub(crate) fn leaders(&self) -> usize {
        self.led.len()
    }

    pub(crate) fn look(&mut self, world: &World) {
        let running = world.running.borrow();
        self.known.retain(|id, _| running.contains_key(id));
        for (id, manager) in running.iter() {
            let status = manager.status.borrow();
            let leader = status.leader.as_ref().map(|leader| leader.id);
            let now = (status.role, status.term, leader, status.last_applied, status.has_quorum);
            if self.known.insert(*id, now) == Some(now) {
                continue;
            }
            world.note(|| {
                let (role, term, leader, applied, quorum) = now;
                let version = manager.store.state().version();
                format!("manager {id}: {role:?} term {term} leader {leader:?} quorum {quorum} applied {applied:?} version {version}")
            });
            if status.role == Role::Leader {
                self.led.insert((status.term, manager.raft_id));
            }
            // What the host's daemon does about these, or does not, is judged there.
            let passing = [StopCause::DiskFull, StopCause::LeftBehind, StopCause::ShutDown];
            if let Some(why) = &status.stopped
                && !status.stop_cause.is_some_and(|cause| passing.contains(&cause))
            {
                self.wrong.push(format!("manager {id} stopped by itself ({:?}): {why}", status.stop_cause));
            }
        }
    }
}
