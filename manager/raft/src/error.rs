//! Errors of opening and keeping the data directory. Every one names the file and says what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::consensus::StopCause;

/// What is on disk cannot be used, or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Another process has the directory.
    #[error("data directory {dir:?} is in use by another skep daemon (pid {pid})")]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The process id that it wrote down, or "unknown".
        pid: String,
    },
    /// There is state where a new node was asked for.
    #[error(
        "data directory {dir:?} already holds the state of a manager; leave the cluster first, or use another directory"
    )]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no state where one was expected.
    #[error("data directory {dir:?} holds no state of a manager; is its disk mounted?")]
    Empty {
        /// The directory.
        dir: PathBuf,
    },
    /// A file that must be there is not.
    #[error("{path:?} is missing, but other parts of this manager's state are there; {advice}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// What to do.
        advice: &'static str,
    },
    /// A file is there and its content cannot be trusted.
    #[error("{path:?} is damaged: {what}; {ADVICE_REJOIN}")]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file was written by a newer skep.
    #[error("{path:?} has format {found}, this skep reads up to {supported}; start the newer skep that wrote it")]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The version in it.
        found: u32,
        /// The newest version known.
        supported: u32,
    },
    /// The key does not open the file.
    #[error("the key does not open {path:?}: {why}")]
    WrongKey {
        /// The file.
        path: PathBuf,
        /// What is known about the reason, and what to do.
        why: &'static str,
    },
    /// The directory is locked by the operator and no key was given.
    #[error("{path:?} needs a key: this manager is locked; unlock it with its unlock key")]
    Locked {
        /// The keys file.
        path: PathBuf,
    },
    /// The data key could not be replaced now.
    #[error("the data key of {dir:?} was not replaced: snapshots are made faster than they can be copied; try again")]
    Busy {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory belongs to another node.
    #[error(
        "data directory {dir:?} belongs to raft node {found}, not {expected}; a directory is never moved between nodes"
    )]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// The id in it.
        found: u64,
        /// The id asked for.
        expected: u64,
    },
    /// There is no space to open the directory safely. Nothing was touched.
    #[error(
        "the disk of data directory {dir:?} is full: {free_bytes} bytes are free, {needed_bytes} are needed to start; \
         make space and start again, nothing is lost"
    )]
    DiskFull {
        /// The directory.
        dir: PathBuf,
        /// Bytes that are free.
        free_bytes: u64,
        /// Bytes that must be free.
        needed_bytes: u64,
    },
    /// The database refused.
    #[error("database {path:?} failed")]
    Database {
        /// Its folder.
        path: PathBuf,
        /// Its answer.
        #[source]
        source: sled::Error,
    },
}

/// What helps when this node's copy is lost.
pub(crate) const ADVICE_REJOIN: &str = "the manager does not start on doubtful state: restore the data directory from a \
     backup, or move it away and join the cluster again as a new node";

impl StoreError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn damaged(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.as_ref().to_owned(), what: what.into() }
    }

    /// What kind of failure this is for whoever restarts the node.
    pub(crate) fn cause(&self) -> StopCause {
        let full = match self {
            Self::DiskFull { .. } => true,
            Self::Io { source, .. } | Self::Database { source: sled::Error::Io(source), .. } => is_full(source),
            _ => false,
        };
        if full { StopCause::DiskFull } else { StopCause::Storage }
    }

    /// Whether it failed for lack of space on the disk: it works again when there is some.
    pub fn is_disk_full(&self) -> bool {
        self.cause() == StopCause::DiskFull
    }

    /// The whole chain in one line, for places that keep only text.
    pub(crate) fn text(&self) -> String {
        chain(self)
    }
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is out of range; nothing was touched.
    #[error("invalid consensus setting: {0}")]
    Config(String),
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state machine refused the stored state.
    #[error("stored state is refused: {0}")]
    StateMachine(String),
    /// The engine did not come up.
    #[error("consensus did not start: {0}")]
    Engine(String),
}

impl StartError {
    /// Whether it failed for lack of space on the disk: it works again when there is some.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_disk_full())
    }
}

/// Whether a write failed for lack of space.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// An error and its sources, joined by ": ".
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
