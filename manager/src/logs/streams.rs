//! Requests for lines that are under way: a reader opens one for one node and some of its tasks, the node answers by a
//! PublishLogs stream that names it. Used by readers, and by the dispatcher's service for the nodes' side. A node whose
//! session is at another manager is asked through that one (`remote.rs`); readers see no difference.
//!
//! Pieces go from stream to reader through a short channel; a full one stops the reading of the stream, and HTTP/2's
//! flow control stops the node.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use prost::Message as _;
use rand::RngCore as _;
use rand::rngs::OsRng;
use skep_proto::id::{NodeId, TaskId};
use skep_proto::v1::{LogCancel, LogChunk, LogLine, LogOptions, LogRequest, session_down};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Status;

use super::remote;
use crate::dispatch::reach::{Reach, Route};
use crate::dispatch::sessions::NotConnected;

/// The first piece of a stream must come within this.
const FIRST_PIECE_WITHIN: Duration = Duration::from_secs(10);
/// Pieces between a stream and its reader.
const PIECES: usize = 2;
/// Bytes of one piece.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes of one warning; the rest is cut off.
const WARNING_BYTES: usize = 1 << 10;

/// All requests under way. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogStreams {
    reach: Reach,
    table: Arc<Mutex<HashMap<u64, Waiting>>>,
}

/// A request that no stream has answered yet.
struct Waiting {
    node: NodeId,
    tasks: HashSet<TaskId>,
    pieces: mpsc::Sender<Piece>,
}

/// What a stream brings.
#[derive(Debug, PartialEq)]
pub(super) enum Piece {
    /// Lines of the request's tasks, with the node filled in.
    Lines { lines: Vec<LogLine>, warnings: Vec<String> },
    /// The node has said all there is, or has aborted the stream: tonic shows both to a server as an end.
    Done,
}

/// A request to a node. Dropping it before [`Piece::Done`] tells the node to stop.
pub(super) struct OpenRequest {
    pub(super) id: u64,
    pub(super) node: NodeId,
    /// The session that the request went by.
    pub(super) route: Route,
    /// It was answered to the end.
    pub(super) done: bool,
    streams: LogStreams,
    /// Asks another manager.
    _fetch: Option<Fetch>,
}

/// The task that asks another manager; ends when this is dropped.
struct Fetch(tokio::task::AbortHandle);

impl Drop for Fetch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl LogStreams {
    pub(crate) fn new(reach: Reach) -> Self {
        Self { reach, table: Arc::default() }
    }

    /// Asks a node for lines of some of its tasks, wherever its session is. The channel ends without [`Piece::Done`] if the
    /// answer breaks off. Call it within a tokio runtime.
    pub(super) fn open(
        &self,
        node: NodeId,
        tasks: &[TaskId],
        options: LogOptions,
    ) -> Result<(OpenRequest, mpsc::Receiver<Piece>), NotConnected> {
        let home = match self.reach.route(node).ok_or(NotConnected)? {
            Route::Here(_) => return self.open_here(node, tasks, options),
            Route::There(home) => home,
        };
        let channel = self.reach.manager(home.manager).ok_or(NotConnected)?;
        let (id, sender, pieces) = self.wait(node, tasks);
        let streams = self.clone();
        let answered = move || drop(streams.lock().remove(&id));
        let fetch = tokio::spawn(remote::fetch(channel, (node, tasks.to_vec(), options), sender, answered));
        let request = OpenRequest {
            id,
            node,
            route: Route::There(home),
            done: false,
            streams: self.clone(),
            _fetch: Some(Fetch(fetch.abort_handle())),
        };
        Ok((request, pieces))
    }

    /// Notes a request that is to be answered.
    fn wait(&self, node: NodeId, tasks: &[TaskId]) -> (u64, mpsc::Sender<Piece>, mpsc::Receiver<Piece>) {
        let (sender, pieces) = mpsc::channel(PIECES);
        let waiting = Waiting { node, tasks: tasks.iter().copied().collect(), pieces: sender.clone() };
        // Random, so that an answer to another manager's request does not fit by accident.
        let id = OsRng.next_u64();
        self.lock().insert(id, waiting);
        (id, sender, pieces)
    }

