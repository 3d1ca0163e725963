//! Raft's messages to other managers. Raft calls this on its own threads, and the connections made here live there too,
//! so that load on the rest of the daemon delays no heartbeat. Snapshots go over a connection of their own.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use skep_proto::v1::RaftMessage;
use skep_proto::v1::quorum_client::QuorumClient;
use skep_raft::{Member, MessageKind, Transport, TransportError};

use super::ask::{MESSAGE_BYTES, never_left};
use super::links::{Lane, Links};

/// The way to the other managers.
pub(crate) struct RaftTransport {
    pub(super) links: Links,
}

impl Transport for RaftTransport {
    fn call(
        &self,
        target: Member,
        kind: MessageKind,
        message: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let lane = match kind {
            MessageKind::SnapshotChunk => Lane::Bulk,
            MessageKind::Append | MessageKind::Vote | MessageKind::PreVote | MessageKind::Control => Lane::Raft,
        };
        let links = self.links.clone();
        async move {
            // In here, on Raft's runtime: a new channel's tasks run where it is made.
            let channel = links.channel(target.id, &target.address, lane);
            let mut client = QuorumClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES);
            let message = RaftMessage { kind: kind.as_u8().into(), bytes: message.into() };
            let Member { id, address } = target;
            match tokio::time::timeout(timeout, client.step(message)).await {
                Ok(Ok(answer)) => Ok(answer.into_inner().bytes.into()),
                Ok(Err(status)) if never_left(&status) => {
                    Err(TransportError::Unreachable { id, address, reason: status.message().to_owned() })
                }
                Ok(Err(status)) => Err(TransportError::Failed { id, address, reason: status.message().to_owned() }),
                Err(_) => {
                    let reason = format!("no answer within {} ms", timeout.as_millis());
                    Err(TransportError::Failed { id, address, reason })
                }
            }
        }
        .boxed()
    }
}
