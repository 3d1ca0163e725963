//! The keys file: the data key of a directory, wrapped by a key-encryption key.
//!
//! Read and written only here, when a directory is made or opened and when its keys are replaced (`store/rekey.rs`). The
//! file says where the key-encryption key comes from: a file beside it that only the owner can read, or the caller (an
//! operator who unlocks the manager). The whole file is authenticated under the key-encryption key.
//!
//! The id of the data key in use names the parts of the directory that it seals (`db-2`, `floor-2`; those of the first
//! key have no number). So replacing this one file changes from the old key and its parts to the new ones, whole or not
//! at all. What is replaced is overwritten in place first: a copy of it elsewhere on the disk (a snapshot of the volume,
//! an SSD's spare blocks) is out of reach.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::crypto::{Cipher, KeyEncryptionKey, KeyRing, random_id, random_key};
use crate::disk::{self, Former};
use crate::error::StoreError;

/// Newest format that this build reads. The first one, of a directory whose data key was never replaced, is written as
/// that, so that an older build reads it.
const FORMAT: u32 = 2;
/// First line of the file with the key-encryption key.
const KEK_HEADER: &str = "skep key-encryption key 1";
const FILE: &str = "keys";
/// One that waits to take its place.
const STAGED: &str = "keys.new";
const KEK: &str = "kek";
/// Id of a directory's first data key.
const FIRST: u32 = 1;

const ADVICE_KEYS: &str = "restore it from a backup: without it nothing in this directory can be read";

/// Where the key-encryption key comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KekSource {
    /// The file `kek` beside the keys file.
    File,
    /// Whoever starts the node.
    Caller,
}

#[derive(Debug, Serialize, Deserialize)]
struct WrappedKey {
    id: u32,
    /// Hex of nonce, wrapped key, tag.
    wrapped: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Body {
    format: u32,
    /// Hex of 16 random bytes that name this directory.
    directory: String,
    key_encryption: KekSource,
    /// Id of the data key in use.
    current: u32,
    keys: Vec<WrappedKey>,
    /// Of [`Held::epoch`].
    #[serde(default, skip_serializing_if = "is_zero")]
    epoch: u64,
}

// Serde's form.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeysFile {
    #[serde(flatten)]
    body: Body,
    /// Hex of an empty message sealed under the key-encryption key, with the body as its place.
    seal: String,
}

/// The keys of a directory: what seals its parts, and what is needed to replace that.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) ring: Arc<KeyRing>,
    pub(crate) held: Held,
}

/// What is known of the keys in use.
#[derive(Debug)]
pub(crate) struct Held {
    directory: String,
    source: KekSource,
    kek: KeyEncryptionKey,
    /// Of the data key.
    id: u32,
    /// The caller's number of this data key: a higher one asks for another key. 0: none was asked for yet.
    pub(crate) epoch: u64,
}

impl Held {
    /// Name of a part of the directory that the data key seals.
    pub(crate) fn part(&self, name: &str) -> String {
        part(name, self.id)
    }

    /// Whether the key-encryption key is the caller's (`Some`) or lies beside the keys file (`None`).
    pub(crate) fn caller_key(&self) -> Option<&KeyEncryptionKey> {
        (self.source == KekSource::Caller).then_some(&self.kek)
    }
}

fn part(name: &str, id: u32) -> String {
    if id == FIRST { name.to_owned() } else { format!("{name}-{id}") }
}

/// Makes a data key for a new directory and writes it down. With `kek` None a key file is made as well.
pub(crate) fn create(dir: &Path, kek: Option<&KeyEncryptionKey>, epoch: u64) -> Result<Keys, StoreError> {
    let made = make(dir, hex(&random_id()), FIRST, kek, epoch)?;
    disk::write_whole(&dir.join(FILE), &made.text)?;
    Ok(made.keys)
}

/// Keys that are not in use yet.
pub(crate) struct Made {
    pub(crate) keys: Keys,
    /// The keys file that says so.
    pub(crate) text: Vec<u8>,
}

/// Makes the data key that takes over from `held`'s. With `kek` None its key file is written already, under its own name.
pub(crate) fn succeed(dir: &Path, held: &Held, kek: Option<&KeyEncryptionKey>, epoch: u64) -> Result<Made, StoreError> {
    make(dir, held.directory.clone(), held.id + 1, kek, epoch)
}

