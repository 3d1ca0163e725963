//! Several managers in one process, over real connections with mutual TLS.
#![allow(clippy::unwrap_used)]

mod failover;
mod group;
mod roles;
mod sessions;
mod writes;
