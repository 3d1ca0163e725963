//! Consensus for skep's managers: a replicated log on disk with the manager's state machine behind it.
//!
//! The manager implements [`StateMachine`], starts a [`RaftNode`] and talks to it through [`Consensus`]. openraft is the
//! engine inside and shows nowhere outside. Start reading at `consensus.rs` (what others see), `node.rs` (how it is
//! put together), `store/mod.rs` (what is on disk). This crate knows nothing of skep's objects, and opens no sockets.
//!
//! With the feature `sim` many nodes run on one thread in simulated time, each on a disk in memory: seed the thread
//! (`sim::seed`), give each `Config::sim_disk` a `sim::SimDisk`, start with `RaftNode::start_here`. See `sim.rs`.

mod codec;
mod config;
mod consensus;
mod crypto;
mod digests;
mod disk;
mod election;
mod engine;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod handover;
mod inbound;
mod keys;
mod lock;
mod members;
mod network;
mod node;
mod policy;
mod priority;
mod reads;
mod recover;
mod serve;
mod shared;
#[cfg(feature = "sim")]
pub mod sim;
mod space;
mod state_machine;
mod status;
mod store;
mod transport;
mod types;
mod wire;

pub use config::{Config, Limits, Start, Timing};
pub use consensus::{
    BarrierError, Committed, Consensus, Member, Membership, MembershipError, ProposeError, RaftId, Role, SnapshotInfo,
    Status, StopCause, TransferError,
};
pub use crypto::KeyEncryptionKey;
pub use error::{StartError, StoreError};
pub use inbound::HandleError;
pub use keys::erase;
pub use node::RaftNode;
pub use recover::{Recovered, recover};
pub use state_machine::{FatalError, Snapshot, StateMachine};
pub use store::rekey::{RekeyError, Rekeyed, Wanted};
pub use transport::{MessageKind, NoPeers, Transport, TransportError};
pub use wire::{Refusal, WireError};
