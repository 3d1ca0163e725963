//! `skep image tag|rm|prune`.

use clap::Args;
use skep_proto::v1::{PruneImagesRequest, RemoveImageRequest, TagImageRequest};

use crate::command::confirm;
use crate::command::context::Context;
use crate::command::outcome::Outcome;
use crate::failure::Failure;
use crate::output::{self, human};

#[derive(Args, Clone, Debug)]
pub(crate) struct TagArgs {
    /// Name, digest, or unique prefix of a digest.
    #[arg(value_name = "IMAGE")]
    source: String,
    /// The further name.
    #[arg(value_name = "NAME[:TAG]")]
    name: String,
}

impl TagArgs {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.connect().await?;
        let request = TagImageRequest { source: self.source.clone(), name: self.name.clone() };
        client.images().tag(request).await.map_err(|status| Failure::from_lookup("image", &self.source, status))?;
        Ok(())
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RmArgs {
    /// Name, digest, or unique prefix of a digest.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Remove it although several names point to it.
    #[arg(short, long)]
    force: bool,
}

impl RmArgs {
    /// One call for each, so that one failure does not hide what was removed.
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = context.connect().await?;
        let mut outcome = Outcome::default();
        for reference in &self.images {
            let request = RemoveImageRequest { references: vec![reference.clone()], force: self.force };
            let result = client
                .images()
                .remove(request)
                .await
                .map_err(|status| Failure::from_lookup("image", reference, status));
            if let Some(answer) = outcome.take(result)? {
                let answer = answer.into_inner();
                let untagged = answer.untagged.iter().map(|name| format!("Untagged: {name}\n"));
                let deleted = answer.deleted.iter().map(|digest| format!("Deleted: {digest}\n"));
                output::data(untagged.chain(deleted).collect::<String>())?;
            }
        }
        outcome.finish()
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct PruneArgs {
    /// Remove all images that no task uses, not only those without a name.
    #[arg(short, long)]
    all: bool,
    /// Do not ask.
    #[arg(short, long)]
    force: bool,
}

impl PruneArgs {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        if !self.force {
            confirm::removal(if self.all { "all images that no task uses" } else { "all images without a name" })?;
        }
        let client = context.connect().await?;
        let request = PruneImagesRequest { all: self.all };
        let answer = client.images().prune(request).await?.into_inner();
        let mut text = String::new();
        if !answer.deleted.is_empty() {
            text.push_str("Deleted Images:\n");
            text.extend(answer.deleted.iter().map(|digest| format!("deleted: {digest}\n")));
            text.push('\n');
        }
        text.push_str(&format!("Total reclaimed space: {}\n", human::size(answer.freed_bytes)));
        output::data(text)
    }
}
