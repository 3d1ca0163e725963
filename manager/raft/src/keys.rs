//! The keys file: the data keys of a directory, wrapped by a key-encryption key.
//!
//! Read and written only here, when a directory is made or opened. The file says where the key-encryption key comes
//! from: a file beside it that only the owner can read, or the caller (an operator who unlocks the manager). Several
//! data keys have their place in it, so that a key can be replaced while older records stay readable. The whole file is
//! authenticated under the key-encryption key.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::crypto::{Cipher, KeyEncryptionKey, KeyRing, random_id, random_key};
use crate::disk;
use crate::error::StoreError;

/// Newest format that this build reads and the one it writes.
const FORMAT: u32 = 1;
/// First line of the file with the key-encryption key.
const KEK_HEADER: &str = "skep key-encryption key 1";

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
}

#[derive(Debug, Serialize, Deserialize)]
struct KeysFile {
    #[serde(flatten)]
    body: Body,
    /// Hex of an empty message sealed under the key-encryption key, with the body as its place.
    seal: String,
}

/// Makes a data key for a new directory and writes it down. With `kek` None a key file is made as well.
pub(crate) fn create(dir: &Path, kek: Option<&KeyEncryptionKey>) -> Result<KeyRing, StoreError> {
    let made;
    let (source, kek) = match kek {
        Some(kek) => (KekSource::Caller, kek),
        None => {
            made = KeyEncryptionKey::generate();
            write_kek(dir, &made)?;
            (KekSource::File, &made)
        }
    };
    let key = random_key();
    let directory = hex(&random_id());
    let id = 1;
    let wrapped = hex(&kek.cipher().seal(&place_of_key(&directory, id), key.as_slice()));
    let body =
        Body { format: FORMAT, directory, key_encryption: source, current: id, keys: vec![WrappedKey { id, wrapped }] };
    let seal = hex(&kek.cipher().seal(&canonical(&body), b""));
    let mut text = serde_json::to_vec_pretty(&KeysFile { body, seal }).expect("plain data always has a JSON form");
    text.push(b'\n');
    disk::write_whole(&dir.join("keys"), &text)?;
    Ok(KeyRing::new(id, vec![(id, Cipher::new(&key))]).expect("the key just made is there"))
}

/// Reads and unwraps the data keys of a directory.
pub(crate) fn open(dir: &Path, kek: Option<&KeyEncryptionKey>) -> Result<KeyRing, StoreError> {
    let path = dir.join("keys");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(StoreError::Missing { path, advice: ADVICE_KEYS });
        }
        Err(error) => return Err(StoreError::io("read", &path)(error)),
    };
    let file = parse(&path, &text)?;
    let from_file;
    let (kek, why) = match (file.body.key_encryption, kek) {
        (KekSource::Caller, Some(kek)) => (kek, "check the unlock key"),
        (KekSource::Caller, None) => return Err(StoreError::Locked { path }),
        (KekSource::File, _) => {
            from_file = read_kek(dir)?;
            (&from_file, "the file \"kek\" beside it belongs to another directory, or one of the two was altered")
        }
    };
    let cipher = kek.cipher();
    let wrong = || StoreError::WrongKey { path: path.clone(), why };
    let seal = unhex(&file.seal).ok_or_else(|| StoreError::damaged(&path, "the seal is not hexadecimal"))?;
    cipher.open(&canonical(&file.body), &seal).map_err(|_| wrong())?;
    let mut keys = Vec::new();
    for key in &file.body.keys {
        let wrapped = unhex(&key.wrapped).ok_or_else(|| StoreError::damaged(&path, "a key is not hexadecimal"))?;
        let plain =
            Zeroizing::new(cipher.open(&place_of_key(&file.body.directory, key.id), &wrapped).map_err(|_| wrong())?);
        let plain: &[u8; 32] =
            plain.as_slice().try_into().map_err(|_| StoreError::damaged(&path, "a data key is not 32 bytes long"))?;
        keys.push((key.id, Cipher::new(plain)));
    }
    KeyRing::new(file.body.current, keys).ok_or_else(|| StoreError::damaged(&path, "the data key in use is not in it"))
}

fn parse(path: &Path, text: &[u8]) -> Result<KeysFile, StoreError> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let version: Version = serde_json::from_slice(text)
        .map_err(|error| StoreError::damaged(path, format!("not a keys file ({error})")))?;
    if version.format != FORMAT {
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

fn write_kek(dir: &Path, kek: &KeyEncryptionKey) -> Result<(), StoreError> {
    let key = Zeroizing::new(hex(kek.expose()));
    let text = Zeroizing::new(format!("{KEK_HEADER}\n{}\n", key.as_str()));
    disk::write_whole(&dir.join("kek"), text.as_bytes())
}

fn read_kek(dir: &Path) -> Result<KeyEncryptionKey, StoreError> {
    let path = dir.join("kek");
    let text = match fs::read_to_string(&path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(StoreError::Missing { path, advice: ADVICE_KEYS });
        }
        Err(error) => return Err(StoreError::io("read", &path)(error)),
    };
    let mode = fs::metadata(&path).map_err(StoreError::io("inspect", &path))?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), mode = format!("{:o}", mode & 0o7777),
            "the key file can be read by others than its owner; set its mode to 600");
    }
    let key = text
        .strip_prefix(KEK_HEADER)
        .and_then(|rest| unhex(rest.trim()))
        .map(Zeroizing::new)
        .ok_or_else(|| StoreError::damaged(&path, "not a key file"))?;
    let bytes: &[u8; 32] =
        key.as_slice().try_into().map_err(|_| StoreError::damaged(&path, "the key is not 32 bytes long"))?;
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
        let sealed = create(dir.path(), None).unwrap().seal(b"p", b"text");
        assert_eq!(open(dir.path(), None).unwrap().open(b"p", &sealed).unwrap(), b"text");
        let mode = fs::metadata(dir.path().join("kek")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_locked_directory_needs_the_right_key() {
        let dir = tempfile::tempdir().unwrap();
        let kek = KeyEncryptionKey::generate();
        create(dir.path(), Some(&kek)).unwrap();
        assert!(!dir.path().join("kek").exists());
        assert!(matches!(open(dir.path(), None), Err(StoreError::Locked { .. })));
        assert!(matches!(open(dir.path(), Some(&KeyEncryptionKey::generate())), Err(StoreError::WrongKey { .. })));
        open(dir.path(), Some(&kek)).unwrap();
    }

    #[test]
    fn any_altered_byte_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), None).unwrap();
        let path = dir.path().join("keys");
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            if good[at].is_ascii_whitespace() {
                continue;
            }
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(open(dir.path(), None).is_err(), "byte {at} of {}", String::from_utf8_lossy(&good));
        }
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert!(matches!(open(dir.path(), None), Err(StoreError::Damaged { .. })));
        fs::write(&path, &good).unwrap();
        open(dir.path(), None).unwrap();
    }

    #[test]
    fn a_newer_format_and_missing_files_say_so() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), None).unwrap();
        let path = dir.path().join("keys");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"format\": 1", "\"format\": 9")).unwrap();
        assert!(matches!(open(dir.path(), None), Err(StoreError::NewerFormat { found: 9, .. })));
        fs::write(&path, text).unwrap();
        fs::remove_file(dir.path().join("kek")).unwrap();
        assert!(matches!(open(dir.path(), None), Err(StoreError::Missing { .. })));
        fs::remove_file(&path).unwrap();
        assert!(matches!(open(dir.path(), None), Err(StoreError::Missing { .. })));
    }
}
