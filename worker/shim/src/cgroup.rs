//! What the monitor does with cgroups: join its own, empty the container's, read the OOM counter, remove the folders.
//!
//! Folders and limits are made by skep-runtime; here are only files by path, so v1, v2 and hybrid look the same.

use std::fs;
use std::path::Path;

use skep_shim::config::ShimConfig;

use crate::sys;

/// How long the processes of a killed container may take to go.
const EMPTY_WITHIN_MS: u64 = 2_000;

/// Moves this process into the monitors' cgroups. A hierarchy that refuses is left as it is: the container matters more.
pub(crate) fn join(config: &ShimConfig) {
    for procs in &config.join {
        if let Err(error) = fs::write(procs, "0") {
            sys::complain(&format!("cannot join {procs}: {error}"));
        }
    }
}

/// Kills every process of the container.
pub(crate) fn kill_all(config: &ShimConfig) {
    killer(config).kill_all();
}

fn killer(config: &ShimConfig) -> Killer<'_> {
    Killer { kill_file: &config.kill_file, freezer: &config.freezer, procs_file: &config.procs_file }
}

/// The files by which all processes of a group are killed; empty ones are not there.
pub(crate) struct Killer<'a> {
    /// v2: `cgroup.kill`.
    pub(crate) kill_file: &'a str,
    /// v1: the group's folder in the freezer.
    pub(crate) freezer: &'a str,
    /// Lists the group's processes.
    pub(crate) procs_file: &'a str,
}

impl Killer<'_> {
    /// Kills every process of the group.
    pub(crate) fn kill_all(&self) {
        if !self.kill_file.is_empty() && fs::write(self.kill_file, "1").is_ok() {
            return;
        }
        let pids = self.pids();
        if pids.is_empty() {
            return;
        }
        // Frozen processes cannot fork away between the list and the signals; SIGKILL takes effect when they thaw.
        let freeze = |state: &str| {
            if !self.freezer.is_empty() {
                let _ = fs::write(format!("{}/freezer.state", self.freezer), state);
            }
        };
        freeze("FROZEN");
        for pid in self.pids() {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        freeze("THAWED");
    }

    fn pids(&self) -> Vec<i32> {
        let Ok(text) = fs::read_to_string(self.procs_file) else { return Vec::new() };
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

/// Whether a process of the container is left.
fn populated(config: &ShimConfig) -> bool {
    !killer(config).pids().is_empty()
}

/// Kills what is left and waits, for a bounded time, until nothing is.
pub(crate) fn empty(config: &ShimConfig) {
    let deadline = sys::monotonic_ms() + EMPTY_WITHIN_MS;
    while populated(config) && sys::monotonic_ms() < deadline {
        kill_all(config);
        while sys::reap().is_some() {}
        // There is no event for "the last process left" that v1 and v2 share.
        let _ = sys::poll(&mut [], Some(1));
    }
}

/// Whether the kernel killed a process of the container for lack of memory. Must come before [`remove`].
pub(crate) fn oom_killed(config: &ShimConfig) -> bool {
    fs::read_to_string(&config.oom_file)
        .is_ok_and(|text| text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|n| n.trim() != "0")))
}

/// Removes the container's folders, and folders that it made inside them.
pub(crate) fn remove(config: &ShimConfig) {
    for folder in &config.cgroups {
        remove_tree(Path::new(folder));
    }
}

fn remove_tree(folder: &Path) {
    if fs::remove_dir(folder).is_ok() {
        return;
    }
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}
