//! Flags that all listings share, and streams of pages into one list.

use clap::Args;
use serde_json::{Map, Value};
use tonic::{Status, Streaming};

use super::context::ReadFlags;
use crate::failure::Failure;
use crate::output;
use crate::output::format::{Format, Listing};

/// `--filter`, `--format`, `--quiet`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ListFlags {
    /// Show only what matches, as KEY=VALUE; may be given several times.
    #[arg(short, long, value_name = "FILTER")]
    pub(crate) filter: Vec<String>,
    /// How to print: `table`, `table TEMPLATE`, `json`, or a Go template.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Print ids only.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `--no-trunc`, for listings that shorten anything.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct TruncFlag {
    /// Do not shorten ids, images and errors.
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

/// What a listing takes that is answered by managers and shortens nothing.
#[derive(Args, Clone, Debug)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    pub(crate) flags: ListFlags,
    #[command(flatten)]
    pub(crate) read: ReadFlags,
}

impl ListFlags {
    /// The format; wrong ones are found before the daemon is asked.
    pub(crate) fn format(&self) -> Result<Format, Failure> {
        Format::from_flags(self.format.as_deref(), self.quiet)
    }
}

/// Prints a listing's rows.
pub(crate) fn print(listing: &Listing, rows: &[Map<String, Value>], format: &Format) -> Result<(), Failure> {
    output::data(listing.render(rows, format)?)
}

/// A row from pairs of field and value.
pub(crate) fn row<const N: usize>(cells: [(&str, Value); N]) -> Map<String, Value> {
    cells.into_iter().map(|(field, value)| (field.to_owned(), value)).collect()
}

/// Takes all pages of a list.
pub(crate) async fn collect<P, T>(mut pages: Streaming<P>, items: impl Fn(P) -> Vec<T>) -> Result<Vec<T>, Status> {
    let mut all = Vec::new();
    while let Some(page) = pages.message().await? {
        all.extend(items(page));
    }
    Ok(all)
}
