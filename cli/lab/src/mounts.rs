//! What a host sees otherwise than the machine: `/run`, `/sys` of its own network, a few files in `/etc`, its boot id.
//!
//! Called by the holder in its new mount namespace, before anybody enters it. All mounts are private to that namespace.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::cgroup::read_mountinfo;
use crate::error::{Context, Result};

/// Files of the host's `etc` folder and what each is bound over.
pub(crate) const BOUND_FILES: [(&str, &str); 4] = [
    ("hosts", "/etc/hosts"),
    ("hostname", "/etc/hostname"),
    ("resolv.conf", "/etc/resolv.conf"),
    ("boot_id", "/proc/sys/kernel/random/boot_id"),
];

/// Does all of it; `etc` holds the files of [`BOUND_FILES`].
pub(crate) fn set_up(etc: &Path) -> Result<()> {
    mount_none("/", "make private", MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    let nosuid_nodev = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), nosuid_nodev, Some("mode=755")).context("mount a tmpfs on", "/run")?;
    for (folder, mode) in [("/run/skep", 0o755), ("/run/lock", 0o1777)] {
        DirBuilder::new().mode(mode).create(folder).context("create", folder)?;
        // The umask is the caller's business, these modes are not.
        fs::set_permissions(folder, PermissionsExt::from_mode(mode)).context("set the mode of", folder)?;
    }
    renew_sysfs()?;
    for (file, target) in BOUND_FILES {
        bind_over(&etc.join(file), Path::new(target))?;
    }
    Ok(())
}

fn mount_none(target: &str, what: &'static str, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>).context(what, target)
}

/// Mounts a sysfs that shows the host's network interfaces, keeping what is mounted below the old one (cgroups!).
fn renew_sysfs() -> Result<()> {
    let mounts = read_mountinfo()?;
    let Some(sys) = mounts.iter().rfind(|m| m.mount_point == Path::new("/sys")) else { return Ok(()) };
    let children: Vec<_> = mounts.iter().filter(|m| m.parent == sys.id).map(|m| &m.mount_point).collect();
    let aside = Path::new("/run/.sys");
    fs::create_dir(aside).context("create", aside)?;
    let parked: Vec<_> = (0..children.len()).map(|n| aside.join(n.to_string())).collect();
    // Of two mounts on one place the later one lies on top: taken off first, put back last.
    for (child, place) in children.iter().zip(&parked).rev() {
        make_like(child, place)?;
        move_mount(child, place)?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Refused in some containers: then the machine's interfaces stay visible in /sys, and nothing else is lost.
    let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), flags, None::<&str>);
    for (child, place) in children.iter().zip(&parked) {
        move_mount(place, child)?;
    }
    fs::remove_dir_all(aside).context("remove", aside)
}

fn move_mount(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("move the mount to", to)
}

/// An empty folder or file, as the other one is.
fn make_like(model: &Path, new: &Path) -> Result<()> {
    if fs::metadata(model).context("look at", model)?.is_dir() {
        fs::create_dir(new).context("create", new)
    } else {
        File::create(new).map(drop).context("create", new)
    }
}

/// Binds a file over another. A machine that lacks the target has no use for it, so it is left out there.
fn bind_over(file: &Path, target: &Path) -> Result<()> {
    let target = follow_links(target).context("follow", target)?;
    if !target.exists() {
        // Points into the machine's /run, which lies under the host's own.
        if !target.starts_with("/run") {
            return Ok(());
        }
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).context("create", folder)?;
        }
        File::create(&target).context("create", &target)?;
    }
    mount(Some(file), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("bind over", &target)
}

/// Where a path leads to, even if that does not exist.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    const MOST_LINKS: usize = 16;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(link) => path = normalize(&path.parent().unwrap_or(Path::new("/")).join(link)),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// Takes out `.` and `..`, by the text alone.
fn normalize(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::Normal(name) => out.push(name),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn dangling_links_lead_somewhere() {
        assert_eq!(normalize(Path::new("/etc/../run/./a")), Path::new("/run/a"));
        let folder = std::env::temp_dir().join(format!("skep-lab-links-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let link = folder.join("resolv.conf");
        std::os::unix::fs::symlink("../../run/systemd/resolve/stub-resolv.conf", &link).unwrap();
        let found = follow_links(&link).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert!(found.ends_with("run/systemd/resolve/stub-resolv.conf"), "{}", found.display());
    }
}
