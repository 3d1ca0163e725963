//! `skep image ls`.

use clap::Args;
use serde_json::{Map, Value};
use skep_proto::v1::{ListImagesRequest, LocalImage};

use crate::command::context::Context;
use crate::command::listing::{self, ListFlags, TruncFlag};
use crate::failure::Failure;
use crate::output::format::Listing;
use crate::output::{human, natural, time};
use crate::parse::filter::Filters;
use crate::view::image::split_name;

#[derive(Args, Clone, Debug)]
pub(crate) struct ListArgs {
    /// Only images of this repository, or of this name.
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
    /// Show digests.
    #[arg(long)]
    digests: bool,
    #[command(flatten)]
    flags: ListFlags,
    #[command(flatten)]
    trunc: TruncFlag,
}

const FIELDS: &[(&str, &str)] = &[
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("InUse", "IN USE"),
];

/// Docker's table of images.
const IMAGES: Listing = Listing {
    template: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    fields: FIELDS,
    quiet: "ID",
};

/// The same with digests.
const IMAGES_WITH_DIGESTS: Listing = Listing {
    template: "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    fields: FIELDS,
    quiet: "ID",
};

/// What Docker prints in place of a name.
const NO_NAME: &str = "<none>";

/// Characters of a shortened digest, as in Docker.
const SHORT_DIGEST: usize = 12;

impl ListArgs {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let format = self.flags.format()?;
        let filters =
            Filters::parse(&self.flags.filter, &["dangling", "reference"], &["before", "since", "until", "label"])?;
        filters.only("dangling", &["true", "false", "1", "0"])?;
        context.only_here("image ls")?;
        let client = context.connect().await?;
        let images = client.images().list(ListImagesRequest {}).await?.into_inner().images;
        let mut rows = self.rows(&images, &filters, time::now_ms());
        if self.flags.quiet {
            rows.dedup_by(|a, b| a.get("ID") == b.get("ID"));
        }
        let listing = if self.digests { &IMAGES_WITH_DIGESTS } else { &IMAGES };
        listing::print(listing, &rows, &format)
    }

    /// One row for each name; newest images first.
    fn rows(&self, images: &[LocalImage], filters: &Filters, now_ms: i64) -> Vec<Map<String, Value>> {
        let mut images: Vec<&LocalImage> = images.iter().collect();
        images.sort_by(|a, b| b.created_at_ms.cmp(&a.created_at_ms).then_with(|| a.digest.cmp(&b.digest)));
        let mut rows = Vec::new();
        for image in images {
            let dangling = image.names.is_empty();
            let passes = filters.passes("dangling", |value| (value == "true" || value == "1") == dangling);
            if !passes {
                continue;
            }
            let mut names: Vec<&str> = image.names.iter().map(String::as_str).collect();
            names.sort_by(|a, b| natural::compare(a, b));
            if dangling && self.repository.is_none() && filters.values("reference").is_empty() {
                rows.push(self.row(image, NO_NAME, NO_NAME, now_ms));
            }
            for name in names {
                let (repository, tag) = split_name(name);
                let wanted = self.repository.as_deref().is_none_or(|wanted| name_matches(wanted, repository, tag))
                    && filters.passes("reference", |pattern| name_matches(pattern, repository, tag));
                if wanted {
                    rows.push(self.row(image, repository, if tag.is_empty() { NO_NAME } else { tag }, now_ms));
                }
            }
        }
        rows
    }

    fn row(&self, image: &LocalImage, repository: &str, tag: &str, now_ms: i64) -> Map<String, Value> {
        let hex = image.digest.split_once(':').map_or(image.digest.as_str(), |(_, hex)| hex);
        let id = if self.trunc.no_trunc { image.digest.clone() } else { hex.chars().take(SHORT_DIGEST).collect() };
        let created = image.created_at_ms;
        listing::row([
            ("Repository", repository.into()),
            ("Tag", tag.into()),
            ("Digest", image.digest.clone().into()),
            ("ID", id.into()),
            ("CreatedSince", if created == 0 { "N/A".to_owned() } else { human::ago(now_ms, created) }.into()),
            ("CreatedAt", time::plain_ms(created).into()),
            ("Size", human::size(image.size_bytes).into()),
            ("InUse", image.in_use.into()),
        ])
    }
}

