//! Deterministic simulation of several managers on one thread, in simulated time: Raft, state machine, sequencer, store
//! and forwarding are the product's own, over tonic on a simulated network and on disks in memory.
//!
//! A seed decides everything. Start reading at `run.rs`. `plan.rs` says what goes wrong, `faults.rs` does it, `client.rs`
//! writes and reads meanwhile, `operator.rs` changes who is a manager, `host.rs` and `agent.rs` are the daemon around a
//! manager, `watch.rs` looks at the managers, `oracle.rs` judges at the end.

mod agent;
mod client;
mod faults;
mod gate;
mod history;
mod host;
mod operator;
mod oracle;
mod plan;
mod run;
mod watch;
mod wire;
mod world;

pub use plan::Only;
pub use run::{Lies, Options, Report, run};
