//! Messages from other managers: checked, given to the engine, answered. The manager's Raft service calls
//! [`Inbound::handle`] after it has checked the sender's certificate.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::ServerState;
use openraft::raft::AppendEntriesRequest;
use tokio::sync::Mutex;

use crate::consensus::StopCause;
use crate::digests::{self, Digests};
use crate::engine;
use crate::error::StoreError;
use crate::shared::{self, Shared};
use crate::store::snapshots::{Incoming, SnapshotData, SnapshotStore};
use crate::transport::MessageKind;
use crate::types::{LogId, Raft, SnapshotMeta, TypeConfig, Vote};
use crate::wire::{self, ChunkAnswer, Control, ControlAnswer, PreVote, Refusal, SnapshotChunk, WireError};

/// A hand-over holds elections still for at most this long, whatever the leader asks.
const LONGEST_HOLD: Duration = Duration::from_secs(10);

/// Why a message got no answer. The sender tries again or gives up; the text is for its log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// The message is refused as it is.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// This node is stopped, or stops.
    #[error("consensus is stopped: {0}")]
    Stopped(String),
    /// A snapshot could not be stored.
    #[error("cannot store a received snapshot: {0}")]
    Storage(String),
}

fn stopped(error: impl std::fmt::Display) -> HandleError {
    HandleError::Stopped(error.to_string())
}

/// The receiving side of a node.
pub(crate) struct Inbound {
    raft: Raft,
    shared: Arc<Shared>,
    snapshots: Arc<SnapshotStore>,
    digests: Arc<Digests>,
    receiving: Mutex<Option<Receiving>>,
}

/// A snapshot that is coming in.
struct Receiving {
    vote: Vote,
    meta: SnapshotMeta,
    offset: u64,
    file: Incoming,
}

impl Inbound {
    pub(crate) fn new(raft: Raft, shared: Arc<Shared>, snapshots: Arc<SnapshotStore>, digests: Arc<Digests>) -> Self {
        Self { raft, shared, snapshots, digests, receiving: Mutex::new(None) }
    }

    pub(crate) async fn handle(&self, kind: MessageKind, message: Bytes) -> Result<Bytes, HandleError> {
        let (head, body) = wire::open(message)?;
        if head.to != self.shared.id {
            return Ok(wire::refuse(Refusal::OtherNode { id: self.shared.id }));
        }
        let ours = self.shared.epoch();
        if head.epoch < ours {
            return Ok(wire::refuse(Refusal::OldEpoch { epoch: ours }));
        }
        if head.epoch > ours {
            self.meet_newer_epoch(head.epoch).await?;
        }
        let mut answer = wire::begin_answer();
        match kind {
            MessageKind::Append => {
                let rpc = wire::get_append(body)?;
                self.note_leader(&rpc.vote);
                if self.shared.space.is_full() && !rpc.entries.is_empty() {
                    self.touch(&rpc).await?;
                    return Ok(wire::refuse(Refusal::DiskFull));
                }
                let result = self.raft.append_entries(rpc).await.map_err(stopped)?;
                wire::put_append_answer(&mut answer, &result);
            }
            MessageKind::Vote => {
                let rpc = wire::get_vote_request(body)?;
                if self.shared.space.is_full() {
                    return Ok(wire::refuse(Refusal::DiskFull));
                }
                let result = self.raft.vote(rpc).await.map_err(stopped)?;
                if result.vote_granted {
                    self.shared.stir();
                }
                wire::put_vote_answer(&mut answer, &result);
            }
            MessageKind::SnapshotChunk => {
                let chunk = wire::get_chunk(body)?;
                self.note_leader(&chunk.vote);
                if self.shared.space.is_full() {
                    return Ok(wire::refuse(Refusal::DiskFull));
                }
                wire::put_chunk_answer(&mut answer, &self.take_chunk(chunk).await?);
            }
            MessageKind::PreVote => wire::put_pre_vote_answer(&mut answer, self.pre_vote(wire::get_pre_vote(body)?)),
            MessageKind::Control => {
                let (vote, word) = wire::get_control(body)?;
                wire::put_control_answer(&mut answer, &self.obey(vote, word).await);
            }
        }
        Ok(answer.into())
    }

