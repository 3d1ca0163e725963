//! What the end-to-end tests share: labs that clean up after themselves, images made of this machine's own programs,
//! a real registry, and waiting without sleeping blindly. Used by `tests/*.rs` and the benchmarks only.
//!
//! The tests run the real binary (`SKEP_BIN`, set by `make e2e`) as root; each lab has a name of its own.

mod host;
mod images;
mod lab;
mod raw;
mod registry;
mod stolen;
mod task;
mod wait;

pub use host::Upheavals;
pub use images::{Image, big, busybox, foreign, nginx, redis, socat};
pub use lab::{IDLE, Lab, Output, Running, host_number, skep_binary};
pub use raw::{call, channel, credentials, methods};
pub use registry::Registry;
pub use stolen::Stolen;
pub use task::{Capture, addresses};
pub use wait::{alive, until, until_some};
