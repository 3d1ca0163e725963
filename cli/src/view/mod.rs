//! Objects as `inspect` prints them: Docker's shape and field names, so that scripts and templates carry over.
//!
//! Pure conversions from the wire's messages. Defaults that the wire leaves out are filled in, and fields are there even
//! when empty, so that a template never stumbles over an absent one. What Docker does not have is added under names of
//! its own (`Revision`, `Refusals`, `Containers`).

pub(crate) mod image;
pub(crate) mod info;
pub(crate) mod mesh;
pub(crate) mod network;
pub(crate) mod node;
mod page;
pub(crate) mod parcel;
pub(crate) mod ports;
pub(crate) mod pretty_node;
pub(crate) mod pretty_service;
pub(crate) mod service;
pub(crate) mod state;
pub(crate) mod task;
pub(crate) mod template;

use serde::Serialize;
use skep_proto::id::NodeId;
use skep_proto::v1::Meta;

use crate::output::time;

/// Nanoseconds, as Docker writes durations.
const NANOS_PER_MS: i64 = 1_000_000;

/// `{"Index": 12}`
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Version {
    pub(crate) index: u64,
}

/// Version and times, which every object has.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct MetaView {
    pub(crate) version: Version,
    pub(crate) created_at: String,
    pub(crate) updated_at: String,
}

impl From<Option<&Meta>> for MetaView {
    fn from(meta: Option<&Meta>) -> Self {
        let meta = meta.copied().unwrap_or_default();
        Self {
            version: Version { index: meta.version },
            created_at: time::rfc3339_ms(meta.created_at_ms),
            updated_at: time::rfc3339_ms(meta.updated_at_ms),
        }
    }
}

/// An id of any kind, printed; empty for "none". All kinds print alike.
pub(crate) fn id(bytes: &[u8]) -> String {
    match NodeId::from_wire_opt(bytes) {
        Ok(Some(id)) => id.to_string(),
        Ok(None) => String::new(),
        // Not ours to refuse: show what came.
        Err(_) => hex(bytes),
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first 12 digits of an id, for tables.
pub(crate) fn short_id(bytes: &[u8]) -> String {
    id(bytes).chars().take(skep_proto::id::SHORT_LEN).collect()
}

/// A wire duration, with its default in place of zero, as nanoseconds; -1 means none.
fn nanos(ms: i64, default_ms: i64) -> i64 {
    let ms = match ms {
        0 => default_ms,
        ..0 => 0,
        ms => ms,
    };
    ms.saturating_mul(NANOS_PER_MS)
}
