//! The snapshots of a directory: exactly one counts, and a mark in the database says which.
//!
//! A snapshot is written beside, synced, renamed, and its folder synced; then the mark moves to it; then older files go.
//! A crash in between leaves files without the mark, which the next start removes. A mark without its file is damage.

use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut, Bytes};
use rand::RngCore;

use super::db::Batch;
use super::files::{Body, Files, Sink};
use super::snapshot_file::{self, BadSnapshot, FORMAT, Reader, Writer};
use super::{ADVICE_RESTORE, Store, Vault, record};
use crate::codec::{self, Malformed};
use crate::consensus::SnapshotInfo;
use crate::crypto::KeyRing;
use crate::engine::Dice;
use crate::error::StoreError;
use crate::state_machine::Snapshot;
use crate::types::SnapshotMeta;
use crate::wire;

/// The first thing in the encrypted stream: what the snapshot is of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Preface {
    pub(crate) meta: SnapshotMeta,
    pub(crate) digest: Option<[u8; 32]>,
}

/// The snapshot that counts.
#[derive(Debug, Clone)]
pub(crate) struct Current {
    pub(crate) preface: Preface,
    pub(crate) file: SnapshotFile,
    pub(crate) bytes: u64,
}

impl Current {
    pub(crate) fn info(&self) -> Option<SnapshotInfo> {
        let last = self.preface.meta.last_log_id?;
        Some(SnapshotInfo {
            index: last.index,
            term: last.leader_id.term,
            bytes: self.bytes,
            digest: self.preface.digest,
        })
    }
}

/// A complete snapshot file, open: it can be read to its end even after it was replaced.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotFile {
    ring: Arc<KeyRing>,
    path: PathBuf,
    file: Body,
}

/// What openraft passes around as a snapshot's content. Empty until something was received.
#[derive(Debug, Default)]
pub(crate) struct SnapshotData(pub(crate) Option<SnapshotFile>);

impl SnapshotFile {
    fn open(files: &Files, path: &Path, ring: Arc<KeyRing>) -> Result<Self, StoreError> {
        Ok(Self { ring, path: path.to_owned(), file: files.open(path)? })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Id of the key that it is sealed with. None: its beginning is not written yet.
    fn data_key(&self) -> Result<Option<u32>, StoreError> {
        let mut from = At { file: self.file.clone(), position: 0 };
        snapshot_file::data_key(&mut from).map_err(StoreError::io("read", &self.path))
    }

    fn len(&self) -> Result<u64, StoreError> {
        self.file.len().map_err(StoreError::io("inspect", &self.path))
    }

    /// The decrypted stream, from its beginning, independent of other readers.
    pub(crate) fn read(&self) -> Result<Reader<impl Read + use<>>, StoreError> {
        let from = BufReader::with_capacity(1 << 16, At { file: self.file.clone(), position: 0 });
        Reader::new(from, Arc::clone(&self.ring)).map_err(|error| self.failed(error))
    }

    /// Names the file in a failure of reading it.
    pub(crate) fn failed(&self, error: io::Error) -> StoreError {
        let path = self.path.clone();
        match error.get_ref().and_then(|inner| inner.downcast_ref::<BadSnapshot>()) {
            Some(BadSnapshot::NewerFormat(found)) => StoreError::NewerFormat { path, found: *found, supported: FORMAT },
            Some(bad) => StoreError::Damaged { path, what: bad.to_string() },
            None => StoreError::Io { action: "read", path, source: error },
        }
    }
}

/// Reads a shared file from a position of its own.
struct At {
    file: Body,
    position: u64,
}

impl Read for At {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(out, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// Reads the preface of a stream.
pub(crate) fn read_preface(from: &mut impl Read) -> io::Result<Preface> {
    let bad = |_: Malformed| io::Error::new(io::ErrorKind::InvalidData, BadSnapshot::Foreign);
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_be_bytes(len);
    let mut block = Vec::new();
    from.take(u64::from(len)).read_to_end(&mut block)?;
    if block.len() as u64 != u64::from(len) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, BadSnapshot::CutOff));
    }
    let mut block = Bytes::from(block);
    let meta = wire::get_meta(&mut block).map_err(bad)?;
    let digest = codec::get_opt(&mut block, |block| {
        let mut digest = [0; 32];
        block.try_copy_to_slice(&mut digest).map_err(|_| Malformed("digest"))?;
        Ok(digest)
    });
    Ok(Preface { meta, digest: digest.map_err(bad)? })
}

