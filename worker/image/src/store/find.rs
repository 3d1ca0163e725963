//! Finding a held image by what a user types: a name, a digest, or the beginning of an id. Part of [`Store`].

use super::{ImageRecord, Store};
use crate::digest::Digest;
use crate::reference::{Reference, ReferenceError};

/// Fewest hexadecimal digits taken for the beginning of an id.
const MIN_PREFIX: usize = 4;

/// Why no image, or not one image, is meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// Nothing fits.
    #[error("no such image on this node: {0}")]
    None(String),
    /// The beginning fits several ids.
    #[error("image id {prefix:?} is ambiguous: it fits {count} images; give more digits")]
    Ambiguous {
        /// What was typed.
        prefix: String,
        /// How many fit.
        count: usize,
    },
    /// It is neither an id nor a name.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
}

impl Store {
    /// The held image that `text` means: a name first, then a digest or the beginning of one (of the image, its manifest,
    /// or its config, which Docker calls the image id).
    pub fn find(&self, text: &str) -> Result<ImageRecord, FindError> {
        find(&self.images(), text)
    }
}

/// See [`Store::find`]. Pure.
pub(crate) fn find(records: &[ImageRecord], text: &str) -> Result<ImageRecord, FindError> {
    let ids = |record: &ImageRecord| [record.digest, record.manifest, record.config];
    let none = || FindError::None(text.to_owned());
    if let Ok(digest) = text.parse::<Digest>() {
        return records.iter().find(|record| ids(record).contains(&digest)).cloned().ok_or_else(none);
    }
    let reference = Reference::parse(text);
    if let Ok(reference) = &reference
        && let Some(record) = by_name(records, reference)
    {
        return Ok(record);
    }
    let prefix = text.strip_prefix("sha256:").unwrap_or(text);
    let is_prefix = (MIN_PREFIX..=64).contains(&prefix.len())
        && prefix.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !is_prefix {
        return Err(reference.err().map_or_else(none, FindError::from));
    }
    let mut fitting = records.iter().filter(|record| ids(record).iter().any(|id| id.hex().starts_with(prefix)));
    match (fitting.next(), fitting.count()) {
        (Some(record), 0) => Ok(record.clone()),
        (None, _) => Err(none()),
        (Some(_), more) => Err(FindError::Ambiguous { prefix: text.to_owned(), count: more + 1 }),
    }
}

/// By name and tag; a digest in the reference decides alone, as in Docker.
fn by_name(records: &[ImageRecord], reference: &Reference) -> Option<ImageRecord> {
    match reference.digest() {
        Some(digest) => records.iter().find(|record| record.digest == *digest || record.manifest == *digest).cloned(),
        None => records.iter().find(|record| record.names.contains(reference)).cloned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::platform::Platform;

    fn record(id: u64, names: &[&str]) -> ImageRecord {
        let digest = Digest::of(&id.to_le_bytes());
        ImageRecord {
            digest,
            manifest: digest,
            config: Digest::of(&[digest.as_bytes()[0]]),
            platform: Platform::host(),
            layers: Vec::new(),
            names: names.iter().map(|name| Reference::parse(name).unwrap()).collect(),
            created: None,
            held_since: 0,
            last_used: 0,
        }
    }

    #[test]
    fn names_digests_and_prefixes() {
        let records = [record(1, &["app:1", "app"]), record(2, &["host:5000/app"])];
        let found = |text: &str| find(&records, text).map(|record| record.digest);
        let [one, two] = [records[0].digest, records[1].digest];
        assert_eq!(found("app"), Ok(one));
        assert_eq!(found("docker.io/library/app:1"), Ok(one));
        assert_eq!(found("host:5000/app:latest"), Ok(two));
        assert_eq!(found(&two.to_string()), Ok(two));
        assert_eq!(found(&two.hex()), Ok(two));
        assert_eq!(found(&two.short()), Ok(two));
        assert_eq!(found(&format!("sha256:{}", &two.hex()[..6])), Ok(two));
        assert_eq!(found(&format!("whatever@{one}")), Ok(one));
        assert_eq!(found(&records[1].config.hex()[..20]), Ok(two));
        assert_eq!(found("app:2"), Err(FindError::None("app:2".into())));
        assert_eq!(found("abc"), Err(FindError::None("abc".into())), "too short for an id");
        assert!(matches!(found("App"), Err(FindError::Reference(_))));
    }

    #[test]
    fn an_ambiguous_prefix_is_said_to_be() {
        // Enough images that two share four digits.
        let records: Vec<_> = (0..2000).map(|id| record(id, &[])).collect();
        let mut prefixes: Vec<_> = records.iter().map(|record| record.digest.hex()[..4].to_owned()).collect();
        prefixes.sort();
        let shared = prefixes.windows(2).find(|pair| pair[0] == pair[1]).unwrap()[0].clone();
        assert!(matches!(find(&records, &shared), Err(FindError::Ambiguous { count: 2.., .. })));
    }
}
