//! `--filter key=value` of listings: values of one key are alternatives, different keys must all hold. Of labels all must
//! hold, as in Docker.

use std::collections::BTreeMap;

use crate::failure::Failure;

/// Parsed filters of one listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filters {
    by_key: BTreeMap<String, Vec<String>>,
}

impl Filters {
    /// Reads filters; keys beyond `known` are refused, those in `later` (Docker's) as not supported yet.
    pub(crate) fn parse(list: &[String], known: &[&str], later: &[&str]) -> Result<Self, Failure> {
        let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for text in list {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| Failure::Usage(format!("invalid filter {text:?}: filters have the form key=value")))?;
            let key = key.trim().to_lowercase();
            if later.contains(&key.as_str()) {
                return Err(Failure::Unsupported(format!("--filter {key}")));
            }
            if !known.contains(&key.as_str()) {
                return Err(Failure::Usage(format!(
                    "invalid filter '{key}': this list can be filtered by {}",
                    known.join(", ")
                )));
            }
            by_key.entry(key).or_default().push(value.trim().to_owned());
        }
        Ok(Self { by_key })
    }

    /// The values given for a key.
    pub(crate) fn values(&self, key: &str) -> &[String] {
        self.by_key.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether the key was not given, or one of its values passes.
    pub(crate) fn passes(&self, key: &str, test: impl Fn(&str) -> bool) -> bool {
        let values = self.values(key);
        values.is_empty() || values.iter().any(|value| test(value))
    }

    /// Whether all labels that were given for a key are there.
    pub(crate) fn labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.values(key).iter().all(|filter| label_matches(labels, filter))
    }

    /// Whether none of the labels that were given for a key is there.
    pub(crate) fn lacks_labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        !self.values(key).iter().any(|filter| label_matches(labels, filter))
    }

    /// Refuses values of `key` other than `allowed`.
    pub(crate) fn only(&self, key: &str, allowed: &[&str]) -> Result<(), Failure> {
        match self.values(key).iter().find(|value| !allowed.contains(&value.as_str())) {
            Some(value) => Err(Failure::Usage(format!("invalid filter '{key}={value}': use {}", allowed.join(", ")))),
            None => Ok(()),
        }
    }
}

/// Whether `labels` has `key` or, where the filter has a value, `key=value`.
fn label_matches(labels: &BTreeMap<String, String>, filter: &str) -> bool {
    match filter.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|have| have == value),
        None => labels.contains_key(filter),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(items: &[&str]) -> Result<Filters, Failure> {
        let list: Vec<String> = items.iter().map(|item| (*item).to_owned()).collect();
        Filters::parse(&list, &["name", "label"], &["since"])
    }

    #[test]
    fn alternatives_and_conjunction() {
        let filters = parse(&["name=a", "Name=b", "label=x=y"]).unwrap();
        assert!(filters.passes("name", |value| value == "b"));
        assert!(!filters.passes("name", |value| value == "c"));
        assert!(filters.passes("mode", |_| false));
        assert_eq!(filters.values("label"), ["x=y"]);
    }

    #[test]
    fn wrong_filters() {
        assert!(parse(&["bogus=1"]).unwrap_err().to_string().contains("invalid filter 'bogus'"));
        assert!(matches!(parse(&["name"]), Err(Failure::Usage(_))));
        assert!(matches!(parse(&["since=x"]), Err(Failure::Unsupported(_))));
        assert!(parse(&["name=x"]).unwrap().only("name", &["y", "z"]).is_err());
    }

    #[test]
    fn labels() {
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        assert!(label_matches(&labels, "a"));
        assert!(label_matches(&labels, "a=b"));
        assert!(!label_matches(&labels, "a=c"));
        assert!(!label_matches(&labels, "c"));
        let filters = parse(&["label=a", "label=c"]).unwrap();
        assert!(!filters.labels("label", &labels) && !filters.lacks_labels("label", &labels));
        assert!(filters.labels("name", &labels) && filters.lacks_labels("name", &labels));
    }
}
