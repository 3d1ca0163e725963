//! Raft messages between managers, as bytes for a [`crate::Transport`].
//!
//! Each begins with a version, the sender's recovery epoch, its id, and the id it is meant for. A receiver refuses other
//! versions, other epochs and messages for another node before anything else, so managers of before a recovery cannot
//! speak in the group that came out of it. What the sender should act on (a recovery, a full disk) is refused by an
//! answer, as a [`Refusal`]; everything else by an error.

use bytes::{Buf, BufMut, Bytes};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};

use crate::codec::{self, Malformed};
use crate::consensus::RaftId;
use crate::types::{LogId, SnapshotMeta, TypeConfig, Vote};

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
    /// The sender belongs to a group that came out of a recovery, and this node to the one before.
    #[error(
        "raft message of recovery epoch {theirs}, this manager is in epoch {ours}: it was left behind by a recovery; \
         let it leave and join again"
    )]
    NewerEpoch {
        /// The sender's epoch.
        theirs: u64,
        /// This node's epoch.
        ours: u64,
    },
    /// The other end answered, and did not take the message.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A refusal that the sender can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The sender belongs to a group that was replaced by a recovery.
    #[error("the cluster was recovered without this manager (recovery epoch {epoch}): let it leave and join again")]
    OldEpoch {
        /// The epoch of the node that refuses.
        epoch: u64,
    },
    /// The message is for another node: an address changed hands.
    #[error("raft node {id} answers at this address, not the one that the message is for")]
    OtherNode {
        /// The node that refuses.
        id: RaftId,
    },
    /// The disk of the node that refuses is nearly full.
    #[error("the disk of that manager is full")]
    DiskFull,
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

/// The head of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) epoch: u64,
    pub(crate) from: RaftId,
    pub(crate) to: RaftId,
}

/// Begins a question.
pub(crate) fn begin(head: Head) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.put_u8(VERSION);
    out.put_u64(head.epoch);
    out.put_u64(head.from);
    out.put_u64(head.to);
    out
}

/// Takes the head off a question.
pub(crate) fn open(mut message: Bytes) -> Decoded<(Head, Bytes)> {
    let bad = |_| WireError::Malformed("header");
    let version = message.try_get_u8().map_err(bad)?;
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    let epoch = message.try_get_u64().map_err(bad)?;
    let from = message.try_get_u64().map_err(bad)?;
    let to = message.try_get_u64().map_err(bad)?;
    Ok((Head { epoch, from, to }, message))
}

const TAKEN: u8 = 0;

/// Begins the answer to a question that was taken.
pub(crate) fn begin_answer() -> Vec<u8> {
    vec![VERSION, TAKEN]
}

/// A refusal as an answer.
pub(crate) fn refuse(refusal: Refusal) -> Bytes {
    let mut out = vec![VERSION];
    match refusal {
        Refusal::OldEpoch { epoch } => {
            out.put_u8(1);
            out.put_u64(epoch);
        }
        Refusal::OtherNode { id } => {
            out.put_u8(2);
            out.put_u64(id);
        }
        Refusal::DiskFull => out.put_u8(3),
    }
    out.into()
}

/// The body of an answer.
pub(crate) fn open_answer(mut answer: Bytes) -> Decoded<Bytes> {
    let bad = |_| WireError::Malformed("answer");
    let version = answer.try_get_u8().map_err(bad)?;
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    Err(WireError::Refused(match answer.try_get_u8().map_err(bad)? {
        TAKEN => return Ok(answer),
        1 => Refusal::OldEpoch { epoch: answer.try_get_u64().map_err(bad)? },
        2 => Refusal::OtherNode { id: answer.try_get_u64().map_err(bad)? },
        3 => Refusal::DiskFull,
        _ => return Err(WireError::Malformed("answer")),
    }))
}

/// The answer to the question before an election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PreVote {
    /// An election would get this node's vote, as far as it can say.
    Granted,
    /// It hears a leader.
    HearsLeader,
    /// It has entries that the asking node has not.
    LogBehind,
    /// It may not vote now: it holds still for a hand-over, or its disk is full.
    NotNow,
}

