//! What every `inspect` does: find each object, print those found, say which were not.

use clap::Args;
use serde::Serialize;

use super::outcome::Outcome;
use crate::failure::Failure;
use crate::output::template::Template;
use crate::output::{self, format, json};

/// `--format`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct InspectFlags {
    /// How to print: `json` (on one line), or a Go template. Default: indented JSON.
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
}

/// Fetches and prints the objects.
pub(crate) async fn run<V: Serialize>(
    references: &[String],
    flags: &InspectFlags,
    fetch: impl AsyncFn(&str) -> Result<V, Failure>,
) -> Result<(), Failure> {
    if let Some(text) = flags.format.as_deref().filter(|text| *text != "json") {
        Template::parse(text).map_err(|error| Failure::Usage(format!("--format: {error}")))?;
    }
    let mut outcome = Outcome::default();
    let mut found = Vec::new();
    for reference in references {
        found.extend(outcome.take(fetch(reference).await)?);
    }
    let values: Vec<_> = found.iter().map(json::value).collect();
    output::data(format::inspect(&values, &json::pretty(&found), flags.format.as_deref())?)?;
    outcome.finish()
}
