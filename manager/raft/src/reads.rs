//! The read barrier: one round to the others for all who ask at the same time. One task of the Raft runtime.
//!
//! openraft does a round of heartbeats for each call; asked one by one that is slow and, under load, fails for no
//! reason. Who asks while a round is under way waits for the next one, as that round may have begun too early.

use std::time::Duration;

use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::consensus::RaftId;
use crate::types::Raft;

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

pub(crate) async fn run(raft: Raft, mut requests: mpsc::UnboundedReceiver<Waiting>, patience: Duration) {
    while let Some(first) = requests.recv().await {
        let mut waiting = vec![first];
        while let Ok(another) = requests.try_recv() {
            waiting.push(another);
        }
        let end = round(&raft, patience).await;
        for one in waiting {
            // Who went away needs no answer.
            let _ = one.send(end.clone());
        }
    }
}

async fn round(raft: &Raft, patience: Duration) -> Round {
    let give_up = Instant::now() + patience;
    let (read, applied) = loop {
        match raft.get_read_log_id().await {
            Ok(found) => break found,
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => return Round::NotLeader(to.leader_id),
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) if Instant::now() < give_up => {}
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => return Round::NoQuorum,
            Err(RaftError::Fatal(_)) => return Round::Stopped,
        }
    };
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
