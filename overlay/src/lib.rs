//! The networks of hosts. So far: the network namespaces that tasks' containers share ([`sandbox`]).
//!
//! Used by the worker. Never talks to managers, never decides what is to exist.

pub mod sandbox;
pub mod table;

pub use sandbox::{SandboxError, Sandboxes};
