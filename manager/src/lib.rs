//! A manager: the I/O around `skep-core`. Raft and the single writer, the leader's loops, the control API, the
//! dispatcher of nodes' sessions, the log broker, the certificate authority. Decisions are not made here.

mod ca;
mod callers;
mod clock;
mod control;
pub mod dispatch;
mod figures;
#[doc(hidden)]
pub mod fuzzing;
pub mod images;
mod keys;
mod leader;
mod logs;
mod loops;
mod machine;
mod manager;
pub mod peers;
mod roles;
mod scripted;
mod sequencer;
#[cfg(feature = "sim")]
pub mod sim;
pub mod store;
pub mod topic;

pub use figures::{FigureSource, Figures, RaftFigures, SwarmFigures};
pub use keys::{KeySeals, KeysAtStart};
/// Deletes a stopped manager's files, its keys first.
pub use skep_raft::erase as erase_files;

pub use manager::{Bootstrap, Ended, FIRST_RAFT_ID, Manager, ManagerConfig, ManagerStart, has_state, is_disk_full};
