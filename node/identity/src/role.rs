//! What a node's certificate allows it to be. Used by everything that checks a caller; never does I/O.

use std::fmt;
use std::str::FromStr;

/// The role that a node's certificate carries (its organisational unit, and a subject alternative name).
///
/// Every manager may also run tasks; the role says what the node may ask of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Runs tasks; is trusted with nothing beyond them.
    Worker,
    /// Takes part in Raft, answers the control API, signs certificates.
    Manager,
}

impl Role {
    /// `worker` or `manager`: the word of the command line and of messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }

    /// `skep-worker` or `skep-manager`: the organisational unit and the alternative name in certificates.
    pub const fn certificate_name(self) -> &'static str {
        match self {
            Self::Worker => "skep-worker",
            Self::Manager => "skep-manager",
        }
    }

    /// Reads [`Role::certificate_name`]; `None` for anything else.
    pub fn from_certificate_name(name: &str) -> Option<Self> {
        [Self::Worker, Self::Manager].into_iter().find(|role| role.certificate_name() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text is neither `worker` nor `manager`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role: use \"worker\" or \"manager\"")]
pub struct RoleError(String);

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        match text {
            "worker" => Ok(Self::Worker),
            "manager" => Ok(Self::Manager),
            other => Err(RoleError(other.to_owned())),
        }
    }
}
