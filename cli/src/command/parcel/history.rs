//! `history`: the versions that are kept.

use clap::Args;
use serde_json::{Map, Value};
use skep_proto::v1::PayloadVersion;

use super::api::{self, Kind};
use crate::command::context::{Context, ReadFlags};
use crate::command::listing;
use crate::failure::Failure;
use crate::output::format::{Format, Listing};
use crate::output::{human, time};
use crate::view::parcel::Details;

#[derive(Args, Clone, Debug)]
pub(crate) struct HistoryArgs {
    /// How to print: `table`, `table TEMPLATE`, `json`, or a Go template.
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print numbers of versions only.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    read: ReadFlags,
    /// Name, id, or unique prefix of an id.
    #[arg(value_name = "NAME")]
    name: String,
}

const VERSIONS: Listing = Listing {
    template: "{{.Version}}\t{{.Created}}\t{{.Size}}\t{{.CopiedFrom}}\t{{.UsedBy}}",
    fields: &[
        ("Version", "VERSION"),
        ("Created", "CREATED"),
        ("Size", "SIZE"),
        ("CopiedFrom", "COPIED FROM"),
        ("UsedBy", "USED BY"),
        ("CreatedAt", "CREATED AT"),
    ],
    quiet: "Version",
};

pub(super) async fn run(context: &Context, kind: Kind, args: &HistoryArgs) -> Result<(), Failure> {
    let format = Format::from_flags(args.format.as_deref(), args.quiet)?;
    let client = context.connect_to_read(args.read).await?;
    let details = api::get(&client, kind, &args.name).await?;
    let now_ms = time::now_ms();
    let rows: Vec<_> = details.parcel.versions.iter().rev().map(|version| row(version, &details, now_ms)).collect();
    listing::print(&VERSIONS, &rows, &format)
}

fn row(version: &PayloadVersion, details: &Details, now_ms: i64) -> Map<String, Value> {
    let users = details.uses.iter().filter(|one| one.payload_version == version.number);
    let mut names: Vec<String> = users
        .map(|one| if one.pinned { format!("{} (pinned)", one.service_name) } else { one.service_name.clone() })
        .collect();
    names.dedup();
    let copied = if version.copied_from == 0 { String::new() } else { version.copied_from.to_string() };
    listing::row([
        ("Version", version.number.to_string().into()),
        ("Created", human::ago(now_ms, version.created_at_ms).into()),
        ("Size", human::size(i64::try_from(version.size).unwrap_or(i64::MAX)).into()),
        ("CopiedFrom", copied.into()),
        ("UsedBy", names.join(", ").into()),
        ("CreatedAt", time::rfc3339_ms(version.created_at_ms).into()),
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::PayloadUse;

    use super::*;
    use crate::view::parcel::Parcel;

    #[test]
    fn the_table() {
        let version = |number, copied_from| PayloadVersion { number, created_at_ms: 1_000, size: 12, copied_from };
        let uses = |name: &str, payload_version, pinned| PayloadUse {
            service_name: name.to_owned(),
            payload_version,
            pinned,
            ..PayloadUse::default()
        };
        let details = Details {
            parcel: Parcel { versions: vec![version(1, 0), version(2, 1)], ..Parcel::default() },
            uses: vec![uses("web", 2, false), uses("api", 1, true), uses("old", 0, false)],
            data: None,
        };
        let rows: Vec<_> = details.parcel.versions.iter().rev().map(|one| row(one, &details, 61_000)).collect();
        assert_eq!(
            VERSIONS.render(&rows, &Format::Table(None)).unwrap(),
            "VERSION   CREATED              SIZE      COPIED FROM   USED BY\n\
             2         About a minute ago   12B       1             web\n\
             1         About a minute ago   12B                     api (pinned)\n"
        );
    }
}
