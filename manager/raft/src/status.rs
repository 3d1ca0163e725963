//! openraft's metrics as [`Status`], published on every change. One task of the Raft runtime.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use openraft::error::Fatal;
use openraft::{BasicNode, RaftMetrics, ServerState};
use tokio::sync::watch;

use crate::consensus::{Member, Membership, RaftId, Role, Status, StopCause};
use crate::engine;
use crate::shared::{self, Shared};
use crate::store::Store;
use crate::store::snapshots::SnapshotStore;
use crate::types::StoredMembership;

type Metrics = RaftMetrics<RaftId, BasicNode>;

/// What a status is made of.
pub(crate) struct Publisher {
    pub(crate) snapshots: Arc<SnapshotStore>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) status: Arc<watch::Sender<Status>>,
}

impl Publisher {
    /// Follows the metrics until the engine ends. Besides the engine's changes, silence is news too, so it looks once in
    /// a heartbeat interval.
    pub(crate) async fn run(self, mut metrics: watch::Receiver<Metrics>) {
        let mut known: Option<(Arc<StoredMembership>, Arc<Membership>)> = None;
        let store = Arc::downgrade(self.snapshots.store());
        let snapshots = Arc::downgrade(&self.snapshots);
        let Self { shared, status, .. } = self;
        drop(self.snapshots);
        loop {
            let now = metrics.borrow_and_update().clone();
            let membership = match &known {
                Some((stored, membership)) if Arc::ptr_eq(stored, &now.membership_config) => Arc::clone(membership),
                _ => Arc::new(membership(&now.membership_config)),
            };
            known = Some((Arc::clone(&now.membership_config), Arc::clone(&membership)));
            // The file may be there a moment before the engine knows of it. Until then it can neither be purged to nor
            // be followed by another one, so it does not count yet.
            let known_to_engine = now.snapshot.map(|id| id.index);
            let current = snapshots.upgrade().and_then(|snapshots| snapshots.current());
            let snapshot = match current.and_then(|current| current.info()) {
                Some(info) if Some(info.index) <= known_to_engine => Some(info),
                _ => status.borrow().snapshot.clone(),
            };
            let next = Status { snapshot, ..convert(&now, membership, &store, &shared) };
            let ended = next.role == Role::Stopped;
            status.send_if_modified(|status| {
                let changed = is_news(status, &next);
                *status = next;
                changed
            });
            if ended {
                return;
            }
            tokio::select! {
                biased;
                changed = metrics.changed() => if changed.is_err() { return },
                () = shared.news.notified() => {}
                () = tokio::time::sleep(shared.timing.heartbeat) => {}
            }
        }
    }
}

/// Whether anybody is to be woken: everything counts but the passing of acknowledgements.
fn is_news(old: &Status, new: &Status) -> bool {
    let silent = Status {
        quorum_acked_at: old.quorum_acked_at,
        leader_heard_at: old.leader_heard_at,
        heard: old.heard.clone(),
        ..new.clone()
    };
    *old != silent
}

fn convert(now: &Metrics, membership: Arc<Membership>, store: &Weak<Store>, shared: &Shared) -> Status {
    let time = engine::now();
    let role = role(now);
    let leads = role == Role::Leader;
    let voters = shared::voters(&now.membership_config);
    let sole = voters.iter().all(|set| set.len() == 1 && set.contains(&now.id)) && !voters.is_empty();
    let acked = if leads { shared.quorum_acked_at(&voters, &now.vote, time) } else { None };
    let has_quorum = acked.is_some_and(|at| time <= at + shared.silence_limit());
    let leader = now.current_leader.and_then(|id| find(&membership, id));
    let leader_heard_at = if leads { None } else { shared.leader_heard_at() };
    let is_led = leader.is_some() && matches!(role, Role::Follower | Role::Learner);
    let follows = leader_heard_at.is_some_and(|at| time <= at + shared.timing.election_max * 3 / 2);
    let failure = now.running_state.as_ref().err().map(|fatal| stop_reason(fatal, store));
    Status {
        role,
        term: now.current_term,
        leader,
        last_log: now.last_log_index,
        last_applied: now.last_applied.map(|id| id.index),
        quorum_acked_at: acked.filter(|_| !sole),
        has_quorum,
        heard: if leads { shared.heard() } else { BTreeMap::new() },
        leader_heard_at,
        hears_leader: if leads { has_quorum } else { is_led && follows },
        handing_over: shared.is_handing_over(),
        disk_full: shared.space.is_full(),
        recovery_epoch: shared.epoch(),
        matched: now.replication.iter().flatten().map(|(id, upto)| (*id, upto.map(|upto| upto.index))).collect(),
        membership,
        first_log: now.purged.map_or(0, |id| id.index + 1),
        stop_cause: failure.as_ref().map(|(cause, _)| *cause),
        stopped: failure.map(|(_, why)| why),
        ..Status::initial(now.id)
    }
}

fn role(now: &Metrics) -> Role {
    if now.running_state.is_err() {
        return Role::Stopped;
    }
    match now.state {
        ServerState::Learner => Role::Learner,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Leader => Role::Leader,
        ServerState::Shutdown => Role::Stopped,
    }
}

fn stop_reason(fatal: &Fatal<RaftId>, store: &Weak<Store>) -> (StopCause, Arc<str>) {
    // The store keeps the operator's words; the engine wraps them in its own.
    if let Some(failure) = store.upgrade().and_then(|store| store.failure()) {
        return failure;
    }
    match fatal {
        Fatal::Stopped => (StopCause::ShutDown, SHUT_DOWN.into()),
        Fatal::Panicked => (StopCause::Engine, "the consensus engine panicked".into()),
        Fatal::StorageError(error) => (StopCause::Storage, error.to_string().into()),
    }
}

/// The reason of a node that was stopped on purpose.
pub(crate) const SHUT_DOWN: &str = "shut down";

fn membership(stored: &StoredMembership) -> Membership {
    let voters: Vec<RaftId> = stored.voter_ids().collect();
    let mut converted = Membership {
        index: stored.log_id().map(|id| id.index),
        changing: stored.membership().get_joint_config().len() > 1,
        ..Membership::default()
    };
    for (id, node) in stored.nodes() {
        let member = Member { id: *id, address: node.addr.clone() };
        let list = if voters.contains(id) { &mut converted.voters } else { &mut converted.learners };
        list.insert(*id, member);
    }
    converted
}

/// A member by id, whatever it may do.
pub(crate) fn find(membership: &Membership, id: RaftId) -> Option<Member> {
    membership.voters.get(&id).or_else(|| membership.learners.get(&id)).cloned()
}