pub(crate) fn make(
    dir: &Path,
    directory: String,
    id: u32,
    kek: Option<&KeyEncryptionKey>,
    epoch: u64,
) -> Result<Made, StoreError> {
    let (source, kek) = source(dir, id, kek)?;
    let key = random_key();
    let held = Held { directory, source, kek, id, epoch };
    let text = wrap(&held, &key);
    let ring = KeyRing::new(id, vec![(id, Cipher::new(&key))]).expect("the key just made is there");
    Ok(Made { keys: Keys { ring: Arc::new(ring), held }, text })
}

/// The key-encryption key to use: the caller's, or a new one in a file.
fn source(dir: &Path, id: u32, kek: Option<&KeyEncryptionKey>) -> Result<(KekSource, KeyEncryptionKey), StoreError> {
    match kek {
        Some(kek) => Ok((KekSource::Caller, kek.copy())),
        None => {
            let made = KeyEncryptionKey::generate();
            write_kek(&dir.join(part(KEK, id)), &made)?;
            Ok((KekSource::File, made))
        }
    }
}

fn wrap(held: &Held, key: &[u8; 32]) -> Vec<u8> {
    let cipher = held.kek.cipher();
    let wrapped = hex(&cipher.seal(&place_of_key(&held.directory, held.id), key));
    let format = if held.id == FIRST && held.epoch == 0 { 1 } else { FORMAT };
    let body = Body {
        format,
        directory: held.directory.clone(),
        key_encryption: held.source,
        current: held.id,
        keys: vec![WrappedKey { id: held.id, wrapped }],
        epoch: held.epoch,
    };
    let seal = hex(&cipher.seal(&canonical(&body), b""));
    text_of(&KeysFile { body, seal })
}

pub(crate) fn text_of(file: &KeysFile) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(file).expect("plain data always has a JSON form");
    text.push(b'\n');
    text
}

/// A keys file that waits beside the one in use.
pub(crate) struct Staged {
    /// The one in use.
    old: Former,
}

/// Writes the keys file beside the one in use.
pub(crate) fn stage(dir: &Path, made: &Made) -> Result<Staged, StoreError> {
    let path = dir.join(FILE);
    let old = Former::of(&path)?;
    disk::write_beside(&path, &made.text)?;
    Ok(Staged { old })
}

impl Staged {
    /// Puts the keys in use: from here on the directory is what they say. After an error it is not known whether it is.
    pub(crate) fn commit(&self, dir: &Path) -> Result<(), StoreError> {
        disk::rename(&dir.join(STAGED), &dir.join(FILE))
    }

    /// Overwrites the keys file of before. What fails here, [`clear`] does.
    pub(crate) fn overwrite_old(&self) -> Result<(), StoreError> {
        self.old.overwrite()
    }
}

/// Wraps the data key in use by another key-encryption key: the caller's, or one in a file. When this returns it is in use,
/// but not durably: the caller notes that, syncs the directory, then overwrites the former file and calls [`clear`]. After an
/// error here nothing has changed.
pub(crate) fn rewrap(
    dir: &Path,
    held: &Held,
    kek: Option<&KeyEncryptionKey>,
    epoch: u64,
) -> Result<(Held, Former), StoreError> {
    let path = dir.join(FILE);
    let file = read(&path)?;
    let key = unwrap(&path, &file, &held.kek, "it was replaced while it was in use")?;
    let (source, kek) = source(dir, held.id, kek)?;
    let rewrapped = Held { directory: held.directory.clone(), source, kek, id: held.id, epoch };
    let former = Former::of(&path)?;
    let beside = disk::write_beside(&path, &wrap(&rewrapped, &key))?;
    fs::rename(&beside, &path).map_err(StoreError::io("rename", &beside))?;
    Ok((rewrapped, former))
}

/// Removes key files that are not in use; those of before, or of a change that was cut short.
pub(crate) fn clear(dir: &Path, held: &Held) -> Result<(), StoreError> {
    disk::shred_former(&dir.join(FILE))?;
    let own = (held.source == KekSource::File).then(|| held.part(KEK));
    let mut names = disk::names(dir)?;
    names.retain(|name| (is_part(name, KEK) && Some(name) != own.as_ref()) || name == STAGED);
    if !names.is_empty() {
        // A crash must not bring back a keys file that needs them.
        disk::sync_dir(dir)?;
    }
    names.iter().try_for_each(|name| disk::shred(&dir.join(name)))
}

