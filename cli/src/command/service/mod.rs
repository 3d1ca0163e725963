//! `skep service …`: one file per verb; `progress.rs` (pure) and `converge.rs` (acts) follow a service until it runs.

mod converge;
mod create;
mod list;
pub(crate) mod logs;
mod name;
mod progress;
mod remove;
mod scale;
mod spec;

use clap::{Args, Subcommand};
use skep_proto::v1::{GetServiceRequest, ListTasksRequest, ServiceSummary};

use super::context::Context;
use super::inspect::{self, InspectFlags};
use super::outcome::Outcome;
use super::task_table;
use crate::client::Client;
use crate::failure::Failure;
use crate::view::service::ServiceView;

#[derive(Subcommand, Debug)]
pub(crate) enum ServiceCommand {
    /// Run an image as a service.
    Create(Box<create::CreateArgs>),
    /// List the services.
    #[command(visible_alias = "list")]
    Ls(list::LsArgs),
    /// Show everything about services.
    Inspect(InspectArgs),
    /// List the tasks of services, also ended ones.
    Ps(PsArgs),
    /// Set the number of replicas.
    Scale(scale::ScaleArgs),
    /// Print the logs of a service or a task.
    Logs(logs::LogsArgs),
    /// Remove services.
    #[command(visible_alias = "remove")]
    Rm(remove::RmArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// Name, id, or unique prefix of an id.
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    flags: InspectFlags,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct PsArgs {
    /// Name, id, or unique prefix of an id.
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    flags: task_table::TaskFlags,
}

impl ServiceCommand {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create(args) => create::run(context, args).await,
            Self::Ls(args) => list::run(context, args).await,
            Self::Inspect(args) => {
                inspect::run(context, &args.services, &args.flags, async |client, reference| {
                    get(client, reference).await.map(ServiceView::from)
                })
                .await
            }
            Self::Ps(args) => ps(context, args).await,
            Self::Scale(args) => scale::run(context, args).await,
            Self::Logs(args) => logs::run(context, args).await,
            Self::Rm(args) => remove::run(context, args).await,
        }
    }
}

/// Finds a service.
async fn get(client: &Client, reference: &str) -> Result<ServiceSummary, Failure> {
    let request = GetServiceRequest { reference: reference.to_owned(), read: None };
    let answer =
        client.services().get(request).await.map_err(|status| Failure::from_lookup("service", reference, status))?;
    Ok(answer.into_inner().service.unwrap_or_default())
}

async fn ps(context: &Context, args: &PsArgs) -> Result<(), Failure> {
    let prepared = args.flags.prepare(&["id", "name", "node", "desired-state"])?;
    let client = context.connect().await?;
    let mut outcome = Outcome::default();
    let mut service_ids = Vec::new();
    for reference in &args.services {
        let found = outcome.take(get(&client, reference).await)?;
        service_ids.extend(found.and_then(|summary| summary.service).map(|service| service.id));
    }
    if !service_ids.is_empty() {
        let request = ListTasksRequest { service_ids, ..ListTasksRequest::default() };
        prepared.print(&client, request).await?;
    }
    outcome.finish()
}
