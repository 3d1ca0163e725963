//! Progress of pulls, loads and imports as a stream: events while it goes on, then the images, or the error.

use std::pin::Pin;

use skep_image::{LayerStatus, Progress, ProgressEvent};
use skep_proto::v1::ImageProgress;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Events that wait for a slow client; more are dropped, for each is overtaken by the next.
const BACKLOG: usize = 64;

/// The answer of a streaming image call.
pub(super) type ProgressStream = Pin<Box<dyn Stream<Item = Result<ImageProgress, Status>> + Send>>;

/// Runs `work` in a task of its own and streams what it tells. When the client goes away `work` is dropped; what it
/// fetched so far stays for the next try.
pub(super) fn stream<F>(work: impl FnOnce(Progress, mpsc::Sender<Result<ImageProgress, Status>>) -> F) -> ProgressStream
where
    F: Future<Output = Result<Vec<ImageProgress>, Status>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let events = sender.clone();
    let progress = Progress::new(move |event| {
        // A full channel drops the event: the next one says more.
        let _ = events.try_send(Ok(line(event)));
    });
    let work = work(progress, sender.clone());
    tokio::spawn(async move {
        tokio::select! {
            done = work => {
                let last = match done {
                    Ok(lines) => lines.into_iter().map(Ok).collect(),
                    Err(status) => vec![Err(status)],
                };
                for line in last {
                    if sender.send(line).await.is_err() {
                        return;
                    }
                }
            }
            () = sender.closed() => {}
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

fn line(event: ProgressEvent) -> ImageProgress {
    let status = match event.status {
        LayerStatus::Waiting => "waiting",
        LayerStatus::Downloading => "downloading",
        LayerStatus::Shared => "waiting for another pull",
        LayerStatus::Unpacking => "extracting",
        LayerStatus::Done => "done",
        LayerStatus::Held => "already here",
    };
    ImageProgress {
        id: event.layer.short(),
        status: status.to_owned(),
        current_bytes: event.current,
        total_bytes: event.total,
        ..ImageProgress::default()
    }
}
