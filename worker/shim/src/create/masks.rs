//! What of the kernel a container must not see or change: paths that are covered, and paths that are made read-only.
//!
//! Used by the container's creation. A path that is not there needs nothing; a link on the way to one is an error, for it
//! would be somebody's attempt to have another path covered instead (CVE-2025-31133, CVE-2025-52881).

use std::io;
use std::os::fd::OwnedFd;

use skep_shim::plan::Plan;

use super::{Failure, at, devices};
use crate::tree::{self, Links};

const SEALED: u64 =
    libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

/// Makes the plan's paths read-only, with all that is mounted below.
pub(super) fn make_read_only(root: &OwnedFd, plan: &Plan) -> Result<(), Failure> {
    for path in &plan.read_only {
        let step = || at(format!("cannot make {path} read-only"));
        let Some(place) = find(root, path).map_err(step())? else { continue };
        let set = || -> io::Result<()> {
            let copy = tree::copy(&place, true)?;
            let set = tree::set(&copy, libc::MOUNT_ATTR_RDONLY, 0, true)?;
            tree::attach(&copy, &place)?;
            if set { Ok(()) } else { tree::set_the_old_way(&copy, libc::MOUNT_ATTR_RDONLY, 0) }
        };
        set().map_err(step())?;
    }
    Ok(())
}

/// Covers the plan's paths: folders by an empty one, all else by `/dev/null`.
pub(super) fn cover(root: &OwnedFd, plan: &Plan, host_null: &OwnedFd) -> Result<(), Failure> {
    let own_null = devices::own_null(root, libc::O_PATH);
    // One empty file system for all; it is attached first, as only what is attached can be copied.
    let mut empty: Option<OwnedFd> = None;
    for path in &plan.masked {
        let step = || at(format!("cannot cover {path}"));
        let Some(place) = find(root, path).map_err(step())? else { continue };
        let is_folder = tree::stat(&place).map_err(step())?.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let cover = match &empty {
            _ if !is_folder => tree::copy(own_null.as_ref().unwrap_or(host_null), false),
            Some(empty) => tree::copy(empty, false),
            None => tree::new_file_system("tmpfs", "mode=755,nr_inodes=2", SEALED),
        };
        let cover = cover.map_err(step())?;
        tree::attach(&cover, &place).map_err(step())?;
        if is_folder {
            empty.get_or_insert(cover);
        }
    }
    Ok(())
}

fn find(root: &OwnedFd, path: &str) -> io::Result<Option<OwnedFd>> {
    match tree::open_inside(root, path, libc::O_PATH, Links::Refuse) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        other => other.map(Some),
    }
}
