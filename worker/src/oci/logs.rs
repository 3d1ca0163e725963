//! Log lines of a task: its containers' logs side by side.

use std::path::{Path, PathBuf};

use skep_proto::id::TaskId;
use skep_proto::v1::{LogLine, LogOptions, LogStream};
use skep_runtime::logs::{self, LogQuery};
use tokio::sync::{mpsc, watch};

use super::{Inner, failed};
use crate::executor::ExecError;

/// Lines read ahead of whoever listens.
const READ_AHEAD: usize = 64;

impl Inner {
    pub(super) async fn logs(
        &self,
        task: TaskId,
        options: LogOptions,
        sink: mpsc::Sender<LogLine>,
    ) -> Result<(), ExecError> {
        let names = self.log_names(task, &options.container);
        let mut query = LogQuery { since_ns: options.since_ns, tail: options.tail };
        if let (Some(tail), true) = (options.tail, names.len() > 1) {
            // The last lines of the task, not of each container.
            query = LogQuery { since_ns: self.tail_begins(task, &names, query, tail).await?, tail: None };
        }
        let readers = names.iter().map(|name| self.container_logs(task, name, query, options.follow, &sink));
        futures::future::try_join_all(readers).await.map(drop)
    }

    /// Containers that have or will have a log.
    fn log_names(&self, task: TaskId, only: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.layout.task(task));
        let on_disk = entries.into_iter().flatten().flatten();
        let mut names: Vec<String> = on_disk.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        if let Some(entry) = self.tasks().get(&task) {
            names.extend(entry.plans.keys().cloned());
        }
        names.sort();
        names.dedup();
        names.retain(|name| only.is_empty() || name == only);
        names
    }

    /// From what time on there are `tail` lines in all logs together.
    async fn tail_begins(&self, task: TaskId, names: &[String], query: LogQuery, tail: u64) -> Result<i64, ExecError> {
        let mut times = Vec::new();
        for name in names {
            let dir = self.layout.logs(task, name);
            let (lines, mut read) = mpsc::channel::<logs::LogLine>(READ_AHEAD);
            let gather = async {
                while let Some(line) = read.recv().await {
                    times.push(line.time_ns);
                }
            };
            let (outcome, ()) = tokio::join!(read_log(&dir, query, None, lines), gather);
            outcome?;
        }
        times.sort_unstable();
        let from = times.len().saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX));
        // Past the last line where none is asked for.
        Ok(times.get(from).copied().unwrap_or_else(|| times.last().map_or(query.since_ns, |last| last + 1)))
    }

    async fn container_logs(
        &self,
        task: TaskId,
        name: &str,
        query: LogQuery,
        follow: bool,
        sink: &mpsc::Sender<LogLine>,
    ) -> Result<(), ExecError> {
        let dir = self.layout.logs(task, name);
        let (end, over) = watch::channel(false);
        if follow {
            self.begun(task, name).await;
        }
        let container = self.container(task, name).ok();
        let ended = async {
            // Without one it has ended and is removed already.
            if let Some(container) = container {
                container.wait().await;
            }
            end.send_replace(true);
            // Kept until the reader is done with it.
            std::future::pending::<()>().await;
        };
        let (lines, mut read) = mpsc::channel::<logs::LogLine>(READ_AHEAD);
        let forward = async {
            while let Some(line) = read.recv().await {
                if sink.send(wire(task, name, line)).await.is_err() {
                    return;
                }
            }
        };
        let reading = async {
            let (outcome, ()) = tokio::join!(read_log(&dir, query, follow.then_some(over), lines), forward);
            outcome
        };
        tokio::select! {
            outcome = reading => outcome,
            () = ended => Ok(()),
            () = sink.closed() => Ok(()),
        }
    }

    /// Waits until the container was started, or its task is removed.
    async fn begun(&self, task: TaskId, name: &str) {
        loop {
            let mut changed = match self.tasks().get(&task) {
                Some(entry) if !entry.containers.contains_key(name) => entry.changed.subscribe(),
                _ => return,
            };
            // Between the look and the subscription nothing is missed: both happen under the lock.
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Reads a log that may not have been begun.
async fn read_log(
    dir: &Path,
    query: LogQuery,
    over: Option<watch::Receiver<bool>>,
    lines: mpsc::Sender<logs::LogLine>,
) -> Result<(), ExecError> {
    match logs::read(dir, query, over, lines).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.map_err(|error| failed(&format!("read the log in {}", PathBuf::from(dir).display()), error)),
    }
}

fn wire(task: TaskId, name: &str, line: logs::LogLine) -> LogLine {
    let mut out = LogLine {
        task_id: task.to_vec(),
        container: name.to_owned(),
        time_ns: line.time_ns,
        data: line.data,
        ..LogLine::default()
    };
    out.set_stream(if line.stderr { LogStream::Stderr } else { LogStream::Stdout });
    out
}
