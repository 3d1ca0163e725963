//! The lead goes to another voter in order: before a leader is demoted or stops.
//!
//! Voters refuse every vote during the leader's lease, so electing the target at once would only raise the term and let
//! anyone win. So: take no proposals, wait until the target has the whole log, ask the others to hold their timers, stop
//! the heartbeats, let the lease run out, and tell the target to start. With up to three voters the target and the
//! leader's own vote are a quorum, and no lease has to run out but the leader's own, which is as old as its lead. A leader
//! whose disk is full has no vote to give.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::ServerState;

use crate::consensus::{Member, RaftId, TransferError};
use crate::digests::say;
use crate::engine;
use crate::network::{LeftBehind, Line};
use crate::shared::{self, Shared};
use crate::types::{Raft, Vote};
use crate::wire::{Control, ControlAnswer};

/// How long a told target may take to win before it is tried in another way.
const ELECTION: Duration = Duration::from_millis(400);
/// Beyond the lease, for messages that were on their way.
const MARGIN: Duration = Duration::from_millis(50);
/// Pause between looks at the engine's state.
const LOOK: Duration = Duration::from_millis(5);
/// Voters up to which target and leader decide alone.
const SMALL_GROUP: usize = 3;

#[derive(Clone)]
pub(crate) struct HandOver {
    pub(crate) raft: Raft,
    pub(crate) shared: Arc<Shared>,
    pub(crate) left_behind: LeftBehind,
}

/// Why it did not happen, without the parts that only the caller knows.
#[derive(Debug)]
pub(crate) enum Failure {
    NotLeader(Option<RaftId>),
    Refused(String),
    TimedOut,
}

impl Failure {
    pub(crate) fn explain(
        self,
        leader: impl FnOnce(Option<RaftId>) -> Option<Member>,
        waited_ms: u64,
    ) -> TransferError {
        match self {
            Self::NotLeader(id) => TransferError::NotLeader { leader: leader(id) },
            Self::Refused(why) => TransferError::Refused(why),
            Self::TimedOut => TransferError::TimedOut { waited_ms },
        }
    }
}

/// Ends the hand-over however it ends, also when its task is dropped.
struct Held<'a>(&'a HandOver);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.raft.runtime_config().heartbeat(true);
        self.0.shared.end_hand_over();
    }
}

impl HandOver {
    fn line(&self, target: &Member) -> Line {
        Line { shared: Arc::clone(&self.shared), left_behind: Arc::clone(&self.left_behind), target: target.clone() }
    }

    /// See the module. Answers who leads.
    pub(crate) async fn run(&self, to: Option<RaftId>, timeout: Duration) -> Result<RaftId, Failure> {
        let deadline = engine::now() + timeout;
        let now = self.raft.metrics().borrow().clone();
        if now.state != ServerState::Leader {
            return Err(Failure::NotLeader(now.current_leader));
        }
        let voters = shared::voters(&now.membership_config);
        let others: Vec<Member> = now
            .membership_config
            .nodes()
            .filter(|(id, _)| **id != self.shared.id && voters.iter().any(|set| set.contains(id)))
            .map(|(id, node)| Member { id: *id, address: node.addr.clone() })
            .collect();
        let target = self.choose(to, &others)?;
        if voters.len() > 1 {
            return Err(Failure::Refused("a change of the voters is in progress".to_owned()));
        }
        if !self.shared.begin_hand_over() {
            return Err(Failure::Refused("it is being handed over already".to_owned()));
        }
        let _held = Held(self);
        self.wait_until_matched(target.id, deadline).await?;
        // A leader keeps a lease towards itself too: it runs from its election.
        let elected = self.shared.leads_since(&now.vote).unwrap_or_else(engine::now);
        let own_lease = elected + self.shared.timing.election_max + MARGIN;
        let votes = others.len() < SMALL_GROUP && !self.shared.space.is_full();
        if votes {
            tokio::time::sleep_until(own_lease.min(deadline).into()).await;
        }
        if votes && let Some(leader) = self.elect(&target, &now.vote, deadline).await? {
            return Ok(leader);
        }
        self.after_the_lease(&target, &others, &now.vote, deadline).await
    }