fn write_preface(out: &mut impl Write, preface: &Preface) -> io::Result<()> {
    let mut block = Vec::new();
    wire::put_meta(&mut block, &preface.meta);
    codec::put_opt(&mut block, preface.digest.as_ref(), |out, digest| out.put_slice(digest));
    let mut framed = Vec::new();
    codec::put_bytes(&mut framed, &block);
    out.write_all(&framed)
}

/// Which snapshot counts, and how it changes.
#[derive(Debug)]
pub(crate) struct SnapshotStore {
    store: Arc<Store>,
    /// Taken after the vault, where both are.
    current: Mutex<Option<Current>>,
    /// Held while a state of this node is written.
    writing: Mutex<()>,
}

/// What the mark in the database says about the snapshot that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    name: String,
    bytes: u64,
    file_id: [u8; 16],
}

impl SnapshotStore {
    /// Finds the snapshot that counts, checks that it is the file the mark means, and removes leftovers. Its content is
    /// checked by whoever restores from it.
    pub(crate) fn open(store: Arc<Store>) -> Result<Self, StoreError> {
        let vault = store.vault();
        let mark = record::get_mark(&vault.db, &vault.ring, record::SNAPSHOT, get_mark)?;
        let current = match &mark {
            None => None,
            Some(mark) => Some(open_marked(&store, &vault.ring, mark)?),
        };
        drop(vault);
        let found = Self { store, current: Mutex::new(current), writing: Mutex::default() };
        found.remove_others(mark.as_ref().map(|mark| mark.name.as_str()), &[".snap", ".part"])?;
        Ok(found)
    }

    fn locked(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().expect("nothing panics while it holds the current snapshot")
    }

    pub(crate) fn current(&self) -> Option<Current> {
        self.locked().clone()
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Writes a frozen state as the snapshot that counts. Blocks: runs on a thread of its own.
    pub(crate) fn write(&self, meta: SnapshotMeta, state: &dyn Snapshot) -> Result<Current, StoreError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let preface = Preface { meta, digest: state.digest() };
        let mut incoming = self.receive(&preface.meta.snapshot_id)?;
        let path = incoming.path.clone();
        let written = write_preface(&mut incoming, &preface).and_then(|()| state.write(&mut incoming));
        written.map_err(StoreError::io("write", path))?;
        let file = incoming.finish()?;
        self.make_current(preface, &file)
    }

    /// Begins a file for a stream that comes piece by piece.
    pub(crate) fn receive(&self, snapshot_id: &str) -> Result<Incoming, StoreError> {
        let ring = Arc::clone(&self.store.in_use().ring);
        self.begin(snapshot_id, ring)
    }

    fn begin(&self, snapshot_id: &str, ring: Arc<KeyRing>) -> Result<Incoming, StoreError> {
        // The id may come from another node: it must not become a path.
        let safe: String = snapshot_id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(80).collect();
        let path = self.store.snapshots_dir().join(format!("{safe}.part"));
        let files = self.store.files.clone();
        let out = Writer::new(files.create(&path)?, Arc::clone(&ring)).map_err(StoreError::io("write", &path))?;
        Ok(Incoming { path, ring, files, out: Some(out) })
    }

