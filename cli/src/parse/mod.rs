//! Values of flags: text to typed values, in Docker's syntax. Pure; every parser refuses with a sentence that says what
//! would be right, and none panics.

pub(crate) mod csv;
pub(crate) mod driver_opt;
pub(crate) mod duration;
pub(crate) mod env;
pub(crate) mod file;
pub(crate) mod filter;
pub(crate) mod log_opt;
pub(crate) mod mount;
pub(crate) mod network;
pub(crate) mod number;
pub(crate) mod pair;
pub(crate) mod platform;
pub(crate) mod publish;
pub(crate) mod security_opt;
pub(crate) mod shell;
pub(crate) mod since;
pub(crate) mod size;
pub(crate) mod subnets;
pub(crate) mod ulimit;

use crate::failure::Failure;

/// Why a value is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseError {
    /// It is wrong.
    #[error("{0}")]
    Invalid(String),
    /// Docker knows it, skep does not yet.
    #[error("{0} is not supported yet")]
    Unsupported(String),
}

impl ParseError {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported(what.into())
    }

    /// As the end of a command, naming the flag.
    pub(crate) fn of(self, flag: &str) -> Failure {
        match self {
            Self::Invalid(message) => Failure::Usage(format!("invalid value for {flag}: {message}")),
            Self::Unsupported(what) => Failure::Unsupported(format!("{flag} {what}")),
        }
    }
}

/// `true`, `1`, `false`, `0`, as Go's `strconv.ParseBool` takes them.
pub(crate) fn boolean(text: &str) -> Result<bool, ParseError> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(ParseError::invalid(format!("{text:?} is neither true nor false"))),
    }
}

#[cfg(test)]
mod never_panics_test;
