//! The engine's type parameters. Nothing outside this crate sees them.

use std::any::Any;
use std::fmt;

use bytes::Bytes;
use openraft::BasicNode;
use serde::{Deserialize, Serialize};

use crate::consensus::RaftId;
use crate::engine::EngineRuntime;
use crate::store::snapshots::SnapshotData;

openraft::declare_raft_types!(
    /// openraft's view of this crate.
    pub(crate) TypeConfig:
        D = Command,
        R = Applied,
        NodeId = RaftId,
        Node = BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = SnapshotData,
        AsyncRuntime = EngineRuntime,
);

pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<RaftId>;
pub(crate) type Vote = openraft::Vote<RaftId>;
pub(crate) type StoredMembership = openraft::StoredMembership<RaftId, BasicNode>;
pub(crate) type EngineMembership = openraft::Membership<RaftId, BasicNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<RaftId, BasicNode>;
pub(crate) type EngineStorageError = openraft::StorageError<RaftId>;
pub(crate) type Raft = openraft::Raft<TypeConfig>;

/// What is proposed: bytes that only the state machine reads.
///
/// openraft's `serde` feature asks for the impls; the stored and sent form is `codec`'s.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<u8>", into = "Vec<u8>")]
pub(crate) struct Command(pub(crate) Bytes);

impl From<Vec<u8>> for Command {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Command> for Vec<u8> {
    fn from(command: Command) -> Self {
        command.0.into()
    }
}

impl fmt::Debug for Command {
    /// The length only: entries carry secrets, and this goes to the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.0.len())
    }
}

/// The state machine's answer on its way to the proposer in this process. None for entries without one (leader and
/// membership changes) and after a journey through serde, which never happens.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Applied {
    #[serde(skip)]
    pub(crate) response: Option<Box<dyn Any + Send + Sync>>,
}

impl fmt::Debug for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.response.is_some() { "Applied(response)" } else { "Applied(none)" })
    }
}
