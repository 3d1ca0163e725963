//! `skep task ls|inspect|logs`.

use clap::{Args, Subcommand};
use skep_proto::v1::{GetTaskRequest, GetTaskResponse, ListTasksRequest};

use super::context::{Context, ReadFlags};
use super::inspect::{self, InspectFlags};
use super::service::logs::{LogFlags, Target};
use super::task_table;
use crate::client::Client;
use crate::failure::Failure;
use crate::view::task::TaskView;

#[derive(Subcommand, Debug)]
pub(crate) enum TaskCommand {
    /// List the tasks of all services.
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show everything about tasks, also why one does not run.
    Inspect(InspectArgs),
    /// Print the logs of a task.
    Logs(LogsArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    flags: task_table::TaskFlags,
    #[command(flatten)]
    read: ReadFlags,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// Id, unique prefix of one, or `service.slot`.
    #[arg(required = true, value_name = "TASK")]
    tasks: Vec<String>,
    #[command(flatten)]
    flags: InspectFlags,
    #[command(flatten)]
    read: ReadFlags,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    flags: LogFlags,
    /// Id, unique prefix of one, or `service.slot`.
    #[arg(value_name = "TASK")]
    task: String,
}

impl TaskCommand {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Ls(args) => {
                let prepared = args.flags.prepare(&["id", "name", "node", "service", "desired-state", "label"])?;
                let client = context.connect_to_read(args.read).await?;
                prepared.print(&client, ListTasksRequest::default()).await
            }
            Self::Inspect(args) => {
                inspect::run(context, args.read, &args.tasks, &args.flags, async |client, reference| {
                    let answer = get(client, reference).await?;
                    Ok(TaskView::new(answer.task.unwrap_or_default(), answer.revision))
                })
                .await
            }
            Self::Logs(args) => {
                let options = args.flags.options()?;
                let client = context.connect().await?;
                let task = get(&client, &args.task).await?.task.unwrap_or_default();
                let id = task.task.unwrap_or_default().id;
                args.flags.print(&client, Target::Task(id), options).await
            }
        }
    }
}

/// Finds a task.
pub(super) async fn get(client: &Client, reference: &str) -> Result<GetTaskResponse, Failure> {
    let call = async |read| client.tasks().get(GetTaskRequest { reference: reference.to_owned(), read }).await;
    client
        .read(call)
        .await
        .map(tonic::Response::into_inner)
        .map_err(|status| Failure::from_lookup("task", reference, status))
}
