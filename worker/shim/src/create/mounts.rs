//! The mounts of a container, in the plan's order.
//!
//! Used by the container's creation. Each is made away from every tree, gets its attributes there, and is attached to a
//! place that was found inside the root: at no time is there a mount that allows more than it should.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use skep_shim::config::ShimConfig;
use skep_shim::plan::{Mount, Plan, What};

use super::inside::{self, Kind};
use super::{Failure, at};
use crate::sys::{c_string, check};
use crate::tree::{self, Links};

/// What may be put over files of the container's proc file system: those that lxcfs makes, as runc has it. Anything else
/// there could feign what the runtime itself relies on (CVE-2019-16884).
const IN_PROC: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// The mounts of the host that binds are made of, in the plan's order; `None` where there is none.
pub(super) struct Sources(Vec<Option<OwnedFd>>);

/// Copies what is to be bound. Comes before the propagation of this namespace is left: a shared bind stays in the group
/// of what it was copied from.
pub(super) fn open_sources(plan: &Plan) -> Result<Sources, Failure> {
    let open = |mount: &Mount| match &mount.what {
        What::New { .. } | What::Memory { .. } => Ok(None),
        What::Bind { source, recursive, .. } => match tree::copy_path(source, *recursive) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Failure::new(format!("bind source path does not exist: {source}")))
            }
            other => other.map(Some).map_err(at(format!("cannot use bind source path {source}"))),
        },
    };
    plan.mounts.iter().map(open).collect::<Result<_, _>>().map(Sources)
}

impl Sources {
    /// Adds what comes from the secrets and configs. Comes when this namespace's mounts reach no other any more: parts of a
    /// mount can be copied only where it is attached, which it is below the place of the root, and goes with all the host's.
    pub(super) fn add(&mut self, memory: &OwnedFd, config: &ShimConfig) -> Result<(), Failure> {
        let attach = || tree::attach(memory, &tree::open_path(&c_string(&config.mount_point)?)?);
        attach().map_err(at("cannot attach secrets and configs"))?;
        for (mount, source) in config.plan.mounts.iter().zip(&mut self.0) {
            if let What::Memory { path } = &mount.what {
                let copied = tree::open_inside(memory, path, libc::O_PATH, Links::Refuse)
                    .and_then(|place| tree::copy(&place, false));
                *source = Some(copied.map_err(at(format!("cannot use what is to be at {}", mount.target)))?);
            }
        }
        Ok(())
    }
}

/// Mounts that become read-only when all is in place, because others have their places in them.
pub(super) struct Mounted(Vec<(String, OwnedFd)>);

/// Mounts everything.
pub(super) fn mount_all(root: &OwnedFd, plan: &Plan, sources: Sources) -> Result<Mounted, Failure> {
    let mut unfinished = Vec::new();
    for (mount, source) in plan.mounts.iter().zip(sources.0) {
        let step = || at(format!("cannot mount {}", mount.target));
        let target = find(root, mount, source.as_ref())?;
        let late = late(mount);
        let attributes = mount.attributes & !late;
        let made = match (&mount.what, source) {
            (What::New { kind, options }, _) => {
                tree::new_file_system(kind, options, attributes).map_err(step()).and_then(|made| {
                    tree::attach(&made, &target).map_err(step())?;
                    Ok(Some(made))
                })?
            }
            (What::Bind { recursive, propagation, .. }, Some(source)) => {
                bind(&source, &target, attributes, *propagation, *recursive).map_err(step())?;
                None
            }
            (What::Memory { .. }, Some(source)) => {
                bind(&source, &target, attributes, libc::MS_PRIVATE, false).map_err(step())?;
                None
            }
            (What::Bind { .. } | What::Memory { .. }, None) => None,
        };
        unfinished.extend(made.filter(|_| late != 0).map(|made| (mount.target.clone(), made)));
    }
    Ok(Mounted(unfinished))
}

/// Attributes that a mount gets last: memory is read-only when the places in it have been made.
fn late(mount: &Mount) -> u64 {
    match &mount.what {
        What::New { kind, .. } if kind == "tmpfs" => mount.attributes & libc::MOUNT_ATTR_RDONLY,
        What::New { .. } | What::Bind { .. } | What::Memory { .. } => 0,
    }
}

fn bind(source: &OwnedFd, target: &OwnedFd, attributes: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    // What is read-only is so with all that is mounted below.
    let set = tree::set(source, attributes, propagation, recursive)?;
    tree::attach(source, target)?;
    if set { Ok(()) } else { tree::set_the_old_way(source, attributes, propagation) }
}

/// Where a mount goes.
fn find(root: &OwnedFd, mount: &Mount, source: Option<&OwnedFd>) -> Result<OwnedFd, Failure> {
    let path = &mount.target;
    if mount.standard {
        return inside::true_folder(root, path).map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP | libc::ENOTDIR) => Failure::new(format!("the image's {path} is not a folder")),
            _ => at(format!("cannot make the mount point {path}"))(error),
        });
    }
    let step = || at(format!("cannot make the mount point {path}"));
    let kind = match source {
        Some(source) if !is_folder(source).map_err(step())? => Kind::File,
        _ => Kind::Folder,
    };
    let target = inside::place(root, path, kind).map_err(step())?;
    if tree::same_file(&target, root) {
        return Err(Failure::new(format!("cannot mount {path}: it is the container's root")));
    }
    if tree::magic(&target).map_err(step())? == libc::PROC_SUPER_MAGIC as libc::c_long
        && !IN_PROC.contains(&path.as_str())
    {
        return Err(Failure::new(format!("cannot mount {path}: it is inside the container's /proc")));
    }
    Ok(target)
}

fn is_folder(fd: &impl AsRawFd) -> io::Result<bool> {
    Ok(tree::stat(fd)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

impl Mounted {
    /// Makes read-only what is to be.
    pub(super) fn finish(self) -> Result<(), Failure> {
        for (target, mount) in self.0 {
            let set = || {
                if !tree::set(&mount, libc::MOUNT_ATTR_RDONLY, 0, false)? {
                    tree::set_the_old_way(&mount, libc::MOUNT_ATTR_RDONLY, 0)?;
                }
                Ok(())
            };
            set().map_err(at(format!("cannot make {target} read-only")))?;
        }
        Ok(())
    }
}

/// Makes the links of the plan. One that is there already stays.
pub(super) fn link_all(root: &OwnedFd, plan: &Plan) -> Result<(), Failure> {
    for (path, to) in &plan.links {
        let link = || -> io::Result<()> {
            let (folder, name) = path.rsplit_once('/').ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
            let folder = inside::true_folder(root, folder)?;
            let (to, name) = (c_string(to)?, c_string(name)?);
            // SAFETY: the descriptor is open; C strings that live through the call.
            match check(unsafe { libc::symlinkat(to.as_ptr(), folder.as_raw_fd(), name.as_ptr()) }) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => Ok(()),
            }
        };
        link().map_err(at(format!("cannot make the link {path}")))?;
    }
    Ok(())
}
