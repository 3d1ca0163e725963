//! Who may start an election, and when. One task of the Raft runtime.
//!
//! openraft's own timer is off for good: it has no pre-vote, so a follower that was paused for a while would depose a
//! healthy leader. Here a follower that has not heard its leader for longer than the lease and a random time asks the
//! others first: "do you hear a leader, is my log current?" Only when a quorum says that an election would succeed does
//! it start one. A sole voter needs no question. All times are monotonic.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::{BasicNode, RaftMetrics, ServerState};

use crate::consensus::{Member, RaftId};
use crate::engine;
use crate::network::{LeftBehind, Line};
use crate::shared::{self, Shared, Voters};
use crate::transport::MessageKind;
use crate::types::Raft;
use crate::wire::{self, PreVote};

type Metrics = RaftMetrics<RaftId, BasicNode>;

/// What to do about elections in a given state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Election {
    /// Start one now.
    Now,
    /// Start one when no leader is heard for too long.
    ByTimer,
    /// None is needed, or this node has no vote.
    No,
}

fn decide(id: RaftId, state: ServerState, voters: &Voters) -> Election {
    match state {
        ServerState::Shutdown | ServerState::Leader | ServerState::Learner => Election::No,
        ServerState::Follower | ServerState::Candidate => {
            let is_voter = voters.iter().any(|set| set.contains(&id));
            let alone = voters.iter().all(|set| set.len() == 1);
            match (is_voter, alone) {
                (false, _) => Election::No,
                (true, true) => Election::Now,
                (true, false) => Election::ByTimer,
            }
        }
    }
}

pub(crate) struct Elections {
    pub(crate) raft: Raft,
    pub(crate) shared: Arc<Shared>,
    pub(crate) left_behind: LeftBehind,
}

impl Elections {
    /// Ends with the engine.
    pub(crate) async fn run(self) {
        let mut metrics = self.raft.metrics();
        loop {
            let election = {
                let now = metrics.borrow_and_update();
                if now.running_state.is_err() || now.state == ServerState::Shutdown {
                    return;
                }
                decide(self.shared.id, now.state, &shared::voters(&now.membership_config))
            };
            let go_on = match election {
                Election::Now => {
                    let started = self.raft.trigger().elect().await.is_ok();
                    // Either outcome leads to a new look.
                    let _ = tokio::time::timeout(self.shared.timing.heartbeat, metrics.changed()).await;
                    started
                }
                Election::ByTimer => self.by_timer().await,
                Election::No => metrics.changed().await.is_ok(),
            };
            if !go_on {
                return;
            }
        }
    }

    /// Waits until it has been quiet for a random time after the lease, then tries. Answers false when the node ends.
    async fn by_timer(&self) -> bool {
        let timing = &self.shared.timing;
        let patience = engine::between(timing.election_min, timing.election_max);
        let quiet = self.shared.quiet_since();
        let due = quiet + patience;
        tokio::time::sleep_until(due.into()).await;
        if self.shared.quiet_since() > quiet {
            return true;
        }
        self.shared.stir();
        if self.shared.space.is_full() {
            return true;
        }
        let now = self.raft.metrics().borrow().clone();
        if decide(self.shared.id, now.state, &shared::voters(&now.membership_config)) != Election::ByTimer {
            return true;
        }
        if !self.would_win(&now).await {
            return true;
        }
        // The answers took a moment: a leader may have spoken.
        if self.shared.in_lease(engine::now()) || self.shared.is_held(engine::now()) {
            return true;
        }
        self.raft.trigger().elect().await.is_ok()
    }

    /// Asks the other voters. Ends at the first quorum, or when it cannot come together any more.
    async fn would_win(&self, now: &Metrics) -> bool {
        let begun: Instant = engine::now();
        let voters = shared::voters(&now.membership_config);
        let last = self.raft.data_metrics().borrow().last_log;
        let mut asked = FuturesUnordered::new();
        for (id, node) in now.membership_config.nodes() {
            if *id == self.shared.id || !voters.iter().any(|set| set.contains(id)) {
                continue;
            }
            let line = Line {
                shared: Arc::clone(&self.shared),
                left_behind: Arc::clone(&self.left_behind),
                target: Member { id: *id, address: node.addr.clone() },
            };
            asked.push(async move {
                let mut message = line.begin();
                wire::put_pre_vote(&mut message, last);
                let timeout = line.shared.timing.election_min;
                let answer = tokio::time::timeout(timeout, line.call(MessageKind::PreVote, message, timeout)).await;
                let answer = answer.ok().and_then(Result::ok).and_then(|body| wire::get_pre_vote_answer(body).ok());
                (line.target.id, answer)
            });
        }
        let mut granted = BTreeSet::from([self.shared.id]);
        while let Some((id, answer)) = asked.next().await {
            tracing::debug!(id, ?answer, took = ?begun.elapsed(), "answer to the question before an election");
            if answer == Some(PreVote::Granted) {
                granted.insert(id);
            }
            if shared::is_quorum(&voters, &granted) {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sole_voter_elects_at_once_and_only_voters_elect() {
        let voters = |ids: &[RaftId]| vec![ids.iter().copied().collect::<BTreeSet<_>>()];
        assert_eq!(decide(1, ServerState::Follower, &voters(&[1])), Election::Now);
        assert_eq!(decide(1, ServerState::Candidate, &voters(&[1])), Election::Now);
        assert_eq!(decide(1, ServerState::Leader, &voters(&[1])), Election::No);
        assert_eq!(decide(1, ServerState::Follower, &voters(&[1, 2])), Election::ByTimer);
        assert_eq!(decide(1, ServerState::Follower, &voters(&[2])), Election::No);
        assert_eq!(decide(1, ServerState::Learner, &voters(&[2])), Election::No);
        assert_eq!(decide(1, ServerState::Shutdown, &voters(&[1])), Election::No);
        let joint = vec![BTreeSet::from([1]), BTreeSet::from([1, 2])];
        assert_eq!(decide(1, ServerState::Follower, &joint), Election::ByTimer);
    }
}