    /// Makes a complete file the snapshot that counts. One of another directory, or of a data key that was replaced
    /// meanwhile, is copied.
    pub(crate) fn make_current(&self, preface: Preface, file: &SnapshotFile) -> Result<Current, StoreError> {
        let dir = self.store.snapshots_dir();
        let mut part = file.clone();
        let vault = loop {
            let vault = self.store.in_use();
            if part.path().parent() == Some(&dir) && Arc::ptr_eq(&part.ring, &vault.ring) {
                break vault;
            }
            let ring = Arc::clone(&vault.ring);
            // The copy takes its time: nobody waits for it.
            drop(vault);
            let copied = self.copy(&preface, &part, ring)?;
            if part.path().parent() == Some(&dir) {
                self.store.files.remove(part.path())?;
            }
            part = copied;
        };
        let mut current = self.locked();
        if current.as_ref().is_some_and(|now| now.preface.meta.last_log_id > preface.meta.last_log_id) {
            self.store.files.remove(part.path())?;
            return Ok(current.clone().expect("it was just looked at"));
        }
        let (now, mark) = self.mark(&vault, preface, &part)?;
        vault.db.flush_and_wait()?;
        *current = Some(now.clone());
        drop(current);
        self.remove_others(Some(&mark.name), &[".snap"])?;
        Ok(now)
    }

    /// Gives a complete file its name, and puts the mark that it counts into a vault: it does once that is flushed.
    fn mark(&self, vault: &Vault, preface: Preface, part: &SnapshotFile) -> Result<(Current, Mark), StoreError> {
        let name = format!("{}.snap", part.path().file_stem().unwrap_or_default().to_string_lossy());
        let path = self.store.snapshots_dir().join(&name);
        self.store.files.rename(part.path(), &path)?;
        let file = SnapshotFile::open(&self.store.files, &path, Arc::clone(&vault.ring))?;
        let mark = Mark { name, bytes: file.len()?, file_id: file.read()?.file_id() };
        let mut batch = Batch::default();
        record::put_mark(&mut batch, &vault.ring, record::SNAPSHOT, &put_mark(&mark));
        vault.db.apply(batch)?;
        Ok((Current { preface, file, bytes: mark.bytes }, mark))
    }

    /// A copy with a name of its own, sealed with `ring`.
    fn copy(&self, preface: &Preface, file: &SnapshotFile, ring: Arc<KeyRing>) -> Result<SnapshotFile, StoreError> {
        let mut copy = self.begin(&new_snapshot_id(&preface.meta), ring)?;
        let mut from = file.read()?;
        io::copy(&mut from, &mut copy).map_err(|error| file.failed(error))?;
        copy.finish()
    }

    /// Copies the snapshot that counts for a vault that will take over. None: there is none.
    pub(super) fn copy_current(&self, next: &Vault) -> Result<Option<SnapshotCopy>, StoreError> {
        let Some(current) = self.current() else { return Ok(None) };
        let copy = self.copy(&current.preface, &current.file, Arc::clone(&next.ring))?;
        Ok(Some(SnapshotCopy {
            files: self.store.files.clone(),
            of: current.file.path().to_owned(),
            preface: current.preface,
            file: copy,
        }))
    }

    /// Whether `copy` is of the snapshot that counts, while nobody can make another one.
    pub(super) fn is_current(&self, copy: Option<&SnapshotCopy>) -> bool {
        let current = self.locked();
        current.as_ref().map(|current| current.file.path()) == copy.map(|copy| copy.of.as_path())
    }

    /// Puts the copy into the vault that takes over. It counts for that from then on, for everybody else when
    /// [`Self::changed`] is called.
    pub(super) fn move_into(&self, next: &Vault, copy: Option<&SnapshotCopy>) -> Result<Option<Current>, StoreError> {
        copy.map(|copy| self.mark(next, copy.preface.clone(), &copy.file).map(|(current, _)| current)).transpose()
    }

    /// The vault was changed for the one that this snapshot was moved into.
    pub(super) fn changed(&self, moved: Option<Current>) {
        *self.locked() = moved;
    }

