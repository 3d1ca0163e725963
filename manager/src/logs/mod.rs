//! The log broker: an operator reads the logs of tasks wherever they run. The manager asks the nodes by their sessions,
//! nodes publish lines by streams of their own, and the reader gets them together.
//!
//! | file | job |
//! |---|---|
//! | `select.rs` | which tasks, on which nodes, under which names |
//! | `streams.rs` | the lines of one request to one node, on their way |
//! | `remote.rs` | the same for a node whose session is at another manager |
//! | `merge.rs` | lines of many streams by time |
//! | `once.rs` | a reader that ends |
//! | `follow.rs` | a reader that stays |
//!
//! Nothing is kept: a reader that is slow slows the nodes down (by HTTP/2's flow control), and memory stays bounded. A
//! line counts only if its task is on the node that sent it. What cannot be read becomes a warning, never silence.

mod follow;
mod merge;
mod once;
mod remote;
mod select;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use skep_proto::id::{ServiceId, TaskId};
use skep_proto::v1::logs_server::{Logs, LogsServer};
use skep_proto::v1::{LogBatch, ReadLogsRequest};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

pub(crate) use self::streams::LogStreams;

use self::select::Selection;
use crate::control::read::no_leader;
use crate::dispatch::Dispatcher;
use crate::dispatch::reach::Reach;
use crate::store::Store;

/// Readers at a time; each may hold some megabytes.
const READERS: usize = 64;
/// Batches on their way to a reader.
const READER_QUEUE: usize = 4;
/// Tasks that can be named in a request.
const NAMED_TASKS: usize = 1_000;
/// A node that says nothing for so long is not waited for any longer.
const SILENCE: Duration = Duration::from_secs(10);

/// Reads logs for operators. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogBroker {
    dispatcher: Dispatcher,
    readers: Arc<Semaphore>,
}

/// What both kinds of readers work with.
struct Reader {
    store: Store,
    reach: Reach,
    streams: LogStreams,
    selection: Selection,
    options: skep_proto::v1::LogOptions,
    out: mpsc::Sender<Result<LogBatch, Status>>,
}

/// The reader has left.
#[derive(Debug)]
struct Left;

impl LogBroker {
    /// A broker that reaches nodes by the dispatcher's sessions, here or through other managers.
    pub(crate) fn new(dispatcher: &Dispatcher) -> Self {
        Self { dispatcher: dispatcher.clone(), readers: Arc::new(Semaphore::new(READERS)) }
    }

    /// The gRPC service, for a server with mutual TLS and for the socket file.
    pub(crate) fn service(&self) -> LogsServer<Self> {
        LogsServer::new(self.clone())
    }

    /// Checks a request: what it names must be there, so that a typing error is an error and not an empty log.
    #[allow(clippy::result_large_err)]
    fn selection(&self, request: &ReadLogsRequest) -> Result<Selection, Status> {
        let bad_id = |error| Status::invalid_argument(format!("{error}"));
        let state = self.dispatcher.store().state();
        let service = ServiceId::from_wire_opt(&request.service_id).map_err(bad_id)?;
        match service {
            Some(_) if !request.task_ids.is_empty() => {
                Err(Status::invalid_argument("name a service or tasks, not both"))
            }
            Some(id) if state.service(id).is_none() && state.tasks_of_service(id).next().is_none() => {
                Err(Status::not_found(format!("no service {id}")))
            }
            Some(id) => Ok(Selection::Service(id)),
            None if request.task_ids.is_empty() => Err(Status::invalid_argument("name a service or tasks")),
            None if request.task_ids.len() > NAMED_TASKS => {
                Err(Status::invalid_argument(format!("at most {NAMED_TASKS} tasks can be named")))
            }
            None => {
                let ids: Vec<TaskId> = request
                    .task_ids
                    .iter()
                    .map(|id| TaskId::from_wire(id))
                    .collect::<Result<_, _>>()
                    .map_err(bad_id)?;
                match ids.iter().find(|id| state.task(**id).is_none()) {
                    Some(missing) => Err(Status::not_found(format!("no task {missing}"))),
                    None => Ok(Selection::Tasks(ids)),
                }
            }
        }
    }
}

#[tonic::async_trait]
impl Logs for LogBroker {
    type ReadStream = ReceiverStream<Result<LogBatch, Status>>;

    async fn read(&self, request: Request<ReadLogsRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let selection = self.selection(&request)?;
        let permit = Arc::clone(&self.readers)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted(format!("{READERS} readers read logs already: try again later")))?;
        let (out, batches) = mpsc::channel(READER_QUEUE);
        let options = request.options.unwrap_or_default();
        let follow = options.follow;
        let reader = Reader {
            store: self.dispatcher.store().clone(),
            reach: self.dispatcher.reach().clone(),
            streams: self.dispatcher.log_streams().clone(),
            selection,
            options,
            out: out.clone(),
        };
        tokio::spawn(async move {
            let _permit = permit;
            // Whoever leaves takes the whole reader along: its streams are closed and the nodes told.
            let store = reader.store.clone();
            let read = async { if follow { follow::run(reader).await } else { once::run(reader).await } };
            tokio::select! {
                () = out.closed() => {}
                _ = read => {}
                () = store.peers().forlorn() => {
                    // Nobody may listen any more.
                    let _ = out.send(Err(no_leader())).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(batches)))
    }
}

impl Reader {
    async fn send(&self, lines: Vec<skep_proto::v1::LogLine>, warnings: Vec<String>) -> Result<(), Left> {
        if lines.is_empty() && warnings.is_empty() {
            return Ok(());
        }
        self.out.send(Ok(LogBatch { lines, warnings })).await.map_err(|_| Left)
    }

    async fn warn(&self, warning: String) -> Result<(), Left> {
        self.send(Vec::new(), vec![warning]).await
    }
}
