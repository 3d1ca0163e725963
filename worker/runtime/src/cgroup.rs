//! Control groups: which hierarchies this host has (v1, v2 or both, found at run time), the folders of a container in
//! them, its use of resources, and its end by them. A container's folders are made, limited and joined by its monitor, as told
//! from here; nothing is ever mounted here.

pub(crate) mod devices;
mod mountinfo;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mountinfo::{Hierarchy, Version};
use skep_shim::plan::Setting;

use crate::plan::limit_files;
use crate::spec::ResourceLimits;

/// v1 controllers in which each container has a group, where they are mounted: those that limit it, count what it uses,
/// restrict its devices, or stop it. Every further one would cost its start and its end.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "devices", "freezer"];
/// v1 controllers that a container can look at: what programs ask that fit themselves to their limits.
const VISIBLE: [&str; 5] = ["cpu", "cpuacct", "cpuset", "memory", "pids"];
/// v2 controllers that containers use.
const UNIFIED_CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];
/// Hierarchies in which a monitor leaves its parent's group: the one that a service manager kills by, and the one that
/// counts memory.
const MONITOR_HIERARCHIES: [&str; 2] = ["memory", "name=systemd"];

/// What this host has.
#[derive(Clone, Debug)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

/// How the controllers are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    V1,
    V2,
    /// v1 controllers beside a cgroup2 mount.
    Hybrid,
}

impl Layout {
    /// For people: "v1", "v2", "hybrid".
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::Hybrid => "hybrid",
        }
    }
}

/// Use of resources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_ns: u64,
    pub memory_bytes: u64,
    pub pids: u64,
}

impl Cgroups {
    /// Looks at this process' mounts. `None`: there are no cgroups.
    pub fn detect() -> io::Result<Option<Self>> {
        let hierarchies = mountinfo::parse(&fs::read_to_string("/proc/self/mountinfo")?);
        Ok((!hierarchies.is_empty()).then_some(Self { hierarchies }))
    }

