//! Answers the managers' requests for log lines: reads them from the executor, sends them by `PublishLogs`.
//!
//! Owned by the agent. Each request is one tokio task; on cancel it is aborted, on error it says so in a warning and ends.
//! Log lines travel on a connection of their own, so that they never stand in front of a heartbeat.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use skep_proto::id::{NodeId, TaskId};
use skep_proto::v1::dispatch_client::DispatchClient;
use skep_proto::v1::{LogChunk, LogLine, LogOptions, LogRequest};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::executor::{Executor, chain};
use crate::session::Connector;

/// Lines read ahead of the network.
const READ_AHEAD: usize = 256;
/// Lines of a chunk at most.
const CHUNK_LINES: usize = 256;
/// Bytes of a chunk after which it goes out; far below the size of a message (4 MiB), as a line has 16 KiB at most.
const CHUNK_BYTES: usize = 256 << 10;

/// The open log streams of a session.
pub(crate) struct LogStreams {
    node_id: NodeId,
    executor: Arc<dyn Executor>,
    connector: Arc<dyn Connector>,
    /// The connection for lines, to the manager of that address.
    bulk: Arc<Mutex<Option<(String, Channel)>>>,
    running: BTreeMap<u64, AbortHandle>,
}

impl LogStreams {
    pub(crate) fn new(node_id: NodeId, executor: Arc<dyn Executor>, connector: Arc<dyn Connector>) -> Self {
        Self { node_id, executor, connector, bulk: Arc::default(), running: BTreeMap::new() }
    }

    /// Begins to answer; `manager` is the address that asked. `known` tells which tasks have logs here.
    pub(crate) fn begin(&mut self, request: LogRequest, manager: String, known: impl Fn(TaskId) -> bool) {
        let mut warnings = Vec::new();
        let mut tasks = Vec::new();
        for id in &request.task_ids {
            match TaskId::from_wire(id) {
                Ok(id) if known(id) => tasks.push(id),
                Ok(id) => warnings.push(format!("task {} is not on this node", id.short())),
                Err(error) => warnings.push(error.to_string()),
            }
        }
        self.running.retain(|_, handle| !handle.is_finished());
        let publisher = Publisher {
            node_id: self.node_id,
            executor: Arc::clone(&self.executor),
            connector: Arc::clone(&self.connector),
            bulk: Arc::clone(&self.bulk),
            manager,
            stream_id: request.stream_id,
        };
        let options = request.options.unwrap_or_default();
        let handle = tokio::spawn(publisher.run(tasks, options, warnings)).abort_handle();
        if let Some(before) = self.running.insert(request.stream_id, handle) {
            before.abort();
        }
    }

    /// Ends one stream.
    pub(crate) fn cancel(&mut self, stream_id: u64) {
        if let Some(handle) = self.running.remove(&stream_id) {
            handle.abort();
        }
    }

    /// Ends all: the session is gone, and nobody listens.
    pub(crate) fn cancel_all(&mut self) {
        for (_, handle) in std::mem::take(&mut self.running) {
            handle.abort();
        }
        *self.bulk.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Drop for LogStreams {
    fn drop(&mut self) {
        self.cancel_all();
    }
}

/// One answer.
struct Publisher {
    node_id: NodeId,
    executor: Arc<dyn Executor>,
    connector: Arc<dyn Connector>,
    bulk: Arc<Mutex<Option<(String, Channel)>>>,
    manager: String,
    stream_id: u64,
}

impl Publisher {
    async fn run(self, tasks: Vec<TaskId>, options: LogOptions, warnings: Vec<String>) {
        let channel = match self.channel().await {
            Ok(channel) => channel,
            Err(error) => {
                tracing::warn!(manager = %self.manager, %error, "cannot send logs");
                return;
            }
        };
        // Two chunks ahead keep the connection busy; more would only age.
        let (chunks, queue) = mpsc::channel(2);
        let publish = async {
            let mut client = DispatchClient::new(channel);
            if let Err(status) = client.publish_logs(ReceiverStream::new(queue)).await {
                tracing::debug!(error = status.message(), "the manager ended a log stream");
            }
        };
        tokio::join!(publish, self.gather(tasks, options, warnings, chunks));
    }

    /// The connection for lines; made at the first need.
    async fn channel(&self) -> Result<Channel, String> {
        let cached = self.bulk.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((addr, channel)) = cached
            && addr == self.manager
        {
            return Ok(channel);
        }
        let channel = self.connector.manager(&self.manager).await.map_err(|error| chain(error.as_ref()))?;
        *self.bulk.lock().unwrap_or_else(PoisonError::into_inner) = Some((self.manager.clone(), channel.clone()));
        Ok(channel)
    }

    /// Reads all tasks side by side and sends chunks until all have ended.
    async fn gather(
        &self,
        tasks: Vec<TaskId>,
        options: LogOptions,
        warnings: Vec<String>,
        chunks: mpsc::Sender<LogChunk>,
    ) {
        let first = LogChunk { stream_id: self.stream_id, lines: Vec::new(), warnings };
        if chunks.send(first).await.is_err() {
            return;
        }
        let (lines, mut read) = mpsc::channel::<LogLine>(READ_AHEAD);
        let mut readers = JoinSet::new();
        for task in tasks {
            let (executor, options, lines) = (Arc::clone(&self.executor), options.clone(), lines.clone());
            readers.spawn(async move {
                let outcome = executor.logs(task, options, lines).await;
                outcome.map_err(|error| format!("task {}: {}", task.short(), error.sentence()))
            });
        }
        drop(lines);
        let mut buffer = Vec::with_capacity(CHUNK_LINES);
        while let Some(line) = read.recv().await {
            let mut bytes = line.data.len();
            buffer.push(line);
            while bytes < CHUNK_BYTES && buffer.len() < CHUNK_LINES {
                let Ok(line) = read.try_recv() else { break };
                bytes += line.data.len();
                buffer.push(line);
            }
            let node_id = self.node_id.to_vec();
            let lines = buffer.drain(..).map(|line| LogLine { node_id: node_id.clone(), ..line }).collect();
            let chunk = LogChunk { stream_id: 0, lines, warnings: Vec::new() };
            if chunks.send(chunk).await.is_err() {
                return;
            }
        }
        let mut warnings = Vec::new();
        while let Some(outcome) = readers.join_next().await {
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(warning)) => warnings.push(warning),
                Err(error) => warnings.push(error.to_string()),
            }
        }
        if !warnings.is_empty() {
            let _ = chunks.send(LogChunk { stream_id: 0, lines: Vec::new(), warnings }).await;
        }
    }
}
