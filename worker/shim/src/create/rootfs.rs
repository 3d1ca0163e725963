//! The container's root: the overlay of the image's layers, and the step into it.
//!
//! Used by the container's creation, in the first process' own mount namespace: nothing mounted here shows in the node's
//! mount table, and all of it goes with the last process; hence all containers can use the same folder as mount point.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use skep_shim::config::ShimConfig;

use super::users::{self, Users};
use super::{Failure, at};
use crate::sys::{c_string, check, mount as mount_at};
use crate::tree;

/// mount(2) takes at most one page of options; the rest is room for the other options.
const MAX_LOWER_BYTES: usize = 3_600;

/// Later mounts of the node still arrive (slave), those of the container never leave.
pub(super) fn leave_propagation() -> Result<(), Failure> {
    mount_at("", c"/", "", libc::MS_REC | libc::MS_SLAVE, "").map_err(at("cannot leave the host's mounts"))
}

/// Mounts the overlay on its mount point and opens its root. The current directory is the container's. With a user namespace
/// its layers belong to the container's ids.
pub(super) fn mount(config: &ShimConfig, users: Option<&Users>) -> Result<OwnedFd, Failure> {
    if let Some(users) = users {
        config
            .lower
            .iter()
            .chain([&config.points])
            .filter(|layer| !layer.is_empty())
            .try_for_each(|layer| users.show(layer))?;
        users::give(users, &config.upper)?;
    }
    mount_overlay(config).map_err(at("cannot mount the root file system"))?;
    let open = || tree::open_path(&c_string(&config.mount_point)?);
    open().map_err(at("cannot open the root file system"))
}

/// `volatile` (Linux 5.10) spares the syncs of a layer that nobody will mount again after a crash.
fn mount_overlay(config: &ShimConfig) -> io::Result<()> {
    let mut layers: Vec<&str> = config.lower.iter().map(String::as_str).collect();
    layers.extend(Some(config.points.as_str()).filter(|points| !points.is_empty()));
    let (mut prefix, mut lower) = relative_layers(&layers);
    if lower.len() > MAX_LOWER_BYTES && !config.points.is_empty() {
        // Only a convenience.
        layers.pop();
        (prefix, lower) = relative_layers(&layers);
    }
    if lower.len() > MAX_LOWER_BYTES {
        return mount_many_layers(config);
    }
    let here = std::env::current_dir()?;
    let absolute = |path: &str| escape(&here.join(path).to_string_lossy());
    let options = format!("lowerdir={lower},upperdir={},workdir={}", absolute(&config.upper), absolute(&config.work));
    let target = c_string(&config.mount_point)?;
    std::env::set_current_dir(prefix)?;
    let mut mounted = mount_at("overlay", &target, "overlay", 0, &format!("{options},volatile"));
    if mounted.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL)) {
        mounted = mount_at("overlay", &target, "overlay", 0, &options);
    }
    std::env::set_current_dir(here)?;
    mounted
}

/// The common parent of the layers and `lowerdir=` relative to it.
fn relative_layers<'a>(layers: &[&'a str]) -> (&'a str, String) {
    let first = layers.first().copied().unwrap_or("/");
    let mut prefix = first.rfind('/').map_or("/", |at| &first[..=at]);
    while !layers.iter().all(|layer| layer.starts_with(prefix) && layer.len() > prefix.len()) {
        prefix = prefix[..prefix.len().saturating_sub(1)].rfind('/').map_or("/", |at| &prefix[..=at]);
        if prefix == "/" {
            break;
        }
    }
    let relative: Vec<String> =
        layers.iter().map(|layer| escape(layer.strip_prefix(prefix).unwrap_or(layer))).collect();
    (prefix, relative.join(":"))
}

/// Overlay's option parser takes `\` before a byte that would end the option.
fn escape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if matches!(c, '\\' | ':' | ',') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// The way for layer lists longer than a page: one `lowerdir+` each (Linux 6.5).
fn mount_many_layers(config: &ShimConfig) -> io::Result<()> {
    // SAFETY: the name is a C string; the fresh descriptor is owned by nobody else.
    let context = unsafe {
        let fd = libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), libc::FSOPEN_CLOEXEC);
        OwnedFd::from_raw_fd(check(fd as i32)?)
    };
    let set = |key, value: &str| tree::configure(&context, libc::FSCONFIG_SET_STRING, Some(key), Some(value));
    for layer in &config.lower {
        set("lowerdir+", layer)?;
    }
    set("upperdir", &config.upper)?;
    set("workdir", &config.work)?;
    tree::configure(&context, libc::FSCONFIG_SET_FLAG, Some("volatile"), None)?;
    let mounted = tree::create(&context, 0)?;
    tree::attach(&mounted, &tree::open_path(&c_string(&config.mount_point)?)?)
}

/// Makes the root read-only, and no mount in it.
pub(super) fn make_read_only(root: &OwnedFd) -> Result<(), Failure> {
    let set = || {
        if !tree::set(root, libc::MOUNT_ATTR_RDONLY, 0, false)? {
            tree::set_the_old_way(root, libc::MOUNT_ATTR_RDONLY, 0)?;
        }
        Ok(())
    };
    set().map_err(at("cannot make the root file system read-only"))
}

/// Makes the container's tree all that there is: its root takes the old one's place, and the old one goes (pivot_root(2)).
pub(super) fn change_to(root: &OwnedFd) -> Result<(), Failure> {
    let change = || -> io::Result<()> {
        // SAFETY: the descriptor is open; C strings and plain flags.
        unsafe {
            check(libc::fchdir(root.as_raw_fd()))?;
            // The old root is put on top of the new one, from where it is taken.
            check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) as i32)?;
            check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
            check(libc::chdir(c"/".as_ptr())).map(drop)
        }
    };
    change().map_err(at("cannot change to the root file system"))
}