    /// The voter asked for, or the one that is furthest of those that answer.
    fn choose(&self, to: Option<RaftId>, others: &[Member]) -> Result<Member, Failure> {
        let refuse = |why: &str| Failure::Refused(why.to_owned());
        if others.is_empty() {
            return Err(refuse("there is no other voter"));
        }
        if let Some(id) = to {
            let found = others.iter().find(|member| member.id == id);
            return found.cloned().ok_or_else(|| Failure::Refused(format!("raft node {id} is no other voter")));
        }
        let recently = engine::now().checked_sub(self.shared.silence_limit());
        let heard = self.shared.heard();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let matched = |id: RaftId| metrics.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
        let live = others.iter().filter(|member| heard.get(&member.id).copied() > recently);
        let best = live.max_by_key(|member| (matched(member.id), std::cmp::Reverse(member.id)));
        best.cloned().ok_or_else(|| refuse("no other voter answers"))
    }

    /// Who leads instead of this node, if it lost the lead.
    fn successor(&self) -> Option<Option<RaftId>> {
        let metrics = self.raft.metrics();
        let now = metrics.borrow();
        (now.state != ServerState::Leader).then_some(now.current_leader.filter(|id| *id != self.shared.id))
    }

    async fn wait_until_matched(&self, target: RaftId, deadline: Instant) -> Result<(), Failure> {
        let mut metrics = self.raft.metrics();
        let matched = metrics.wait_for(|now| {
            let matched = now.replication.as_ref().and_then(|all| all.get(&target).copied().flatten());
            now.state != ServerState::Leader || matched.map(|id| id.index) >= now.last_log_index
        });
        match tokio::time::timeout_at(deadline.into(), matched).await {
            Ok(Ok(now)) if now.state == ServerState::Leader => Ok(()),
            Ok(Ok(now)) => Err(Failure::NotLeader(now.current_leader)),
            Ok(Err(_)) => Err(Failure::NotLeader(None)),
            Err(_) => Err(Failure::TimedOut),
        }
    }

    /// Tells the target to start, and waits for it to win. None if it did not.
    async fn elect(&self, target: &Member, vote: &Vote, deadline: Instant) -> Result<Option<RaftId>, Failure> {
        match say(&self.line(target), vote, Control::Elect).await {
            Some(ControlAnswer::Done) => {}
            Some(_) => return Err(Failure::Refused(format!("raft node {} cannot take over now", target.id))),
            None => return Ok(None),
        }
        let until = deadline.min(engine::now() + ELECTION);
        loop {
            if let Some(Some(leader)) = self.successor() {
                return Ok(Some(leader));
            }
            if engine::now() >= until {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn after_the_lease(
        &self,
        target: &Member,
        others: &[Member],
        vote: &Vote,
        deadline: Instant,
    ) -> Result<RaftId, Failure> {
        let lease = self.shared.timing.election_max + MARGIN;
        let hold = lease + ELECTION * 2;
        let millis = u64::try_from(hold.as_millis()).unwrap_or(u64::MAX);
        let all = others.iter().filter(|member| member.id != target.id).map(|member| {
            let line = self.line(member);
            async move { say(&line, vote, Control::Hold { millis }).await }
        });
        // One that cannot be reached may start an election of its own: that is a new leader too.
        futures::future::join_all(all).await;
        self.raft.runtime_config().heartbeat(false);
        tokio::time::sleep_until((engine::now() + lease).min(deadline).into()).await;
        loop {
            if let Some(leader) = self.elect(target, vote, deadline).await? {
                return Ok(leader);
            }
            if engine::now() >= deadline {
                return match self.successor() {
                    Some(Some(leader)) => Ok(leader),
                    _ => Err(Failure::TimedOut),
                };
            }
        }
    }
}
