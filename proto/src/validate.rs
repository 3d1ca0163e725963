//! Validation of specs: plain functions whose messages name the field and say what would be right. The command line
//! runs them before it calls, the control API before it stores.

mod cluster;
mod container;
pub mod files;
mod health;
mod mount;
pub mod network;
mod service;

pub use cluster::{
    CERT_EXPIRY_MS, HEARTBEAT_MS, MAX_REVISION_HISTORY, MAX_TASK_HISTORY, SNAPSHOT_LOG_BYTES, cluster_fixed,
    cluster_spec,
};
pub use container::{CAPABILITIES, capability, signal_number};
pub use files::{config_spec, secret_spec};
pub use network::network_spec;
pub use service::{MAX_REPLICAS, node_spec, replicas, service_spec};

use std::collections::{BTreeMap, HashSet};

use crate::template::{self, TemplateError};

/// Why a spec is refused: a field, and a sentence about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Invalid {
    /// Path from the object: `containers[main].mounts[0].target`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Invalid {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }

    /// The same complaint, seen from the object above.
    pub fn under(self, parent: &str) -> Self {
        Self { field: format!("{parent}.{}", self.field), message: self.message }
    }
}

/// Longest name of an object.
pub const MAX_NAME: usize = 63;
/// Bytes of all labels of one object.
const MAX_LABELS: usize = 128 * 1024;

/// An object's name: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}`.
pub fn name(field: &str, name: &str) -> Result<(), Invalid> {
    if name.is_empty() {
        return Err(Invalid::new(field, "must not be empty"));
    }
    if name.len() > MAX_NAME {
        return Err(Invalid::new(field, format!("has {} characters, at most {MAX_NAME} are allowed", name.len())));
    }
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    let rest_is_well = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if starts_well && rest_is_well {
        return Ok(());
    }
    Err(Invalid::new(
        field,
        format!(
            "{name:?} is not a valid name: only letters, digits, '_', '.' and '-' are allowed, and the first must be a letter or digit"
        ),
    ))
}

fn labels(field: &str, labels: &BTreeMap<String, String>) -> Result<(), Invalid> {
    if labels.keys().any(String::is_empty) {
        return Err(Invalid::new(field, "a label needs a name"));
    }
    let size: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_LABELS {
        return Err(Invalid::new(field, format!("are {size} bytes together, at most {MAX_LABELS} are allowed")));
    }
    Ok(())
}

fn not_negative(field: &str, value: i64) -> Result<(), Invalid> {
    if value < 0 { Err(Invalid::new(field, format!("must not be negative, but is {value}"))) } else { Ok(()) }
}

/// Placeholders (`{{.Task.Slot}}`) must be ones that a node can fill in: it would refuse every task alike.
fn placeholders(field: &str, text: &str) -> Result<(), Invalid> {
    template::check(text).map_err(|error| match error {
        TemplateError::NoLabels(placeholder) => Invalid::new(
            field,
            format!("not supported yet: {placeholder:?}, for a node does not learn a service's labels"),
        ),
        mistake => Invalid::new(field, mistake.to_string()),
    })
}

/// The first value that occurs twice.
fn duplicate<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = HashSet::new();
    values.into_iter().find(|value| !seen.insert(*value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["web", "a", "A.b_c-1", &"x".repeat(63)] {
            assert_eq!(name("name", good), Ok(()));
        }
        for bad in ["", "-web", ".web", "we b", "wéb", "a/b", &"x".repeat(64)] {
            assert!(name("name", bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_judged_without_panic(text: String) {
            let _ = name("name", &text);
        }
    }
}
