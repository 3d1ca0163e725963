//! Other nodes as sources of blobs: the asking side of `peer.proto`.
//!
//! Used by the image keeper for one pull. What comes is never trusted: skep-image checks every digest.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::StreamExt;
use skep_image::{BlobRequest, BlobSource, BlobStream, FetchError};
use skep_proto::id::NodeId;
use skep_proto::v1::peer_client::PeerClient;
use skep_proto::v1::{FetchBlobRequest, ImageSourcesResponse};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::executor::{Supplies, chain};
use crate::session::Connector;

/// For the connection to another node, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Until the answer begins; the engine bounds the silence after that.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// One node that holds an image.
pub(super) struct PeerSource {
    node: NodeId,
    addr: String,
    image: String,
    /// The manager's word; asked for again when it has expired.
    ticket: Mutex<Vec<u8>>,
    connector: Arc<dyn Connector>,
    supplies: Arc<dyn Supplies>,
    channel: OnceCell<Channel>,
}

/// The sources that a manager named, in its order.
pub(super) fn sources(
    image: &str,
    answer: ImageSourcesResponse,
    connector: &Arc<dyn Connector>,
    supplies: &Arc<dyn Supplies>,
) -> Vec<Arc<dyn BlobSource>> {
    let mut out: Vec<Arc<dyn BlobSource>> = Vec::with_capacity(answer.peers.len());
    for peer in answer.peers {
        let Ok(node) = NodeId::from_wire(&peer.node_id) else { continue };
        out.push(Arc::new(PeerSource {
            node,
            addr: peer.addr,
            image: image.to_owned(),
            ticket: Mutex::new(answer.ticket.clone()),
            connector: Arc::clone(connector),
            supplies: Arc::clone(supplies),
            channel: OnceCell::new(),
        }));
    }
    out
}

impl PeerSource {
    fn name(&self) -> String {
        format!("node {} ({})", self.node.short(), self.addr)
    }

    fn ticket(&self) -> Vec<u8> {
        self.ticket.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn channel(&self) -> Result<Channel, FetchError> {
        let connect = async {
            let connecting = timeout(CONNECT_TIMEOUT, self.connector.peer(self.node, &self.addr));
            match connecting.await {
                Ok(Ok(channel)) => Ok(channel),
                Ok(Err(error)) => {
                    Err(FetchError::Unreachable { source_name: self.name(), reason: chain(error.as_ref()) })
                }
                Err(_) => Err(FetchError::Timeout { source_name: self.name(), seconds: CONNECT_TIMEOUT.as_secs() }),
            }
        };
        self.channel.get_or_try_init(|| connect).await.cloned()
    }

    async fn ask(&self, request: BlobRequest) -> Result<tonic::Streaming<skep_proto::v1::BlobChunk>, Status> {
        let channel = self.channel().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let message =
            FetchBlobRequest { digest: request.digest.to_string(), ticket: self.ticket(), offset: request.offset };
        let answer = timeout(ANSWER_TIMEOUT, PeerClient::new(channel).fetch_blob(message))
            .await
            .map_err(|_| Status::deadline_exceeded("no answer"))?;
        answer.map(tonic::Response::into_inner)
    }

    /// A long pull outlives its ticket: asks for another one. False: there is none.
    async fn renew_ticket(&self) -> bool {
        match self.supplies.image_sources(&self.image).await {
            Ok(answer) if !answer.ticket.is_empty() => {
                *self.ticket.lock().unwrap_or_else(PoisonError::into_inner) = answer.ticket;
                true
            }
            _ => false,
        }
    }

    fn error(&self, status: &Status, request: &BlobRequest) -> FetchError {
        let source_name = self.name();
        let reason = status.message().to_owned();
        match status.code() {
            Code::NotFound => FetchError::NotFound { what: format!("blob {}", request.digest), place: source_name },
            Code::PermissionDenied | Code::Unauthenticated => {
                FetchError::Unauthorized { what: format!("blob {}", request.digest), detail: reason }
            }
            Code::Unavailable => FetchError::Unreachable { source_name, reason },
            Code::DeadlineExceeded => FetchError::Timeout { source_name, seconds: ANSWER_TIMEOUT.as_secs() },
            Code::Internal | Code::ResourceExhausted => FetchError::Busy { source_name, reason },
            _ => FetchError::Malformed { source_name, reason },
        }
    }
}

impl BlobSource for PeerSource {
    fn describe(&self) -> String {
        self.name()
    }

    fn fetch(&self, request: BlobRequest) -> BoxFuture<'_, Result<BlobStream, FetchError>> {
        Box::pin(async move {
            let mut answer = self.ask(request).await;
            if answer.as_ref().is_err_and(|status| status.code() == Code::PermissionDenied) && self.renew_ticket().await
            {
                answer = self.ask(request).await;
            }
            let chunks = answer.map_err(|status| self.error(&status, &request))?;
            let source_name = self.name();
            let bytes = chunks.map(move |chunk| {
                chunk.map(|chunk| chunk.data.into()).map_err(|status| FetchError::Interrupted {
                    source_name: source_name.clone(),
                    reason: status.message().to_owned(),
                })
            });
            Ok(BlobStream { offset: request.offset, bytes: bytes.boxed() })
        })
    }
}
