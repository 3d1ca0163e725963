//! openraft's metrics as [`Status`], published on every change. One task of the Raft runtime.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use openraft::error::Fatal;
use openraft::{BasicNode, RaftMetrics, ServerState};
use tokio::sync::watch;

use crate::consensus::{Member, Membership, RaftId, Role, Status};
use crate::store::Store;
use crate::store::snapshots::SnapshotStore;
use crate::types::StoredMembership;

type Metrics = RaftMetrics<RaftId, BasicNode>;

/// Follows the metrics until the engine ends.
pub(crate) async fn publish(
    mut metrics: watch::Receiver<Metrics>,
    snapshots: Arc<SnapshotStore>,
    status: Arc<watch::Sender<Status>>,
) {
    let mut known: Option<(Arc<StoredMembership>, Arc<Membership>)> = None;
    let store = Arc::downgrade(snapshots.store());
    loop {
        let now = metrics.borrow_and_update().clone();
        let membership = match &known {
            Some((stored, membership)) if Arc::ptr_eq(stored, &now.membership_config) => Arc::clone(membership),
            _ => Arc::new(membership(&now.membership_config)),
        };
        known = Some((Arc::clone(&now.membership_config), Arc::clone(&membership)));
        // The file may be there a moment before the engine knows of it. Until then it can neither be purged to nor be
        // followed by another one, so it does not count yet.
        let known_to_engine = now.snapshot.map(|id| id.index);
        let written = snapshots.current().and_then(|current| current.info());
        let snapshot = match written {
            Some(info) if Some(info.index) <= known_to_engine => Some(info),
            _ => status.borrow().snapshot.clone(),
        };
        let next = Status { snapshot, ..convert(&now, membership, &store) };
        let ended = next.role == Role::Stopped;
        status.send_if_modified(|status| {
            let changed = *status != next;
            *status = next;
            changed
        });
        if ended || metrics.changed().await.is_err() {
            return;
        }
    }
}

fn convert(now: &Metrics, membership: Arc<Membership>, store: &Weak<Store>) -> Status {
    let leader = now.current_leader.and_then(|id| find(&membership, id));
    let sole = membership.voters.len() == 1 && membership.voters.contains_key(&now.id);
    let acked = now.millis_since_quorum_ack.filter(|_| !sole).map(Duration::from_millis);
    Status {
        id: now.id,
        role: role(now),
        term: now.current_term,
        leader,
        last_log: now.last_log_index,
        last_applied: now.last_applied.map(|id| id.index),
        quorum_acked_at: acked.and_then(|ago| Instant::now().checked_sub(ago)),
        matched: now.replication.iter().flatten().map(|(id, upto)| (*id, upto.map(|upto| upto.index))).collect(),
        membership,
        snapshot: None,
        first_log: now.purged.map_or(0, |id| id.index + 1),
        stopped: now.running_state.as_ref().err().map(|fatal| stop_reason(fatal, store)),
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

fn stop_reason(fatal: &Fatal<RaftId>, store: &Weak<Store>) -> Arc<str> {
    // The store keeps the operator's words; the engine wraps them in its own.
    if let Some(failure) = store.upgrade().and_then(|store| store.failure()) {
        return failure;
    }
    match fatal {
        Fatal::Stopped => SHUT_DOWN.into(),
        Fatal::Panicked => "the consensus engine panicked".into(),
        Fatal::StorageError(error) => error.to_string().into(),
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
