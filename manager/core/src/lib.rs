//! The managers' decisions: the replicated state and everything that is computed from it. Pure: no clock, no random,
//! no file, no network, no task; `now` and seeds come in as arguments. Enforced by Cargo.toml.

pub mod change;
pub mod ids;
pub mod object;
pub mod orchestrate;
pub mod schedule;
pub mod store;

#[cfg(test)]
mod example;
