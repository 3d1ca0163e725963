//! `skep service history`: the revisions that are kept.

use clap::Args;
use serde_json::{Map, Value};
use skep_proto::v1::{RevisionSummary, ServiceHistoryRequest};

use crate::command::context::{Context, ReadFlags};
use crate::command::listing;
use crate::command::task_table::without_digest;
use crate::failure::Failure;
use crate::output::format::{Format, Listing};
use crate::output::{human, time};
use crate::view::template;

#[derive(Args, Clone, Debug)]
pub(crate) struct HistoryArgs {
    /// How to print: `table`, `table TEMPLATE`, `json`, or a Go template.
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Print numbers of revisions only.
    #[arg(short, long)]
    quiet: bool,
    /// Show digests of images.
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    read: ReadFlags,
    /// Name, id, or unique prefix of an id.
    #[arg(value_name = "SERVICE")]
    service: String,
}

const REVISIONS: Listing = Listing {
    template: "{{.Revision}}\t{{.Created}}\t{{.Image}}\t{{.Running}}\t{{.CopiedFrom}}\t{{.Current}}",
    fields: &[
        ("Revision", "REVISION"),
        ("Created", "CREATED"),
        ("Image", "IMAGE"),
        ("Running", "RUNNING"),
        ("CopiedFrom", "COPIED FROM"),
        ("Current", "CURRENT"),
        ("CreatedAt", "CREATED AT"),
    ],
    quiet: "Revision",
};

pub(crate) async fn run(context: &Context, args: &HistoryArgs) -> Result<(), Failure> {
    let format = Format::from_flags(args.format.as_deref(), args.quiet)?;
    let client = context.connect_to_read(args.read).await?;
    let call =
        async |read| client.services().history(ServiceHistoryRequest { reference: args.service.clone(), read }).await;
    let answer =
        client.read(call).await.map_err(|status| Failure::from_lookup("service", &args.service, status))?.into_inner();
    let now_ms = time::now_ms();
    let rows: Vec<_> = answer.revisions.iter().map(|revision| row(revision, args.no_trunc, now_ms)).collect();
    listing::print(&REVISIONS, &rows, &format)
}

fn row(summary: &RevisionSummary, no_trunc: bool, now_ms: i64) -> Map<String, Value> {
    let revision = summary.revision.clone().unwrap_or_default();
    let image = revision.template.unwrap_or_default().containers.first().map(template::image).unwrap_or_default();
    let copied_from = if revision.copied_from == 0 { String::new() } else { revision.copied_from.to_string() };
    listing::row([
        ("Revision", revision.number.to_string().into()),
        ("Created", human::ago(now_ms, revision.created_at_ms).into()),
        ("Image", if no_trunc { image } else { without_digest(&image) }.into()),
        ("Running", summary.running.into()),
        ("CopiedFrom", copied_from.into()),
        ("Current", if summary.current { "*" } else { "" }.into()),
        ("CreatedAt", time::rfc3339_ms(revision.created_at_ms).into()),
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::{ContainerSpec, Revision, TaskTemplate};

    use super::*;

    #[test]
    fn the_table() {
        let revision = |number, copied_from, current| RevisionSummary {
            revision: Some(Revision {
                number,
                copied_from,
                created_at_ms: 1_000,
                template: Some(TaskTemplate {
                    containers: vec![ContainerSpec {
                        image: "web:1".to_owned(),
                        image_digest: "sha256:ab".to_owned(),
                        ..ContainerSpec::default()
                    }],
                    ..TaskTemplate::default()
                }),
                ..Revision::default()
            }),
            running: 2,
            current,
        };
        let rows = [row(&revision(3, 1, true), false, 61_000), row(&revision(2, 0, false), true, 61_000)];
        let table = REVISIONS.render(&rows, &Format::Table(None)).unwrap();
        assert_eq!(
            table,
            "REVISION   CREATED              IMAGE             RUNNING   COPIED FROM   CURRENT\n\
             3          About a minute ago   web:1             2         1             *\n\
             2          About a minute ago   web:1@sha256:ab   2                       \n"
        );
    }
}
