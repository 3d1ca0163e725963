//! Collection of images by use. The decisions ([`plan`], [`check_removal`]) are pure; the methods of [`Store`] carry them
//! out. The worker calls them on a timer and for `image rm` and `image prune`. Never removes what a container uses (the
//! caller passes those digests) or what is pinned.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::digest::Digest;
use crate::reference::Reference;
use crate::store::{FindError, ImageRecord, Store, StoreError, blocking};

/// What may be collected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Also images with tags; without it only dangling ones, as `docker image prune`.
    pub named: bool,
    /// Only images not used for this long. Zero: any.
    pub unused_for: Duration,
    /// Stop once all held images take at most this many bytes, the least recently used going first. `None`: take all.
    pub until_bytes: Option<u64>,
}

/// Which images to remove, the least recently used first. `now` in seconds since 1970. Pure.
pub fn plan(records: &[ImageRecord], in_use: &HashSet<Digest>, now: u64, policy: &Policy) -> Vec<Digest> {
    let mut candidates: Vec<&ImageRecord> = records
        .iter()
        .filter(|record| !in_use.contains(&record.digest))
        .filter(|record| policy.named || record.tags().next().is_none())
        .filter(|record| now.saturating_sub(record.last_used) >= policy.unused_for.as_secs())
        .collect();
    candidates.sort_by_key(|record| (record.last_used, record.digest));
    let Some(until) = policy.until_bytes else {
        return candidates.iter().map(|record| record.digest).collect();
    };
    let mut kept: BTreeSet<Digest> = records.iter().map(|record| record.digest).collect();
    let mut out = Vec::new();
    for candidate in candidates {
        if bytes_of(records.iter().filter(|record| kept.contains(&record.digest))) <= until {
            break;
        }
        kept.remove(&candidate.digest);
        out.push(candidate.digest);
    }
    out
}

/// Bytes that images take together: shared blobs and layers count once. Pure.
pub fn bytes_of<'a>(records: impl Iterator<Item = &'a ImageRecord>) -> u64 {
    let mut seen = HashSet::new();
    records
        .flat_map(|record| &record.layers)
        .map(|layer| {
            let blob = if seen.insert(layer.blob) { layer.blob_bytes } else { 0 };
            let content = if seen.insert(layer.diff_id) { layer.content_bytes } else { 0 };
            blob + content
        })
        .sum()
}

/// Why an image is not removed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RemoveError {
    /// It is not here, or not clear which is meant.
    #[error(transparent)]
    Find(#[from] FindError),
    /// A container has it.
    #[error("image {0} is in use by a container: remove the task or service first")]
    InUse(String),
    /// By id, with several names: removing all wants `--force`.
    #[error("image {id} has {count} names: remove them one by one, or use --force")]
    Named {
        /// What was typed.
        id: String,
        /// How many.
        count: usize,
    },
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names taken away.
    pub untagged: Vec<Reference>,
    /// Images gone.
    pub deleted: Vec<Digest>,
    /// Bytes of blobs and layers freed.
    pub freed_bytes: u64,
}

/// What removing `text` does to `record`: the names to take away, and whether the image itself goes. Docker's rules: a name
/// goes first, the image with its last name. Pure.
fn check_removal(
    record: &ImageRecord,
    text: &str,
    used: bool,
    force: bool,
) -> Result<(Vec<Reference>, bool), RemoveError> {
    let by_name = Reference::parse(text).ok().filter(|name| record.names.contains(name));
    let tags = record.tags().count();
    match by_name {
        Some(name) if tags > 1 => Ok((vec![name], false)),
        _ if used => Err(RemoveError::InUse(text.to_owned())),
        None if tags > 1 && !force => Err(RemoveError::Named { id: text.to_owned(), count: tags }),
        _ => Ok((record.names.iter().cloned().collect(), true)),
    }
}