const PRE_VOTES: [PreVote; 4] = [PreVote::Granted, PreVote::HearsLeader, PreVote::LogBehind, PreVote::NotNow];

/// A question before an election carries the asking node's last entry.
pub(crate) fn put_pre_vote(out: &mut Vec<u8>, last: Option<LogId>) {
    codec::put_opt(out, last.as_ref(), codec::put_log_id);
}

pub(crate) fn get_pre_vote(mut from: Bytes) -> Decoded<Option<LogId>> {
    let last = codec::get_opt(&mut from, codec::get_log_id)?;
    codec::finish(&from)?;
    Ok(last)
}

pub(crate) fn put_pre_vote_answer(out: &mut Vec<u8>, answer: PreVote) {
    out.put_u8(u8::try_from(PRE_VOTES.iter().position(|one| *one == answer).unwrap_or(0)).unwrap_or(0));
}

pub(crate) fn get_pre_vote_answer(mut from: Bytes) -> Decoded<PreVote> {
    let bad = WireError::Malformed("pre-vote answer");
    let number = from.try_get_u8().map_err(|_| bad.clone())?;
    codec::finish(&from)?;
    PRE_VOTES.get(usize::from(number)).copied().ok_or(bad)
}

/// A digest of the state.
pub(crate) type Digest = [u8; 32];

/// A leader's word to another member. All carry the leader's vote, so that a word of an old leader has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// Do not start elections for this many milliseconds: the lead is being handed over to another node.
    Hold { millis: u64 },
    /// Start an election now: the lead is yours.
    Elect,
    /// What is your digest at this index?
    Digest { index: u64 },
    /// Your state differs from the others'.
    Diverged { index: u64, yours: Digest, ours: Digest },
}

/// The answer to a leader's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ControlAnswer {
    /// Done.
    Done,
    /// Not from the leader that this node follows, or it cannot.
    Refused,
    /// The digest at the index asked for; None if it is not known (yet, or any more).
    Digest(Option<Digest>),
}

fn get_digest(from: &mut Bytes) -> Result<Digest, Malformed> {
    let mut digest = [0; 32];
    from.try_copy_to_slice(&mut digest).map_err(|_| Malformed("digest"))?;
    Ok(digest)
}

pub(crate) fn put_control(out: &mut Vec<u8>, vote: &Vote, word: &Control) {
    codec::put_vote(out, vote);
    match word {
        Control::Hold { millis } => {
            out.put_u8(1);
            out.put_u64(*millis);
        }
        Control::Elect => out.put_u8(2),
        Control::Digest { index } => {
            out.put_u8(3);
            out.put_u64(*index);
        }
        Control::Diverged { index, yours, ours } => {
            out.put_u8(4);
            out.put_u64(*index);
            out.put_slice(yours);
            out.put_slice(ours);
        }
    }
}

pub(crate) fn get_control(mut from: Bytes) -> Decoded<(Vote, Control)> {
    let bad = |_| WireError::Malformed("control");
    let vote = codec::get_vote(&mut from)?;
    let word = match from.try_get_u8().map_err(bad)? {
        1 => Control::Hold { millis: from.try_get_u64().map_err(bad)? },
        2 => Control::Elect,
        3 => Control::Digest { index: from.try_get_u64().map_err(bad)? },
        4 => {
            let index = from.try_get_u64().map_err(bad)?;
            Control::Diverged { index, yours: get_digest(&mut from)?, ours: get_digest(&mut from)? }
        }
        _ => return Err(WireError::Malformed("control: unknown word")),
    };
    codec::finish(&from)?;
    Ok((vote, word))
}

pub(crate) fn put_control_answer(out: &mut Vec<u8>, answer: &ControlAnswer) {
    match answer {
        ControlAnswer::Done => out.put_u8(0),
        ControlAnswer::Refused => out.put_u8(1),
        ControlAnswer::Digest(digest) => {
            out.put_u8(2);
            codec::put_opt(out, digest.as_ref(), |out, digest| out.put_slice(digest));
        }
    }
}