    /// Asks a node that has its session here.
    pub(super) fn open_here(
        &self,
        node: NodeId,
        tasks: &[TaskId],
        options: LogOptions,
    ) -> Result<(OpenRequest, mpsc::Receiver<Piece>), NotConnected> {
        let (id, _, pieces) = self.wait(node, tasks);
        let task_ids = tasks.iter().map(|task| task.to_vec()).collect();
        let request = LogRequest { stream_id: id, task_ids, options: Some(options) };
        match self.reach.sessions().send(node, session_down::Message::LogRequest(request)) {
            Ok(connection) => {
                let (streams, route) = (self.clone(), Route::Here(connection));
                Ok((OpenRequest { id, node, route, done: false, streams, _fetch: None }, pieces))
            }
            Err(NotConnected) => {
                self.lock().remove(&id);
                Err(NotConnected)
            }
        }
    }

    /// Whether a stream has answered the request.
    pub(super) fn is_answered(&self, id: u64) -> bool {
        !self.lock().contains_key(&id)
    }

    /// Hands a node's stream on to the reader who asked for it. Returns when the stream has ended; an error tells the
    /// node to stop.
    pub(crate) async fn publish(
        &self,
        node: NodeId,
        mut chunks: impl Stream<Item = Result<LogChunk, Status>> + Unpin,
    ) -> Result<(), Status> {
        let first = timeout(FIRST_PIECE_WITHIN, chunks.next()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("the log stream did not begin in time"))?;
        let Some(first) = first else { return Ok(()) };
        let mut chunk = first?;
        let Waiting { tasks, pieces, .. } = self.claim(node, chunk.stream_id)?;
        loop {
            let piece = checked(node, &tasks, chunk)?;
            pieces.send(piece).await.map_err(|_| left())?;
            let next = tokio::select! {
                next = chunks.next() => next,
                () = pieces.closed() => return Err(left()),
            };
            match next {
                Some(next) => chunk = next?,
                None => return pieces.send(Piece::Done).await.map_err(|_| left()),
            }
        }
    }

