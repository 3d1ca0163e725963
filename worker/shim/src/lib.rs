//! What the resident monitor of a container and its clients must agree on.
//!
//! Used by the monitor (`main.rs`) and by skep-runtime. Everything here is pure: bytes in, bytes out. It must never do
//! I/O, and never pull in a dependency: all of it ends up in a process that exists once per container.

pub mod clock;
pub mod config;
pub mod entry;
pub mod exit;
mod fields;
pub mod files;
pub mod ids;
pub mod logline;
pub mod plan;
pub mod protocol;
pub mod user;
