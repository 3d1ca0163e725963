//! The images crate against the real thing: Debian's `docker-registry`, `skopeo`, the kernel, and servers that misbehave.
//! Needs root (owners, whiteouts) and those two programs; says so and skips where they are missing.
#![allow(clippy::unwrap_used)]

mod archives;
mod common;
mod faults;
mod registry;
mod sharing;
