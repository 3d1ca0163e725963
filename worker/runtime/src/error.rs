//! Why a container could not be made, found or ended.

use std::io;
use std::path::PathBuf;

/// An error about one container or the runtime's directories.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("cannot {action} {}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The sentence is the user's: what of the container is wrong. The code is what Docker gives (125 to 127).
    #[error("{sentence}")]
    NotStarted { code: i32, sentence: String },
    #[error("container {0} is there already")]
    Exists(String),
    #[error("{0:?} is not a container id: use letters, digits, '_', '.' and '-'")]
    Id(String),
    #[error("cannot reach the monitor of container {id}")]
    Monitor {
        id: String,
        #[source]
        source: io::Error,
    },
    #[error("container {0} does not run")]
    NotRunning(String),
    /// Files of a running container that cannot be replaced.
    #[error(
        "the secrets and configs of container {0} cannot be replaced while it runs: its monitor is of an earlier version, or \
         it had none at its start"
    )]
    Fixed(String),
    #[error("cannot confine a command in a container")]
    Confine(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("this host has no usable cgroups: neither cgroup2 nor the v1 controllers are mounted")]
    NoCgroups,
}

impl RuntimeError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
