//! Who may start an election, and when. One task of the Raft runtime.
//!
//! openraft's own timer is off: it has no pre-vote, so a follower that was paused for a while would depose a healthy
//! leader. A sole voter needs no question and elects itself at once. Several voters use openraft's timer until the
//! pre-vote of ours (ask a quorum "do you hear a leader, is my log current?", then [`crate::Consensus::campaign`])
//! takes its place in [`decide`].

use std::time::Duration;

use tokio::sync::watch;

use crate::consensus::{Role, Status};
use crate::types::Raft;

/// What to do about elections in a given status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Election {
    /// Start one now.
    Now,
    /// Let the engine's timer start them.
    ByTimer,
    /// None is needed, or this node has no vote.
    No,
}

fn decide(status: &Status) -> Election {
    match status.role {
        Role::Stopped | Role::Leader | Role::Learner => Election::No,
        Role::Follower | Role::Candidate if status.is_sole_voter() => Election::Now,
        Role::Follower | Role::Candidate => Election::ByTimer,
    }
}

/// How long to wait for the effect of an election before trying again.
const RETRY: Duration = Duration::from_millis(100);

pub(crate) async fn run(raft: Raft, mut status: watch::Receiver<Status>) {
    loop {
        let election = decide(&status.borrow_and_update());
        raft.runtime_config().elect(election == Election::ByTimer);
        if election == Election::Now {
            if raft.trigger().elect().await.is_err() {
                return;
            }
            // Either outcome leads to a new look.
            let _ = tokio::time::timeout(RETRY, status.changed()).await;
        } else if status.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;
    use crate::consensus::{Member, Membership, RaftId};

    fn status(role: Role, voters: &[RaftId]) -> Status {
        let member = |id: &RaftId| (*id, Member { id: *id, address: String::new() });
        let membership = Membership { voters: voters.iter().map(member).collect(), ..Membership::default() };
        Status { role, membership: Arc::new(membership), ..Status::initial(1) }
    }

    #[test]
    fn only_a_sole_voter_elects_at_once() {
        assert_eq!(decide(&status(Role::Follower, &[1])), Election::Now);
        assert_eq!(decide(&status(Role::Candidate, &[1])), Election::Now);
        assert_eq!(decide(&status(Role::Leader, &[1])), Election::No);
        assert_eq!(decide(&status(Role::Follower, &[1, 2])), Election::ByTimer);
        assert_eq!(decide(&status(Role::Follower, &[2])), Election::ByTimer);
        assert_eq!(decide(&status(Role::Learner, &[])), Election::No);
        assert_eq!(decide(&status(Role::Stopped, &[1])), Election::No);
    }
}