impl Store {
    /// Removes an image or one of its names. `in_use`: digests of images that containers of this node have.
    pub async fn remove(&self, text: &str, in_use: &HashSet<Digest>, force: bool) -> Result<Removed, RemoveError> {
        let (store, text, in_use) = (self.clone(), text.to_owned(), in_use.clone());
        blocking(move || {
            let record = store.find(&text)?;
            let used = in_use.contains(&record.digest) || store.is_pinned(&record.digest);
            let (untagged, delete) = check_removal(&record, &text, used, force)?;
            store.update_records(|records| {
                if delete {
                    records.remove(&record.digest);
                } else if let Some(record) = records.get_mut(&record.digest) {
                    record.names.retain(|name| !untagged.contains(name));
                }
                Ok::<_, StoreError>(())
            })?;
            if delete && store.image(&record.digest).is_some() {
                return Err(RemoveError::InUse(text));
            }
            let freed_bytes = store.collect()?;
            Ok(Removed { untagged, deleted: if delete { vec![record.digest] } else { vec![] }, freed_bytes })
        })
        .await
    }

    /// Gives an image a name, taking it from any other image. For names that an operator chose.
    pub async fn tag(&self, image: &Digest, name: &Reference) -> Result<(), StoreError> {
        let (store, image, name) = (self.clone(), *image, name.without_digest());
        blocking(move || {
            store.update_records(|records| {
                if !records.contains_key(&image) {
                    return Err(StoreError::NoImage(image));
                }
                for record in records.values_mut() {
                    record.names.remove(&name);
                }
                if let Some(record) = records.get_mut(&image) {
                    record.names.insert(name);
                }
                Ok(())
            })
        })
        .await
    }

    /// Removes what `policy` allows, and every blob and layer that no image needs.
    pub async fn prune(&self, policy: &Policy, in_use: &HashSet<Digest>, now: u64) -> Result<Removed, StoreError> {
        let (store, policy, mut in_use) = (self.clone(), *policy, in_use.clone());
        blocking(move || {
            let mut removed = Removed::default();
            store.update_records(|records| {
                let held: Vec<_> = records.values().cloned().collect();
                in_use.extend(held.iter().map(|record| record.digest).filter(|digest| store.is_pinned(digest)));
                removed.deleted = plan(&held, &in_use, now, &policy);
                for digest in &removed.deleted {
                    removed.untagged.extend(records.remove(digest).into_iter().flat_map(|record| record.names));
                }
                Ok::<_, StoreError>(())
            })?;
            removed.deleted.retain(|digest| store.image(digest).is_none());
            removed.freed_bytes = store.collect()?;
            Ok(removed)
        })
        .await
    }

    /// Removes blobs and layers that no record names and nobody has pinned; gives the bytes freed. Blocks.
    pub(crate) fn collect(&self) -> Result<u64, StoreError> {
        let trash = tempfile::TempDir::new_in(self.temporary())
            .map_err(StoreError::io("create a directory in", &self.temporary()))?;
        let garbage = self.set_garbage_aside(trash.path())?;
        let mut freed = 0;
        for path in garbage {
            freed += tree_bytes(&path);
        }
        let path = trash.path().to_owned();
        trash.close().map_err(StoreError::io("remove", &path))?;
        Ok(freed)
    }
}

