//! Folders of containers: who may enter them, and hints to the file system.
//!
//! Used when the runtime is opened, and by the worker for the folder of logs.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Makes a folder that its owner alone may enter, also where it is there already and others may. What containers write lies
/// below, set-user-id programs too, which nobody of the host may run (CVE-2021-41091). Containers with ids of their own do not
/// pass through it: they have their root as a mount.
pub fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if fs::metadata(dir)?.permissions().mode() & 0o7777 == 0o700 {
        return Ok(());
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700))
}

/// Asks an ext4 that it places each folder in `dir` by itself, as it does with top-level directories (chattr(1), `T`).
/// Otherwise all are in one block group, and each new file steps over every inode that was freed there in the last
/// minutes, for ext4 does not use those again so soon: up to half of the CPU of a start. On another file system it fails,
/// and nothing is lost.
pub fn spread(dir: &Path) -> nix::Result<()> {
    // linux/fs.h
    const FS_TOPDIR_FL: libc::c_long = 0x0002_0000;
    let folder = File::open(dir).map_err(|error| nix::Error::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    // The kernel reads and writes an int, whatever the number of the call says (ioctl_iflags(2)).
    let mut flags: libc::c_long = 0;
    // SAFETY: the descriptor is open and `flags` is at least as large as what the kernel writes or reads.
    unsafe {
        nix::Error::result(libc::ioctl(folder.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags))?;
        flags |= FS_TOPDIR_FL;
        nix::Error::result(libc::ioctl(folder.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const flags)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_folder_that_was_open_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let (open, new) = (dir.path().join("open"), dir.path().join("new"));
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        for folder in [&open, &new, &new] {
            make_private(folder).unwrap();
            assert_eq!(mode(folder), 0o700);
        }
    }
}