/// Deletes a directory that nobody uses, its keys first, overwritten. Absent is fine.
pub fn erase(dir: &Path) -> Result<(), StoreError> {
    if !dir.exists() {
        return Ok(());
    }
    for name in disk::names(dir)? {
        if is_part(&name, KEK) || is_part(&name, FILE) {
            disk::shred(&dir.join(name))?;
        }
    }
    disk::remove(dir)
}

/// Whether a file or folder of the directory is `part` of some data key, or on its way to be.
pub(crate) fn is_part(name: &str, part: &str) -> bool {
    name.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
}

/// Reads and unwraps the data key of a directory. `keks` are the caller's: any of them may be the right one.
pub(crate) fn open(dir: &Path, keks: &[&KeyEncryptionKey]) -> Result<Keys, StoreError> {
    let path = dir.join(FILE);
    let file = read(&path)?;
    let opened = match file.body.key_encryption {
        KekSource::Caller if keks.is_empty() => return Err(StoreError::Locked { path }),
        KekSource::Caller => keks
            .iter()
            .map(|kek| unwrap(&path, &file, kek, "check the unlock key").map(|key| (key, kek.copy())))
            .reduce(|first, next| first.or(next))
            .expect("there is a key to try"),
        KekSource::File => {
            let kek = read_kek(&dir.join(part(KEK, file.body.current)))?;
            let why = "the file \"kek\" beside it belongs to another directory, or one of the two was altered";
            unwrap(&path, &file, &kek, why).map(|key| (key, kek))
        }
    };
    let (key, kek) = opened?;
    let Body { directory, key_encryption: source, current: id, epoch, .. } = file.body;
    let ring = KeyRing::new(id, vec![(id, Cipher::new(&key))]).expect("it is the only one");
    Ok(Keys { ring: Arc::new(ring), held: Held { directory, source, kek, id, epoch } })
}

fn read(path: &Path) -> Result<KeysFile, StoreError> {
    match fs::read(path) {
        Ok(text) => parse(path, &text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(StoreError::Missing { path: path.to_owned(), advice: ADVICE_KEYS })
        }
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

/// Checks the file, and answers the data key in use.
pub(crate) fn unwrap(
    path: &Path,
    file: &KeysFile,
    kek: &KeyEncryptionKey,
    why: &'static str,
) -> Result<Zeroizing<[u8; 32]>, StoreError> {
    let cipher = kek.cipher();
    let wrong = || StoreError::WrongKey { path: path.to_owned(), why };
    let seal = unhex(&file.seal).ok_or_else(|| StoreError::damaged(path, "the seal is not hexadecimal"))?;
    cipher.open(&canonical(&file.body), &seal).map_err(|_| wrong())?;
    let current = file.body.keys.iter().find(|key| key.id == file.body.current);
    let current = current.ok_or_else(|| StoreError::damaged(path, "the data key in use is not in it"))?;
    let wrapped = unhex(&current.wrapped).ok_or_else(|| StoreError::damaged(path, "a key is not hexadecimal"))?;
    let plain =
        Zeroizing::new(cipher.open(&place_of_key(&file.body.directory, current.id), &wrapped).map_err(|_| wrong())?);
    let plain: [u8; 32] =
        plain.as_slice().try_into().map_err(|_| StoreError::damaged(path, "a data key is not 32 bytes long"))?;
    Ok(Zeroizing::new(plain))
}

pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<KeysFile, StoreError> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let version: Version = serde_json::from_slice(text)
        .map_err(|error| StoreError::damaged(path, format!("not a keys file ({error})")))?;
    if version.format > FORMAT {
        return Err(StoreError::NewerFormat { path: path.to_owned(), found: version.format, supported: FORMAT });
    }
    serde_json::from_slice(text).map_err(|error| StoreError::damaged(path, error.to_string()))
}

/// The bytes of a body that its seal covers: field order is that of the struct, so the form is unique.
fn canonical(body: &Body) -> Vec<u8> {
    let mut bytes = b"skep keys file ".to_vec();
    bytes.extend(serde_json::to_vec(body).expect("plain data always has a JSON form"));
    bytes
}

fn place_of_key(directory: &str, id: u32) -> Vec<u8> {
    format!("skep data key {id} of {directory}").into_bytes()
}

fn write_kek(path: &Path, kek: &KeyEncryptionKey) -> Result<(), StoreError> {
    disk::write_whole(path, kek_text(kek).as_bytes())
}

pub(crate) fn kek_text(kek: &KeyEncryptionKey) -> Zeroizing<String> {
    let key = Zeroizing::new(hex(kek.expose()));
    Zeroizing::new(format!("{KEK_HEADER}\n{}\n", key.as_str()))
}

fn read_kek(path: &Path) -> Result<KeyEncryptionKey, StoreError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(StoreError::Missing { path: path.to_owned(), advice: ADVICE_KEYS });
        }
        Err(error) => return Err(StoreError::io("read", path)(error)),
    };
    let mode = fs::metadata(path).map_err(StoreError::io("inspect", path))?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), mode = format!("{:o}", mode & 0o7777),
            "the key file can be read by others than its owner; set its mode to 600");
    }
    kek_in(path, &text)
}

