//! The one place where the manager's errors become gRPC statuses.

use skep_core::apply::Refused;
use skep_core::store::FindError;
use skep_proto::validate::Invalid;
use tonic::Status;

use crate::images::ResolveError;
use crate::store::WriteError;

/// Turns an error into the answer that a client sees.
pub(crate) trait IntoStatus {
    fn into_status(self) -> Status;
}

impl IntoStatus for WriteError {
    fn into_status(self) -> Status {
        match &self {
            Self::Refused(refused) => match refused {
                Refused::Exists { .. } | Refused::NameTaken { .. } | Refused::Taken { .. } => {
                    Status::already_exists(self.to_string())
                }
                Refused::OutOfSequence { .. } => Status::aborted(self.to_string()),
                _ => Status::failed_precondition(self.to_string()),
            },
            Self::NoLeader => Status::unavailable(self.to_string()),
            Self::Unknown => Status::deadline_exceeded(self.to_string()),
            Self::Stopped(_) => Status::unavailable(self.to_string()),
        }
    }
}

impl IntoStatus for FindError {
    fn into_status(self) -> Status {
        match self {
            Self::NotFound { .. } => Status::not_found(self.to_string()),
            Self::Ambiguous { .. } => Status::invalid_argument(self.to_string()),
        }
    }
}

impl IntoStatus for Invalid {
    fn into_status(self) -> Status {
        if self.message.starts_with("not supported yet") {
            return Status::unimplemented(self.message);
        }
        Status::invalid_argument(format!("invalid {self}"))
    }
}

impl IntoStatus for ResolveError {
    fn into_status(self) -> Status {
        let message = self.to_string();
        match self {
            Self::Invalid(_) => Status::invalid_argument(message),
            Self::NotFound(_) => Status::not_found(message),
            Self::Unauthorized(_) => Status::failed_precondition(message),
            Self::Unavailable(_) => Status::unavailable(message),
        }
    }
}