pub(crate) fn get_control_answer(mut from: Bytes) -> Decoded<ControlAnswer> {
    let answer = match from.try_get_u8().map_err(|_| WireError::Malformed("control answer"))? {
        0 => ControlAnswer::Done,
        1 => ControlAnswer::Refused,
        2 => ControlAnswer::Digest(codec::get_opt(&mut from, get_digest)?),
        _ => return Err(WireError::Malformed("control answer")),
    };
    codec::finish(&from)?;
    Ok(answer)
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
    use crate::types::{Command, Entry};

    fn id(index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(2, 1), index)
    }

    const HEAD: Head = Head { epoch: 7, from: 1, to: 2 };

    fn body(message: Vec<u8>) -> Bytes {
        open(message.into()).unwrap().1
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
        let mut out = begin(HEAD);
        put_append(&mut out, &rpc);
        let back = get_append(body(out.clone())).unwrap();
        assert_eq!(format!("{back:?}"), format!("{rpc:?}"));
        assert_eq!(back.entries, rpc.entries);
        for len in 0..out.len() {
            let cut = Bytes::copy_from_slice(&out[..len]);
            assert!(open(cut).and_then(|(_, body)| get_append(body)).is_err(), "first {len} bytes");
        }
    }

    #[test]
    fn a_snapshot_chunk_comes_back() {
        let meta = SnapshotMeta { last_log_id: Some(id(9)), snapshot_id: "2-9".to_owned(), ..Default::default() };
        let chunk = SnapshotChunk { vote: Vote::new(3, 2), meta, offset: 1 << 33, done: true, data: "xyz".into() };
        let mut out = begin(HEAD);
        put_chunk(&mut out, &chunk);
        assert_eq!(get_chunk(body(out)).unwrap(), chunk);
    }

    #[test]
    fn heads_and_refusals_come_back_and_other_versions_are_refused() {
        assert_eq!(open(begin(HEAD).into()).unwrap().0, HEAD);
        let mut other = begin(HEAD);
        other[0] = 2;
        assert_eq!(open(other.into()), Err(WireError::Version(2)));
        assert!(open_answer(begin_answer().into()).unwrap().is_empty());
        for refusal in [Refusal::OldEpoch { epoch: 3 }, Refusal::OtherNode { id: 9 }, Refusal::DiskFull] {
            assert_eq!(open_answer(refuse(refusal)), Err(WireError::Refused(refusal)));
        }
    }

    #[test]
    fn words_and_pre_votes_come_back() {
        let words = [
            Control::Hold { millis: 600 },
            Control::Elect,
            Control::Digest { index: 4096 },
            Control::Diverged { index: 1, yours: [1; 32], ours: [2; 32] },
        ];
        for word in words {
            let mut out = Vec::new();
            put_control(&mut out, &Vote::new_committed(2, 1), &word);
            assert_eq!(get_control(out.clone().into()).unwrap(), (Vote::new_committed(2, 1), word));
            for len in 0..out.len() {
                assert!(get_control(Bytes::copy_from_slice(&out[..len])).is_err(), "first {len} bytes of {word:?}");
            }
        }
        for answer in [ControlAnswer::Done, ControlAnswer::Refused, ControlAnswer::Digest(Some([3; 32]))] {
            let mut out = Vec::new();
            put_control_answer(&mut out, &answer);
            assert_eq!(get_control_answer(out.into()).unwrap(), answer);
        }
        for answer in PRE_VOTES {
            let mut out = Vec::new();
            put_pre_vote_answer(&mut out, answer);
            assert_eq!(get_pre_vote_answer(out.into()).unwrap(), answer);
        }
        let mut out = Vec::new();
        put_pre_vote(&mut out, Some(id(5)));
        assert_eq!(get_pre_vote(out.into()).unwrap(), Some(id(5)));
    }
}