/// The key in the text of the key file at `path`.
pub(crate) fn kek_in(path: &Path, text: &str) -> Result<KeyEncryptionKey, StoreError> {
    let key = text
        .strip_prefix(KEK_HEADER)
        .and_then(|rest| unhex(rest.trim()))
        .map(Zeroizing::new)
        .ok_or_else(|| StoreError::damaged(path, "not a key file"))?;
    let bytes: &[u8; 32] =
        key.as_slice().try_into().map_err(|_| StoreError::damaged(path, "the key is not 32 bytes long"))?;
    Ok(KeyEncryptionKey::new(*bytes))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| (byte as char).to_digit(16).and_then(|value| u8::try_from(value).ok());
    digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keys_survive_reopening_with_a_key_file() {
        let dir = tempfile::tempdir().unwrap();
        let sealed = create(dir.path(), None, 0).unwrap().ring.seal(b"p", b"text");
        assert_eq!(open(dir.path(), &[]).unwrap().ring.open(b"p", &sealed).unwrap(), b"text");
        let mode = fs::metadata(dir.path().join("kek")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_locked_directory_needs_the_right_key() {
        let dir = tempfile::tempdir().unwrap();
        let (kek, wrong) = (KeyEncryptionKey::generate(), KeyEncryptionKey::generate());
        create(dir.path(), Some(&kek), 3).unwrap();
        assert!(!dir.path().join("kek").exists());
        assert!(matches!(open(dir.path(), &[]), Err(StoreError::Locked { .. })));
        assert!(matches!(open(dir.path(), &[&wrong]), Err(StoreError::WrongKey { .. })));
        assert_eq!(open(dir.path(), &[&wrong, &kek]).unwrap().held.epoch, 3);
    }

    #[test]
    fn wrapped_by_another_key_the_data_key_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (KeyEncryptionKey::generate(), KeyEncryptionKey::generate());
        let made = create(dir.path(), Some(&first), 0).unwrap();
        let sealed = made.ring.seal(b"p", b"text");
        let rewrap = |held: &Held, kek, epoch| {
            let (held, former) = rewrap(dir.path(), held, kek, epoch).unwrap();
            former.overwrite().unwrap();
            held
        };
        let held = rewrap(&made.held, Some(&second), 1);
        assert!(open(dir.path(), &[&first]).is_err());
        assert_eq!(open(dir.path(), &[&second]).unwrap().ring.open(b"p", &sealed).unwrap(), b"text");
        // Off again: a key file; and on: it goes.
        let held = rewrap(&held, None, 1);
        assert_eq!(open(dir.path(), &[]).unwrap().ring.open(b"p", &sealed).unwrap(), b"text");
        let held = rewrap(&held, Some(&first), 2);
        clear(dir.path(), &held).unwrap();
        assert_eq!(disk::names(dir.path()).unwrap(), ["keys"]);
    }

    #[test]
    fn what_a_crash_leaves_of_a_keys_file_is_overwritten_and_the_one_in_use_is_not() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let is_zeroes = |name| fs::read(elsewhere.path().join(name)).unwrap().iter().all(|byte| *byte == 0);
        let (first, second) = (KeyEncryptionKey::generate(), KeyEncryptionKey::generate());
        let made = create(dir.path(), Some(&first), 0).unwrap();
        let text = fs::read(dir.path().join("keys")).unwrap();
        // Before the rename.
        let staged = stage(dir.path(), &succeed(dir.path(), &made.held, Some(&first), 1).unwrap()).unwrap();
        drop(staged);
        assert!(dir.path().join("keys.old").exists());
        clear(dir.path(), &made.held).unwrap();
        assert_eq!(disk::names(dir.path()).unwrap(), ["keys"]);
        assert_eq!(fs::read(dir.path().join("keys")).unwrap(), text);
        // After it.
        fs::hard_link(dir.path().join("keys"), elsewhere.path().join("first")).unwrap();
        let (held, former) = rewrap(dir.path(), &made.held, Some(&second), 1).unwrap();
        drop(former);
        clear(dir.path(), &held).unwrap();
        assert!(is_zeroes("first"));
        assert_eq!(disk::names(dir.path()).unwrap(), ["keys"]);
        open(dir.path(), &[&second]).unwrap();
    }

    #[test]
    fn a_new_key_counts_once_it_is_committed() {
        let dir = tempfile::tempdir().unwrap();
        let old = create(dir.path(), None, 0).unwrap();
        let made = succeed(dir.path(), &old.held, None, 1).unwrap();
        assert_eq!(open(dir.path(), &[]).unwrap().held.part("db"), "db");
        let staged = stage(dir.path(), &made).unwrap();
        staged.commit(dir.path()).unwrap();
        staged.overwrite_old().unwrap();
        let new = open(dir.path(), &[]).unwrap();
        assert_eq!((new.held.part("db").as_str(), new.held.epoch), ("db-2", 1));
        assert!(new.ring.open(b"p", &old.ring.seal(b"p", b"text")).is_err(), "the old key is unknown");
        clear(dir.path(), &new.held).unwrap();
        let other = tempfile::tempdir().unwrap();
        fs::hard_link(dir.path().join("kek-2"), other.path().join("kek")).unwrap();
        let mut names = disk::names(dir.path()).unwrap();
        names.sort();
        assert_eq!(names, ["kek-2", "keys"]);
        erase(dir.path()).unwrap();
        erase(dir.path()).unwrap();
        assert!(!dir.path().exists());
        assert!(fs::read(other.path().join("kek")).unwrap().iter().all(|byte| *byte == 0), "overwritten");
    }

    #[test]
    fn parts_are_told_from_other_names() {
        assert!(
            is_part("db", "db") && is_part("db-2", "db") && is_part("kek.new", "kek") && is_part("kek-2.new", "kek")
        );
        assert!(!is_part("dbx", "db") && !is_part("keys", "kek"));
    }

    #[test]
    fn any_altered_byte_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let made = create(dir.path(), None, 0).unwrap();
        let next = succeed(dir.path(), &made.held, None, 7).unwrap();
        stage(dir.path(), &next).unwrap().commit(dir.path()).unwrap();
        let path = dir.path().join("keys");
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            if good[at].is_ascii_whitespace() {
                continue;
            }
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(open(dir.path(), &[]).is_err(), "byte {at} of {}", String::from_utf8_lossy(&good));
        }
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert!(matches!(open(dir.path(), &[]), Err(StoreError::Damaged { .. })));
        fs::write(&path, &good).unwrap();
        open(dir.path(), &[]).unwrap();
    }

    #[test]
    fn a_newer_format_and_missing_files_say_so() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), None, 0).unwrap();
        let path = dir.path().join("keys");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"format\": 1", "\"format\": 9")).unwrap();
        assert!(matches!(open(dir.path(), &[]), Err(StoreError::NewerFormat { found: 9, .. })));
        fs::write(&path, text).unwrap();
        fs::remove_file(dir.path().join("kek")).unwrap();
        assert!(matches!(open(dir.path(), &[]), Err(StoreError::Missing { .. })));
        fs::remove_file(&path).unwrap();
        assert!(matches!(open(dir.path(), &[]), Err(StoreError::Missing { .. })));
    }
}
