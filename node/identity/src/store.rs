//! Credentials on disk: `<dir>/node.key` (mode 0600), `node.crt`, `root.crt`. Used by the node at start, join, renewal.
//!
//! On a manager of a locked swarm the key is sealed with the unlock key (`seal.rs`), and only who has that can load it.
//! Each file is replaced whole (temporary file, fsync, rename, fsync of the directory). A renewal that is cut off between
//! two files loses nothing: while key and certificate change, `node.key` holds the new and the old key, and loading takes
//! the one that the certificate is for; `root.crt` holds the new and the old roots, since a node that was away for a whole
//! change of the root gets others than it had.
//! What a file with a key held before is overwritten where it lies; that it is still to be done is seen by a second name of it
//! (`.node.key.old`), so that a crash in between leaves nothing that [`sweep`] does not find.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::chain;
use crate::credentials::{Credentials, CredentialsError};
use crate::key::{KeyError, NodeKey, PLAIN_LABEL, SEALED_LABEL};
use crate::mesh::MESH_KEY_FILE;
use crate::peer::{CertificateFacts, PeerIdentity};
use crate::pem;
use crate::roots::RootBundle;
use crate::seal::PAIR_FILE;
use crate::unlock::UnlockKey;

/// The private key.
pub const KEY_FILE: &str = "node.key";
/// The certificate chain, the node's own first.
pub const CERT_FILE: &str = "node.crt";
/// The trusted roots.
pub const ROOT_FILE: &str = "root.crt";

/// Why credentials cannot be loaded or saved.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause; `NotFound` means that the node is not a member of a cluster.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written durably.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Others than the owner may read the key.
    #[error("{} has mode {mode:04o}: others may read the node's key; restrict it with chmod 600", .path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key is sealed, and no key to open it with was given.
    #[error("{} is sealed: this manager needs its unlock key", .path.display())]
    Sealed {
        /// The key file.
        path: PathBuf,
    },
    /// None of the keys given opens it.
    #[error("the unlock key does not open {}", .path.display())]
    WrongKey {
        /// The key file.
        path: PathBuf,
    },
    /// The key file is damaged.
    #[error("{} holds no usable key", .path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// The cause; `None` if there is no key in it at all.
        #[source]
        source: Option<KeyError>,
    },
    /// The files do not fit together.
    #[error("the credentials in {} cannot be used", .dir.display())]
    Credentials {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        #[source]
        source: CredentialsError,
    },
}

impl StoreError {
    /// Whether the node simply has no credentials: it never joined, or it left.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl Credentials {
    /// Loads credentials that are not sealed and checks that the files fit together. Not the time: see
    /// [`Credentials::validity`].
    pub fn load(dir: &Path) -> Result<Self, StoreError> {
        Self::unlock(dir, &[])
    }

    /// Loads credentials that may be sealed with any of `keys`.
    pub fn unlock(dir: &Path, keys: &[UnlockKey]) -> Result<Self, StoreError> {
        let unusable = |source| StoreError::Credentials { dir: dir.to_owned(), source };
        let chain_pem = read(&dir.join(CERT_FILE))?;
        let chain = pem::certificates(&chain_pem).map_err(|error| unusable(CredentialsError::Pem(error)))?;
        let leaf = chain.first().ok_or_else(|| unusable(CredentialsError::Empty))?;
        let public_key = CertificateFacts::read(leaf).map(|facts| facts.public_key);
        let roots = RootBundle::from_pem(&read(&dir.join(ROOT_FILE))?)
            .map_err(|error| unusable(CredentialsError::Roots(error)))?;
        let mut keys = read_keys(&dir.join(KEY_FILE), keys)?;
        let matching = keys.iter().position(|key| public_key.as_deref() == Ok(key.public_point())).unwrap_or(0);
        Self::from_parts(keys.swap_remove(matching), chain, roots).map_err(unusable)
    }

    /// Whose credentials are in `dir`, by the certificate alone: that needs no key, and proves nothing.
    pub fn whose(dir: &Path) -> Result<PeerIdentity, StoreError> {
        let unusable = |source| StoreError::Credentials { dir: dir.to_owned(), source };
        let chain = pem::certificates(&read(&dir.join(CERT_FILE))?);
        let chain = chain.map_err(|error| unusable(CredentialsError::Pem(error)))?;
        let leaf = chain.first().ok_or_else(|| unusable(CredentialsError::Empty))?;
        PeerIdentity::read(leaf).map_err(|error| unusable(CredentialsError::Chain(chain::refused(error))))
    }

