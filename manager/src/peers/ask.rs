//! What this manager asks the leader. Every call has a deadline, and says what is known when it fails: a call that never
//! left is no write, one whose answer was lost may be.

use std::time::Duration;

use skep_core::change::Transaction;
use skep_core::codec;
use skep_proto::v1::quorum_client::QuorumClient;
use skep_proto::v1::submit_failed::Reason;
use skep_proto::v1::submit_response::Outcome;
use skep_proto::v1::{ReadVersionRequest, ReadVersionResponse, SubmitRequest, SubmitResponse};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::wire;
use crate::store::{WriteError, Written};

/// Bytes of one message between managers: the largest entry that Raft takes (4 MiB), with room around it.
pub(super) const MESSAGE_BYTES: usize = 8 << 20;

/// Hands a transaction to the leader.
pub(crate) async fn submit(
    channel: Channel,
    transaction: &Transaction,
    within: Duration,
) -> Result<Written, WriteError> {
    let entry = codec::encode_entry(std::slice::from_ref(transaction));
    let mut client = QuorumClient::new(channel).max_encoding_message_size(MESSAGE_BYTES);
    match tokio::time::timeout(within, client.submit(SubmitRequest { entry })).await {
        Ok(Ok(answer)) => outcome(answer.into_inner()),
        Ok(Err(status)) => Err(write_error(&status)),
        Err(_) => Err(WriteError::Unknown),
    }
}

fn outcome(answer: SubmitResponse) -> Result<Written, WriteError> {
    match answer.outcome {
        Some(Outcome::Written(written)) => Ok(Written {
            version: written.version,
            object_id: written.object_id,
            refused: written.refused.into_iter().map(wire::refused_from_wire).collect(),
        }),
        Some(Outcome::Failed(failed)) => Err(match failed.reason() {
            Reason::NoLeader => WriteError::NoLeader,
            Reason::Unknown => WriteError::Unknown,
            Reason::Stopped => WriteError::Stopped(failed.message),
        }),
        // Of a later version: who knows what it did.
        None => Err(WriteError::Unknown),
    }
}

/// Asks the leader how far a read must be.
pub(super) async fn read_version(channel: Channel, within: Duration) -> Result<ReadVersionResponse, WriteError> {
    let mut client = QuorumClient::new(channel);
    match tokio::time::timeout(within, client.read_version(ReadVersionRequest {})).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) if is_refusal(status.code()) => Err(WriteError::Stopped(status.message().to_owned())),
        Ok(Err(_)) | Err(_) => Err(WriteError::NoLeader),
    }
}

/// What a failed submission means.
fn write_error(status: &Status) -> WriteError {
    if never_left(status) {
        return WriteError::NoLeader;
    }
    if is_refusal(status.code()) {
        return WriteError::Stopped(status.message().to_owned());
    }
    WriteError::Unknown
}

/// Whether no connection came about, so that the other side has not seen the call.
pub(crate) fn never_left(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Answers that the other side gives before it does anything.
fn is_refusal(code: Code) -> bool {
    matches!(code, Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::Unimplemented)
}
