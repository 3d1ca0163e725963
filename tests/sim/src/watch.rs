//! Looks at every manager in every step: who leads, and whether one has stopped by itself.

use std::collections::BTreeMap;

use skep_raft::{RaftId, Role};

use crate::world::World;

/// What is known of one manager.
type Known = (Role, u64, Option<RaftId>, Option<u64>, bool);

/// See the module.
#[derive(Default)]
pub(crate) struct Watch {
    /// Who led in each term.
    terms: BTreeMap<u64, RaftId>,
    known: BTreeMap<RaftId, Known>,
    /// What must not be.
    pub(crate) wrong: Vec<String>,
}

impl Watch {
    /// How many terms had a leader.
    pub(crate) fn leaders(&self) -> usize {
        self.terms.len()
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
                let leads = *self.terms.entry(status.term).or_insert(*id);
                if leads != *id {
                    self.wrong.push(format!("managers {leads} and {id} both lead in term {}", status.term));
                }
            }
            if let Some(why) = &status.stopped {
                self.wrong.push(format!("manager {id} stopped by itself ({:?}): {why}", status.stop_cause));
            }
        }
    }
}