    /// Writes credentials durably, the key sealed with `seal` if there is one; a crash at any point leaves the old or the
    /// new ones loadable. The old ones may be sealed with any of `others`. Makes the directory (mode 0700) if need be. A key
    /// that goes is overwritten.
    pub fn save(&self, dir: &Path, seal: Option<&UnlockKey>, others: &[UnlockKey]) -> Result<(), StoreError> {
        make_dir(dir).map_err(|source| StoreError::Write { path: dir.to_owned(), source })?;
        self.steps(dir, seal, others).iter().try_for_each(|step| step.run(dir))
    }

    /// What [`Self::save`] writes, in this order.
    pub(crate) fn steps(&self, dir: &Path, seal: Option<&UnlockKey>, others: &[UnlockKey]) -> Vec<Step> {
        let own = self.key().to_pem(seal);
        // A key file that cannot be read holds nothing that could be lost.
        let seals: Vec<UnlockKey> = seal.into_iter().chain(others).cloned().collect();
        let previous = read_keys(&dir.join(KEY_FILE), &seals).unwrap_or_default();
        let mut both = own.clone();
        for key in previous.iter().filter(|key| key.public_point() != self.key().public_point()) {
            both.push_str(&key.to_pem(seal));
        }
        let (roots, all_roots) = (self.roots().to_pem(), self.with_roots_before(dir).to_pem());
        let last_key = (both != own).then(|| Step::Key(own));
        let last_roots = (all_roots != roots).then(|| Step::Roots(roots));
        let steps = [Step::Roots(all_roots), Step::Key(both), Step::Certificate(self.chain_pem())];
        steps.into_iter().chain(last_key).chain(last_roots).collect()
    }

    /// The roots, and those in `dir` that the certificate there may need. Roots of another swarm are no loss, nor is a file
    /// that cannot be read.
    fn with_roots_before(&self, dir: &Path) -> RootBundle {
        let before = read(&dir.join(ROOT_FILE)).ok().and_then(|text| RootBundle::from_pem(&text).ok());
        let own = self.roots().certs();
        let former = before.iter().flat_map(|bundle| bundle.certs()).filter(|root| !own.contains(root));
        RootBundle::new(own.iter().chain(former).cloned()).unwrap_or_else(|_| self.roots().clone())
    }

    /// Removes the credentials (`swarm leave`), the keys first. Files that are not there are no error.
    pub fn erase(dir: &Path) -> Result<(), StoreError> {
        sweep(dir)?;
        for name in [KEY_FILE, MESH_KEY_FILE, PAIR_FILE, CERT_FILE, ROOT_FILE] {
            let path = dir.join(name);
            let overwritten = match OpenOptions::new().write(true).open(&path) {
                Ok(file) => overwrite(&file),
                Err(error) => Err(error),
            };
            match overwritten.and_then(|()| std::fs::remove_file(&path)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::Write { path, source });
                }
                _ => {}
            }
        }
        match File::open(dir).and_then(|handle| handle.sync_all()) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Write { path: dir.to_owned(), source })
            }
            _ => Ok(()),
        }
    }
}

/// One file of credentials with its content.
pub(crate) enum Step {
    Roots(String),
    Key(Zeroizing<String>),
    Certificate(String),
}

impl Step {
    pub(crate) fn run(&self, dir: &Path) -> Result<(), StoreError> {
        match self {
            Self::Roots(text) => replace(dir, ROOT_FILE, text.as_bytes(), 0o644),
            Self::Key(text) => replace_secret(dir, KEY_FILE, text.as_bytes()),
            Self::Certificate(text) => replace(dir, CERT_FILE, text.as_bytes(), 0o644),
        }
    }
}

fn read(path: &Path) -> Result<String, StoreError> {
    std::fs::read_to_string(path).map_err(|source| StoreError::Read { path: path.to_owned(), source })
}

/// Text of a file with a key, which nobody else may read.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<String>, StoreError> {
    let metadata = std::fs::metadata(path).map_err(|source| StoreError::Read { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StoreError::Exposed { path: path.to_owned(), mode });
    }
    read(path).map(Zeroizing::new)
}

