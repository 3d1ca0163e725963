//! Mounts and paths by descriptor (fsopen(2), open_tree(2), move_mount(2), mount_setattr(2), openat2(2)): what is opened
//! once cannot become another place before it is used, whatever an image or another process does to its path.
//!
//! Used by the container's creation. No policy here.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::sys::{c_string, check, mount};

const EMPTY: &CStr = c"";
/// How often a path is looked up that others change meanwhile. runc's figure.
const MOST_TRIES: u32 = 128;

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result as i32)?;
    // SAFETY: a fresh descriptor from the kernel, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A new instance of a kind of file system, mounted nowhere yet. `options` are `key[=value]` with commas in between.
pub(crate) fn new_file_system(kind: &str, options: &str, attributes: u64) -> io::Result<OwnedFd> {
    let kind = c_string(kind)?;
    // SAFETY: a C string that lives through the call.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) })?;
    configure(&context, libc::FSCONFIG_SET_STRING, Some("source"), Some(&kind.to_string_lossy()))?;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => configure(&context, libc::FSCONFIG_SET_STRING, Some(key), Some(value))?,
            None => configure(&context, libc::FSCONFIG_SET_FLAG, Some(option), None)?,
        }
    }
    create(&context, attributes)
}

/// The mount of a file system that is configured.
pub(crate) fn create(context: &OwnedFd, attributes: u64) -> io::Result<OwnedFd> {
    configure(context, libc::FSCONFIG_CMD_CREATE, None, None)?;
    // SAFETY: the descriptor is open; plain numbers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, attributes) })
}

/// fsconfig(2).
pub(crate) fn configure(
    context: &OwnedFd,
    command: libc::c_uint,
    key: Option<&str>,
    value: Option<&str>,
) -> io::Result<()> {
    let key = key.map(c_string).transpose()?;
    let value = value.map(c_string).transpose()?;
    let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: key and value are NULL or C strings that live through the call.
    let done =
        unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, pointer(&key), pointer(&value), 0) };
    check(done as i32).map(drop)
}

/// A copy of the mount at a path of the host's, links followed, attached nowhere yet. It stays in the propagation group
/// of what it was copied from.
pub(crate) fn copy_path(path: &str, recursive: bool) -> io::Result<OwnedFd> {
    open_tree(libc::AT_FDCWD, &c_string(path)?, 0, recursive)
}

/// The same of what is open.
pub(crate) fn copy(fd: &impl AsRawFd, recursive: bool) -> io::Result<OwnedFd> {
    open_tree(fd.as_raw_fd(), EMPTY, libc::AT_EMPTY_PATH, recursive)
}

fn open_tree(at: RawFd, path: &CStr, flags: libc::c_int, recursive: bool) -> io::Result<OwnedFd> {
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | (flags | recursive) as libc::c_uint;
    // SAFETY: a C string that lives through the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, at, path.as_ptr(), flags) })
}

/// Attaches a mount at the place that `target` is open on.
pub(crate) fn attach(mount: &OwnedFd, target: &impl AsRawFd) -> io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: descriptors are open; the empty paths are C strings, allowed by the flags.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            EMPTY.as_ptr(),
            target.as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
        )
    };
    check(moved as i32).map(drop)
}

/// Adds attributes to a mount that is open at its root, and sets its propagation (0: as it is). `false`: the kernel has
/// no such call (before Linux 5.12); [`set_the_old_way`] does it once the mount is attached.
pub(crate) fn set(mount: &OwnedFd, attributes: u64, propagation: u64, recursive: bool) -> io::Result<bool> {
    if attributes == 0 && propagation == 0 {
        return Ok(true);
    }
    // A kind of access time replaces the one that was.
    let clear = if attributes & libc::MOUNT_ATTR__ATIME == 0 { 0 } else { libc::MOUNT_ATTR__ATIME };
    let wanted = Attributes { set: attributes, clear, propagation, user_namespace: 0 };
    match wanted.apply(mount, if recursive { libc::AT_RECURSIVE } else { 0 }) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Lets the files of a mount that is attached nowhere yet belong to what a user namespace has for their owners (Linux 5.12).
pub(crate) fn map_ids(mount: &OwnedFd, user_namespace: RawFd) -> io::Result<()> {
    let set = libc::MOUNT_ATTR_IDMAP;
    Attributes { set, clear: 0, propagation: 0, user_namespace: user_namespace as u64 }.apply(mount, 0)
}

/// linux/mount.h, struct mount_attr
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

impl Attributes {
    /// mount_setattr(2).
    fn apply(&self, mount: &OwnedFd, flags: libc::c_int) -> io::Result<()> {
        // SAFETY: an open descriptor, a C string, a struct with the kernel's layout and its size.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                mount.as_raw_fd(),
                EMPTY.as_ptr(),
                libc::AT_EMPTY_PATH | flags,
                std::ptr::from_ref(self),
                size_of::<Self>(),
            )
        };
        check(done as i32).map(drop)
    }
}

