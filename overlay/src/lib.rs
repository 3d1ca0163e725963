//! The networks of hosts: the namespaces that tasks' containers share ([`sandbox`]), and `skep netd` ([`netd`]), which joins
//! them to networks, answers names and balances connections.
//!
//! The agent uses the sandboxes, and drives netd over its socket. Never talks to managers, never decides what is to exist.
//!
//! Start reading at [`table`] (what the managers say), [`plan`] (what that means for this host), [`network`], [`endpoint`]
//! and [`host`] (the kernel), [`mesh`] (the encrypted way to other hosts), [`check`] (what is wrong), and [`netd`] (the process).

pub mod check;
pub mod endpoint;
#[doc(hidden)]
pub mod fuzzing;
pub mod host;
pub mod link;
pub mod mesh;
pub mod netd;
pub mod network;
pub mod plan;
pub mod sandbox;
pub mod table;

pub use sandbox::{SandboxError, Sandboxes};
pub use skep_netlink::users::USERS;
