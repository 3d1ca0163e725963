//! The real kernel: namespaces of our own, real devices, real traffic. Needs root; each test says so and stops
//! without it.
//!
//! Namespaces without a path end with their handle, so that nothing is left behind by a test that panics.

#![allow(clippy::unwrap_used)]

mod balance;
mod devices;
mod lab;
mod namespaces;
mod neighbours;
mod rules;
mod tcp;
