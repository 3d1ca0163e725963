//! A host's WireGuard key (x25519, RFC 7748): made on the host, in `<dir>/wireguard.key` beside its other credentials.
//!
//! Used by the node, which tells the managers the public half and its own netd the private one. Never printed.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rand::RngCore as _;
use rand::rngs::OsRng;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::pem;
use crate::store::{StoreError, make_dir, read_secret, replace_secret};
use crate::unlock::UnlockKey;

/// The host's WireGuard key, as `wg genkey` prints it.
pub const MESH_KEY_FILE: &str = "wireguard.key";

/// PEM label of the key where it is sealed with the swarm's unlock key.
const SEALED_LABEL: &str = "SKEP SEALED WIREGUARD KEY";
/// What it is bound to then.
const PLACE: &[u8] = b"skep wireguard key";

/// A host's WireGuard key pair. Its memory is wiped when it goes.
pub struct MeshKey(StaticSecret);

impl MeshKey {
    /// Makes a new key from the system's random source, clamped as RFC 7748 section 5 asks.
    pub(crate) fn generate() -> Self {
        let mut bytes = [0; 32];
        OsRng.fill_bytes(&mut bytes);
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        Self(StaticSecret::from(bytes))
    }

    /// The key in `dir`, which may be sealed with `seal` or any of `others`; makes one, durably, where there is none, and
    /// seals it with `seal`.
    ///
    /// # Errors
    /// [`StoreError`]: the file cannot be read or written, is readable by others, is sealed with another key, or holds no
    /// key. It is left as it is.
    pub fn open(dir: &Path, seal: Option<&UnlockKey>, others: &[UnlockKey]) -> Result<Self, StoreError> {
        let seals: Vec<UnlockKey> = seal.into_iter().chain(others).cloned().collect();
        match Self::read(dir, &seals) {
            Err(error) if error.is_absent() => {
                let made = Self::generate();
                make_dir(dir).map_err(|source| StoreError::Write { path: dir.to_owned(), source })?;
                made.save(dir, seal)?;
                Ok(made)
            }
            found => found,
        }
    }

    /// The key in `dir`, which may be sealed with any of `seals`.
    pub(crate) fn read(dir: &Path, seals: &[UnlockKey]) -> Result<Self, StoreError> {
        let path = dir.join(MESH_KEY_FILE);
        let text = read_secret(&path)?;
        Self::in_text(&text, path, seals)
    }

    /// As [`Self::read`], of the text of the file at `path`.
    pub(crate) fn in_text(text: &str, path: PathBuf, seals: &[UnlockKey]) -> Result<Self, StoreError> {
        let sealed =
            pem::sections(text).and_then(|sections| sections.into_iter().find(|(label, _)| *label == SEALED_LABEL));
        let bytes = match sealed {
            Some(_) if seals.is_empty() => return Err(StoreError::Sealed { path }),
            Some((_, sealed)) => {
                let opened = seals.iter().find_map(|seal| seal.open(PLACE, &sealed).ok());
                opened.ok_or_else(|| StoreError::WrongKey { path: path.clone() })?
            }
            None => Zeroizing::new(BASE64.decode(text.trim()).unwrap_or_default()),
        };
        let bytes = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| StoreError::Key { path, source: None })?;
        Ok(Self(StaticSecret::from(bytes)))
    }

    /// Writes it, sealed if there is a key for that.
    pub(crate) fn save(&self, dir: &Path, seal: Option<&UnlockKey>) -> Result<(), StoreError> {
        replace_secret(dir, MESH_KEY_FILE, self.to_text(seal).as_bytes())
    }

    /// The file's text, sealed if there is a key for that.
    pub(crate) fn to_text(&self, seal: Option<&UnlockKey>) -> Zeroizing<String> {
        let secret = Zeroizing::new(self.secret());
        Zeroizing::new(match seal {
            Some(seal) => pem::encode(SEALED_LABEL, &seal.seal(PLACE, secret.as_slice())),
            None => format!("{}\n", BASE64.encode(*secret)),
        })
    }

    /// What other hosts know it by.
    pub fn public(&self) -> [u8; 32] {
        PublicKey::from(&self.0).to_bytes()
    }

    /// The private half: for this host's own WireGuard device, nothing else.
    pub fn secret(&self) -> [u8; 32] {
        self.0.to_bytes()
    }
}

impl fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeshKey(hidden)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::Credentials;
    use crate::store::replace;

    #[test]
    fn it_is_made_once_and_goes_with_the_credentials() {
        let dir = tempfile::tempdir().unwrap();
        let identity = dir.path().join("identity");
        let made = MeshKey::open(&identity, None, &[]).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let file = identity.join(MESH_KEY_FILE);
        assert_eq!((mode(&identity), mode(&file)), (0o700, 0o600));
        let found = MeshKey::open(&identity, None, &[]).unwrap();
        assert_eq!((made.secret(), made.public()), (found.secret(), found.public()));
        assert_ne!(made.public(), made.secret());
        assert_eq!(format!("{made:?}"), "MeshKey(hidden)");
        Credentials::erase(&identity).unwrap();
        assert!(!file.exists());
        assert_ne!(
            MeshKey::open(&identity, None, &[]).unwrap().public(),
            made.public(),
            "another membership, another key"
        );
    }

    #[test]
    fn a_key_of_somebody_else_is_read() {
        let dir = tempfile::tempdir().unwrap();
        // RFC 7748 section 6.1.
        let alice = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
        replace(dir.path(), MESH_KEY_FILE, alice.as_bytes(), 0o600).unwrap();
        let public = BASE64.encode(MeshKey::open(dir.path(), None, &[]).unwrap().public());
        assert_eq!(public, "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn a_bad_file_is_told_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        for (text, mode) in [("AAAA\n", 0o600), ("", 0o600), ("no key", 0o600), ("whatever", 0o644)] {
            replace(dir.path(), MESH_KEY_FILE, text.as_bytes(), mode).unwrap();
            let error = MeshKey::open(dir.path(), None, &[]).unwrap_err();
            match mode {
                0o600 => assert!(matches!(error, StoreError::Key { .. }), "{error}"),
                _ => assert!(matches!(error, StoreError::Exposed { .. }), "{error}"),
            }
            assert_eq!(std::fs::read_to_string(dir.path().join(MESH_KEY_FILE)).unwrap(), text);
        }
    }
}