/// All keys of a key file, at least one. Sealed ones are opened with any of `seals`.
pub(crate) fn read_keys(path: &Path, seals: &[UnlockKey]) -> Result<Vec<NodeKey>, StoreError> {
    keys_in(&read_secret(path)?, path, seals)
}

/// As [`read_keys`], of the text of the file at `path`.
pub(crate) fn keys_in(text: &str, path: &Path, seals: &[UnlockKey]) -> Result<Vec<NodeKey>, StoreError> {
    let unusable = |source| StoreError::Key { path: path.to_owned(), source };
    let mut keys = Vec::new();
    for (label, der) in pem::sections(text).ok_or_else(|| unusable(None))? {
        let key = match label {
            SEALED_LABEL if seals.is_empty() => return Err(StoreError::Sealed { path: path.to_owned() }),
            SEALED_LABEL => seals
                .iter()
                .find_map(|seal| NodeKey::unseal(&der, seal))
                .ok_or_else(|| StoreError::WrongKey { path: path.to_owned() })?,
            PLAIN_LABEL => NodeKey::from_pkcs8_der(&der),
            _ => continue,
        };
        keys.push(key.map_err(|error| unusable(Some(error)))?);
    }
    if keys.is_empty() { Err(unusable(None)) } else { Ok(keys) }
}

pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Replaces a file of mode 0600 durably, and overwrites the content of before where it lies.
pub(crate) fn replace_secret(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let path = dir.join(name);
    let failed = |source| StoreError::Write { path: path.clone(), source };
    sweep_one(dir, name).map_err(failed)?;
    // Held open, it can be written to when it has no name any more.
    let former = match OpenOptions::new().write(true).open(&path) {
        Ok(former) => Some(former),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(failed(source)),
    };
    if former.is_some() {
        // For a crash before it is overwritten. Some file systems have no second names.
        let _ = std::fs::hard_link(&path, dir.join(former_name(name)));
    }
    replace(dir, name, bytes, 0o600)?;
    former.map_or(Ok(()), |former| overwrite(&former)).and_then(|()| sweep_one(dir, name)).map_err(failed)
}

/// Second name of a file with a key, from before it is replaced until it is overwritten.
fn former_name(name: &str) -> String {
    format!(".{name}.old")
}

/// Name of a file that is to take the place of another.
fn next_name(name: &str) -> String {
    format!(".{name}.new")
}

/// Overwrites and removes what replacements that were cut short left of keys. To be called before anything else is done
/// with the directory, and again when all keys are sealed. A directory that is not there is fine.
///
/// # Errors
/// [`StoreError::Write`]: something is left. The keys in use are not touched.
pub fn sweep(dir: &Path) -> Result<(), StoreError> {
    for name in [KEY_FILE, MESH_KEY_FILE, PAIR_FILE] {
        sweep_one(dir, name).map_err(|source| StoreError::Write { path: dir.join(name), source })?;
    }
    Ok(())
}

fn sweep_one(dir: &Path, name: &str) -> io::Result<()> {
    let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let in_use = match std::fs::metadata(dir.join(name)) {
        Ok(metadata) => Some(id(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    for leftover in [former_name(name), next_name(name)] {
        let path = dir.join(leftover);
        let file = match OpenOptions::new().write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        // It is the one in use where the other never took its place.
        if Some(id(file.metadata()?)) != in_use {
            // A crash must not bring back the name of what is overwritten here.
            File::open(dir)?.sync_all()?;
            overwrite(&file)?;
        }
        std::fs::remove_file(&path)?;
    }
    Ok(())
}

/// Zeroes in the place of a file's content, durably. Copies elsewhere (a snapshot of the volume, an SSD's spare blocks) are
/// out of reach.
pub(crate) fn overwrite(mut file: &File) -> io::Result<()> {
    let len = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    file.write_all(&vec![0; len])?;
    file.sync_all()
}

/// Replaces a file durably. The temporary name is fixed: one daemon owns the directory, and a leftover is overwritten.
pub(crate) fn replace(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
    let path = dir.join(name);
    let temporary = dir.join(next_name(name));
    let write = || -> io::Result<()> {
        // A leftover may hold a key.
        match OpenOptions::new().write(true).open(&temporary) {
            Ok(leftover) => overwrite(&leftover).and_then(|()| std::fs::remove_file(&temporary))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| StoreError::Write { path, source })
}
