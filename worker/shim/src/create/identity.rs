//! Who the container's first process is, and what its first three files are.
//!
//! Used by the container's creation.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};

use skep_shim::plan::Plan;
use skep_shim::user::{self, MAX_FILE, User};

use super::{Failure, at, devices};
use crate::sys::check;
use crate::tree::{self, Links};
use crate::{exec, sys};

/// Looks the plan's user and groups up in the image.
pub(super) fn look_up(root: &OwnedFd, plan: &Plan) -> Result<User, Failure> {
    let (passwd, group) = (read(root, "etc/passwd"), read(root, "etc/group"));
    user::resolve(&passwd, &group, &plan.user, &plan.groups).map_err(Failure::new)
}

/// The text of a file of the image, less what is no text in it; empty where it is not there: then it knows nobody.
fn read(root: &OwnedFd, path: &str) -> String {
    let mut bytes = Vec::new();
    // Looked at first: a device or a pipe must not even be opened.
    let is_file = tree::open_inside(root, path, libc::O_PATH, Links::Follow)
        .and_then(|named| tree::stat(&named))
        .is_ok_and(|found| found.st_mode & libc::S_IFMT == libc::S_IFREG);
    if is_file && let Ok(file) = tree::open_inside(root, path, libc::O_RDONLY | libc::O_NONBLOCK, Links::Follow) {
        let _ = File::from(file).take(MAX_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Makes the user (the host's ids of it) the owner of the output: the command may open /dev/stdout anew, which its owner alone
/// can.
pub(super) fn hand_over(output: &[File; 2], (uid, gid): (u32, u32)) -> Result<(), Failure> {
    for output in output {
        // SAFETY: the descriptor is open; plain numbers.
        check(unsafe { libc::fchown(output.as_raw_fd(), uid, gid) }).map_err(at("cannot hand over the output"))?;
    }
    Ok(())
}

/// Connects input, output and errors. The input is the container's own `/dev/null`: what a process has open it can change
/// the owner and mode of.
pub(super) fn connect(
    root: &OwnedFd,
    owner: (u32, u32),
    output: [File; 2],
    host_null: &OwnedFd,
) -> Result<(), Failure> {
    hand_over(&output, owner)?;
    let input = match devices::own_null(root, libc::O_RDONLY) {
        Some(null) => null,
        None => {
            let null = exec::null().map_err(at("cannot open /dev/null"))?;
            if !tree::same_file(&null, host_null) {
                return Err(Failure::new("/dev/null is not the null device"));
            }
            null.into()
        }
    };
    let [stdout, stderr] = output;
    sys::duplicate(&input, 0)
        .and_then(|()| sys::duplicate(&stdout, 1))
        .and_then(|()| sys::duplicate(&stderr, 2))
        .map_err(at("cannot connect input and output"))
}
