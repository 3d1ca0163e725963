//! Containers on this host: what to run ([`ContainerSpec`]), the cgroups around it, the resident monitor that outlives the
//! agent, and reading its logs.
//!
//! The worker's executor calls [`Runtime`]. A container is planned here and made by its monitor (`worker/shim`). This crate
//! never decides whether something is to run.

mod apparmor;
mod caps;
pub mod cgroup;
pub mod command;
mod container;
pub mod disk;
mod error;
mod exec;
mod files;
#[doc(hidden)]
pub mod fuzzing;
pub mod logs;
mod oci;
mod plan;
mod runtime;
mod seccomp;
mod shim;
mod spec;
mod user;

pub use apparmor::confinement;
pub use caps::{CAPABILITIES, DEFAULT_CAPABILITIES};
pub use command::{ImageCommand, resolve_command};
pub use container::{Container, ExitStatus, State, Stats};
pub use error::RuntimeError;
pub use exec::{Exec, ExecEnd};
pub use files::{Files, MemoryFile, MemoryPlace};
pub use runtime::{Recovered, Runtime, RuntimeConfig};
pub use seccomp::docker::kernel;
pub use skep_shim::ids::IdRange;
pub use spec::{
    AppArmor, ContainerSpec, LogLimits, Mount, MountKind, NetworkNamespace, OciRuntime, Propagation, ResourceLimits,
    Seccomp, Ulimit, UserNamespace,
};
