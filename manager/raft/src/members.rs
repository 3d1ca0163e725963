//! Changes of membership, in openraft's steps.
//!
//! Each runs as a task of the Raft runtime: a change of voters is two entries, and a caller that goes away between them
//! must not leave the group in between.

use std::collections::{BTreeMap, BTreeSet};

use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers};

use crate::consensus::{Member, RaftId};
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

pub(crate) async fn change(raft: Raft, change: Change) -> Result<(), ChangeError> {
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
