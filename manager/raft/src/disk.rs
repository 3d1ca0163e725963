//! Files that are whole or absent: write beside, sync, rename, sync the folder. Used by the keys file and the snapshots.
//! Files with keys in them are overwritten before they go.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::StoreError;

/// Makes a folder that only the owner can enter, if it is not there. Parents are made as well.
pub(crate) fn make_private_dir(path: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(StoreError::io("create folder", path))
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(StoreError::io("sync folder", path))
}

/// Opens a new file for its owner only, replacing a leftover of the same name.
pub(crate) fn create_private(path: &Path) -> Result<File, StoreError> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(StoreError::io("replace", path)(error)),
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(StoreError::io("create", path))
}

/// Replaces a file durably: after a crash it has the old content or the new one.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    rename(&write_beside(path, content)?, path)
}

/// The first half of [`write_whole`]; answers the file, which waits to be renamed.
pub(crate) fn write_beside(path: &Path, content: &[u8]) -> Result<PathBuf, StoreError> {
    let beside = path.with_extension("new");
    let mut file = create_private(&beside)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(StoreError::io("write", &beside))?;
    Ok(beside)
}

/// Gives a synced file its name, durably.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(StoreError::io("rename", from))?;
    sync_dir(to.parent().expect("a file of the data directory has a parent"))
}

/// A file that is about to be replaced, and to be overwritten then. Held open, it can be written to when it has no name any
/// more; a second name finds it after a crash ([`shred_former`]).
pub(crate) struct Former {
    path: PathBuf,
    file: File,
}

impl Former {
    /// The file in use.
    pub(crate) fn of(path: &Path) -> Result<Self, StoreError> {
        shred_former(path)?;
        let file = OpenOptions::new().write(true).open(path).map_err(StoreError::io("open", path))?;
        // Some file systems have no second names.
        let _ = fs::hard_link(path, former_path(path));
        Ok(Self { path: path.to_owned(), file })
    }

    /// Overwrites it. The other one has its place, durably.
    pub(crate) fn overwrite(&self) -> Result<(), StoreError> {
        overwrite(&self.file).map_err(StoreError::io("overwrite the former", &self.path))?;
        remove(&former_path(&self.path))
    }
}

fn former_path(path: &Path) -> PathBuf {
    path.with_extension("old")
}

/// Overwrites and removes what a replacement of a file that was cut short left of the former one; removes its second name
/// only where it is still in use. Absent is fine.
pub(crate) fn shred_former(path: &Path) -> Result<(), StoreError> {
    let former = former_path(path);
    let id = |path: &Path| match fs::metadata(path) {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("inspect", path)(error)),
    };
    match (id(&former)?, id(path)?) {
        // Without the file itself it may be all that there is.
        (None, _) | (_, None) => Ok(()),
        (former_id, id) if former_id == id => remove(&former),
        _ => {
            // A crash must not bring back the name of what is overwritten here.
            sync_dir(path.parent().expect("a file of the data directory has a parent"))?;
            shred(&former)
        }
    }
}

/// Overwrites a file, then removes it durably; absent is fine.
pub(crate) fn shred(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).open(path) {
        Ok(file) => overwrite(&file).map_err(StoreError::io("overwrite", path))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StoreError::io("open", path)(error)),
    }
    remove(path)?;
    sync_dir(path.parent().expect("a file of the data directory has a parent"))
}

/// Zeroes in the place of a file's content, durably.
pub(crate) fn overwrite(file: &File) -> std::io::Result<()> {
    let mut left = file.metadata()?.len();
    let (zeroes, mut file) = ([0; 4096], file);
    while left > 0 {
        let count = left.min(zeroes.len() as u64);
        file.write_all(&zeroes[..usize::try_from(count).expect("it is at most a page")])?;
        left -= count;
    }
    file.sync_all()
}

/// The names in a folder.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let failed = || StoreError::io("list", dir);
    let entries = fs::read_dir(dir).map_err(failed())?;
    entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()).map_err(failed())).collect()
}

/// Removes a file or a whole folder; absent is fine.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    let result = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    result.map_err(StoreError::io("remove", path))
}
