//! Cgroups, on v1, v2 and hybrid machines: what the processes below one have used, which they are, and the end of one
//! that this run has made. Changes nothing that is not named after the run.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long the processes of a cgroup may take to die of SIGKILL.
const DEATH_TIME: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The mounted hierarchies.
pub(crate) struct Hierarchies {
    all: Vec<PathBuf>,
    /// The one that counts CPU time.
    counting: Counting,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Counting {
    /// v1 with the controller `cpuacct`.
    V1(PathBuf),
    V2(PathBuf),
}

impl Counting {
    fn mount_point(&self) -> &Path {
        match self {
            Self::V1(path) | Self::V2(path) => path,
        }
    }
}

impl Hierarchies {
    /// Those of this machine.
    pub(crate) fn discover() -> Result<Self> {
        let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
        Self::parse(&text).context("no cgroup hierarchy that counts CPU time is mounted")
    }

    /// Lines are `… ROOT MOUNT_POINT OPTIONS … - TYPE SOURCE SUPER_OPTIONS` (proc_pid_mountinfo(5)).
    fn parse(mountinfo: &str) -> Option<Self> {
        let mut all = Vec::new();
        let (mut v1, mut v2) = (None, None);
        for line in mountinfo.lines() {
            let Some((mount, file_system)) = line.split_once(" - ") else { continue };
            let Some(mount_point) = mount.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut words = file_system.split(' ');
            match words.next() {
                Some("cgroup2") => v2 = Some(mount_point.clone()),
                Some("cgroup") => {
                    if words.nth(1).is_some_and(|options| options.split(',').any(|option| option == "cpuacct")) {
                        v1 = Some(mount_point.clone());
                    }
                }
                _ => continue,
            }
            all.push(mount_point);
        }
        let counting = v1.map(Counting::V1).or(v2.map(Counting::V2))?;
        Some(Self { all, counting })
    }

    /// Makes a cgroup in the hierarchy that counts; returns its path, where a process joins by `cgroup.procs`.
    pub(crate) fn create(&self, group: &Path) -> Result<PathBuf> {
        let path = self.counting.mount_point().join(group);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }

    /// CPU time of all processes in the cgroup and below it since it was made, also of those that have ended.
    pub(crate) fn cpu_time(&self, group: &Path) -> Result<Duration> {
        let read = |path: PathBuf| {
            fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))
                .map(|text| (text, path))
        };
        let folder = self.counting.mount_point().join(group);
        let (found, path) = match &self.counting {
            Counting::V1(_) => {
                let (text, path) = read(folder.join("cpuacct.usage"))?;
                (text.trim().parse().ok().map(Duration::from_nanos), path)
            }
            Counting::V2(_) => {
                let (text, path) = read(folder.join("cpu.stat"))?;
                let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
                (usage.and_then(|usage| usage.trim().parse().ok()).map(Duration::from_micros), path)
            }
        };
        found.with_context(|| format!("{} has another form than expected", path.display()))
    }

    /// All processes in the cgroup and below it, sorted; none if there is no such cgroup.
    pub(crate) fn pids(&self, group: &Path) -> Vec<i32> {
        let mut pids = Vec::new();
        for folder in subtree(self.counting.mount_point().join(group)) {
            // Unreadable: just removed.
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        pids.sort_unstable();
        pids
    }

    /// Kills all processes in the cgroup and below it, and removes it from all hierarchies. Nothing to do is success.
    pub(crate) fn destroy(&self, group: &Path) -> Result<()> {
        let started = Instant::now();
        loop {
            let pids = self.pids(group);
            if pids.is_empty() {
                break;
            }
            for pid in &pids {
                // Fails only when it has ended already.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            if started.elapsed() > DEATH_TIME {
                bail!("the processes {pids:?} do not end");
            }
            thread::sleep(LOOK_AGAIN);
        }
        for mount_point in &self.all {
            // Deepest first; the kernel may keep one busy for a moment after its last process.
            for folder in subtree(mount_point.join(group)).iter().rev() {
                remove(folder, started)?;
            }
        }
        Ok(())
    }
}

fn remove(folder: &Path, started: Instant) -> Result<()> {
    loop {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && started.elapsed() < DEATH_TIME => {
                thread::sleep(LOOK_AGAIN);
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            _ => return Ok(()),
        }
    }
}

/// The folder and all below it, parents before their children; nothing if it does not exist.
fn subtree(top: PathBuf) -> Vec<PathBuf> {
    let mut found = if top.is_dir() { vec![top] } else { Vec::new() };
    let mut next = 0;
    while next < found.len() {
        // Unreadable: just removed.
        let entries = fs::read_dir(&found[next]).into_iter().flatten().flatten();
        let folders: Vec<PathBuf> = entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        found.extend(folders);
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn finds_the_hierarchy_that_counts() {
        let v1 = "30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                  31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                  32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = Hierarchies::parse(v1).unwrap();
        assert_eq!(found.counting, Counting::V1("/sys/fs/cgroup/cpu,cpuacct".into()));
        assert_eq!(found.all.len(), 3);
        let v2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(Hierarchies::parse(v2).unwrap().counting, Counting::V2("/sys/fs/cgroup".into()));
        assert!(Hierarchies::parse("30 25 0:26 / / rw - ext4 /dev/sda rw\n").is_none());
    }
}
