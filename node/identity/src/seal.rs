//! Seals the private keys in a credentials directory with the swarm's unlock key, with another one, or not at all.
//!
//! Called by the node when autolock is switched, its key is rotated, or the node's role changes; one caller at a time.
//! There are two files, and Raft's keys besides, which change one after the other. So that a crash in between leaves
//! nobody out, while one unlock key takes the place of another both lie in a file of their own, each sealed with the
//! other: either one opens everything ([`other_keys`]). A change that begins before another has ended adds its key.

use std::path::Path;

use zeroize::Zeroizing;

use crate::mesh::{MESH_KEY_FILE, MeshKey};
use crate::pem;
use crate::store::{KEY_FILE, StoreError, overwrite, read_keys, read_secret, replace_secret, sweep};
use crate::unlock::UnlockKey;

/// The unlock keys while one takes the place of another.
pub const PAIR_FILE: &str = "unlock.pair";
/// What the labels of sealed keys begin with.
const SEALED: &str = "SKEP SEALED";
const PAIR_LABEL: &str = "SKEP SEALED UNLOCK KEY";
const PAIR_PLACE: &[u8] = b"skep unlock key";

/// Seals the keys in `dir` with `to`, or leaves them open. They may be open, or sealed with `to` or any of `from`, each its own
/// way. What is replaced is overwritten. With one key taking the place of others the file of them is there until [`settle`]
/// is called; a caller with more to change calls it last.
///
/// # Errors
/// [`StoreError`]: a key cannot be read with any of these keys, or not be written. Done again, it goes on.
pub fn reseal(dir: &Path, from: &[UnlockKey], to: Option<&UnlockKey>) -> Result<(), StoreError> {
    let mut keys: Vec<UnlockKey> = to.into_iter().cloned().collect();
    from.iter().for_each(|from| {
        if !keys.contains(from) {
            keys.push(from.clone());
        }
    });
    if to.is_some() && keys.len() > 1 {
        // Each with all others: after one change that was cut short, another may be.
        replace_secret(dir, PAIR_FILE, each_with_others(&keys).as_bytes())?;
    }
    // Who finds the node's key sealed asks for the unlock key: as long as anything is sealed, it is.
    match to {
        Some(_) => reseal_node(dir, &keys, to).and_then(|()| reseal_mesh(dir, &keys, to)),
        None => reseal_mesh(dir, &keys, to).and_then(|()| reseal_node(dir, &keys, to)),
    }
}

fn reseal_node(dir: &Path, keys: &[UnlockKey], to: Option<&UnlockKey>) -> Result<(), StoreError> {
    let path = dir.join(KEY_FILE);
    if is_alike(dir, KEY_FILE, to, |seals| read_keys(&path, seals).map(drop)) {
        return Ok(());
    }
    let mut text = Zeroizing::new(String::new());
    for key in read_keys(&path, keys)? {
        text.push_str(&key.to_pem(to));
    }
    replace_secret(dir, KEY_FILE, text.as_bytes())
}

fn reseal_mesh(dir: &Path, keys: &[UnlockKey], to: Option<&UnlockKey>) -> Result<(), StoreError> {
    if is_alike(dir, MESH_KEY_FILE, to, |seals| MeshKey::read(dir, seals).map(drop)) {
        return Ok(());
    }
    match MeshKey::read(dir, keys) {
        Ok(key) => key.save(dir, to),
        // It is made when it is needed.
        Err(error) if error.is_absent() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The text of the file of several keys.
pub(crate) fn each_with_others(keys: &[UnlockKey]) -> String {
    let each =
        keys.iter().flat_map(|with| keys.iter().filter(move |other| *other != with).map(move |other| (with, other)));
    each.map(|(with, other)| pem::encode(PAIR_LABEL, &with.seal(PAIR_PLACE, other.expose()))).collect()
}

/// Whether a file is sealed with `to`, or open, already.
fn is_alike(
    dir: &Path,
    name: &str,
    to: Option<&UnlockKey>,
    read: impl Fn(&[UnlockKey]) -> Result<(), StoreError>,
) -> bool {
    let Ok(text) = read_secret(&dir.join(name)) else { return false };
    let sections = pem::sections(&text).unwrap_or_default();
    let sealed = sections.iter().filter(|(label, _)| label.starts_with(SEALED)).count();
    match to {
        Some(to) => sealed > 0 && sealed == sections.len() && read(std::slice::from_ref(to)).is_ok(),
        None => sealed == 0,
    }
}

/// All is sealed with one key again: the file of several goes, overwritten, and so does what a change that was cut short
/// left of keys.
pub fn settle(dir: &Path) -> Result<(), StoreError> {
    sweep(dir)?;
    let path = dir.join(PAIR_FILE);
    let removed = match std::fs::OpenOptions::new().write(true).open(&path) {
        Ok(file) => overwrite(&file).and_then(|()| std::fs::remove_file(&path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
    };
    removed.and_then(|()| std::fs::File::open(dir)?.sync_all()).map_err(|source| StoreError::Write { path, source })
}

/// The keys whose place `key` was taking, and those that were taking its place. Empty: no change was cut short, or `key` is
/// not of it.
pub fn other_keys(dir: &Path, key: &UnlockKey) -> Result<Vec<UnlockKey>, StoreError> {
    match read_secret(&dir.join(PAIR_FILE)) {
        Ok(text) => Ok(others_in(&text, key)),
        Err(error) if error.is_absent() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// As [`other_keys`], of the file's text.
pub(crate) fn others_in(text: &str, key: &UnlockKey) -> Vec<UnlockKey> {
    let halves = pem::sections(text).unwrap_or_default();
    let opened = halves.iter().filter_map(|(_, sealed)| key.open(PAIR_PLACE, sealed).ok());
    opened.filter_map(|bytes| bytes.as_slice().try_into().ok()).map(UnlockKey::new).collect()
}
