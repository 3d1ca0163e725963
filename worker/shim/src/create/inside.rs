//! Places inside the container's tree, found and made without a way out of it.
//!
//! Used by the container's creation. What an image or another container brings (links, folders that move) may lead to
//! another place of the container's, never to one of the host's: every step begins at the root's descriptor
//! (CVE-2021-30465, CVE-2019-19921).

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::sys::{c_string, check};
use crate::tree::{self, Links};

/// As the kernel has it (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// Of folders and files that are made.
const FOLDER_MODE: libc::mode_t = 0o755;
const FILE_MODE: libc::mode_t = 0o644;

/// What a place is to be where it is not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File,
}

/// Opens a place (O_PATH), made if it is not there. Links are followed inside the root.
pub(super) fn place(root: &OwnedFd, path: &str, kind: Kind) -> io::Result<OwnedFd> {
    match tree::open_inside(root, path, libc::O_PATH, Links::Follow) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => make(root, path, kind),
        other => other,
    }
}

/// The same for a folder that links must not lead to.
pub(super) fn true_folder(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    match tree::open_inside(root, path, flags, Links::Refuse) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            make(root, path, Kind::Folder)?;
            tree::open_inside(root, path, flags, Links::Refuse)
        }
        other => other,
    }
}

/// A folder, made if it is not there.
pub(super) fn folder(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    place(root, path, Kind::Folder)
}

/// Walks to the place step by step, follows links by hand and makes what is missing on the way: also where a link leads
/// to nothing yet.
fn make(root: &OwnedFd, path: &str, kind: Kind) -> io::Result<OwnedFd> {
    let mut ahead: VecDeque<String> = parts(path).collect();
    // The way so far, without links; what is there of it may be replaced meanwhile, but not by a link that is followed.
    let mut way: Vec<String> = Vec::new();
    let mut links = 0;
    let open = |way: &[String]| tree::open_inside(root, &way.join("/"), libc::O_PATH | libc::O_NOFOLLOW, Links::Refuse);
    let mut here = open(&way)?;
    while let Some(name) = ahead.pop_front() {
        if name == ".." {
            way.pop();
            here = open(&way)?;
            continue;
        }
        let last = if ahead.is_empty() { kind } else { Kind::Folder };
        let found = match tree::open_inside(&here, &name, libc::O_PATH | libc::O_NOFOLLOW, Links::Follow) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                make_one(&here, &name, last)?;
                tree::open_inside(&here, &name, libc::O_PATH | libc::O_NOFOLLOW, Links::Refuse)?
            }
            other => other?,
        };
        if tree::stat(&found)?.st_mode & libc::S_IFMT != libc::S_IFLNK {
            way.push(name);
            here = found;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        let target = read_link(&found)?;
        if target.starts_with('/') {
            way.clear();
            here = open(&way)?;
        }
        for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
            ahead.push_front(part);
        }
    }
    Ok(here)
}

fn parts(path: &str) -> impl Iterator<Item = String> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned)
}

/// Makes it, or finds it made by another container that starts over the same folder of the host. What it is then shows when
/// it is opened.
fn make_one(folder: &OwnedFd, name: &str, kind: Kind) -> io::Result<()> {
    let name = c_string(name)?;
    let made = match kind {
        Kind::Folder => {
            // SAFETY: the descriptor is open; a C string that lives through the call.
            check(unsafe { libc::mkdirat(folder.as_raw_fd(), name.as_ptr(), FOLDER_MODE) }).map(drop)
        }
        Kind::File => file(folder, &name).map(drop),
    };
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// A new, empty file.
pub(super) fn file(folder: &OwnedFd, name: &CString) -> io::Result<OwnedFd> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_WRONLY;
    // SAFETY: the descriptor is open; a C string that lives through the call; a fresh descriptor is nobody else's.
    unsafe {
        let fd = check(libc::openat(folder.as_raw_fd(), name.as_ptr(), flags, libc::c_uint::from(FILE_MODE)))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn read_link(link: &OwnedFd) -> io::Result<String> {
    let mut target = vec![0u8; libc::PATH_MAX as usize];
    // SAFETY: an open descriptor of a link, an empty C string, and a buffer of the length that is told.
    let length = unsafe { libc::readlinkat(link.as_raw_fd(), c"".as_ptr(), target.as_mut_ptr().cast(), target.len()) };
    target.truncate(check(length as i32)? as usize);
    String::from_utf8(target).map_err(|_| io::Error::from_raw_os_error(libc::EILSEQ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_another_one_has_made_is_found() {
        let dir = std::env::temp_dir().join(format!("skep-shim-inside-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let folder = OwnedFd::from(std::fs::File::open(&dir).unwrap());
        for kind in [Kind::Folder, Kind::File] {
            let name = format!("{}", matches!(kind, Kind::File));
            make_one(&folder, &name, kind).unwrap();
            make_one(&folder, &name, kind).unwrap();
        }
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