/// Whether a name fits `repository`, `repository:tag`, either with `*`.
fn name_matches(pattern: &str, repository: &str, tag: &str) -> bool {
    let (wanted_repository, wanted_tag) = split_name(pattern);
    glob(wanted_repository, repository) && (wanted_tag.is_empty() || glob(wanted_tag, tag))
}

/// `*` stands for any characters but `/`.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => match text.strip_prefix(before) {
            None => false,
            Some(rest) => rest
                .char_indices()
                .map(|(at, c)| (at, Some(c)))
                .chain([(rest.len(), None)])
                .scan(false, |stopped, (at, c)| {
                    let here = (!*stopped).then_some(at);
                    *stopped |= c == Some('/');
                    here
                })
                .any(|at| glob(after, &rest[at..])),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::output::format::Format;

    fn image(digest: &str, names: &[&str], created: i64) -> LocalImage {
        LocalImage {
            digest: format!("sha256:{digest}0123456789abcdef"),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            size_bytes: 7_660_000,
            created_at_ms: created,
            ..LocalImage::default()
        }
    }

    fn args(repository: Option<&str>) -> ListArgs {
        ListArgs {
            repository: repository.map(str::to_owned),
            digests: false,
            flags: ListFlags::default(),
            trunc: TruncFlag::default(),
        }
    }

    fn images() -> Vec<LocalImage> {
        vec![
            image("aa", &["nginx:1", "localhost:5000/nginx:2"], 1_000),
            image("bb", &[], 2_000),
            image("cc", &["redis:7"], 3_000),
        ]
    }

    #[test]
    fn the_table_is_dockers() {
        let rows = args(None).rows(&images(), &Filters::default(), 62_000);
        let table = IMAGES.render(&rows, &Format::Table(None)).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "REPOSITORY             TAG       IMAGE ID       CREATED              SIZE");
        assert_eq!(lines[1], "redis                  7         cc0123456789   59 seconds ago       7.66MB");
        assert_eq!(lines[2], "<none>                 <none>    bb0123456789   About a minute ago   7.66MB");
        assert_eq!(lines[3], "localhost:5000/nginx   2         aa0123456789   About a minute ago   7.66MB");
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn selections() {
        let filters = |text: &str| Filters::parse(&[text.to_owned()], &["dangling", "reference"], &[]).unwrap();
        let none = Filters::default();
        assert_eq!(args(Some("nginx")).rows(&images(), &none, 0).len(), 1);
        assert_eq!(args(Some("nginx:2")).rows(&images(), &none, 0).len(), 0);
        assert_eq!(args(None).rows(&images(), &filters("dangling=true"), 0).len(), 1);
        assert_eq!(args(None).rows(&images(), &filters("dangling=false"), 0).len(), 3);
        assert_eq!(args(None).rows(&images(), &filters("reference=*is"), 0).len(), 1);
        assert_eq!(args(None).rows(&images(), &filters("reference=*/nginx:*"), 0).len(), 1);
    }

    #[test]
    fn stars_do_not_cross_slashes() {
        assert!(glob("a*c", "abbc"));
        assert!(glob("*", "abc"));
        assert!(!glob("*", "a/c"));
        assert!(glob("*/*", "a/c"));
        assert!(!glob("a*", "b"));
    }

    proptest! {
        #[test]
        fn globs_never_panic(pattern in "[a-c*/é]{0,8}", text in "[a-c/é]{0,10}") {
            let _ = glob(&pattern, &text);
            prop_assert!(glob(&text, &text));
        }
    }
}
