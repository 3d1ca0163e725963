//! Messages from other managers: decoded, given to the engine, answered. The manager's Raft service calls
//! [`Inbound::handle`] after it has checked the sender's certificate.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Mutex;

use crate::store::snapshots::{Incoming, SnapshotData, SnapshotStore};
use crate::transport::MessageKind;
use crate::types::{Raft, SnapshotMeta, Vote};
use crate::wire::{self, ChunkAnswer, SnapshotChunk, WireError};

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

/// The receiving side of a node.
pub(crate) struct Inbound {
    raft: Raft,
    snapshots: Arc<SnapshotStore>,
    recovery_epoch: u64,
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
    pub(crate) fn new(raft: Raft, snapshots: Arc<SnapshotStore>, recovery_epoch: u64) -> Self {
        Self { raft, snapshots, recovery_epoch, receiving: Mutex::new(None) }
    }

    pub(crate) async fn handle(&self, kind: MessageKind, message: Bytes) -> Result<Bytes, HandleError> {
        let body = wire::open(message, self.recovery_epoch)?;
        let stopped = |error: &dyn std::fmt::Display| HandleError::Stopped(error.to_string());
        let mut answer = wire::begin(self.recovery_epoch);
        match kind {
            MessageKind::Append => {
                let rpc = wire::get_append(body)?;
                let result = self.raft.append_entries(rpc).await.map_err(|error| stopped(&error))?;
                wire::put_append_answer(&mut answer, &result);
            }
            MessageKind::Vote => {
                let rpc = wire::get_vote_request(body)?;
                let result = self.raft.vote(rpc).await.map_err(|error| stopped(&error))?;
                wire::put_vote_answer(&mut answer, &result);
            }
            MessageKind::SnapshotChunk => {
                let result = self.take_chunk(wire::get_chunk(body)?).await?;
                wire::put_chunk_answer(&mut answer, &result);
            }
            MessageKind::PreVote | MessageKind::Control => {
                return Err(WireError::Malformed("kind: not supported yet").into());
            }
        }
        Ok(answer.into())
    }

    async fn take_chunk(&self, chunk: SnapshotChunk) -> Result<ChunkAnswer, HandleError> {
        let ours = self.raft.metrics().borrow().vote;
        if ours > chunk.vote {
            return Ok(ChunkAnswer::Taken(ours));
        }
        let storage = |error: crate::error::StoreError| HandleError::Storage(error.text());
        let mut receiving = self.receiving.lock().await;
        if chunk.offset == 0 {
            let file = self.snapshots.receive(&chunk.meta.snapshot_id).map_err(storage)?;
            *receiving = Some(Receiving { vote: chunk.vote, meta: chunk.meta.clone(), offset: 0, file });
        }
        let Some(mut now) = receiving.take() else { return Ok(ChunkAnswer::Restart) };
        if now.offset != chunk.offset || now.meta != chunk.meta || now.vote != chunk.vote {
            return Ok(ChunkAnswer::Restart);
        }
        now.file.write(&chunk.data).map_err(storage)?;
        now.offset += chunk.data.len() as u64;
        if !chunk.done {
            *receiving = Some(now);
            return Ok(ChunkAnswer::Taken(chunk.vote));
        }
        let finished = tokio::task::spawn_blocking(|| now.file.finish()).await;
        let file = finished.map_err(|error| HandleError::Stopped(error.to_string()))?.map_err(storage)?;
        let snapshot = openraft::Snapshot { meta: now.meta, snapshot: Box::new(SnapshotData(Some(file))) };
        let installed = self.raft.install_full_snapshot(now.vote, snapshot).await;
        let vote = installed.map_err(|error| HandleError::Stopped(error.to_string()))?.vote;
        Ok(ChunkAnswer::Taken(vote))
    }
}