    /// Removes what is sealed with another key than the one in use: complete snapshots, and those on their way here.
    /// Waits for a state that is being written.
    pub(super) fn remove_foreign(&self) -> Result<(), StoreError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let vault = self.store.in_use();
        let files = &self.store.files;
        for path in files.list()? {
            let file = match SnapshotFile::open(files, &path, Arc::clone(&vault.ring)) {
                Ok(file) => file,
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if file.data_key()?.is_some_and(|id| id != vault.ring.current()) {
                files.remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes all files but one with these endings.
    fn remove_others(&self, keep: Option<&str>, endings: &[&str]) -> Result<(), StoreError> {
        let files = &self.store.files;
        for path in files.list()? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if Some(&*name) != keep && endings.iter().any(|ending| name.ends_with(ending)) {
                files.remove(&path)?;
            }
        }
        Ok(())
    }
}

/// A copy of the snapshot that counts, under another key. Dropped, it is removed, unless it was moved into a vault.
pub(super) struct SnapshotCopy {
    files: Files,
    /// The file that it is of.
    of: PathBuf,
    preface: Preface,
    file: SnapshotFile,
}

impl Drop for SnapshotCopy {
    fn drop(&mut self) {
        // One that was moved has another name by now.
        if let Err(error) = self.files.remove(self.file.path()) {
            tracing::warn!(error = error.text(), "the copy of a snapshot cannot be removed");
        }
    }
}

fn open_marked(store: &Store, ring: &Arc<KeyRing>, mark: &Mark) -> Result<Current, StoreError> {
    let path = store.snapshots_dir().join(&mark.name);
    if !store.files.exists(&path) {
        return Err(StoreError::Missing { path, advice: ADVICE_RESTORE });
    }
    let file = SnapshotFile::open(&store.files, &path, Arc::clone(ring))?;
    let bytes = file.len()?;
    if bytes != mark.bytes {
        return Err(StoreError::damaged(path, format!("it has {bytes} bytes, but was written with {}", mark.bytes)));
    }
    let mut from = file.read()?;
    if from.file_id() != mark.file_id {
        return Err(StoreError::damaged(path, "it is not the snapshot that was written last"));
    }
    let preface = read_preface(&mut from).map_err(|error| file.failed(error))?;
    Ok(Current { preface, file, bytes })
}

fn put_mark(mark: &Mark) -> Vec<u8> {
    let mut out = Vec::new();
    codec::put_bytes(&mut out, mark.name.as_bytes());
    out.put_u64(mark.bytes);
    out.put_slice(&mark.file_id);
    out
}

fn get_mark(from: &mut Bytes) -> Result<Mark, Malformed> {
    let bad = |_| Malformed("snapshot mark");
    let name = codec::get_string(from)?;
    let bytes = from.try_get_u64().map_err(bad)?;
    let mut file_id = [0; 16];
    from.try_copy_to_slice(&mut file_id).map_err(bad)?;
    Ok(Mark { name, bytes, file_id })
}

/// A snapshot file being written: plain bytes in, an encrypted file out. Dropped unfinished, it is removed.
pub(crate) struct Incoming {
    path: PathBuf,
    ring: Arc<KeyRing>,
    files: Files,
    /// None once finished.
    out: Option<Writer<Sink>>,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.out.take().is_some() {
            // What is left here has no mark, and the next start removes it.
            let _ = self.files.remove(&self.path);
        }
    }
}

impl Write for Incoming {
    fn write(&mut self, plain: &[u8]) -> io::Result<usize> {
        self.out.as_mut().expect("finishing consumes it").write(plain)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Incoming {
    pub(crate) fn put(&mut self, plain: &[u8]) -> Result<(), StoreError> {
        let path = self.path.clone();
        self.write_all(plain).map_err(StoreError::io("write", path))
    }

    /// Ends the file and syncs it.
    pub(crate) fn finish(mut self) -> Result<SnapshotFile, StoreError> {
        let out = self.out.take().expect("finishing consumes it");
        if let Err(error) = out.finish().and_then(Sink::sync) {
            // It may be the lack of space that it takes up itself.
            let _ = self.files.remove(&self.path);
            return Err(StoreError::io("write", &self.path)(error));
        }
        SnapshotFile::open(&self.files, &self.path, Arc::clone(&self.ring))
    }
}

/// A name for a new snapshot: unique, and telling what it is of.
pub(crate) fn new_snapshot_id(meta: &SnapshotMeta) -> String {
    let (term, index) = meta.last_log_id.map_or((0, 0), |id| (id.leader_id.term, id.index));
    let unique = Dice.next_u64();
    format!("{term}-{index}-{unique:016x}")
}
