//! `skep secret …` and `skep config …`: the same commands for two kinds of objects. `api.rs` has the calls, in which alone
//! they differ.

mod api;
mod create;
mod history;
mod list;
mod rotate;

use clap::{Args, Subcommand};

use self::api::Kind;
use super::context::Context;
use super::inspect;
use super::listing::LsArgs;
use super::outcome::remove_each;
use crate::failure::Failure;
use crate::view::{self, parcel::ParcelView};

#[derive(Subcommand, Debug)]
pub(crate) enum ParcelCommand {
    /// Make one from a file, or from standard input (`-`).
    Create(create::CreateArgs),
    /// Give one new data; the services that use it follow.
    Rotate(rotate::RotateArgs),
    /// Give one the data of an earlier version again.
    Rollback(rotate::RollbackArgs),
    /// List the versions of one, newest first, and who uses them.
    History(history::HistoryArgs),
    /// List them.
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show everything about them. The data of secrets are never shown.
    Inspect(InspectArgs),
    /// Remove those that no service uses.
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    what: inspect::NamedArgs,
    /// Print for a person.
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RmArgs {
    /// Name, id, or unique prefix of an id.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl ParcelCommand {
    pub(crate) async fn secret(&self, context: &Context) -> Result<(), Failure> {
        self.run(context, Kind::Secret).await
    }

    pub(crate) async fn config(&self, context: &Context) -> Result<(), Failure> {
        self.run(context, Kind::Config).await
    }

    async fn run(&self, context: &Context, kind: Kind) -> Result<(), Failure> {
        match self {
            Self::Create(args) => create::run(context, kind, args).await,
            Self::Rotate(args) => rotate::run(context, kind, args).await,
            Self::Rollback(args) => rotate::roll_back(context, kind, args).await,
            Self::History(args) => history::run(context, kind, args).await,
            Self::Ls(args) => list::run(context, kind, args).await,
            Self::Inspect(InspectArgs { what, pretty: true }) => {
                inspect::pretty(context, what.read, &what.names, async |client, reference| {
                    Ok(view::parcel::text(&api::get(client, kind, reference).await?))
                })
                .await
            }
            Self::Inspect(InspectArgs { what, pretty: false }) => {
                inspect::run(context, what.read, &what.names, &what.flags, async |client, reference| {
                    Ok(ParcelView::new(api::get(client, kind, reference).await?))
                })
                .await
            }
            Self::Rm(args) => {
                let client = context.connect().await?;
                remove_each(&args.names, async |reference| api::remove(&client, kind, reference).await).await
            }
        }
    }
}
