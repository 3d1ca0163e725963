//! The read barrier: one round to the others for all who ask at the same time. One task of the Raft runtime.
//!
//! openraft does a round of heartbeats for each call; asked one by one that is slow and, under load, fails for no
//! reason. Who asks while a round is under way waits for the next one, as that round may have begun too early.

use std::time::Duration;

use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::consensus::RaftId;
use crate::types::{LogId, Raft, Vote};

/// Pause after a round without a quorum.
const AGAIN: Duration = Duration::from_millis(20);

/// How a round ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Round {
    /// Applied up to this index, which covers everything committed before the round.
    Applied(u64),
    /// Another node leads, if any.
    NotLeader(Option<RaftId>),
    NoQuorum,
    Stopped,
}

pub(crate) type Waiting = oneshot::Sender<Round>;

/// A lead that a node had before it was started, and takes up again: the engine appends nothing then whose commit would
/// say how far the log was committed. Everything that may have been is in the log as it was found.
#[derive(Debug, Clone)]
pub(crate) struct Resumed {
    vote: Vote,
    last: Option<LogId>,
}

impl Resumed {
    /// From the ends of the log at start. None if this node did not lead.
    pub(crate) fn new(id: RaftId, last: Option<LogId>, vote: Option<Vote>) -> Option<Self> {
        let vote = vote.filter(|vote| vote.committed && vote.leader_id.voted_for() == Some(id))?;
        Some(Self { vote, last })
    }
}

pub(crate) async fn run(
    raft: Raft,
    mut requests: mpsc::UnboundedReceiver<Waiting>,
    patience: Duration,
    resumed: Option<Resumed>,
) {
    while let Some(first) = requests.recv().await {
        let mut waiting = vec![first];
        while let Ok(another) = requests.try_recv() {
            waiting.push(another);
        }
        let end = round(&raft, patience, resumed.as_ref()).await;
        for one in waiting {
            // Who went away needs no answer.
            let _ = one.send(end.clone());
        }
    }
}

async fn round(raft: &Raft, patience: Duration, resumed: Option<&Resumed>) -> Round {
    let give_up = Instant::now() + patience;
    let (read, applied) = loop {
        match raft.get_read_log_id().await {
            Ok(found) => break found,
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => return Round::NotLeader(to.leader_id),
            // The others may refuse at once.
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) if Instant::now() < give_up => {
                #[cfg(feature = "sim")]
                if crate::sim::has_bug(crate::sim::Bug::AsksAtOnce) {
                    continue;
                }
                tokio::time::sleep(AGAIN).await;
            }
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => return Round::NoQuorum,
            Err(RaftError::Fatal(_)) => return Round::Stopped,
        }
    };
    let found = resumed.filter(|resumed| raft.metrics().borrow().vote == resumed.vote).and_then(|resumed| resumed.last);
    #[cfg(feature = "sim")]
    let found = found.filter(|_| !crate::sim::has_bug(crate::sim::Bug::ForgetsLead));
    let read = read.max(found);
    let index = read.map_or(0, |id| id.index);
    if read > applied {
        // Committed entries get applied, whoever leads; only a stop prevents it.
        let applied = raft.wait(None).applied_index_at_least(Some(index), "read barrier").await;
        if applied.is_err() {
            return Round::Stopped;
        }
    }
    Round::Applied(index)
}
