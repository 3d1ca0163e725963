//! The gRPC face of the dispatcher: who may call, and where the call goes.

use std::pin::Pin;

use futures::Stream;
use futures::stream::{PollNext, select_with_strategy};
use skep_identity::Caller;
use skep_identity::transport::ConnectionInfo;
use skep_proto::v1::dispatch_server::Dispatch;
use skep_proto::v1::{
    ImageSourcesRequest, ImageSourcesResponse, LogChunk, NetworkCheckAnswer, PublishLogsResponse,
    PublishNetworkCheckResponse, SessionDown, SessionUp,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Dispatcher;
use super::limits::{BULK_QUEUE, URGENT_QUEUE};
use super::session::Session;
use super::sessions::Down;
use super::sources;

/// Messages to a node.
pub(crate) type SessionStream = Pin<Box<dyn Stream<Item = Result<SessionDown, Status>> + Send>>;

#[tonic::async_trait]
impl Dispatch for Dispatcher {
    type SessionStream = SessionStream;

    async fn session(&self, request: Request<Streaming<SessionUp>>) -> Result<Response<SessionStream>, Status> {
        let peer = Caller::of(&request)?.require_node()?.clone();
        let remote = ConnectionInfo::of(&request).and_then(|info| info.remote);
        let addr = remote.map_or_else(String::new, |remote| remote.ip().to_canonical().to_string());
        if !self.takes_sessions() {
            return Err(no_leader());
        }
        let (urgent, urgent_down) = mpsc::channel(URGENT_QUEUE);
        let (bulk, bulk_down) = mpsc::channel(BULK_QUEUE);
        let session = Session { dispatcher: self.clone(), peer, addr, urgent, bulk };
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(down(urgent_down, bulk_down)))
    }

    async fn publish_logs(
        &self,
        request: Request<Streaming<LogChunk>>,
    ) -> Result<Response<PublishLogsResponse>, Status> {
        let node = Caller::of(&request)?.require_node()?.node_id;
        self.log_streams().publish(node, request.into_inner()).await?;
        Ok(Response::new(PublishLogsResponse {}))
    }

    async fn publish_network_check(
        &self,
        request: Request<NetworkCheckAnswer>,
    ) -> Result<Response<PublishNetworkCheckResponse>, Status> {
        let node = Caller::of(&request)?.require_node()?.node_id;
        self.checks().publish(node, request.into_inner())?;
        Ok(Response::new(PublishNetworkCheckResponse {}))
    }

    async fn image_sources(
        &self,
        request: Request<ImageSourcesRequest>,
    ) -> Result<Response<ImageSourcesResponse>, Status> {
        let node = Caller::of(&request)?.require_node()?.node_id;
        let digest = request.into_inner().digest;
        if !self.takes_sessions() {
            return Err(no_leader());
        }
        sources::check(&self.store().state(), node, &digest)?;
        let holders = self.holders(&digest).await;
        let credentials = self.0.credentials.current();
        sources::answer(&self.store().state(), holders, &credentials, node, &digest).map(Response::new)
    }
}

/// Why no session is taken, and why sessions end: the node is to try another manager.
pub(super) fn no_leader() -> Status {
    Status::unavailable("this manager hears no leader: try another one")
}

/// One stream of two channels: whatever is urgent goes first.
fn down(urgent: mpsc::Receiver<Down>, bulk: mpsc::Receiver<Down>) -> SessionStream {
    let urgent_first = |(): &mut ()| PollNext::Left;
    Box::pin(select_with_strategy(ReceiverStream::new(urgent), ReceiverStream::new(bulk), urgent_first))
}
