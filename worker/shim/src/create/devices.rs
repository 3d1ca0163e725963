//! The device nodes of a container's own `/dev`.
//!
//! Used by the container's creation. Which devices may be used is the cgroups' to say; these are only their names.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use skep_shim::plan::{Device, Plan};

use super::inside;
use super::{Failure, at};
use crate::sys::{c_string, check};
use crate::tree::{self, Links};

const MODE: libc::mode_t = 0o666;
/// Numbers of `/dev/null` (Documentation/admin-guide/devices.txt).
const NULL: (u32, u32) = (1, 3);

/// The host's `/dev/null`, opened to be named. It must be the device itself.
pub(super) fn host_null() -> Result<OwnedFd, Failure> {
    let null = tree::open_path(c"/dev/null").map_err(at("cannot open /dev/null"))?;
    if tree::is_device(&null, NULL.0, NULL.1) {
        Ok(null)
    } else {
        Err(Failure::new("/dev/null is not the null device"))
    }
}

/// The container's own `/dev/null`, if it has one that is the device itself.
pub(super) fn own_null(root: &OwnedFd, flags: libc::c_int) -> Option<OwnedFd> {
    let named = tree::open_inside(root, "/dev/null", libc::O_PATH, Links::Refuse).ok()?;
    if !tree::is_device(&named, NULL.0, NULL.1) {
        return None;
    }
    if flags == libc::O_PATH {
        return Some(named);
    }
    let opened = tree::open_inside(root, "/dev/null", flags, Links::Refuse).ok()?;
    tree::is_device(&opened, NULL.0, NULL.1).then_some(opened)
}

/// Makes the plan's nodes.
pub(super) fn make(root: &OwnedFd, plan: &Plan) -> Result<(), Failure> {
    if plan.devices.is_empty() {
        return Ok(());
    }
    let folder = inside::true_folder(root, "/dev").map_err(at("cannot open /dev"))?;
    for device in &plan.devices {
        make_one(&folder, device).map_err(at(format!("cannot make /dev/{}", device.name)))?;
    }
    Ok(())
}

fn make_one(folder: &OwnedFd, device: &Device) -> io::Result<()> {
    let name = c_string(&device.name)?;
    let number = libc::makedev(device.major, device.minor);
    // SAFETY: the descriptor is open; a C string that lives through the call.
    match check(unsafe { libc::mknodat(folder.as_raw_fd(), name.as_ptr(), libc::S_IFCHR | MODE, number) }) {
        // A confined host may not make devices: then the container gets the host's own.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => bind_one(folder, device),
        other => other.map(drop),
    }
}

fn bind_one(folder: &OwnedFd, device: &Device) -> io::Result<()> {
    let host = tree::open_path(&c_string(&format!("/dev/{}", device.name))?)?;
    if !tree::is_device(&host, device.major, device.minor) {
        return Err(io::Error::other("it is not that device on this host"));
    }
    inside::file(folder, &c_string(&device.name)?)?;
    let place = tree::open_inside(folder, &device.name, libc::O_PATH, Links::Refuse)?;
    tree::attach(&tree::copy(&host, false)?, &place)
}
