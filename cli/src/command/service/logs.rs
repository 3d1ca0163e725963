//! `skep service logs` and `skep task logs`.

use std::collections::HashMap;
use std::io::Write as _;

use clap::Args;
use skep_proto::v1::{LogBatch, LogLine, LogOptions, LogStream, ReadLogsRequest, ServiceSummary};

use super::get;
use crate::client::Client;
use crate::command::context::Context;
use crate::command::{node, task};
use crate::failure::Failure;
use crate::output::{self, time};
use crate::parse::since;
use crate::view;

#[derive(Args, Clone, Debug)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    flags: LogFlags,
    /// Service by name, id or unique prefix of an id; or a task.
    #[arg(value_name = "SERVICE|TASK")]
    target: String,
}

/// What to read and how to print it.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct LogFlags {
    /// Go on with new lines; new tasks of the service join in.
    #[arg(short, long)]
    follow: bool,
    /// Last lines of each task: a number, or `all`.
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", allow_hyphen_values = true)]
    tail: String,
    /// Only lines since a moment (2026-01-02T15:04:05Z; UTC where it names no zone) or in a span of time (42m).
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<String>,
    /// Print the time of each line.
    #[arg(short, long)]
    timestamps: bool,
    /// Do not shorten ids.
    #[arg(long)]
    no_trunc: bool,
    /// Print the lines alone.
    #[arg(long)]
    raw: bool,
    /// Leave out the ids of tasks.
    #[arg(long)]
    no_task_ids: bool,
    /// Print the ids of nodes in place of their names.
    #[arg(long)]
    no_resolve: bool,
    /// Container in tasks that have several [default: all].
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    container: String,
}

/// Whose logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Service(Vec<u8>),
    Task(Vec<u8>),
}

pub(crate) async fn run(context: &Context, args: &LogsArgs) -> Result<(), Failure> {
    let options = args.flags.options()?;
    let client = context.connect().await?;
    let target = match get(&client, &args.target).await {
        Ok(summary) => {
            args.flags.check_container(&args.target, &summary)?;
            Target::Service(summary.service.unwrap_or_default().id)
        }
        Err(Failure::Failed(no_service)) => match task::get(&client, &args.target).await {
            Ok(answer) => {
                let task = answer.task.and_then(|summary| summary.task);
                Target::Task(task.unwrap_or_default().id)
            }
            Err(Failure::Failed(message)) if message.starts_with("no such task") => {
                return Err(Failure::Failed(no_service.replace("no such service", "no such service or task")));
            }
            Err(failure) => return Err(failure),
        },
        Err(failure) => return Err(failure),
    };
    args.flags.print(&client, target, options).await
}

impl LogFlags {
    /// The options on the wire.
    pub(crate) fn options(&self) -> Result<LogOptions, Failure> {
        let since_ns = match &self.since {
            Some(text) => since::parse_ns(text, time::now_ms()).map_err(|error| error.of("--since"))?,
            None => 0,
        };
        Ok(LogOptions {
            follow: self.follow,
            tail: since::tail(&self.tail).map_err(|error| error.of("--tail"))?,
            since_ns,
            container: self.container.clone(),
        })
    }

    /// A name that no container of the service has would give an empty log, which looks like a quiet container.
    fn check_container(&self, service: &str, summary: &ServiceSummary) -> Result<(), Failure> {
        let template = summary.revision.as_ref().and_then(|revision| revision.template.as_ref());
        let names: Vec<&str> = template
            .map(|template| template.containers.iter().map(|container| container.name.as_str()).collect())
            .unwrap_or_default();
        if self.container.is_empty() || names.is_empty() || names.contains(&self.container.as_str()) {
            return Ok(());
        }
        let (container, names) = (&self.container, names.join(", "));
        Err(Failure::Failed(format!("the tasks of service {service} have no container {container}; they have {names}")))
    }

    /// Reads and prints until the end, or until Ctrl-C, which is how one stops following.
    pub(crate) async fn print(&self, client: &Client, target: Target, options: LogOptions) -> Result<(), Failure> {
        let mut printer = Printer { flags: self, hostnames: HashMap::new(), width: 0 };
        if !self.raw && !self.no_resolve {
            printer.learn_hostnames(client).await?;
        }
        let request = match target {
            Target::Service(service_id) => {
                ReadLogsRequest { service_id, options: Some(options), ..ReadLogsRequest::default() }
            }
            Target::Task(id) => {
                ReadLogsRequest { task_ids: vec![id], options: Some(options), ..ReadLogsRequest::default() }
            }
        };
        let call = async |_| client.logs().read(request.clone()).await;
        let mut batches = client.read(call).await?.into_inner();
        loop {
            let batch = tokio::select! {
                batch = batches.message() => batch?,
                _ = tokio::signal::ctrl_c() => return Err(Failure::Reported(crate::exit::Exit::Interrupted)),
            };
            let Some(batch) = batch else {
                return Ok(());
            };
            if printer.needs_names(&batch) {
                printer.learn_hostnames(client).await?;
            }
            printer.print(&batch)?;
        }
    }
}

