//! Lines of nodes whose session is at another manager: that manager is asked (`Relay.NodeLogs`), and asks the node. This
//! file has both sides: what is read there becomes pieces here, and the other way round.

use futures::{Stream, StreamExt as _, stream};
use skep_proto::id::{NodeId, TaskId};
use skep_proto::v1::relay_client::RelayClient;
use skep_proto::v1::{LogChunk, LogOptions, NodeLogsRequest};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::transport::Channel;
use tracing::debug;

use super::streams::{LogStreams, OpenRequest, Piece, checked};

/// Asks the manager that has the node's session, and hands its answer on to `pieces`; `answered` is called with the first
/// chunk. The channel ends without [`Piece::Done`] if the answer breaks off. Dropping it stops the node.
pub(super) async fn fetch(
    channel: Channel,
    (node, tasks, options): (NodeId, Vec<TaskId>, LogOptions),
    pieces: mpsc::Sender<Piece>,
    answered: impl FnOnce(),
) {
    let task_ids = tasks.iter().map(|task| task.to_vec()).collect();
    let request = NodeLogsRequest { node_id: node.to_vec(), task_ids, options: Some(options) };
    let mut client = RelayClient::new(channel);
    let read = async {
        let mut chunks = client.node_logs(request).await?.into_inner();
        let mut answered = Some(answered);
        while let Some(chunk) = chunks.message().await? {
            if let Some(answered) = answered.take() {
                answered();
            }
            let piece = checked(node, &tasks.iter().copied().collect(), chunk)?;
            if pieces.send(piece).await.is_err() {
                // Nobody reads any more.
                return Ok(());
            }
        }
        let _ = pieces.send(Piece::Done).await;
        Ok::<(), Status>(())
    };
    if let Err(status) = read.await {
        debug!(%node, reason = status.message(), "another manager's log stream broke off");
    }
}

impl LogStreams {
    /// Answers another manager: lines of a node that has its session here, to their end. An error ends a stream that broke
    /// off.
    #[allow(clippy::result_large_err)]
    pub(crate) fn serve(
        &self,
        node: NodeId,
        tasks: &[TaskId],
        options: LogOptions,
    ) -> Result<impl Stream<Item = Result<LogChunk, Status>> + Send + use<>, Status> {
        let opened = self.open_here(node, tasks, options);
        let (request, pieces) = opened.map_err(|_| Status::not_found("the node has no session here"))?;
        let answer = Answer { request, pieces, over: false };
        Ok(stream::unfold(answer, |mut answer| async move {
            let chunk = answer.next().await?;
            Some((chunk, answer))
        })
        .fuse())
    }
}

/// A node's answer on its way to another manager. Dropping it stops the node.
struct Answer {
    request: OpenRequest,
    pieces: mpsc::Receiver<Piece>,
    over: bool,
}

impl Answer {
    /// The next chunk; `None` at an end that is one.
    async fn next(&mut self) -> Option<Result<LogChunk, Status>> {
        if self.over {
            return None;
        }
        match self.pieces.recv().await {
            Some(Piece::Lines { lines, warnings }) => Some(Ok(LogChunk { stream_id: 0, lines, warnings })),
            // An aborted stream ends like a finished one; a node aborts when its session is gone.
            Some(Piece::Done) if self.request.is_current() => {
                self.request.done = true;
                None
            }
            Some(Piece::Done) | None => {
                self.over = true;
                Some(Err(Status::aborted("the node broke off")))
            }
        }
    }
}
