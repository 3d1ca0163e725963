//! Changes of membership, in openraft's steps.
//!
//! Each runs as a task of the Raft runtime: a change of voters is two entries, and a caller that goes away between them
//! must not leave the group in between. Where a leader goes away between them, the next one makes the second step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers, ServerState};

use crate::consensus::{Member, RaftId};
use crate::shared::{self, Shared};
use crate::types::Raft;

/// A change of membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    AddLearner(Member),
    Promote(RaftId),
    Demote(RaftId),
    Remove(RaftId),
}

/// Why it did not happen.
#[derive(Debug)]
pub(crate) enum ChangeError {
    NotLeader(Option<RaftId>),
    Refused(String),
    Stopped,
}

/// Counts the changes that this node is making.
pub(crate) struct Making(Arc<Shared>);

impl Making {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        shared.changes.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(shared))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.0.changes.fetch_sub(1, Ordering::AcqRel);
    }
}

/// See [`Making`].
pub(crate) type Changes = AtomicUsize;

pub(crate) async fn change(raft: Raft, change: Change, _making: Making) -> Result<(), ChangeError> {
    match change {
        Change::AddLearner(Member { id, address }) => {
            apply(&raft, ChangeMembers::AddNodes(BTreeMap::from([(id, BasicNode { addr: address })])), true).await
        }
        Change::Promote(id) => apply(&raft, ChangeMembers::AddVoterIds(BTreeSet::from([id])), true).await,
        Change::Demote(id) => apply(&raft, ChangeMembers::RemoveVoters(BTreeSet::from([id])), true).await,
        Change::Remove(id) => {
            let is_voter = raft.metrics().borrow().membership_config.voter_ids().any(|voter| voter == id);
            if is_voter {
                return apply(&raft, ChangeMembers::RemoveVoters(BTreeSet::from([id])), false).await;
            }
            apply(&raft, ChangeMembers::RemoveNodes(BTreeSet::from([id])), true).await
        }
    }
}

/// Makes the second step of a change whose leader went away after the first: the engine leaves that to whoever called it
/// there, and until then every quorum is one of the voters before and of those after, and no other change is possible.
/// Who was to be removed stays as a learner, as nobody knows better here; the caller sees that and removes it. Ends with
/// the engine.
pub(crate) async fn finish_abandoned(raft: Raft, shared: Arc<Shared>) {
    let mut metrics = raft.metrics();
    let abandoned = |shared: &Shared, metrics: &tokio::sync::watch::Receiver<_>| {
        let now: &openraft::RaftMetrics<RaftId, BasicNode> = &metrics.borrow();
        let is_joint = shared::voters(&now.membership_config).len() > 1;
        is_joint && now.state == ServerState::Leader && shared.changes.load(Ordering::Acquire) == 0
    };
    loop {
        if abandoned(&shared, &metrics) {
            let nothing_new = ChangeMembers::AddVoterIds(BTreeSet::new());
            match apply(&raft, nothing_new, true).await {
                Ok(()) => tracing::info!("a change of the managers is finished that another leader began"),
                Err(ChangeError::Stopped) => return,
                // The first step is not committed yet, or the lead is lost.
                Err(error) => tracing::debug!(?error, "a change of the managers is not finished yet"),
            }
            tokio::time::sleep(shared.timing.heartbeat).await;
        }
        let ended = {
            let now = metrics.borrow_and_update();
            now.running_state.is_err() || now.state == ServerState::Shutdown
        };
        if ended || (!abandoned(&shared, &metrics) && metrics.changed().await.is_err()) {
            return;
        }
    }
}

async fn apply(raft: &Raft, changes: ChangeMembers<RaftId, BasicNode>, retain: bool) -> Result<(), ChangeError> {
    match raft.change_membership(changes, retain).await {
        Ok(_) => Ok(()),
        Err(RaftError::Fatal(_)) => Err(ChangeError::Stopped),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => Err(ChangeError::NotLeader(to.leader_id)),
        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => Err(refused(&error)),
    }
}

fn refused(error: &ChangeMembershipError<RaftId>) -> ChangeError {
    ChangeError::Refused(match error {
        ChangeMembershipError::InProgress(_) => "another change is in progress; try again when it is done".to_owned(),
        ChangeMembershipError::EmptyMembership(_) => "the last voter cannot be removed or demoted".to_owned(),
        ChangeMembershipError::LearnerNotFound(missing) => format!("raft node {} is not a member", missing.node_id),
    })
}
