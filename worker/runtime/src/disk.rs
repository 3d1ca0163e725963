//! Hints to the file system of containers' folders.
//!
//! Used when the runtime is opened, and by the worker for the folder of logs.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

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
