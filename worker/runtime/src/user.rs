//! Files of an image or of a running container, read without following a link out of it (openat2(2), RESOLVE_IN_ROOT).

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use skep_shim::user::MAX_FILE;

/// The text of a file inside `root`; empty where it is not there or no text.
pub(crate) fn read_inside(root: impl AsFd, path: &str) -> String {
    let mut text = String::new();
    if let Ok(fd) = open_inside(root, path) {
        // A damaged file knows nobody: looked-up names then say so.
        let _ = File::from(fd).take(MAX_FILE).read_to_string(&mut text);
    }
    text
}

fn open_inside(root: impl AsFd, path: &str) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root.as_fd(), path, how)
}
