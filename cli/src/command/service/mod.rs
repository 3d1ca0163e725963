//! `skep service …`: one file per verb; `progress.rs` (pure) and `converge.rs` (acts) follow a service until it runs.

mod converge;
mod create;
mod edit;
mod flags;
mod history;
mod list;
pub(crate) mod logs;
mod name;
mod progress;
mod remove;
mod rollback;
mod scale;
mod settings;
mod spec;
mod update;

use clap::{Args, Subcommand};
use skep_proto::v1::{GetServiceRequest, ListTasksRequest, Network, ServiceSummary};

use super::context::{Context, ReadFlags};
use super::inspect::{self, InspectFlags};
use super::network;
use super::outcome::Outcome;
use super::task_table;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, time};
use crate::view::service::ServiceView;
use crate::view::{self, pretty_service};

pub(super) use flags::WaitFlags;
use progress::Goal;

#[derive(Subcommand, Debug)]
pub(crate) enum ServiceCommand {
    /// Run an image as a service.
    Create(Box<create::CreateArgs>),
    /// Change a service, and roll the change out.
    Update(Box<update::UpdateArgs>),
    /// Go back to an earlier revision of a service.
    Rollback(rollback::RollbackArgs),
    /// List the revisions of a service, newest first.
    History(history::HistoryArgs),
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
    /// Print for a person.
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    #[command(flatten)]
    read: ReadFlags,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct PsArgs {
    /// Name, id, or unique prefix of an id.
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    flags: task_table::TaskFlags,
    #[command(flatten)]
    read: ReadFlags,
}

impl ServiceCommand {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create(args) => create::run(context, args).await,
            Self::Update(args) => update::run(context, args).await,
            Self::Rollback(args) => rollback::run(context, args).await,
            Self::History(args) => history::run(context, args).await,
            Self::Ls(args) => list::run(context, args).await,
            Self::Inspect(args) if args.pretty => {
                inspect::pretty(context, args.read, &args.services, async |client, reference| {
                    let summary = get(client, reference).await?;
                    let networks = networks(client, &summary).await?;
                    Ok(pretty_service::text(&summary, &networks, time::now_ms()))
                })
                .await
            }
            Self::Inspect(args) => {
                inspect::run(context, args.read, &args.services, &args.flags, async |client, reference| {
                    let summary = get(client, reference).await?;
                    let networks = networks(client, &summary).await?;
                    Ok(ServiceView::new(summary, &networks))
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

/// Waits until the roll-outs under way of these services are over, one after the other: they go on side by side. Says which
/// one it waits for.
pub(super) async fn wait_for_rollouts(
    client: &Client,
    service_ids: &[Vec<u8>],
    version: u64,
    quiet: bool,
) -> Result<(), Failure> {
    let mut outcome = Outcome::default();
    for id in service_ids {
        let Some(service) = outcome.take(get(client, &view::id(id)).await)?.and_then(|summary| summary.service) else {
            continue;
        };
        if !quiet && service_ids.len() > 1 {
            output::note(service.spec.as_ref().map_or("", |spec| &spec.name));
        }
        let goal = Goal::Rollout { revision: service.revision, is_rollback: false };
        outcome.take(converge::wait(client, id, version, goal, quiet).await)?;
    }
    outcome.finish()
}

/// Finds a service.
async fn get(client: &Client, reference: &str) -> Result<ServiceSummary, Failure> {
    let call = async |read| client.services().get(GetServiceRequest { reference: reference.to_owned(), read }).await;
    let answer = client.read(call).await.map_err(|status| Failure::from_lookup("service", reference, status))?;
    Ok(answer.into_inner().service.unwrap_or_default())
}

/// The networks, where the service has addresses on any.
async fn networks(client: &Client, summary: &ServiceSummary) -> Result<Vec<Network>, Failure> {
    match &summary.service {
        Some(service) if !service.virtual_addresses.is_empty() => network::all(client).await,
        _ => Ok(Vec::new()),
    }
}

async fn ps(context: &Context, args: &PsArgs) -> Result<(), Failure> {
    let prepared = args.flags.prepare(&["id", "name", "node", "desired-state"])?;
    let client = context.connect_to_read(args.read).await?;
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
