//! `skep image …`: this host's images. One file per verb or pair of verbs.

mod change;
pub(crate) mod list;
mod progress;
mod pull;
mod transfer;

use clap::{Args, Subcommand};
use skep_proto::v1::InspectImageRequest;

use super::context::{Context, ReadFlags};
use super::inspect::{self, InspectFlags};
use crate::failure::Failure;
use crate::view::image::ImageView;

#[derive(Subcommand, Debug)]
pub(crate) enum ImageCommand {
    /// Fetch images from their registry.
    Pull(pull::PullArgs),
    /// List this host's images.
    #[command(visible_alias = "list")]
    Ls(list::ListArgs),
    /// Take images from an archive (docker or OCI form).
    Load(transfer::LoadArgs),
    /// Make an image from the tar of a root file system.
    Import(transfer::ImportArgs),
    /// Show everything about images.
    Inspect(InspectArgs),
    /// Give an image a further name.
    Tag(change::TagArgs),
    /// Remove images.
    #[command(visible_alias = "remove")]
    Rm(change::RmArgs),
    /// Remove images that no task uses.
    Prune(change::PruneArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// Name, digest, or unique prefix of a digest.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    flags: InspectFlags,
}

impl ImageCommand {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        context.only_here("image")?;
        match self {
            Self::Pull(args) => args.run(context).await,
            Self::Ls(args) => args.run(context).await,
            Self::Load(args) => args.run(context).await,
            Self::Import(args) => args.run(context).await,
            Self::Inspect(args) => {
                inspect::run(context, ReadFlags::default(), &args.images, &args.flags, async |client, reference| {
                    let request = InspectImageRequest { reference: reference.to_owned() };
                    let answer = client
                        .images()
                        .inspect(request)
                        .await
                        .map_err(|status| Failure::from_lookup("image", reference, status))?;
                    Ok(ImageView::from(answer.into_inner()))
                })
                .await
            }
            Self::Tag(args) => args.run(context).await,
            Self::Rm(args) => args.run(context).await,
            Self::Prune(args) => args.run(context).await,
        }
    }
}