    #[cfg(test)]
    /// Where cgroup2 is mounted, alone or beside v1.
    pub(crate) fn v2_mount(&self) -> Option<PathBuf> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V2).map(|v2| v2.mount.clone())
    }

    /// Of a mountinfo(5).
    pub(crate) fn parse(mountinfo: &str) -> Self {
        Self { hierarchies: mountinfo::parse(mountinfo) }
    }

    /// How the controllers are mounted.
    pub fn layout(&self) -> Layout {
        let has = |version| self.hierarchies.iter().any(|hierarchy| hierarchy.version == version);
        match (has(Version::V1), has(Version::V2)) {
            (true, true) => Layout::Hybrid,
            (true, false) => Layout::V1,
            (false, _) => Layout::V2,
        }
    }

    /// Where the v1 hierarchies are mounted; empty where there are none.
    pub(crate) fn v1_mounts(&self) -> Vec<String> {
        let v1 = self.hierarchies.iter().filter(|hierarchy| hierarchy.version == Version::V1);
        v1.map(|hierarchy| hierarchy.mount.to_string_lossy().into_owned()).collect()
    }

    /// The folder of `group` in every hierarchy there is: external runtimes use them all.
    pub(crate) fn all_folders(&self, group: &Path) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.mount.join(group)).collect()
    }

    /// Makes the group of all containers. Best effort: what is missing is told by the first container that needs it.
    pub(crate) fn prepare(&self, containers: &Path) {
        for hierarchy in self.joined() {
            let _ = fs::create_dir_all(hierarchy.mount.join(containers));
        }
        if let Some(unified) = self.unified() {
            // A controller is there for a group only if all above it say so.
            let mut folder = unified.mount.clone();
            for part in std::iter::once(Path::new("")).chain(containers.iter().map(Path::new)) {
                folder.push(part);
                for controller in UNIFIED_CONTROLLERS {
                    let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
                }
            }
        }
        self.prepare_cpuset(containers);
    }

    /// Containers have no groups in the v1 cpuset, but look at this one: a new group there needs its parent's CPUs and
    /// memory nodes.
    fn prepare_cpuset(&self, containers: &Path) {
        let v1 = self.with("cpuset").filter(|hierarchy| hierarchy.version == Version::V1);
        let Some(cpuset) = v1.filter(|hierarchy| !self.joined().any(|joined| joined.mount == hierarchy.mount)) else {
            return;
        };
        let mut folder = cpuset.mount.clone();
        for part in containers {
            let parent = folder.clone();
            folder.push(part);
            let _ = fs::create_dir(&folder);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let own = fs::read_to_string(folder.join(file)).unwrap_or_default();
                if own.trim().is_empty() {
                    let _ = fs::read(parent.join(file)).and_then(|value| fs::write(folder.join(file), value));
                }
            }
        }
    }

    /// What is written into files of a container's new groups: its limits, and on v1 which devices it may use.
    pub(crate) fn settings(&self, group: &Path, limits: &ResourceLimits) -> Vec<Setting> {
        let setting = |folder: &Path, file: &str, value: String| Setting {
            file: folder.join(file).to_string_lossy().into_owned(),
            value,
        };
        let unified = self.unified().is_some();
        let mut settings: Vec<Setting> = limit_files(limits, unified)
            .into_iter()
            // Where the controller is missing the value goes to where somebody would look for it, and fails there.
            .map(|(file, controller, value)| {
                let mount = self.with(controller).map_or(Path::new(crate::plan::CGROUP_ROOT), |found| &found.mount);
                setting(&mount.join(group), file, value)
            })
            .collect();
        if !unified {
            // As above: a container whose devices nothing restricts does not begin.
            let mount = self.with("devices").map(|v1| v1.mount.clone());
            let folder = mount.unwrap_or_else(|| Path::new(crate::plan::CGROUP_ROOT).join("devices")).join(group);
            settings.push(setting(&folder, "devices.deny", "a".to_owned()));
            let allowed = devices::rules().into_iter().map(|rule| setting(&folder, "devices.allow", rule));
            settings.extend(allowed);
        }
        settings
    }

    /// Files into which the first process of a container, while it has one thread, writes `0` to join its groups.
    pub(crate) fn join_files(&self, group: &Path) -> Vec<PathBuf> {
        self.joined().map(|hierarchy| join_file(hierarchy.version, &hierarchy.mount.join(group))).collect()
    }

    /// The folder of `group`, where cgroup v2 is the only hierarchy.
    pub(crate) fn unified_folder(&self, group: &Path) -> Option<PathBuf> {
        Some(self.unified()?.mount.join(group))
    }

    /// What a container can see of v1 below `/sys/fs/cgroup`; nothing on v2, where it has a namespace.
    pub(crate) fn views(&self, containers: &Path, group: &Path) -> Vec<View> {
        let v1 = self.hierarchies.iter().filter(|hierarchy| hierarchy.version == Version::V1);
        let visible = v1.filter(|hierarchy| hierarchy.controllers.iter().any(|name| VISIBLE.contains(&name.as_str())));
        let view = |hierarchy: &Hierarchy| {
            let name = hierarchy.mount.file_name()?.to_string_lossy().into_owned();
            let own = self.joined().any(|joined| joined.mount == hierarchy.mount);
            let folder = hierarchy.mount.join(if own { group } else { containers });
            let aliases = hierarchy.controllers.iter().filter(|controller| **controller != name).cloned().collect();
            Some(View { name, folder, aliases })
        };
        visible.filter_map(view).collect()
    }

    /// The folder of `group` (relative) in every hierarchy that containers join.
    pub fn folders(&self, group: &Path) -> Vec<PathBuf> {
        self.joined().map(|hierarchy| hierarchy.mount.join(group)).collect()
    }

    fn joined(&self) -> impl Iterator<Item = &Hierarchy> {
        let hybrid = self.layout() == Layout::Hybrid;
        self.hierarchies.iter().filter(move |hierarchy| match hierarchy.version {
            Version::V1 => hierarchy.controllers.iter().any(|name| CONTROLLERS.contains(&name.as_str())),
            // Beside v1 it has no controller that containers need.
            Version::V2 => !hybrid,
        })
    }

    fn with(&self, controller: &str) -> Option<&Hierarchy> {
        let v1 = self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller));
        v1.or_else(|| self.unified())
    }

    /// The v2 hierarchy, where it is the only one.
    fn unified(&self) -> Option<&Hierarchy> {
        (self.layout() == Layout::V2).then(|| self.hierarchies.first()).flatten()
    }

    /// A file that lists every process of the group.
    pub fn procs_file(&self, group: &Path) -> Option<PathBuf> {
        Some(self.with("pids").or_else(|| self.joined().next())?.mount.join(group).join("cgroup.procs"))
    }

    /// `cgroup.kill` of the group (v2).
    pub fn kill_file(&self, group: &Path) -> Option<PathBuf> {
        Some(self.unified()?.mount.join(group).join("cgroup.kill"))
    }

    /// The group's folder in the v1 freezer.
    pub fn freezer(&self, group: &Path) -> Option<PathBuf> {
        let v1 = self.with("freezer").filter(|hierarchy| hierarchy.version == Version::V1)?;
        Some(v1.mount.join(group))
    }

    /// The file with a line `oom_kill N`.
    pub fn oom_file(&self, group: &Path) -> Option<PathBuf> {
        let memory = self.with("memory")?;
        let name = match memory.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        Some(memory.mount.join(group).join(name))
    }

    /// Makes the group of the monitors and returns the files into which one, while it has a single thread, writes `0` to
    /// join it. A hierarchy that refuses is left out: a monitor may stay where it was started.
    ///
    /// In v1 that is `tasks`. A write to `cgroup.procs` waits for an RCU grace period, some 10 ms, with the lock on all
    /// cgroups held; a thread that moves itself does not (kernel/cgroup/cgroup.c, `cgroup_procs_write_start`). cgroup v2
    /// has no such way (cgroup.threads stays within one domain), so beside v1 it is left alone where nobody's limits or
    /// service manager reach: in the root group.
    pub fn monitors(&self, group: &Path) -> Vec<PathBuf> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let free_in_v2 = self.layout() == Layout::Hybrid && own.lines().any(|line| line == "0::/");
        let wanted = self.hierarchies.iter().filter(|hierarchy| match hierarchy.version {
            Version::V1 => hierarchy.controllers.iter().any(|name| MONITOR_HIERARCHIES.contains(&name.as_str())),
            Version::V2 => !free_in_v2,
        });
        wanted
            .map(|hierarchy| (hierarchy.mount.join(group), hierarchy.version))
            .filter(|(folder, _)| fs::create_dir_all(folder).is_ok())
            .map(|(folder, version)| join_file(version, &folder))
            .filter(|file| file.exists())
            .collect()
    }

    /// A group inside `group` for some of its processes, so that they can be found and killed apart from the others. In
    /// v1 only one hierarchy has it, the freezer if there is one; all limits are those of `group`.
    pub(crate) fn inner_group(&self, group: &Path, name: &str) -> Option<InnerGroup> {
        let v1 = |hierarchy: &&Hierarchy| hierarchy.version == Version::V1;
        let freezer = self.with("freezer").filter(v1);
        let tree = freezer.or_else(|| self.with("pids")).or_else(|| self.joined().next())?;
        let folder = tree.mount.join(group).join(name);
        let join = self.joined().map(|hierarchy| {
            let folder = if hierarchy.mount == tree.mount { folder.clone() } else { hierarchy.mount.join(group) };
            join_file(hierarchy.version, &folder)
        });
        Some(InnerGroup {
            join: join.collect(),
            kill_file: self.unified().map(|_| folder.join("cgroup.kill")),
            freezer: freezer.map(|_| folder.clone()),
            folder,
        })
    }

    /// What the group uses now. What cannot be read counts as nothing.
    pub fn usage(&self, group: &Path) -> Usage {
        let file = |controller: &str, v1: &str, v2: &str| {
            let hierarchy = self.with(controller)?;
            let name = if hierarchy.version == Version::V1 { v1 } else { v2 };
            fs::read_to_string(hierarchy.mount.join(group).join(name)).ok()
        };
        let number = |text: Option<String>| text.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let cpu_ns = match self.layout() {
            Layout::V2 => file("cpu", "", "cpu.stat")
                .and_then(|text| text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse::<u64>().ok()))
                .map_or(0, |microseconds| microseconds * 1000),
            Layout::V1 | Layout::Hybrid => number(file("cpuacct", "cpuacct.usage", "cpu.stat")),
        };
        Usage {
            cpu_ns,
            memory_bytes: number(file("memory", "memory.usage_in_bytes", "memory.current")),
            pids: number(file("pids", "pids.current", "pids.current")),
        }
    }

    /// Kills every process of the group, in a loop until none is left or `tries` are used up.
    pub fn kill_all(&self, group: &Path) {
        if let Some(kill) = self.kill_file(group)
            && fs::write(kill, "1").is_ok()
        {
            return;
        }
        // Frozen processes cannot fork away between the list and the signals.
        let freezer = self.freezer(group).map(|folder| folder.join("freezer.state"));
        let freeze = |state: &str| {
            if let Some(file) = &freezer {
                // Without a freezer the next round catches what forked away.
                let _ = fs::write(file, state);
            }
        };
        freeze("FROZEN");
        for pid in self.pids(group) {
            // Fails only for a process that has just ended.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        freeze("THAWED");
    }

    /// Processes of the group.
    pub fn pids(&self, group: &Path) -> Vec<i32> {
        let text = self.procs_file(group).and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Removes the group's folders and those inside; folders that still have processes stay.
    pub fn remove(&self, group: &Path) {
        for hierarchy in &self.hierarchies {
            remove_tree(&hierarchy.mount.join(group));
        }
    }

    /// Names of the groups directly inside `group`, in any hierarchy.
    pub fn children(&self, group: &Path) -> Vec<String> {
        let mut names: Vec<String> = self
            .hierarchies
            .iter()
            .filter_map(|hierarchy| fs::read_dir(hierarchy.mount.join(group)).ok())
            .flat_map(|entries| entries.flatten())
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// One v1 hierarchy as a container sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// Name of its folder.
    pub(crate) name: String,
    /// What is there.
    pub(crate) folder: PathBuf,
    /// Further names of it.
    pub(crate) aliases: Vec<String>,
}

/// Files of a group inside a container's.
#[derive(Clone, Debug)]
pub(crate) struct InnerGroup {
    pub(crate) folder: PathBuf,
    /// Where a process of one thread writes `0` to be in it, and in the container's groups of all other hierarchies.
    pub(crate) join: Vec<PathBuf>,
    /// v2.
    pub(crate) kill_file: Option<PathBuf>,
    /// v1: `folder`, if it is in the freezer.
    pub(crate) freezer: Option<PathBuf>,
}

/// See [`Cgroups::monitors`].
fn join_file(version: Version, folder: &Path) -> PathBuf {
    match version {
        Version::V1 => folder.join("tasks"),
        Version::V2 => folder.join("cgroup.procs"),
    }
}

fn remove_tree(folder: &Path) {
    if fs::remove_dir(folder).is_ok() {
        return;
    }
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path());
    }
    // Processes that are still ending keep it for a moment; the next sweep gets it.
    let _ = fs::remove_dir(folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where nothing restricts devices the container must not begin: the monitor cannot write what it is told to.
    #[test]
    fn devices_are_restricted_or_there_is_no_container() {
        let line = |name: &str, kind: &str, options: &str| {
            format!("36 35 0:5 / /sys/fs/cgroup/{name} rw - {kind} {kind} rw,{options}\n")
        };
        let [memory, devices] = ["memory", "devices"].map(|name| line(name, "cgroup", name));
        let denied = |mountinfo: &str| -> Vec<PathBuf> {
            let settings = Cgroups::parse(mountinfo).settings(Path::new("g"), &ResourceLimits::default());
            let denied = settings.into_iter().filter(|setting| setting.file.ends_with("/devices.deny"));
            denied.map(|setting| setting.file.into()).collect()
        };
        let expected = [PathBuf::from("/sys/fs/cgroup/devices/g/devices.deny")];
        assert_eq!(denied(&format!("{memory}{devices}")), expected);
        assert_eq!(denied(&memory), expected, "the controller is not mounted");
        assert_eq!(denied(&format!("{memory}{}", line("unified", "cgroup2", ""))), expected);
        assert!(denied(&line("", "cgroup2", "")).is_empty(), "there a program does it");
    }
}
