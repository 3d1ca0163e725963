//! Several managers in one process, over real connections with mutual TLS.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod failover;
mod group;
mod roles;
mod services;
mod sessions;
mod writes;
