//! openraft's network on top of a [`crate::Transport`]: turns requests into messages and answers back.
//!
//! Called by openraft's replication tasks. Snapshots go as a sequence of chunks, each confirmed before the next. openraft
//! gives an append one heartbeat interval, which a large one on a slow link or disk never meets; so appends with entries
//! go on in a task of their own when openraft gives up, the repetition picks up their answer, and empty appends go
//! beside them so that the follower hears its leader.

use std::future::Future;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{AnyError, BasicNode, StorageIOError};
use tokio::sync::{oneshot, watch};

use crate::consensus::{Member, RaftId};
use crate::engine;
use crate::error::StoreError;
use crate::shared::Shared;
use crate::transport::{MessageKind, TransportError};
use crate::types::{EngineStorageError, LogId, TypeConfig, Vote};
use crate::wire::{self, ChunkAnswer, Refusal, SnapshotChunk, WireError};

/// The last piece of a snapshot is answered when it is installed, which may take this many times as long as a piece.
const INSTALL_FACTOR: u32 = 30;
/// An append may take this many times the time of a snapshot's piece (which has the same size) at most.
const APPEND_FACTOR: u32 = 1;

/// What a connection tells the node when the other end says that the group was recovered without it.
pub(crate) type LeftBehind = Arc<watch::Sender<Option<u64>>>;

/// Makes a connection for each member.
pub(crate) struct Network {
    pub(crate) shared: Arc<Shared>,
    pub(crate) left_behind: LeftBehind,
    pub(crate) chunk_bytes: usize,
}

/// Sends to one member.
pub(crate) struct Connection {
    line: Line,
    chunk_bytes: usize,
    sending: Option<Sending>,
}

/// An append with entries that is on its way.
struct Sending {
    vote: Vote,
    prev: Option<LogId>,
    last: Option<LogId>,
    answer: oneshot::Receiver<Result<AppendEntriesResponse<RaftId>, CallError>>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: RaftId, node: &BasicNode) -> Connection {
        let line = Line {
            shared: Arc::clone(&self.shared),
            left_behind: Arc::clone(&self.left_behind),
            target: Member { id: target, address: node.addr.clone() },
        };
        Connection { line, chunk_bytes: self.chunk_bytes, sending: None }
    }
}

pub(crate) type CallError = RPCError<RaftId, BasicNode, RaftError<RaftId>>;

/// The way to one member: questions and their answers.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) shared: Arc<Shared>,
    pub(crate) left_behind: LeftBehind,
    pub(crate) target: Member,
}

impl Line {
    pub(crate) fn begin(&self) -> Vec<u8> {
        wire::begin(self.shared.head(self.target.id))
    }

    /// Asks and waits for the body of the answer. Every failure makes openraft pause before it tries again: at once
    /// would be a loop as fast as the network.
    pub(crate) async fn call(
        &self,
        kind: MessageKind,
        message: Vec<u8>,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let answer = self.shared.transport.call(self.target.clone(), kind, message.into(), timeout).await;
        let answer = answer.map_err(|error: TransportError| RPCError::Unreachable(Unreachable::new(&error)))?;
        self.shared.note_answer(self.target.id);
        wire::open_answer(answer).map_err(|error| {
            if let WireError::Refused(Refusal::OldEpoch { epoch }) = error {
                self.left_behind.send_replace(Some(epoch));
            }
            RPCError::Unreachable(Unreachable::new(&error))
        })
    }

    async fn append(
        &self,
        rpc: &AppendEntriesRequest<TypeConfig>,
        timeout: Duration,
    ) -> Result<AppendEntriesResponse<RaftId>, CallError> {
        let mut message = self.begin();
        wire::put_append(&mut message, rpc);
        let sent = engine::now();
        let answer = self.call(MessageKind::Append, message, timeout).await?;
        let answer = wire::get_append_answer(answer).map_err(malformed)?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.shared.note_ack(self.target.id, &rpc.vote, sent);
        }
        Ok(answer)
    }

    /// Lets the follower hear its leader while something large is on its way.
    fn keep_alive(&self, vote: Vote) {
        let line = self.clone();
        tokio::spawn(async move {
            let empty = AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
            // A higher vote shows in the answer to the large one too.
            let _ = line.append(&empty, line.shared.timing.election_min).await;
        });
    }
}