/// Sum of the file sizes below `path`. What cannot be read counts nothing: it is only a figure for the user.
fn tree_bytes(path: &PathBuf) -> u64 {
    let Ok(found) = fs::symlink_metadata(path) else { return 0 };
    if !found.is_dir() {
        return found.len();
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| tree_bytes(&entry.path())).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::platform::Platform;
    use crate::store::LayerRecord;
    use proptest::prelude::*;

    fn record(id: u8, names: &[&str], last_used: u64, layers: &[u8]) -> ImageRecord {
        ImageRecord {
            digest: Digest::of(&[id]),
            manifest: Digest::of(&[id]),
            config: Digest::of(&[id, 1]),
            platform: Platform::host(),
            layers: layers
                .iter()
                .map(|layer| LayerRecord {
                    blob: Digest::of(&[*layer, 2]),
                    blob_bytes: 40,
                    diff_id: Digest::of(&[*layer, 3]),
                    content_bytes: 60,
                })
                .collect(),
            names: names.iter().map(|name| Reference::parse(name).unwrap()).collect(),
            created: None,
            held_since: 0,
            last_used,
        }
    }

    fn ids(ids: &[u8]) -> Vec<Digest> {
        ids.iter().map(|id| Digest::of(&[*id])).collect()
    }

    #[test]
    fn plan_by_name_age_use_and_size() {
        let records = [record(1, &[], 10, &[1]), record(2, &["a"], 20, &[1, 2]), record(3, &[], 90, &[3])];
        let none = HashSet::new();
        let all = Policy { named: true, ..Policy::default() };
        assert_eq!(plan(&records, &none, 100, &Policy::default()), ids(&[1, 3]));
        assert_eq!(plan(&records, &none, 100, &all), ids(&[1, 2, 3]));
        let old = Policy { unused_for: Duration::from_secs(50), ..all };
        assert_eq!(plan(&records, &none, 100, &old), ids(&[1, 2]));
        assert_eq!(plan(&records, &ids(&[1]).into_iter().collect(), 100, &all), ids(&[2, 3]));
        // Layer 1 is shared: removing image 1 frees nothing, so 2 goes as well.
        let small = Policy { until_bytes: Some(100), ..all };
        assert_eq!(bytes_of(records.iter()), 300);
        assert_eq!(plan(&records, &none, 100, &small), ids(&[1, 2]));
        assert_eq!(plan(&records, &none, 100, &Policy { until_bytes: Some(300), ..all }), []);
    }

    #[test]
    fn removal_follows_docker() {
        let two = record(1, &["a", "b"], 0, &[1]);
        let name = |text: &str| Reference::parse(text).unwrap();
        assert_eq!(check_removal(&two, "a", true, false).unwrap(), (vec![name("a")], false));
        let id = two.digest.to_string();
        assert!(matches!(check_removal(&two, &id, false, false), Err(RemoveError::Named { count: 2, .. })));
        assert_eq!(check_removal(&two, &id, false, true).unwrap(), (vec![name("a"), name("b")], true));
        assert!(matches!(check_removal(&two, &id, true, true), Err(RemoveError::InUse(_))));
        let one = record(1, &["a"], 0, &[1]);
        assert_eq!(check_removal(&one, "a:latest", false, false).unwrap(), (vec![name("a")], true));
        assert!(matches!(check_removal(&one, "a", true, false), Err(RemoveError::InUse(_))));
    }

    proptest! {
        #[test]
        fn the_plan_keeps_its_promises(
            images in proptest::collection::vec((0u64..50, any::<bool>(), any::<bool>(), proptest::collection::vec(0u8..6, 1..4)), 0..8),
            named: bool, age in 0u64..60, until in proptest::option::of(0u64..600),
        ) {
            let records: Vec<_> = images.iter().enumerate().map(|(at, (used, name, _, layers))| {
                record(at as u8, if *name { &["x"] } else { &[] }, *used, layers)
            }).collect();
            let in_use: HashSet<_> = images.iter().zip(&records).filter(|((_, _, busy, _), _)| *busy).map(|(_, r)| r.digest).collect();
            let policy = Policy { named, unused_for: Duration::from_secs(age), until_bytes: until };
            let gone = plan(&records, &in_use, 60, &policy);
            for record in &records {
                if gone.contains(&record.digest) {
                    prop_assert!(!in_use.contains(&record.digest));
                    prop_assert!(named || record.names.is_empty());
                    prop_assert!(60 - record.last_used >= age);
                }
            }
            // Planned again after the removal, nothing more goes.
            let left: Vec<_> = records.iter().filter(|r| !gone.contains(&r.digest)).cloned().collect();
            prop_assert_eq!(plan(&left, &in_use, 60, &policy), []);
        }
    }
}
