//! Raft messages between managers, as bytes for a [`crate::Transport`].
//!
//! Each begins with a version and the sender's recovery epoch; a receiver refuses other versions and lower epochs
//! before anything else, so managers of before a recovery cannot speak in the group that came out of it.

use bytes::{Buf, BufMut, Bytes};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};

use crate::codec::{self, Malformed};
use crate::types::{SnapshotMeta, TypeConfig, Vote};

/// The one version so far.
const VERSION: u8 = 1;

/// Why a message is refused before the engine sees it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes are no message.
    #[error("malformed raft message: {0}")]
    Malformed(&'static str),
    /// The sender is newer.
    #[error("raft message of version {0}, this skep reads version {VERSION}")]
    Version(u8),
    /// The sender belongs to a group that was replaced by a recovery.
    #[error("raft message of recovery epoch {theirs}, this manager is in epoch {ours}; the sender has to join again")]
    OldEpoch {
        /// The sender's epoch.
        theirs: u64,
        /// This node's epoch.
        ours: u64,
    },
}

impl From<Malformed> for WireError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error.0)
    }
}

type Decoded<T> = Result<T, WireError>;

/// One piece of a snapshot on its way.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SnapshotChunk {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    pub(crate) offset: u64,
    pub(crate) done: bool,
    pub(crate) data: Bytes,
}

/// The answer to a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkAnswer {
    /// Taken; send what follows. After the last piece: installed.
    Taken(Vote),
    /// Not the piece that was expected: begin again at offset 0.
    Restart,
}

pub(crate) fn begin(epoch: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.put_u8(VERSION);
    out.put_u64(epoch);
    out
}

/// Checks version and epoch, leaving the body. Answers carry the header too.
pub(crate) fn open(mut message: Bytes, ours: u64) -> Decoded<Bytes> {
    let version = message.try_get_u8().map_err(|_| WireError::Malformed("header"))?;
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    let theirs = message.try_get_u64().map_err(|_| WireError::Malformed("header"))?;
    if theirs < ours {
        return Err(WireError::OldEpoch { theirs, ours });
    }
    Ok(message)
}

pub(crate) fn put_append(out: &mut Vec<u8>, rpc: &AppendEntriesRequest<TypeConfig>) {
    codec::put_vote(out, &rpc.vote);
    codec::put_opt(out, rpc.prev_log_id.as_ref(), codec::put_log_id);
    codec::put_opt(out, rpc.leader_commit.as_ref(), codec::put_log_id);
    codec::put_len(out, rpc.entries.len());
    for entry in &rpc.entries {
        codec::put_entry(out, entry);
    }
}

