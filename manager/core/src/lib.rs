//! The managers' decisions: the replicated state and everything that is computed from it. Pure: no clock, no random,
//! no file, no network, no task; `now` and seeds come in as arguments. Enforced by Cargo.toml.

pub mod apply;
pub mod assign;
pub mod ca;
pub mod change;
pub mod clients;
pub mod codec;
pub mod doctor;
pub mod event;
pub mod head;
pub mod ids;
pub mod network;
pub mod object;
pub mod orchestrate;
pub mod parcels;
pub mod roles;
pub mod schedule;
pub mod store;
pub mod watch;

pub use apply::Refused;

#[cfg(test)]
mod arbitrary;
#[cfg(test)]
mod example;
