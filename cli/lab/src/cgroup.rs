//! The cgroups of a lab, `skep/<lab>/…`, in every hierarchy that this machine has mounted writable (v1, v2 or both).
//!
//! They keep the processes of a lab and of each host together, so that all can be found and killed at once. The trees
//! of others are never touched: the root's settings are read, never written.

mod kill;
mod mountinfo;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub(crate) use mountinfo::{Mount, read as read_mountinfo};

use crate::error::{Context, LabError, Result};

/// Top of all labs' cgroups in each hierarchy.
const TOP: &str = "skep";

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount_point: PathBuf,
    kind: Kind,
}

/// What the lab has to know of a hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Has `cgroup.kill` and `cgroup.freeze`; controllers are handed down by `cgroup.subtree_control`.
    V2,
    /// Freezes a whole subtree.
    V1Freezer,
    /// A new folder cannot be joined before its cpus and mems are set.
    V1Cpuset,
    /// Any other.
    V1,
}

/// The cgroups `skep/<lab>` in all hierarchies. Paths given to its methods are relative to it; "" is the lab itself.
#[derive(Clone, Debug)]
pub(crate) struct CgroupTree {
    hierarchies: Vec<Hierarchy>,
    lab: String,
}

impl CgroupTree {
    /// Finds the mounted hierarchies; creates nothing.
    pub(crate) fn discover(lab: &str) -> Result<Self> {
        Ok(Self { hierarchies: hierarchies(&read_mountinfo()?), lab: lab.to_owned() })
    }

    /// The value for `--cgroup-parent`.
    pub(crate) fn parent_of_tasks(&self, host: &str) -> String {
        format!("{TOP}/{}/{host}", self.lab)
    }

    fn path(&self, hierarchy: &Hierarchy, below: &str) -> PathBuf {
        hierarchy.mount_point.join(TOP).join(&self.lab).join(below)
    }

    /// The folders of this cgroup that exist.
    fn existing(&self, below: &str) -> impl Iterator<Item = (Kind, PathBuf)> {
        self.hierarchies.iter().map(move |h| (h.kind, self.path(h, below))).filter(|(_, path)| path.is_dir())
    }

    pub(crate) fn exists(&self, below: &str) -> bool {
        self.existing(below).next().is_some()
    }

    /// Makes the cgroup in every hierarchy that may be written.
    ///
    /// # Errors
    /// [`LabError::NoCgroups`] if there is none.
    pub(crate) fn create(&self, below: &str) -> Result<()> {
        let mut made = false;
        for hierarchy in &self.hierarchies {
            match create_in(hierarchy, &Path::new(TOP).join(&self.lab).join(below)) {
                Ok(()) => made = true,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) => {}
                Err(error) => return Err(error).context("create cgroup", self.path(hierarchy, below)),
            }
        }
        if made { Ok(()) } else { Err(LabError::NoCgroups) }
    }

    /// Moves the calling process (all its threads) into the cgroup.
    pub(crate) fn join(&self, below: &str) -> Result<()> {
        let mut joined = false;
        for (_, path) in self.existing(below) {
            fs::write(path.join("cgroup.procs"), "0").context("join cgroup", &path)?;
            joined = true;
        }
        if joined { Ok(()) } else { Err(LabError::NoCgroups) }
    }

    /// All processes in the cgroup and below it, in any hierarchy; sorted, without repetitions.
    pub(crate) fn pids(&self, below: &str) -> Vec<i32> {
        let mut pids = Vec::new();
        for (_, path) in self.existing(below) {
            for folder in subtree(&path) {
                // Unreadable: just removed, or a threaded v2 cgroup, whose processes show at its root.
                let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                // 0 stands for a process of another pid namespace.
                pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
            }
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

/// Whether the calling process is in a cgroup of this lab, that is, on one of its hosts.
pub(crate) fn caller_is_in(lab: &str) -> Result<bool> {
    let path = Path::new("/proc/self/cgroup");
    let text = fs::read_to_string(path).context("read", path)?;
    let inside = format!("/{TOP}/{lab}/");
    // Lines are `ID:controllers:/path` (cgroups(7)).
    Ok(text.lines().any(|line| line.contains(&inside)))
}

/// The folder and all below it, parents first. What vanishes meanwhile is left out.
fn subtree(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    let mut next = 0;
    while let Some(folder) = found.get(next) {
        let children: Vec<_> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        found.extend(children);
        next += 1;
    }
    found
}

/// Makes all levels of `below` that are missing.
fn create_in(hierarchy: &Hierarchy, below: &Path) -> io::Result<()> {
    // Another lab's `down` may remove the shared top between two of our steps.
    const ATTEMPTS: u32 = 10;
    let mut attempt = 0;
    loop {
        match create_levels(hierarchy, below) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => attempt += 1,
            done => return done,
        }
    }
}

fn create_levels(hierarchy: &Hierarchy, below: &Path) -> io::Result<()> {
    let mut path = hierarchy.mount_point.clone();
    for level in below {
        if hierarchy.kind == Kind::V2 && path != hierarchy.mount_point {
            hand_down_controllers(&path);
        }
        path.push(level);
        match fs::create_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        if hierarchy.kind == Kind::V1Cpuset {
            inherit_cpuset(&path)?;
        }
    }
    Ok(())
}

/// Copies cpus and mems from the parent where they are still empty.
fn inherit_cpuset(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if fs::read_to_string(path.join(file))?.trim().is_empty() {
            fs::write(path.join(file), fs::read_to_string(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// Lets the children of a v2 cgroup of ours use every controller that it has itself.
///
/// One at a time: a controller that cannot be handed down does not stop the others.
fn hand_down_controllers(path: &Path) {
    let available = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace() {
        // Refused for a cgroup that holds processes itself, which ours never do; the runtime says what it misses.
        let _ = fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// The cgroup hierarchies among the mounts, each once.
fn hierarchies(mounts: &[Mount]) -> Vec<Hierarchy> {
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for mount in mounts {
        let kind = match mount.fs_type.as_str() {
            "cgroup2" => Kind::V2,
            "cgroup" if mount.has_super_option("freezer") => Kind::V1Freezer,
            "cgroup" if mount.has_super_option("cpuset") => Kind::V1Cpuset,
            "cgroup" => Kind::V1,
            _ => continue,
        };
        if seen.contains(&mount.device) {
            continue;
        }
        seen.push(mount.device.clone());
        found.push(Hierarchy { mount_point: mount.mount_point.clone(), kind });
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hybrid_machine() {
        let mounts = mountinfo::parse(
            "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
             34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n\
             37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime shared:7 - cgroup cgroup rw,freezer\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
             42 31 0:38 / /mnt/again rw,relatime - cgroup2 cgroup2 rw\n",
        );
        let kinds: Vec<_> = hierarchies(&mounts).into_iter().map(|h| (h.mount_point, h.kind)).collect();
        assert_eq!(
            kinds,
            [
                ("/sys/fs/cgroup/cpuset".into(), Kind::V1Cpuset),
                ("/sys/fs/cgroup/freezer".into(), Kind::V1Freezer),
                ("/sys/fs/cgroup/systemd".into(), Kind::V1),
                ("/sys/fs/cgroup/unified".into(), Kind::V2),
            ]
        );
    }
}