    /// A node without any state takes the epoch of the group that it joins; any other belongs to the group of before.
    async fn meet_newer_epoch(&self, theirs: u64) -> Result<(), HandleError> {
        let ours = self.shared.epoch();
        let is_new = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            metrics.last_log_index.is_none() && metrics.vote == Vote::default()
        };
        if is_new && self.shared.adopt_epoch(theirs).await {
            return Ok(());
        }
        if !is_new {
            self.shared.left_behind(&self.raft, theirs);
        }
        Err(WireError::NewerEpoch { theirs, ours }.into())
    }

    /// The time of arrival counts: the engine itself may be waiting for the disk.
    fn note_leader(&self, vote: &Vote) {
        if vote.is_committed() && *vote >= self.raft.metrics().borrow().vote {
            self.shared.note_leader();
        }
    }

    /// Lets the engine see that its leader lives, without the entries.
    async fn touch(&self, rpc: &AppendEntriesRequest<TypeConfig>) -> Result<(), HandleError> {
        let empty =
            AppendEntriesRequest { vote: rpc.vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
        self.raft.append_entries(empty).await.map_err(stopped)?;
        Ok(())
    }

    /// Whether an election of a node whose last entry is `theirs` would find this node's vote.
    fn pre_vote(&self, theirs: Option<LogId>) -> PreVote {
        let now = engine::now();
        let last = self.raft.data_metrics().borrow().last_log;
        let leads_or_hears = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            match metrics.state {
                ServerState::Leader => {
                    let voters = shared::voters(&metrics.membership_config);
                    let acked = self.shared.quorum_acked_at(&voters, &metrics.vote, now);
                    acked.is_some_and(|at| now < at + self.shared.timing.election_max)
                }
                _ => self.shared.in_lease(now),
            }
        };
        if leads_or_hears {
            PreVote::HearsLeader
        } else if self.shared.is_held(now) || self.shared.space.is_full() {
            PreVote::NotNow
        } else if theirs < last {
            PreVote::LogBehind
        } else {
            PreVote::Granted
        }
    }

    /// Does what the leader says, if it is the one that this node follows.
    async fn obey(&self, vote: Vote, word: Control) -> ControlAnswer {
        if !vote.is_committed() || vote != self.raft.metrics().borrow().vote {
            return ControlAnswer::Refused;
        }
        match word {
            Control::Hold { millis } => self.shared.hold(Duration::from_millis(millis).min(LONGEST_HOLD)),
            Control::Elect => {
                if self.shared.space.is_full() || self.raft.trigger().elect().await.is_err() {
                    return ControlAnswer::Refused;
                }
                self.shared.stir();
            }
            Control::Digest { index } => return ControlAnswer::Digest(self.digests.at(index)),
            Control::Diverged { index, yours, ours } => {
                // Only what this node computed itself can stop it.
                if self.digests.at(index) != Some(yours) {
                    return ControlAnswer::Refused;
                }
                self.shared.stop(&self.raft, StopCause::Diverged, digests::diverged(index, &yours, &ours));
            }
        }
        ControlAnswer::Done
    }

    async fn take_chunk(&self, chunk: SnapshotChunk) -> Result<ChunkAnswer, HandleError> {
        let ours = self.raft.metrics().borrow().vote;
        if ours > chunk.vote {
            return Ok(ChunkAnswer::Taken(ours));
        }
        let storage = |error: StoreError| HandleError::Storage(error.text());
        let mut receiving = self.receiving.lock().await;
        if chunk.offset == 0 {
            // The one before may have the same name, and removes its file when it goes.
            drop(receiving.take());
            let file = self.snapshots.receive(&chunk.meta.snapshot_id).map_err(storage)?;
            *receiving = Some(Receiving { vote: chunk.vote, meta: chunk.meta.clone(), offset: 0, file });
        }
        let Some(mut now) = receiving.take() else { return Ok(ChunkAnswer::Restart) };
        if now.offset != chunk.offset || now.meta != chunk.meta || now.vote != chunk.vote {
            return Ok(ChunkAnswer::Restart);
        }
        engine::in_place(|| now.file.put(&chunk.data)).map_err(storage)?;
        now.offset += chunk.data.len() as u64;
        if !chunk.done {
            *receiving = Some(now);
            return Ok(ChunkAnswer::Taken(chunk.vote));
        }
        let Receiving { vote, meta, file, .. } = now;
        let finished = engine::blocking(|| file.finish()).await;
        let file = finished.ok_or_else(|| stopped("the node ends"))?.map_err(storage)?;
        let snapshot = openraft::Snapshot { meta, snapshot: Box::new(SnapshotData(Some(file))) };
        let vote = self.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?.vote;
        Ok(ChunkAnswer::Taken(vote))
    }
}
