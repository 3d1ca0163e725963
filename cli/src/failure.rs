//! Why a command failed, and which exit code that is. Every command returns it; `main.rs` prints it.
//!
//! gRPC statuses become failures here and nowhere else.

use skep_identity::transport::{Refusal, refusal};
use tonic::{Code, Status};

use crate::exit::Exit;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A value in the command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// Docker has it, skep does not yet: the flag, verb or value.
    #[error("not supported yet: {0}")]
    Unsupported(String),
    /// No daemon answers.
    #[error("cannot connect to the skep daemon at {host}: {reason}")]
    Unreachable {
        /// The address tried.
        host: String,
        /// The system's words and what to do.
        reason: String,
    },
    /// The operation was refused or failed.
    #[error("{0}")]
    Failed(String),
    /// It may work later, or may even have worked.
    #[error("{0}")]
    Temporary(String),
    /// A defect.
    #[error("internal error: {0}")]
    Internal(String),
    /// Ctrl-C; the text says what goes on in the background.
    #[error("{0}")]
    Interrupted(String),
    /// Everything was said already.
    #[error("(already reported)")]
    Reported(Exit),
    /// The reader of standard output has gone (`| head`): no error, but nothing more to do.
    #[error("standard output was closed")]
    OutputClosed,
}

/// Said when a worker's daemon is asked for what only managers know.
const NOT_A_MANAGER: &str = "this node is not a swarm manager: run the command on a manager, or connect this node to a \
                             swarm with `skep swarm init` or `skep swarm join`";

impl Failure {
    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Unsupported(_) => Exit::Unsupported,
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Failed(_) => Exit::Failed,
            Self::Temporary(_) => Exit::Temporary,
            Self::Internal(_) => Exit::Internal,
            Self::Interrupted(_) => Exit::Interrupted,
            Self::Reported(exit) => *exit,
            Self::OutputClosed => Exit::Ok,
        }
    }

    /// The failure of an operation whose words were right: what the daemon found wrong with is the data, say an archive.
    pub(crate) fn of_data(self) -> Self {
        match self {
            Self::Usage(message) => Self::Failed(message),
            other => other,
        }
    }

    /// Whether there is something left to print.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self, Self::Reported(_) | Self::OutputClosed)
    }

    /// Standard output or a file could not be written.
    pub(crate) fn from_output(error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::Failed(format!("cannot write to standard output: {error}"))
        }
    }

    /// A look-up of `reference`: NOT_FOUND becomes Docker's "no such service: x".
    pub(crate) fn from_lookup(kind: &str, reference: &str, status: Status) -> Self {
        if status.code() == Code::NotFound {
            Self::Failed(format!("no such {kind}: {reference}"))
        } else {
            status.into()
        }
    }
}

/// What a refusal says is not supported yet, with the field or step that it stands behind.
fn unsupported(message: &str) -> Option<String> {
    let (before, what) = message.split_once("not supported yet: ")?;
    match before.strip_suffix(": ") {
        Some(place) => Some(format!("{what} ({place})")),
        None if before.is_empty() => Some(what.to_owned()),
        None => None,
    }
}

impl From<skep_proto::validate::Invalid> for Failure {
    fn from(invalid: skep_proto::validate::Invalid) -> Self {
        let message = invalid.to_string();
        unsupported(&message).map_or(Self::Usage(message), Self::Unsupported)
    }
}