/// Prints lines with their prefix.
struct Printer<'a> {
    flags: &'a LogFlags,
    hostnames: HashMap<Vec<u8>, String>,
    /// Widest prefix so far; later lines align with it.
    width: usize,
}

impl Printer<'_> {
    async fn learn_hostnames(&mut self, client: &Client) -> Result<(), Failure> {
        for node in node::all(client).await? {
            let hostname = node.description.unwrap_or_default().hostname;
            self.hostnames.insert(node.id, hostname);
        }
        Ok(())
    }

    fn needs_names(&self, batch: &LogBatch) -> bool {
        !self.flags.raw
            && !self.flags.no_resolve
            && batch.lines.iter().any(|line| !self.hostnames.contains_key(&line.node_id))
    }

    fn print(&mut self, batch: &LogBatch) -> Result<(), Failure> {
        output::warnings(&batch.warnings);
        // In order, also across the two streams: on a terminal both end up in the same place.
        for lines in batch.lines.chunk_by(|a, b| a.stream() == b.stream()) {
            let mut bytes = Vec::new();
            for line in lines {
                self.line(line, &mut bytes);
            }
            match lines.first().map(LogLine::stream) {
                // The containers' standard error comes out as ours, as with Docker.
                Some(LogStream::Stderr) => {
                    let _ = std::io::stderr().lock().write_all(&bytes);
                }
                Some(LogStream::Stdout) | None => output::data(bytes)?,
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &LogLine, out: &mut Vec<u8>) {
        if self.flags.timestamps {
            out.extend_from_slice(time::rfc3339_ns(line.time_ns).as_bytes());
            out.push(b' ');
        }
        if !self.flags.raw {
            let prefix = self.prefix(line);
            self.width = self.width.max(prefix.chars().count());
            out.extend_from_slice(prefix.as_bytes());
            out.extend(std::iter::repeat_n(b' ', self.width - prefix.chars().count()));
            out.extend_from_slice(b"    | ");
        }
        out.extend_from_slice(&line.data);
        if line.data.last() != Some(&b'\n') {
            out.push(b'\n');
        }
    }

    /// `web.1.3kd9…@host1`
    fn prefix(&self, line: &LogLine) -> String {
        let shorten = |id: &[u8]| if self.flags.no_trunc { view::id(id) } else { view::short_id(id) };
        let node = match self.hostnames.get(&line.node_id) {
            Some(hostname) if !self.flags.no_resolve && !hostname.is_empty() => hostname.clone(),
            _ => shorten(&line.node_id),
        };
        let id = if self.flags.no_task_ids { String::new() } else { format!(".{}", shorten(&line.task_id)) };
        format!("{}{id}@{node}", line.task_name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::{ContainerSpec, Revision, TaskTemplate};

    use super::*;

    fn line(data: &str) -> LogLine {
        LogLine {
            task_id: vec![0; 16],
            node_id: vec![1; 16],
            data: data.as_bytes().to_vec(),
            task_name: "web.1".to_owned(),
            time_ns: 1_000_000_000,
            ..LogLine::default()
        }
    }

    fn printed(flags: &LogFlags, lines: &[LogLine]) -> String {
        let mut printer = Printer { flags, hostnames: HashMap::from([(vec![1; 16], "host1".to_owned())]), width: 0 };
        let mut out = Vec::new();
        for line in lines {
            printer.line(line, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn prefixes() {
        let flags = LogFlags::default();
        assert_eq!(printed(&flags, &[line("hi\n")]), "web.1.000000000000@host1    | hi\n");
        let flags = LogFlags { no_task_ids: true, timestamps: true, ..LogFlags::default() };
        assert_eq!(printed(&flags, &[line("hi")]), "1970-01-01T00:00:01.000000000Z web.1@host1    | hi\n");
        let flags = LogFlags { raw: true, ..LogFlags::default() };
        assert_eq!(printed(&flags, &[line("hi\n")]), "hi\n");
        let flags = LogFlags { no_resolve: true, no_trunc: true, ..LogFlags::default() };
        let text = printed(&flags, &[line("hi\n")]);
        assert_eq!(text.split('@').next().unwrap().len(), "web.1.".len() + 25);
        assert!(!text.contains("host1"));
    }

    #[test]
    fn a_container_that_no_task_has_is_refused() {
        let container = ContainerSpec { name: "main".to_owned(), ..ContainerSpec::default() };
        let template = TaskTemplate { containers: vec![container], ..TaskTemplate::default() };
        let revision = Some(Revision { template: Some(template), ..Revision::default() });
        let summary = ServiceSummary { revision, ..ServiceSummary::default() };
        let named = |name: &str| LogFlags { container: name.to_owned(), ..LogFlags::default() };
        assert!(named("").check_container("web", &summary).is_ok());
        assert!(named("main").check_container("web", &summary).is_ok());
        assert!(matches!(named("x").check_container("web", &summary), Err(Failure::Failed(_))));
    }

    #[test]
    fn later_lines_align() {
        let flags = LogFlags { no_task_ids: true, ..LogFlags::default() };
        let mut long = line("a\n");
        long.task_name = "web.10".to_owned();
        assert_eq!(printed(&flags, &[long, line("b\n")]), "web.10@host1    | a\nweb.1@host1     | b\n");
    }
}