pub(crate) fn get_append(mut from: Bytes) -> Decoded<AppendEntriesRequest<TypeConfig>> {
    let vote = codec::get_vote(&mut from)?;
    let prev_log_id = codec::get_opt(&mut from, codec::get_log_id)?;
    let leader_commit = codec::get_opt(&mut from, codec::get_log_id)?;
    let mut entries = Vec::new();
    for _ in 0..codec::get_len(&mut from, "entry count")? {
        entries.push(codec::get_entry(&mut from)?);
    }
    codec::finish(&from)?;
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

pub(crate) fn put_append_answer(out: &mut Vec<u8>, answer: &AppendEntriesResponse<u64>) {
    match answer {
        AppendEntriesResponse::Success => out.put_u8(0),
        AppendEntriesResponse::PartialSuccess(upto) => {
            out.put_u8(1);
            codec::put_opt(out, upto.as_ref(), codec::put_log_id);
        }
        AppendEntriesResponse::Conflict => out.put_u8(2),
        AppendEntriesResponse::HigherVote(vote) => {
            out.put_u8(3);
            codec::put_vote(out, vote);
        }
    }
}

pub(crate) fn get_append_answer(mut from: Bytes) -> Decoded<AppendEntriesResponse<u64>> {
    let answer = match from.try_get_u8().map_err(|_| WireError::Malformed("append answer"))? {
        0 => AppendEntriesResponse::Success,
        1 => AppendEntriesResponse::PartialSuccess(codec::get_opt(&mut from, codec::get_log_id)?),
        2 => AppendEntriesResponse::Conflict,
        3 => AppendEntriesResponse::HigherVote(codec::get_vote(&mut from)?),
        _ => return Err(WireError::Malformed("append answer")),
    };
    codec::finish(&from)?;
    Ok(answer)
}

pub(crate) fn put_vote_request(out: &mut Vec<u8>, rpc: &VoteRequest<u64>) {
    codec::put_vote(out, &rpc.vote);
    codec::put_opt(out, rpc.last_log_id.as_ref(), codec::put_log_id);
}

pub(crate) fn get_vote_request(mut from: Bytes) -> Decoded<VoteRequest<u64>> {
    let vote = codec::get_vote(&mut from)?;
    let last_log_id = codec::get_opt(&mut from, codec::get_log_id)?;
    codec::finish(&from)?;
    Ok(VoteRequest { vote, last_log_id })
}

pub(crate) fn put_vote_answer(out: &mut Vec<u8>, answer: &VoteResponse<u64>) {
    codec::put_vote(out, &answer.vote);
    out.put_u8(answer.vote_granted.into());
    codec::put_opt(out, answer.last_log_id.as_ref(), codec::put_log_id);
}

pub(crate) fn get_vote_answer(mut from: Bytes) -> Decoded<VoteResponse<u64>> {
    let vote = codec::get_vote(&mut from)?;
    let vote_granted = codec::get_flag(&mut from)?;
    let last_log_id = codec::get_opt(&mut from, codec::get_log_id)?;
    codec::finish(&from)?;
    Ok(VoteResponse { vote, vote_granted, last_log_id })
}

pub(crate) fn put_meta(out: &mut Vec<u8>, meta: &SnapshotMeta) {
    codec::put_opt(out, meta.last_log_id.as_ref(), codec::put_log_id);
    codec::put_stored_membership(out, &meta.last_membership);
    codec::put_bytes(out, meta.snapshot_id.as_bytes());
}

pub(crate) fn get_meta(from: &mut Bytes) -> Result<SnapshotMeta, Malformed> {
    Ok(SnapshotMeta {
        last_log_id: codec::get_opt(from, codec::get_log_id)?,
        last_membership: codec::get_stored_membership(from)?,
        snapshot_id: codec::get_string(from)?,
    })
}

pub(crate) fn put_chunk(out: &mut Vec<u8>, chunk: &SnapshotChunk) {
    codec::put_vote(out, &chunk.vote);
    put_meta(out, &chunk.meta);
    out.put_u64(chunk.offset);
    out.put_u8(chunk.done.into());
    codec::put_bytes(out, &chunk.data);
}

pub(crate) fn get_chunk(mut from: Bytes) -> Decoded<SnapshotChunk> {
    let vote = codec::get_vote(&mut from)?;
    let meta = get_meta(&mut from)?;
    let offset = from.try_get_u64().map_err(|_| WireError::Malformed("snapshot chunk"))?;
    let done = codec::get_flag(&mut from)?;
    let data = codec::get_bytes(&mut from)?;
    codec::finish(&from)?;
    Ok(SnapshotChunk { vote, meta, offset, done, data })
}

pub(crate) fn put_chunk_answer(out: &mut Vec<u8>, answer: &ChunkAnswer) {
    match answer {
        ChunkAnswer::Taken(vote) => {
            out.put_u8(0);
            codec::put_vote(out, vote);
        }
        ChunkAnswer::Restart => out.put_u8(1),
    }
}

pub(crate) fn get_chunk_answer(mut from: Bytes) -> Decoded<ChunkAnswer> {
    let answer = match from.try_get_u8().map_err(|_| WireError::Malformed("chunk answer"))? {
        0 => ChunkAnswer::Taken(codec::get_vote(&mut from)?),
        1 => ChunkAnswer::Restart,
        _ => return Err(WireError::Malformed("chunk answer")),
    };
    codec::finish(&from)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use openraft::{CommittedLeaderId, EntryPayload};

    use super::*;
    use crate::types::{Command, Entry, LogId};

    fn id(index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(2, 1), index)
    }

    #[test]
    fn requests_come_back_and_every_cut_is_refused() {
        let entry = |index, bytes: &'static [u8]| Entry {
            log_id: id(index),
            payload: EntryPayload::Normal(Command(Bytes::from_static(bytes))),
        };
        let rpc = AppendEntriesRequest {
            vote: Vote::new_committed(2, 1),
            prev_log_id: Some(id(4)),
            entries: vec![entry(5, b"a"), entry(6, b"")],
            leader_commit: None,
        };
        let mut out = begin(7);
        put_append(&mut out, &rpc);
        let back = get_append(open(out.clone().into(), 7).unwrap()).unwrap();
        assert_eq!(format!("{back:?}"), format!("{rpc:?}"));
        assert_eq!(back.entries, rpc.entries);
        for len in 0..out.len() {
            let cut = Bytes::copy_from_slice(&out[..len]);
            assert!(open(cut, 7).and_then(get_append).is_err(), "first {len} bytes");
        }
    }

    #[test]
    fn a_snapshot_chunk_comes_back() {
        let meta = SnapshotMeta { last_log_id: Some(id(9)), snapshot_id: "2-9".to_owned(), ..Default::default() };
        let chunk = SnapshotChunk { vote: Vote::new(3, 2), meta, offset: 1 << 33, done: true, data: "xyz".into() };
        let mut out = begin(0);
        put_chunk(&mut out, &chunk);
        assert_eq!(get_chunk(open(out.into(), 0).unwrap()).unwrap(), chunk);
    }

    #[test]
    fn older_epochs_and_other_versions_are_refused() {
        assert_eq!(open(begin(3).into(), 4), Err(WireError::OldEpoch { theirs: 3, ours: 4 }));
        open(begin(5).into(), 4).unwrap();
        let mut other = begin(4);
        other[0] = 2;
        assert_eq!(open(other.into(), 4), Err(WireError::Version(2)));
    }
}