/// Whether the status was made here because the connection broke, not by the daemon.
pub(crate) fn is_connection_loss(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// Why one side of a connection did not believe the other, for a person with a context.
pub(crate) fn refusal_words(refusal: Refusal, error: &(dyn std::error::Error + 'static)) -> String {
    match refusal {
        Refusal::Expired => {
            "the context's client certificate has expired, or this host's clock is wrong: an admin makes a new \
                             one with `skep client renew`"
                .to_owned()
        }
        Refusal::OtherCluster => {
            "the managers do not believe the context's client certificate: it is one of another swarm, \
                                  or the swarm has another root certificate since; then an admin makes a new one with \
                                  `skep client renew`"
                .to_owned()
        }
        Refusal::CertificateRequired => "it speaks to nodes of the swarm alone: is it a manager's port?".to_owned(),
        Refusal::Removed => "the certificate was revoked".to_owned(),
        Refusal::Peer => {
            let why = causes(error);
            let why = why.rsplit(&format!("{}: ", Refusal::Peer)).next().unwrap_or_default().to_owned();
            format!(
                "it is no manager of the context's swarm, or that has another root certificate since (`skep client renew`), \
                 so nothing was said to it: {why}"
            )
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if let Some(refusal) = refusal(&status) {
            return Self::Failed(refusal_words(refusal, &status));
        }
        if is_connection_loss(&status) {
            return Self::Temporary(format!("the connection to the skep daemon broke off: {}", causes(&status)));
        }
        let message = status.message().to_owned();
        if let Some(what) = unsupported(&message) {
            return Self::Unsupported(what);
        }
        match status.code() {
            Code::Ok => Self::Internal(format!("a success was reported as an error: {message}")),
            Code::InvalidArgument | Code::OutOfRange => Self::Usage(message),
            Code::Unimplemented if message.is_empty() => Self::Failed(NOT_A_MANAGER.to_owned()),
            Code::Unimplemented => Self::Unsupported(message),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
                Self::Temporary(or_code(message, status.code()))
            }
            Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::ResourceExhausted => Self::Failed(or_code(message, status.code())),
            Code::Internal | Code::Unknown | Code::DataLoss => Self::Internal(or_code(message, status.code())),
        }
    }
}

/// The message, or the code's own words where there is none.
fn or_code(message: String, code: Code) -> String {
    if message.is_empty() { code.to_string().to_lowercase() } else { message }
}

/// An error's innermost cause, which says most: tonic's own layers only say "transport error".
fn causes(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_map_to_exit_codes() {
        let cases = [
            (Code::InvalidArgument, Exit::Usage),
            (Code::NotFound, Exit::Failed),
            (Code::AlreadyExists, Exit::Failed),
            (Code::FailedPrecondition, Exit::Failed),
            (Code::Aborted, Exit::Failed),
            (Code::Unavailable, Exit::Temporary),
            (Code::DeadlineExceeded, Exit::Temporary),
            (Code::Internal, Exit::Internal),
            (Code::Unimplemented, Exit::Unsupported),
        ];
        for (code, exit) in cases {
            assert_eq!(Failure::from(Status::new(code, "why")).exit(), exit, "{code}");
        }
    }

    #[test]
    fn a_worker_says_that_it_is_no_manager() {
        let failure = Failure::from(Status::unimplemented(""));
        assert_eq!(failure.exit(), Exit::Failed);
        assert!(failure.to_string().contains("not a swarm manager"));
    }

    #[test]
    fn not_supported_is_said_once() {
        let failure = Failure::from(Status::unimplemented("not supported yet: --secret"));
        assert_eq!(failure.to_string(), "not supported yet: --secret");
        let failure =
            Failure::from(Status::failed_precondition("cannot join: not supported yet: joining as a manager"));
        assert_eq!(failure.to_string(), "not supported yet: joining as a manager (cannot join)");
        assert_eq!(failure.exit(), Exit::Unsupported);
        let failure = Failure::from(Status::not_found("there is no service \"not supported yet: x\""));
        assert_eq!(failure.exit(), Exit::Failed);
    }

    #[test]
    fn unknown_objects_are_named_like_docker() {
        let failure = Failure::from_lookup("service", "web", Status::not_found("nothing here"));
        assert_eq!(failure.to_string(), "no such service: web");
    }

    #[test]
    fn a_broken_connection_is_temporary() {
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let status = Status::from_error(Box::new(broken));
        assert_eq!(Failure::from(status).exit(), Exit::Temporary);
    }
}