    /// A request is answered once, by the node that it went to.
    #[allow(clippy::result_large_err)]
    fn claim(&self, node: NodeId, id: u64) -> Result<Waiting, Status> {
        let mut table = self.lock();
        match table.get(&id) {
            Some(waiting) if waiting.node == node => {}
            Some(_) | None => return Err(left()),
        }
        table.remove(&id).ok_or_else(left)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenRequest {
    /// Whether an end is the node's word, and not its session's end. Another manager has judged that already.
    pub(super) fn is_current(&self) -> bool {
        match self.route {
            Route::Here(connection) => self.streams.reach.sessions().connection(self.node) == Some(connection),
            Route::There(_) => true,
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.streams.lock().remove(&self.id);
        if !self.done && matches!(self.route, Route::Here(_)) {
            let cancel = LogCancel { stream_id: self.id };
            // A node without a session has nothing to stop; if it has too much to read, its stream fails anyway.
            let _ = self.streams.reach.sessions().send(self.node, session_down::Message::LogCancel(cancel));
        }
    }
}

fn left() -> Status {
    Status::cancelled("nobody reads this log stream")
}

/// A chunk without the lines that the node has no business to send.
#[allow(clippy::result_large_err)]
pub(super) fn checked(node: NodeId, tasks: &HashSet<TaskId>, chunk: LogChunk) -> Result<Piece, Status> {
    let bytes = chunk.encoded_len();
    if bytes > PIECE_BYTES {
        return Err(Status::invalid_argument(format!("a log chunk has {bytes} bytes, {PIECE_BYTES} are allowed")));
    }
    let own = |line: &LogLine| TaskId::from_wire(&line.task_id).is_ok_and(|task| tasks.contains(&task));
    let mut lines = chunk.lines;
    lines.retain(own);
    for line in &mut lines {
        line.node_id = node.to_vec();
        line.task_name = String::new();
    }
    let mut warnings = chunk.warnings;
    for warning in &mut warnings {
        warning.truncate(warning.floor_char_boundary(WARNING_BYTES));
    }
    Ok(Piece::Lines { lines, warnings })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::stream;
    use skep_proto::v1::SessionDown;

    use super::*;
    use crate::dispatch::Alone;
    use crate::dispatch::homes::Registered;
    use crate::dispatch::sessions::{Down, Sessions};

    const NODE: NodeId = NodeId::new(1);
    const TASK: TaskId = TaskId::new(5);

    fn connected() -> (LogStreams, mpsc::Receiver<Down>) {
        let sessions = Sessions::new();
        let (urgent, down) = mpsc::channel(8);
        let registered = Registered { version: 1, at: skep_proto::time::UnixMs::ZERO };
        sessions.begin(NODE, registered, None, urgent);
        (LogStreams::new(Reach::new(NodeId::new(9), sessions, Arc::new(Alone))), down)
    }

    fn chunk(stream_id: u64, tasks: &[TaskId]) -> LogChunk {
        let line = |task: &TaskId| LogLine {
            task_id: task.to_vec(),
            node_id: NodeId::new(66).to_vec(),
            task_name: "forged".into(),
            ..LogLine::default()
        };
        LogChunk { stream_id, lines: tasks.iter().map(line).collect(), warnings: Vec::new() }
    }

    fn told(down: &mut mpsc::Receiver<Down>) -> session_down::Message {
        let SessionDown { message } = down.try_recv().unwrap().unwrap();
        message.unwrap()
    }

    #[tokio::test]
    async fn a_request_is_answered_by_its_node_with_its_tasks_only() {
        let (streams, mut down) = connected();
        let (open, mut pieces) = streams.open(NODE, &[TASK], LogOptions::default()).unwrap();
        let session_down::Message::LogRequest(request) = told(&mut down) else { panic!("no request") };
        assert_eq!((request.stream_id, request.task_ids), (open.id, vec![TASK.to_vec()]));

        let forged = stream::iter([Ok(chunk(open.id, &[TASK]))]);
        let refused = streams.publish(NodeId::new(2), forged).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Cancelled);
        assert!(!streams.is_answered(open.id), "another node cannot take the request away");

        let chunks = stream::iter([Ok(chunk(open.id, &[TASK, TaskId::new(6)])), Ok(chunk(0, &[TASK]))]);
        let publish = streams.publish(NODE, chunks);
        let read = async {
            let mut lines = Vec::new();
            loop {
                match pieces.recv().await.unwrap() {
                    Piece::Lines { lines: more, .. } => lines.extend(more),
                    Piece::Done => return lines,
                }
            }
        };
        let (published, lines) = tokio::join!(publish, read);
        published.unwrap();
        assert_eq!(lines.len(), 2, "the other task's line is left out");
        assert!(lines.iter().all(|line| line.node_id == NODE.to_vec() && line.task_name.is_empty()));
        let again = streams.publish(NODE, stream::iter([Ok(chunk(open.id, &[TASK]))])).await;
        assert!(again.is_err(), "a request is answered once");
    }

    #[tokio::test]
    async fn a_reader_that_leaves_stops_the_node() {
        let (streams, mut down) = connected();
        let (open, pieces) = streams.open(NODE, &[TASK], LogOptions::default()).unwrap();
        told(&mut down);
        let id = open.id;
        let endless = stream::iter([Ok(chunk(id, &[TASK]))]).chain(stream::pending());
        let publish = streams.publish(NODE, Box::pin(endless));
        let (published, ()) = tokio::join!(publish, async {
            tokio::task::yield_now().await;
            drop((open, pieces));
        });
        assert_eq!(published.unwrap_err().code(), tonic::Code::Cancelled);
        assert_eq!(told(&mut down), session_down::Message::LogCancel(LogCancel { stream_id: id }));
        assert!(streams.lock().is_empty());
    }

    #[tokio::test]
    async fn a_node_without_a_session_cannot_be_asked() {
        let (streams, _down) = connected();
        assert!(streams.open(NodeId::new(2), &[TASK], LogOptions::default()).is_err());
        assert!(streams.lock().is_empty());
    }

    #[test]
    fn a_chunk_has_a_size() {
        let mut large = chunk(1, &[TASK]);
        large.lines[0].data = vec![0; PIECE_BYTES];
        let refused = checked(NODE, &HashSet::from([TASK]), large).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }
}
