//! Files of an image or of a running container, read without following a link out of it (openat2(2), RESOLVE_IN_ROOT). Who
//! made them may be hostile: opening a device, or a file of the kernel's own, can do something on the host.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};
use skep_shim::user::MAX_FILE;

/// The text of a file inside `root`, less what is no text; empty where it is not there or no ordinary file.
pub(crate) fn read_inside(root: impl AsFd, path: &str) -> String {
    // Unknown names say so.
    open_inside(root, path).and_then(read).unwrap_or_default()
}

/// Only names it.
fn open_inside(root: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(root.as_fd(), path, how)?)
}

fn read(named: OwnedFd) -> io::Result<String> {
    let is_file = SFlag::from_bits_truncate(fstat(&named)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
    if !is_file || [PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&fstatfs(&named)?.filesystem_type()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    File::open(format!("/proc/self/fd/{}", named.as_raw_fd()))?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use nix::sys::stat::{Mode, makedev, mknod};
    use nix::unistd::{Uid, mkfifo};

    use super::*;

    #[test]
    fn only_ordinary_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| read_inside(File::open(dir.path()).unwrap(), name);
        fs::write(dir.path().join("file"), b"a:b\xe9:c").unwrap();
        assert_eq!(read("file"), "a:b\u{fffd}:c");
        std::os::unix::fs::symlink("/file", dir.path().join("link")).unwrap();
        assert_eq!(read("link"), read("file"), "a link leads to what is inside");
        mkfifo(&dir.path().join("fifo"), Mode::S_IRUSR).unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        for name in ["fifo", "folder", "nothing"] {
            assert_eq!(read(name), "", "{name}");
        }
        let kernel = File::open("/proc/sys/kernel").unwrap();
        assert_eq!(read_inside(&kernel, "ostype"), "");
        assert_eq!(fs::read_to_string("/proc/sys/kernel/ostype").unwrap(), "Linux\n", "it can be read");
        if Uid::effective().is_root() {
            mknod(&dir.path().join("device"), SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 5)).unwrap();
            assert_eq!(read("device"), "");
        }
    }
}
