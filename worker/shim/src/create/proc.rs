//! Kernel parameters of a container, written through its proc file system.
//!
//! Used by the container's creation. What looks like a file of `/proc` may be something else that was put there: before
//! anything is written, the kernel says what it is (CVE-2019-16884, CVE-2025-52881).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use skep_shim::plan::Plan;

use super::{Failure, at};
use crate::tree::{self, Links};

/// Number of the root folder in every proc file system (linux/proc_ns.h, PROC_ROOT_INO).
const ROOT_INODE: u64 = 1;

/// The container's proc file system, at its root.
pub(super) fn open(root: &OwnedFd) -> Result<OwnedFd, Failure> {
    let find = || -> io::Result<OwnedFd> {
        let proc = tree::open_inside(root, "/proc", libc::O_PATH | libc::O_DIRECTORY, Links::Refuse)?;
        let is_proc = is_proc(&proc)? && tree::stat(&proc)?.st_ino == ROOT_INODE;
        if is_proc { Ok(proc) } else { Err(io::Error::other("it is not a proc file system")) }
    };
    find().map_err(at("cannot use the container's /proc"))
}

/// Sets the plan's kernel parameters.
pub(super) fn set_all(proc: &OwnedFd, plan: &Plan) -> Result<(), Failure> {
    for (path, value) in &plan.sysctls {
        write(proc, &format!("sys/{path}"), value)
            .map_err(at(format!("cannot set the kernel parameter {} to {value:?}", path.replace('/', "."))))?;
    }
    Ok(())
}

fn write(proc: &OwnedFd, path: &str, value: &str) -> io::Result<()> {
    let file = tree::open_inside(proc, path, libc::O_WRONLY, Links::Refuse)?;
    if !is_proc(&file)? {
        return Err(io::Error::other("it is not a file of a proc file system"));
    }
    File::from(file).write_all(value.as_bytes())
}

fn is_proc(fd: &OwnedFd) -> io::Result<bool> {
    Ok(tree::magic(fd)? == libc::PROC_SUPER_MAGIC as libc::c_long)
}
