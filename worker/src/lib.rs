//! A node's hands: takes assignments from the managers, runs them as containers, reports what happens.
//!
//! Start reading at [`agent`]. The decisions are pure and apart from the I/O: [`assignments`] (what is to run),
//! [`reconcile`] (what to begin and end), [`task`] (one task's life), [`health`] (what health
//! checks mean), [`outbox`] (what is still to be told), [`managers`]
//! (whom to connect to). Around them: [`session`] (the stream to a manager), [`networks`] (the host's netd),
//! [`record`] (the local record), [`executor`] with its implementations.
//!
//! Deliberately absent: identity and TLS (the node gives a [`Connector`]), and every decision of the managers.

pub mod agent;
pub mod assignments;
mod checks;
pub mod description;
pub mod executor;
#[doc(hidden)]
pub mod fuzzing;
pub mod gc;
pub mod health;
mod logs;
pub mod managers;
pub mod networks;
pub mod oci;
pub mod outbox;
pub mod payload;
pub mod peer;
pub mod reconcile;
pub mod record;
pub mod remap;
pub mod session;
pub mod simulated;
pub mod task;

pub use agent::{Agent, AgentConfig, AgentError, AgentEvent, AgentHandle};
pub use description::{DescriptionConfig, describe, platform};
pub use executor::{Executor, NodeFacts};
pub use gc::GcPolicy;
pub use networks::Networks;
pub use oci::{OciConfig, OciExecutor, cgroup_layout, confinement, monitors_cgroup, sandboxes_dir};
pub use peer::{Grant, PeerService, TicketCheck};
pub use remap::{Remap, RemapError};
pub use session::{ConnectError, Connector, ManagerLink, SessionState, SessionTiming};
