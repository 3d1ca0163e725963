//! `skep lab`: a cluster of several hosts on one machine.
//!
//! The `skep` binary mounts [`LabCommand`] as its subcommand `lab` and calls [`run`]; before it parses anything it calls
//! [`internal_main`], which serves the two hidden programs that a lab is made of:
//!
//! - `skep lab-host` ([`holder_main`]): one small process per host that keeps the host's namespaces and mounts alive;
//! - `skep lab-enter` ([`enter_main`]): joins a host's cgroups and namespaces and becomes the given command.
//!
//! A lab is described by `<lab-dir>/lab.json`; everything that runs in it lies in the cgroups `skep/<lab>/…`, so
//! `skep lab down` finds all of it, whatever was killed before. Nothing here changes the machine outside of the lab's
//! own namespaces, cgroups and directory, and nothing is ever found or killed by its name.

mod args;
mod cgroup;
mod command;
mod daemon;
mod down;
mod enter;
mod error;
mod exec;
mod holder;
mod interrupt;
mod lab;
mod list;
mod logs;
mod mounts;
mod namespaces;
mod network;
mod partition;
mod power;
mod process;
mod run;
mod state;
mod swarm;
mod up;

pub use args::{HostNumbers, LabAction, LabCommand, ListFormat, UpArgs};
pub use enter::enter_main;
pub use error::LabError;
pub use holder::holder_main;
pub use run::{internal_main, run};
