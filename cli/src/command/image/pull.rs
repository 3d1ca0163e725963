//! `skep image pull`.

use clap::Args;
use skep_proto::v1::{Platform, PullImageRequest};

use super::progress;
use crate::command::context::Context;
use crate::command::outcome::Outcome;
use crate::failure::Failure;
use crate::parse::platform;
use crate::{output, registry};

#[derive(Args, Clone, Debug)]
pub(crate) struct PullArgs {
    /// Names, with tag or digest.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Platform, such as linux/arm64 [default: this host's].
    #[arg(long, value_name = "PLATFORM", value_parser = platform::parse)]
    platform: Option<Platform>,
    /// Show no progress.
    #[arg(short, long)]
    quiet: bool,
}

impl PullArgs {
    /// Prints the name of each image that is held afterwards.
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.connect().await?;
        let mut outcome = Outcome::default();
        for image in &self.images {
            let request = PullImageRequest {
                reference: image.clone(),
                auth: registry::credential(image, false)?,
                platform: self.platform.clone(),
            };
            let result = async {
                let stream = client.images().pull(request).await?.into_inner();
                progress::follow(stream, self.quiet).await
            };
            if let Some(held) = outcome.take(result.await)? {
                for image in &held {
                    output::note(format_args!("Digest: {}", image.digest));
                }
                output::data(format!("{image}\n"))?;
            }
        }
        outcome.finish()
    }
}
