//! Why the kernel's networking could not be asked or changed.

use std::io;

use nix::errno::Errno;

use crate::message::Malformed;

/// A failed operation, with what was being done.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused it.
    #[error("cannot {action}: {}{}", errno.desc(), text.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// What was tried, on what: "add vxlan device vx0".
        action: String,
        /// The kernel's reason.
        errno: Errno,
        /// What it adds in words (`NETLINK_EXT_ACK`), where it does.
        text: Option<String>,
    },
    /// The socket failed, or a file.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer makes no sense.
    #[error("cannot {action}: the kernel's answer makes no sense")]
    Malformed {
        /// What was tried.
        action: String,
        /// What is wrong with it.
        #[source]
        source: Malformed,
    },
    /// The kernel did not answer, or not to the end. netlink answers at once, so there is nothing to wait for.
    #[error("cannot {action}: the kernel did not answer")]
    NoAnswer {
        /// What was tried.
        action: String,
    },
    /// The request cannot be made.
    #[error("cannot {action}: {problem}")]
    Invalid {
        /// What was tried.
        action: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl NetlinkError {
    /// The kernel's reason, where it gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }

    /// What was to be added is there already.
    pub fn is_present(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }

    /// What was to be changed or removed is not there.
    pub fn is_absent(&self) -> bool {
        matches!(self.errno(), Some(Errno::ENOENT | Errno::ENODEV | Errno::ESRCH | Errno::EADDRNOTAVAIL))
    }

    /// What an error of a system call means: `action` completes "cannot …".
    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    pub(crate) fn errno_of(action: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let action = action.into();
        move |errno| Self::Io { action, source: errno.into() }
    }
}
