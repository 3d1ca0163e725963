//! The daemon of one host: its place in a swarm, its listeners, and the composition of manager and worker. Called by
//! the command line's `skep daemon`; decides nothing about services or tasks.

mod address;
mod agent;
mod backoff;
mod config;
mod contacts;
mod daemon;
mod describe;
#[doc(hidden)]
pub mod fuzzing;
mod hardening;
mod host;
mod links;
mod lock;
mod membership;
mod metrics;
mod netd;
mod registries;
mod renewal;
mod sealing;
mod seat;
mod service;
mod switch;
mod upload;

pub use config::{Config, MANAGER_PORT, PEER_PORT};
pub use daemon::run;
pub use skep_worker::Remap;
