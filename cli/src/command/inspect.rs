//! What every `inspect` does: find each object, print those found, say which were not.

use clap::Args;
use serde::Serialize;

use super::context::{Context, ReadFlags};
use super::outcome::Outcome;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::template::{Template, TemplateError};
use crate::output::{self, format, json};

/// `--format`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct InspectFlags {
    /// How to print: `json` (on one line), or a Go template. Default: indented JSON.
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
}

impl InspectFlags {
    /// Refuses a wrong template before the daemon is asked.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.template().map(|_| ())
    }

    fn template(&self) -> Result<Option<Template>, Failure> {
        match self.format.as_deref() {
            None | Some("" | "json") => Ok(None),
            Some(text) => Template::parse(text).map(Some).map_err(wrong),
        }
    }

    /// Prints one object: by the template, as JSON, or else as `text` has it.
    pub(crate) fn print_one<V: Serialize>(&self, view: &V, text: impl Fn(&V) -> String) -> Result<(), Failure> {
        output::data(match (self.template()?, self.format.as_deref()) {
            (Some(template), _) => template.render(&json::value(view)).map_err(wrong)? + "\n",
            (None, Some("json")) => json::line(view) + "\n",
            (None, _) => text(view),
        })
    }
}

/// What `inspect` takes of objects that have names.
#[derive(Args, Clone, Debug)]
pub(crate) struct NamedArgs {
    /// Name, id, or unique prefix of an id.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) flags: InspectFlags,
    #[command(flatten)]
    pub(crate) read: ReadFlags,
}

fn wrong(error: TemplateError) -> Failure {
    Failure::Usage(format!("--format: {error}"))
}

/// Fetches and prints the objects.
pub(crate) async fn run<V: Serialize>(
    context: &Context,
    read: ReadFlags,
    references: &[String],
    flags: &InspectFlags,
    fetch: impl AsyncFn(&Client, &str) -> Result<V, Failure>,
) -> Result<(), Failure> {
    flags.check()?;
    let client = context.connect_to_read(read).await?;
    let mut outcome = Outcome::default();
    let mut found = Vec::new();
    for reference in references {
        found.extend(outcome.take(fetch(&client, reference).await)?);
    }
    let values: Vec<_> = found.iter().map(json::value).collect();
    output::data(format::inspect(&values, &json::pretty(&found), flags.format.as_deref())?)?;
    outcome.finish()
}

/// Prints each for a person, with an empty line in between.
pub(crate) async fn pretty(
    context: &Context,
    read: ReadFlags,
    references: &[String],
    text: impl AsyncFn(&Client, &str) -> Result<String, Failure>,
) -> Result<(), Failure> {
    let client = context.connect_to_read(read).await?;
    let mut outcome = Outcome::default();
    let mut texts = Vec::new();
    for reference in references {
        texts.extend(outcome.take(text(&client, reference).await)?);
    }
    output::data(texts.join("\n"))?;
    outcome.finish()
}