impl Connection {
    /// Sends entries in a task of their own, or goes on waiting for those that are on their way already.
    async fn append_in_task(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesResponse<RaftId>, CallError> {
        let asked = rpc.entries.last().map(|entry| entry.log_id);
        let (vote, prev) = (rpc.vote, rpc.prev_log_id);
        let under_way =
            self.sending.as_ref().is_some_and(|now| now.vote == vote && now.prev == prev && now.last <= asked);
        if under_way {
            self.line.keep_alive(vote);
        } else {
            let (sender, answer) = oneshot::channel();
            let line = self.line.clone();
            tokio::spawn(async move {
                let timeout = line.shared.timing.snapshot_chunk * APPEND_FACTOR;
                // The connection may be gone with its leader; then nobody waits.
                let _ = sender.send(line.append(&rpc, timeout).await);
            });
            self.sending = Some(Sending { vote, prev, last: asked, answer });
        }
        let sending = self.sending.as_mut().expect("it was there or was just put there");
        let answer = (&mut sending.answer).await;
        let sent = sending.last;
        self.sending = None;
        let ended = || RPCError::Network(NetworkError::new(&AnyError::error("the sending task ended")));
        match answer.map_err(|_| ended())?? {
            AppendEntriesResponse::Success if sent < asked => Ok(AppendEntriesResponse::PartialSuccess(sent)),
            other => Ok(other),
        }
    }

    async fn send_chunk(&self, chunk: &SnapshotChunk, timeout: Duration) -> Result<ChunkAnswer, CallError> {
        let mut message = self.line.begin();
        wire::put_chunk(&mut message, chunk);
        let answer = self.line.call(MessageKind::SnapshotChunk, message, timeout).await?;
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
        let mut read = move || {
            let len = self.chunk_bytes;
            engine::in_place(|| read_chunk(&mut from, len)).map_err(|error| file.failed(error))
        };
        let failed = |error: StoreError| storage(error.text());
        let mut ahead = read().map_err(failed)?;
        let mut offset = 0;
        loop {
            let data = ahead;
            ahead = read().map_err(failed)?;
            let sent = data.len() as u64;
            let done = ahead.is_empty();
            let timeout = if done { timeout * INSTALL_FACTOR } else { timeout };
            let chunk = SnapshotChunk { vote, meta: snapshot.meta.clone(), offset, done, data };
            match self.send_chunk(&chunk, timeout).await.map_err(streaming)? {
                ChunkAnswer::Taken(theirs) if chunk.done || theirs > vote => return Ok(SnapshotResponse::new(theirs)),
                ChunkAnswer::Taken(_) => offset += sent,
                ChunkAnswer::Restart => {
                    let what = AnyError::error("the receiver lost its place; the snapshot is sent again");
                    return Err(StreamingError::Unreachable(Unreachable::new(&what)));
                }
            }
        }
    }
}

fn malformed(error: WireError) -> CallError {
    RPCError::Unreachable(Unreachable::new(&error))
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
        if rpc.entries.is_empty() {
            self.line.append(&rpc, option.hard_ttl()).await
        } else {
            self.append_in_task(rpc).await
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<RaftId>, option: RPCOption) -> Result<VoteResponse<RaftId>, CallError> {
        let mut message = self.line.begin();
        wire::put_vote_request(&mut message, &rpc);
        let answer = self.line.call(MessageKind::Vote, message, option.hard_ttl()).await?;
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

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.line.shared.timing.heartbeat))
    }
}
