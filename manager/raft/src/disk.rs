//! Files that are whole or absent: write beside, sync, rename, sync the folder. Used by the keys file and the snapshots.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

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
    let beside = path.with_extension("new");
    let mut file = create_private(&beside)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(StoreError::io("write", &beside))?;
    rename(&beside, path)
}

/// Gives a synced file its name, durably.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(StoreError::io("rename", from))?;
    sync_dir(to.parent().expect("a file of the data directory has a parent"))
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
