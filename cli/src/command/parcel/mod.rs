//! `skep secret …` and `skep config …`: the same commands for two kinds of objects. `api.rs` has the calls, in which alone
//! they differ.

mod api;
mod create;
mod history;
mod list;
mod rotate;

use clap::{Args, Subcommand};

use self::api::Kind;
use super::context::{Context, ReadFlags};
use super::inspect::{self, InspectFlags};
use super::outcome::Outcome;
use crate::failure::Failure;
use crate::output;
use crate::view::parcel::ParcelView;

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
    Ls(list::LsArgs),
    /// Show everything about them. The data of secrets are never shown.
    Inspect(InspectArgs),
    /// Remove those that no service uses.
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// Name, id, or unique prefix of an id.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    flags: InspectFlags,
    /// Print for a person.
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    #[command(flatten)]
    read: ReadFlags,
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
            Self::Inspect(args) if args.pretty => pretty(context, kind, args).await,
            Self::Inspect(args) => {
                inspect::run(context, args.read, &args.names, &args.flags, async |client, reference| {
                    Ok(ParcelView::new(api::get(client, kind, reference).await?))
                })
                .await
            }
            Self::Rm(args) => remove(context, kind, args).await,
        }
    }
}

/// Prints each for a person, with an empty line in between.
async fn pretty(context: &Context, kind: Kind, args: &InspectArgs) -> Result<(), Failure> {
    let client = context.connect_to_read(args.read).await?;
    let mut outcome = Outcome::default();
    let mut texts = Vec::new();
    for reference in &args.names {
        let found = outcome.take(api::get(&client, kind, reference).await)?;
        texts.extend(found.map(|details| crate::view::parcel::text(&details)));
    }
    output::data(texts.join("\n"))?;
    outcome.finish()
}

/// Removes each and prints what was named, as Docker does.
async fn remove(context: &Context, kind: Kind, args: &RmArgs) -> Result<(), Failure> {
    let client = context.connect().await?;
    let mut outcome = Outcome::default();
    for reference in &args.names {
        if outcome.take(api::remove(&client, kind, reference).await)?.is_some() {
            output::data(format!("{reference}\n"))?;
        }
    }
    outcome.finish()
}
