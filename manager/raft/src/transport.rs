//! How Raft messages reach other managers: a trait that the manager implements over its mutual TLS connections.
//!
//! Messages are opaque bytes with a version in front ([`crate::wire`] has the format). A transport only carries them to
//! the right node, with the deadline, and answers with what [`crate::RaftNode::handle`] returned there. It must check
//! by certificate that both ends belong to this cluster: the bytes are not authenticated otherwise.

use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};

use crate::consensus::Member;

/// The kinds of messages, so that a transport can give each its own limits and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// Log entries, or a heartbeat without any. Up to the append limit (1 MiB), or one larger entry.
    Append,
    /// A request for a vote. Small.
    Vote,
    /// One piece of a snapshot. Up to 1 MiB.
    SnapshotChunk,
    /// A question before an election: "do you hear a leader, is my log current?". Small.
    PreVote,
    /// A leader's word to another manager: hand-over of the lead, comparison of digests. Small.
    Control,
}

impl MessageKind {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 5] = [Self::Append, Self::Vote, Self::SnapshotChunk, Self::PreVote, Self::Control];

    /// The number of a kind on the wire. It never changes.
    pub fn as_u8(self) -> u8 {
        match self {
            Self::Append => 1,
            Self::Vote => 2,
            Self::SnapshotChunk => 3,
            Self::PreVote => 4,
            Self::Control => 5,
        }
    }

    /// The kind with this number; None if this build does not know it.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_u8() == number)
    }
}

/// Why a message brought no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// No connection: the sender backs off.
    #[error("raft node {id} at {address:?} is unreachable: {reason}")]
    Unreachable {
        /// The target's id.
        id: u64,
        /// The target's address.
        address: String,
        /// Why, in words.
        reason: String,
    },
    /// The message may or may not have arrived: the sender tries again.
    #[error("message to raft node {id} at {address:?} failed: {reason}")]
    Failed {
        /// The target's id.
        id: u64,
        /// The target's address.
        address: String,
        /// Why, in words.
        reason: String,
    },
}

/// Carries messages to other managers.
pub trait Transport: Send + Sync + 'static {
    /// Whether there is a way to other managers at all. Membership changes are refused where there is none.
    fn reaches_peers(&self) -> bool {
        true
    }

    /// Sends one message and waits for the answer, at most `timeout`.
    ///
    /// Called and polled on the Raft runtime (two threads of raised priority that nothing else uses), so it must not
    /// block; a connection that is made lazily in here has its tasks there too, where the daemon's load does not delay
    /// them. Heartbeats share it with everything else: two calls to one target must be able to be on the way at once.
    fn call(
        &self,
        target: Member,
        kind: MessageKind,
        message: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>>;
}

/// The transport of a group of one: it reaches nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPeers;

impl Transport for NoPeers {
    fn reaches_peers(&self) -> bool {
        false
    }

    fn call(
        &self,
        target: Member,
        _kind: MessageKind,
        _message: Bytes,
        _timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let error = TransportError::Unreachable {
            id: target.id,
            address: target.address,
            reason: "this manager runs alone".to_owned(),
        };
        async move { Err(error) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_numbers_of_their_own() {
        for kind in MessageKind::ALL {
            assert_eq!(MessageKind::from_u8(kind.as_u8()), Some(kind));
        }
        assert_eq!(MessageKind::from_u8(0), None);
        assert_eq!(MessageKind::from_u8(6), None);
    }
}
