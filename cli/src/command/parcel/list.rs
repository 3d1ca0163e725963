//! `ls`.

use serde_json::{Map, Value};

use super::api::{self, Kind};
use crate::command::context::Context;
use crate::command::listing::{self, LsArgs};
use crate::failure::Failure;
use crate::output::format::Listing;
use crate::output::{human, natural, time};
use crate::parse::filter::Filters;
use crate::view::{self, parcel::Parcel};

/// Docker's fields, and what versions add.
const FIELDS: &[(&str, &str)] = &[
    ("ID", "ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("CreatedAt", "CREATED"),
    ("UpdatedAt", "UPDATED"),
    ("Labels", "LABELS"),
    ("Version", "VERSION"),
    ("Size", "SIZE"),
];

const SECRETS: Listing = Listing {
    template: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Version}}\t{{.CreatedAt}}\t{{.UpdatedAt}}",
    fields: FIELDS,
    quiet: "ID",
};

const CONFIGS: Listing =
    Listing { template: "{{.ID}}\t{{.Name}}\t{{.Version}}\t{{.CreatedAt}}\t{{.UpdatedAt}}", ..SECRETS };

pub(super) async fn run(context: &Context, kind: Kind, args: &LsArgs) -> Result<(), Failure> {
    let format = args.flags.format()?;
    let filters = Filters::parse(&args.flags.filter, &["id", "label", "name"], &["mode"])?;
    let client = context.connect_to_read(args.read).await?;
    let mut all = api::list(&client, kind).await?;
    all.retain(|one| matches(one, &filters));
    all.sort_by(|a, b| natural::compare(&a.name, &b.name));
    let now_ms = time::now_ms();
    // As in Docker ids are whole.
    let rows: Vec<_> = all.iter().map(|one| row(one, now_ms)).collect();
    listing::print(if kind == Kind::Secret { &SECRETS } else { &CONFIGS }, &rows, &format)
}

/// Names and ids match by any part of them, as in Docker.
fn matches(one: &Parcel, filters: &Filters) -> bool {
    filters.passes("id", |part| view::id(&one.id).contains(part))
        && filters.passes("name", |part| one.name.contains(part))
        && filters.labels("label", &one.labels)
}

fn row(one: &Parcel, now_ms: i64) -> Map<String, Value> {
    let meta = one.meta.unwrap_or_default();
    let labels: Vec<String> = one.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let newest = one.versions.last().copied().unwrap_or_default();
    listing::row([
        ("ID", view::id(&one.id).into()),
        ("Name", one.name.clone().into()),
        ("Driver", "".into()),
        ("CreatedAt", human::ago(now_ms, meta.created_at_ms).into()),
        ("UpdatedAt", human::ago(now_ms, meta.updated_at_ms).into()),
        ("Labels", labels.join(",").into()),
        ("Version", newest.number.to_string().into()),
        ("Size", human::size(i64::try_from(newest.size).unwrap_or(i64::MAX)).into()),
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::{Meta, PayloadVersion};

    use super::*;
    use crate::output::format::Format;

    fn parcel() -> Parcel {
        Parcel {
            id: vec![1; 16],
            meta: Some(Meta { version: 3, created_at_ms: 1_000, updated_at_ms: 31_000 }),
            name: "db".to_owned(),
            labels: [("tier".to_owned(), "back".to_owned())].into(),
            templated: false,
            versions: vec![PayloadVersion { number: 2, size: 20, ..PayloadVersion::default() }],
        }
    }

    #[test]
    fn the_table() {
        let rows = [row(&parcel(), 61_000)];
        let table = SECRETS.render(&rows, &Format::Table(None)).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "ID                          NAME      DRIVER    VERSION   CREATED              UPDATED");
        assert!(lines[1].ends_with("db                  2         About a minute ago   30 seconds ago"), "{table}");
        assert!(!CONFIGS.render(&rows, &Format::Table(None)).unwrap().contains("DRIVER"));
        assert_eq!(rows[0].len(), FIELDS.len());
        assert!(FIELDS.iter().all(|(field, _)| rows[0].contains_key(*field)));
    }

    #[test]
    fn filters() {
        for (filter, passes) in [
            ("name=d", true),
            ("name=x", false),
            ("label=tier", true),
            ("label=tier=front", false),
            (&format!("id={}", &view::id(&[1; 16])[..6]), true),
        ] {
            let filters = Filters::parse(&[filter.to_owned()], &["id", "label", "name"], &[]).unwrap();
            assert_eq!(matches(&parcel(), &filters), passes, "{filter}");
        }
    }
}
