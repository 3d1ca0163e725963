//! What the manager implements: the deterministic machine behind the log, and its frozen copies.
//!
//! Called by `store::machine` only, always from one thread at a time. Nothing here may read clocks, random numbers or
//! the environment: every manager must compute the same state from the same entries.

use std::io::{Read, Write};

/// An error that stops the node: going on would let this manager's state differ from the others'.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FatalError(pub String);

impl FatalError {
    /// Builds one from anything that can be shown to a user: what happened, where, and what to do.
    pub fn new(what: impl std::fmt::Display) -> Self {
        Self(what.to_string())
    }
}

/// The state that the log builds.
pub trait StateMachine: Send + Sync + 'static {
    /// The answer to one applied entry. It stays in this process; only the proposer sees it.
    type Response: Send + Sync + 'static;
    /// A frozen copy.
    type Snapshot: Snapshot;

    /// Applies one entry. Must be fast, must not wait for I/O, and must depend on nothing but the state and the
    /// arguments. A refused change is an ordinary `Response`; an error (an unknown kind, a broken invariant) stops the
    /// node and its text becomes the reason.
    fn apply(&mut self, index: u64, entry: &[u8]) -> Result<Self::Response, FatalError>;

    /// How many changes an entry carries, for the snapshot policy. Called once for each applied entry.
    fn count_changes(&self, entry: &[u8]) -> u64 {
        let _ = entry;
        1
    }

    /// A copy of the state as it is now, in O(1): appliers wait for it.
    fn freeze(&self) -> Self::Snapshot;

    /// Replaces the whole state with one that [`Snapshot::write`] wrote. `index` is the last entry it contains. On an
    /// error the node does not start (or stops), so the state may be left half replaced.
    fn restore(&mut self, index: u64, from: &mut dyn Read) -> Result<(), FatalError>;
}

/// A frozen state, written out on a thread of its own while the machine goes on.
pub trait Snapshot: Send + Sync + 'static {
    /// Writes the state. The bytes are encrypted and authenticated on the way; formats carry their own version.
    fn write(&self, to: &mut dyn Write) -> std::io::Result<()>;

    /// A digest of the state, equal on all managers at the same index; None if the machine has none. It is stored with
    /// the snapshot and checked after a restore.
    fn digest(&self) -> Option<[u8; 32]> {
        None
    }
}
