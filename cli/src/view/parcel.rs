//! A secret or config as `inspect` prints it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use skep_proto::v1::{Meta, PayloadUse, PayloadVersion};

use super::MetaView;
use super::page::Page;
use crate::output::{human, time};

/// What both kinds have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parcel {
    pub(crate) id: Vec<u8>,
    pub(crate) meta: Option<Meta>,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) templated: bool,
    /// Oldest first.
    pub(crate) versions: Vec<PayloadVersion>,
}

/// One of them with all that is known of it.
#[derive(Clone, Default)]
pub(crate) struct Details {
    pub(crate) parcel: Parcel,
    pub(crate) uses: Vec<PayloadUse>,
    /// The newest data; `None`: a secret's.
    pub(crate) data: Option<Vec<u8>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ParcelView {
    #[serde(rename = "ID")]
    id: String,
    #[serde(flatten)]
    meta: MetaView,
    spec: Spec,
    /// Oldest first; the last is what services get.
    versions: Vec<VersionView>,
    /// By the services' current revisions.
    used_by: Vec<Use>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    name: String,
    labels: BTreeMap<String, String>,
    /// Base64; a config's only.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    templating: Option<Driver>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Driver {
    name: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct VersionView {
    number: u64,
    created_at: String,
    size: u64,
    /// 0: none.
    copied_from: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Use {
    #[serde(rename = "ServiceID")]
    service_id: String,
    service_name: String,
    /// 0: only tasks of earlier revisions use it.
    version: u64,
    pinned: bool,
}

impl ParcelView {
    pub(crate) fn new(details: Details) -> Self {
        let Details { parcel, uses, data } = details;
        Self {
            id: super::id(&parcel.id),
            meta: parcel.meta.as_ref().into(),
            spec: Spec {
                name: parcel.name,
                labels: parcel.labels,
                data: data.map(|data| BASE64_STANDARD.encode(data)),
                templating: parcel.templated.then_some(Driver { name: "golang" }),
            },
            versions: parcel.versions.iter().map(version).collect(),
            used_by: uses
                .into_iter()
                .map(|one| Use {
                    service_id: super::id(&one.service_id),
                    service_name: one.service_name,
                    version: one.payload_version,
                    pinned: one.pinned,
                })
                .collect(),
        }
    }
}

fn version(version: &PayloadVersion) -> VersionView {
    VersionView {
        number: version.number,
        created_at: time::rfc3339_ms(version.created_at_ms),
        size: version.size,
        copied_from: version.copied_from,
    }
}

/// For a person: Docker's headings, then what versions add.
pub(crate) fn text(details: &Details) -> String {
    let Details { parcel, uses, data } = details;
    let meta = parcel.meta.unwrap_or_default();
    let mut page = Page::new(18);
    page.line("ID", &super::id(&parcel.id));
    page.line("Name", &parcel.name);
    page.line("Labels", "");
    parcel.labels.iter().for_each(|(name, value)| page.item(&format!("- {name}={value}")));
    if parcel.templated {
        page.line("Template Driver", "golang");
    }
    page.line("Created at", &time::plain_ms(meta.created_at_ms));
    page.line("Updated at", &time::plain_ms(meta.updated_at_ms));
    if let Some(newest) = parcel.versions.last() {
        page.line("Version", &newest.number.to_string());
        page.line("Size", &human::size(i64::try_from(newest.size).unwrap_or(i64::MAX)));
    }
    let name = |one: &PayloadUse| match (one.payload_version, one.pinned) {
        (0, _) => format!("{} (tasks of earlier revisions)", one.service_name),
        (version, true) => format!("{}@{version} (pinned)", one.service_name),
        (version, false) => format!("{}@{version}", one.service_name),
    };
    if !uses.is_empty() {
        page.line("Used by", &uses.iter().map(name).collect::<Vec<_>>().join(", "));
    }
    let mut text = page.into_text();
    if let Some(data) = data {
        text.push_str("Data:\n");
        text.push_str(&String::from_utf8_lossy(data));
        if !data.ends_with(b"\n") {
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::output::json;

    fn details(data: Option<&[u8]>) -> Details {
        Details {
            parcel: Parcel {
                id: vec![1; 16],
                name: "site".to_owned(),
                labels: [("a".to_owned(), "b".to_owned())].into(),
                templated: true,
                versions: vec![PayloadVersion { number: 2, size: 5, copied_from: 1, created_at_ms: 1_000 }],
                ..Parcel::default()
            },
            uses: vec![PayloadUse {
                service_id: vec![2; 16],
                service_name: "web".to_owned(),
                payload_version: 1,
                pinned: true,
            }],
            data: data.map(<[u8]>::to_vec),
        }
    }

    #[test]
    fn a_config_has_its_data_and_a_secret_has_not() {
        let config = json::value(&ParcelView::new(details(Some(b"hello"))));
        assert_eq!(config["Spec"]["Data"], "aGVsbG8=");
        assert_eq!(config["Spec"]["Templating"]["Name"], "golang");
        assert_eq!((&config["Versions"][0]["Number"], &config["UsedBy"][0]["Pinned"]), (&2.into(), &true.into()));
        let secret = json::value(&ParcelView::new(details(None)));
        assert!(secret["Spec"].get("Data").is_none());
    }

    #[test]
    fn the_page() {
        let page = text(&details(Some(b"hello")));
        for line in
            ["Name:             site", "Labels:\n - a=b\n", "Version:          2", "Used by:          web@1 (pinned)"]
        {
            assert!(page.contains(line), "{page}");
        }
        assert!(page.ends_with("Data:\nhello\n"), "{page}");
        assert!(!text(&details(None)).contains("Data:"));
    }
}
