//! Nodes against a whole manager: real Raft on disk, real mutual TLS, real sessions; only the agents are played here.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod access;
mod agent;
mod authority;
mod control;
mod followers;
mod images;
mod logs;
mod networks;
mod operator;
mod rotation;
mod sessions;
mod swarm;
mod tables;