/// [`set`] for an attached mount by mount(2), not recursive for attributes. Needs the host's `/proc`. What the mount has of
/// the four attributes it keeps: a remount that does not name one takes it away.
pub(crate) fn set_the_old_way(tree: &OwnedFd, attributes: u64, propagation: u64) -> io::Result<()> {
    let path = c_string(&format!("/proc/self/fd/{}", tree.as_raw_fd()))?;
    if propagation != 0 {
        mount("", &path, "", propagation | libc::MS_REC, "")?;
    }
    // The numbers of the four attributes that a bind can have are those of mount(2)'s flags.
    let four = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    if attributes & four != 0 {
        let flags = (attributes | own_flags(tree)?) & four;
        mount("", &path, "", libc::MS_BIND | libc::MS_REMOUNT | flags, "")?;
    }
    Ok(())
}

/// The attributes of a mount that is open at its root (statvfs(3)); the four have the numbers of [`set`]'s.
fn own_flags(tree: &OwnedFd) -> io::Result<u64> {
    // SAFETY: all-zero is a valid value of this plain struct.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `found` has room for the answer.
    check(unsafe { libc::fstatvfs(tree.as_raw_fd(), &raw mut found) })?;
    Ok(found.f_flag)
}

/// How links on the way to a path are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// Followed, inside the root; magic ones (`/proc/<pid>/root`) never.
    Follow,
    /// An error (ELOOP), wherever one is.
    Refuse,
}

/// Opens a path inside `root` as if that were the root directory (openat2(2), Linux 5.6): neither links nor `..` lead out.
pub(crate) fn open_inside(root: &impl AsRawFd, path: &str, flags: libc::c_int, links: Links) -> io::Result<OwnedFd> {
    let path = c_string(if path.is_empty() { "." } else { path })?;
    // SAFETY: all-zero is a valid value of this plain struct.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    if links == Links::Refuse {
        how.resolve |= libc::RESOLVE_NO_SYMLINKS;
    }
    let mut tries = 0;
    loop {
        tries += 1;
        // SAFETY: a C string and a struct with the kernel's layout and its size.
        let opened = owned(unsafe {
            libc::syscall(
                libc::SYS_openat2,
                root.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        });
        match opened {
            // A rename elsewhere on the machine was in the way of a `..`. Who renames all the time keeps nobody here for ever.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && tries < MOST_TRIES => {}
            other => return other,
        }
    }
}

/// fstat(2) of a descriptor, O_PATH or not.
pub(crate) fn stat(fd: &impl AsRawFd) -> io::Result<libc::stat> {
    // SAFETY: all-zero is a valid value of this plain struct.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `found` has room for the answer.
    check(unsafe { libc::fstat(fd.as_raw_fd(), &raw mut found) })?;
    Ok(found)
}

/// The kind of file system that a descriptor is on (`…_SUPER_MAGIC`).
pub(crate) fn magic(fd: &impl AsRawFd) -> io::Result<libc::c_long> {
    // SAFETY: all-zero is a valid value of this plain struct.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `found` has room for the answer.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut found) })?;
    Ok(found.f_type as libc::c_long)
}

/// Whether this is the null device itself, and not what somebody put in its place (CVE-2025-31133).
pub(crate) fn is_device(fd: &impl AsRawFd, major: u32, minor: u32) -> bool {
    stat(fd).is_ok_and(|found| {
        found.st_mode & libc::S_IFMT == libc::S_IFCHR && found.st_rdev == libc::makedev(major, minor)
    })
}

/// Whether two descriptors are of the same file.
pub(crate) fn same_file(one: &impl AsRawFd, other: &impl AsRawFd) -> bool {
    match (stat(one), stat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

/// A path of the host's, opened only to be named (O_PATH).
pub(crate) fn open_path(path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: a C string that lives through the call.
    owned(libc::c_long::from(unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) }))
}
