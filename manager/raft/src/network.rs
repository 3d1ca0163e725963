//! openraft's network on top of a [`Transport`]: turns requests into messages and answers back.
//!
//! Called by openraft's replication tasks. Snapshots go as a sequence of chunks, each confirmed before the next.

use std::future::Future;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{AnyError, BasicNode, StorageIOError};

use crate::consensus::{Member, RaftId};
use crate::transport::{MessageKind, Transport, TransportError};
use crate::types::{EngineStorageError, TypeConfig, Vote};
use crate::wire::{self, ChunkAnswer, SnapshotChunk};

/// Makes a connection for each member.
pub(crate) struct Network {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) recovery_epoch: u64,
    pub(crate) chunk_bytes: usize,
}

/// Sends to one member.
pub(crate) struct Connection {
    transport: Arc<dyn Transport>,
    recovery_epoch: u64,
    chunk_bytes: usize,
    target: Member,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: RaftId, node: &BasicNode) -> Connection {
        Connection {
            transport: Arc::clone(&self.transport),
            recovery_epoch: self.recovery_epoch,
            chunk_bytes: self.chunk_bytes,
            target: Member { id: target, address: node.addr.clone() },
        }
    }
}

type CallError = RPCError<RaftId, BasicNode, RaftError<RaftId>>;

impl Connection {
    async fn call(&self, kind: MessageKind, message: Vec<u8>, timeout: Duration) -> Result<Bytes, CallError> {
        let answer = self.transport.call(self.target.clone(), kind, message.into(), timeout).await;
        let answer = answer.map_err(|error| match error {
            TransportError::Unreachable { .. } => RPCError::Unreachable(Unreachable::new(&error)),
            TransportError::Failed { .. } => RPCError::Network(NetworkError::new(&error)),
        })?;
        // An answer from an older epoch cannot be: that node refuses the question.
        wire::open(answer, 0).map_err(malformed)
    }

    fn begin(&self) -> Vec<u8> {
        wire::begin(self.recovery_epoch)
    }

    async fn send_chunk(&self, chunk: &SnapshotChunk, timeout: Duration) -> Result<ChunkAnswer, CallError> {
        let mut message = self.begin();
        wire::put_chunk(&mut message, chunk);
        let answer = self.call(MessageKind::SnapshotChunk, message, timeout).await?;
        wire::get_chunk_answer(answer).map_err(malformed)
    }

    /// Sends all of a snapshot. Ends early with the target's vote if that is higher.
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: openraft::Snapshot<TypeConfig>,
        timeout: Duration,
    ) -> Result<SnapshotResponse<RaftId>, StreamingError<TypeConfig, Fatal<RaftId>>> {
        let storage = |text: String| {
            EngineStorageError::from(StorageIOError::read_snapshot(
                Some(snapshot.meta.signature()),
                AnyError::error(text),
            ))
        };
        let file = snapshot.snapshot.0.as_ref().ok_or_else(|| storage("the snapshot has no file".to_owned()))?;
        let mut from = file.read().map_err(|error| storage(error.text()))?;
        let mut ahead = read_chunk(&mut from, self.chunk_bytes).map_err(|error| storage(file.failed(error).text()))?;
        let mut offset = 0;
        loop {
            let data = ahead;
            ahead = read_chunk(&mut from, self.chunk_bytes).map_err(|error| storage(file.failed(error).text()))?;
            let sent = data.len() as u64;
            let chunk = SnapshotChunk { vote, meta: snapshot.meta.clone(), offset, done: ahead.is_empty(), data };
            match self.send_chunk(&chunk, timeout).await.map_err(streaming)? {
                ChunkAnswer::Taken(theirs) if chunk.done || theirs > vote => return Ok(SnapshotResponse::new(theirs)),
                ChunkAnswer::Taken(_) => offset += sent,
                ChunkAnswer::Restart => {
                    let what = AnyError::error("the receiver lost its place; the snapshot is sent again");
                    return Err(StreamingError::Network(NetworkError::new(&what)));
                }
            }
        }
    }
}

fn malformed(error: wire::WireError) -> CallError {
    RPCError::Network(NetworkError::new(&error))
}

fn streaming(error: CallError) -> StreamingError<TypeConfig, Fatal<RaftId>> {
    match error {
        RPCError::Unreachable(error) => StreamingError::Unreachable(error),
        RPCError::Timeout(error) => StreamingError::Timeout(error),
        RPCError::Network(error) => StreamingError::Network(error),
        other => StreamingError::Network(NetworkError::new(&other)),
    }
}

fn read_chunk(from: &mut impl Read, len: usize) -> std::io::Result<Bytes> {
    let mut chunk = Vec::with_capacity(len);
    from.take(len as u64).read_to_end(&mut chunk)?;
    Ok(chunk.into())
}

impl RaftNetwork<TypeConfig> for Connection {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<RaftId>, CallError> {
        let mut message = self.begin();
        wire::put_append(&mut message, &rpc);
        let answer = self.call(MessageKind::Append, message, option.hard_ttl()).await?;
        wire::get_append_answer(answer).map_err(malformed)
    }

    async fn vote(&mut self, rpc: VoteRequest<RaftId>, option: RPCOption) -> Result<VoteResponse<RaftId>, CallError> {
        let mut message = self.begin();
        wire::put_vote_request(&mut message, &rpc);
        let answer = self.call(MessageKind::Vote, message, option.hard_ttl()).await?;
        wire::get_vote_answer(answer).map_err(malformed)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<RaftId>, StreamingError<TypeConfig, Fatal<RaftId>>> {
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot, option.hard_ttl()) => sent,
        }
    }
}
