//! The monitor's own mount namespace, and in it the bundle (the creator's files, in memory) and the container's root
//! file system.
//!
//! Used at start. Nothing mounted here shows in the node's mount table, and all of it goes with the last process; hence
//! all monitors can use the same folder as their mount point.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use skep_shim::config::ShimConfig;

use crate::sys::{c_string, check, mount};

/// mount(2) takes at most one page of options; the rest is room for the other options.
const MAX_LOWER_BYTES: usize = 3_600;

/// Leaves the node's mount namespace. Later mounts of the node still arrive (slave), ours never leave.
pub(crate) fn enter_namespace() -> io::Result<()> {
    // SAFETY: plain flags; the process has one thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount("", c"/", "", libc::MS_REC | libc::MS_SLAVE, "")
}

/// Makes a program of the host read-only, as far as processes in this namespace and in those made from it go: what a
/// container runs first has the creator as its `/proc/self/exe` until its own program takes over, and a hostile image
/// can keep it so and write to it (CVE-2019-5736).
pub(crate) fn protect(program: &str) -> io::Result<()> {
    let target = c_string(program)?;
    mount(program, &target, "", libc::MS_BIND, "")?;
    mount("", &target, "", libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | libc::MS_NOSUID, "")
}

/// Mounts a small file system in memory for what the creator reads and writes, and puts its file there: a dozen inodes
/// that the disk need not know. The limit holds arguments and environment of any length that execve(2) takes.
pub(crate) fn make_bundle(config: &ShimConfig, creator_file: &str) -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount("skep-bundle", &c_string(&config.bundle)?, "tmpfs", flags, "mode=0700,size=64m")?;
    fs::create_dir(rootfs(config))?;
    fs::write(format!("{}/creator.json", config.bundle), creator_file)
}

/// Takes the bundle away: a container that runs needs it no longer, and has the root file system by itself.
pub(crate) fn forget_bundle(config: &ShimConfig) {
    let Ok(bundle) = c_string(&config.bundle) else { return };
    // SAFETY: a C string and a flag. If it fails, the bundle stays as long as the monitor.
    unsafe { libc::umount2(bundle.as_ptr(), libc::MNT_DETACH) };
}

fn rootfs(config: &ShimConfig) -> String {
    format!("{}/rootfs", config.bundle)
}

/// Mounts the overlay on the bundle's `rootfs`. The current directory is the container's.
///
/// `volatile` (Linux 5.10) spares the syncs of a layer that nobody will mount again after a crash.
pub(crate) fn mount_root(config: &ShimConfig) -> io::Result<()> {
    let (prefix, lower) = relative_layers(&config.lower);
    if lower.len() > MAX_LOWER_BYTES {
        return mount_many_layers(config);
    }
    let here = std::env::current_dir()?;
    let absolute = |path: &str| escape(&here.join(path).to_string_lossy());
    let options = format!("lowerdir={lower},upperdir={},workdir={}", absolute(&config.upper), absolute(&config.work));
    let target = c_string(&rootfs(config))?;
    std::env::set_current_dir(prefix)?;
    let mut mounted = mount("overlay", &target, "overlay", 0, &format!("{options},volatile"));
    if mounted.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL)) {
        mounted = mount("overlay", &target, "overlay", 0, &options);
    }
    std::env::set_current_dir(here)?;
    mounted
}

/// The common parent of the layers and `lowerdir=` relative to it.
fn relative_layers(layers: &[String]) -> (&str, String) {
    let first = layers.first().map_or("/", String::as_str);
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
        let fd = libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), 1 /* FSOPEN_CLOEXEC */);
        OwnedFd::from_raw_fd(check(fd as i32)?)
    };
    for layer in &config.lower {
        set_option(&context, "lowerdir+", layer)?;
    }
    set_option(&context, "upperdir", &config.upper)?;
    set_option(&context, "workdir", &config.work)?;
    configure(&context, FSCONFIG_SET_FLAG, Some("volatile"), None)?;
    configure(&context, FSCONFIG_CMD_CREATE, None, None)?;
    let root = File::open(rootfs(config))?;
    // SAFETY: descriptors are open; the empty paths are C strings, allowed by the flags.
    unsafe {
        let mounted = libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1 /* FSMOUNT_CLOEXEC */, 0);
        let mounted = OwnedFd::from_raw_fd(check(mounted as i32)?);
        let moved = libc::syscall(
            libc::SYS_move_mount,
            mounted.as_raw_fd(),
            c"".as_ptr(),
            root.as_raw_fd(),
            c"".as_ptr(),
            0x44, // MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        );
        check(moved as i32).map(drop)
    }
}

// linux/mount.h, enum fsconfig_command
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;

fn set_option(context: &OwnedFd, key: &str, value: &str) -> io::Result<()> {
    configure(context, FSCONFIG_SET_STRING, Some(key), Some(value))
}

fn configure(context: &OwnedFd, command: u32, key: Option<&str>, value: Option<&str>) -> io::Result<()> {
    let key = key.map(c_string).transpose()?;
    let value = value.map(c_string).transpose()?;
    // SAFETY: key and value are NULL or C strings that live through the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            key.as_ref().map_or(std::ptr::null(), |k| k.as_ptr()),
            value.as_ref().map_or(std::ptr::null(), |v| v.as_ptr()),
            0,
        )
    };
    check(done as i32).map(drop)
}
