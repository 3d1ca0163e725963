//! Ending all processes of a cgroup at once, and removing it.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{CgroupTree, Kind, TOP, subtree};
use crate::error::{Context, LabError, Result};
use crate::process::PidFd;

/// How long the freezer may take. Best effort: a process in an uninterruptible wait cannot be frozen, only killed later.
const FREEZE_TIME: Duration = Duration::from_millis(200);
/// How long killed processes may take to vanish; a big one needs a while to give back its memory.
const DEATH_TIME: Duration = Duration::from_secs(10);
/// How long the kernel may keep a cgroup busy after its last process is gone.
const REMOVE_TIME: Duration = Duration::from_secs(2);

impl CgroupTree {
    /// Stops all processes of the cgroup where they are: none of them runs until [`Self::kill`].
    pub(crate) fn freeze(&self, below: &str) {
        for (kind, path) in self.existing(below) {
            let (file, frozen, state, done) = match kind {
                Kind::V1Freezer => ("freezer.state", "FROZEN", "freezer.state", "FROZEN"),
                Kind::V2 => ("cgroup.freeze", "1", "cgroup.events", "frozen 1"),
                Kind::V1 | Kind::V1Cpuset => continue,
            };
            // Hybrid machines: one freezer is enough, and a kernel without the file has none.
            if fs::write(path.join(file), frozen).is_ok() {
                wait(FREEZE_TIME, || fs::read_to_string(path.join(state)).map_or(true, |text| text.contains(done)));
            }
        }
    }

    /// Kills all processes of the cgroup and below, frozen or not, and waits until they are gone.
    ///
    /// # Errors
    /// [`LabError::Undead`] names those that are still there after 10 s.
    pub(crate) fn kill(&self, below: &str) -> Result<()> {
        self.freeze(below);
        let deadline = Instant::now() + DEATH_TIME;
        loop {
            let pids = self.pids(below);
            if pids.is_empty() {
                return Ok(());
            }
            let mut handles = Vec::with_capacity(pids.len());
            for pid in pids {
                let handle = PidFd::open(pid).context("open process", pid.to_string())?;
                handles.extend(handle.map(|handle| (pid, handle)));
            }
            // A pid may have been handed on to a stranger before it was opened: what is still in the cgroup is ours.
            let here = self.pids(below);
            handles.retain(|(pid, _)| here.contains(pid));
            for (_, path) in self.existing(below).filter(|(kind, _)| *kind == Kind::V2) {
                // Also catches what forks meanwhile; kernels before 5.14 do not have it.
                let _ = fs::write(path.join("cgroup.kill"), "1");
            }
            for (pid, handle) in &handles {
                handle.signal(Signal::SIGKILL).context("kill process", pid.to_string())?;
            }
            self.thaw(below);
            for (pid, handle) in &handles {
                handle.wait_until(deadline).context("wait for process", pid.to_string())?;
            }
            if Instant::now() >= deadline {
                return Err(LabError::Undead { name: self.lab.clone(), pids: self.pids(below) });
            }
        }
    }

    /// Lets everything run, paused containers too: on v1 a frozen process does not die.
    fn thaw(&self, below: &str) {
        for (kind, path) in self.existing(below) {
            let (file, thawed) = match kind {
                Kind::V1Freezer => ("freezer.state", "THAWED"),
                Kind::V2 => ("cgroup.freeze", "0"),
                Kind::V1 | Kind::V1Cpuset => continue,
            };
            for folder in subtree(&path) {
                // Gone meanwhile, or without a freezer.
                let _ = fs::write(folder.join(file), thawed);
            }
        }
    }

    /// Removes the cgroup and all below it, which hold no process any more, and the shared top if this lab was the last.
    pub(crate) fn remove(&self, below: &str) -> Result<()> {
        for (_, path) in self.existing(below) {
            remove_subtree(&path).context("remove cgroup", &path)?;
        }
        if below.is_empty() {
            for hierarchy in &self.hierarchies {
                // Refused while another lab or cluster has its cgroups there.
                let _ = fs::remove_dir(hierarchy.mount_point.join(TOP));
            }
        }
        Ok(())
    }
}

fn remove_subtree(path: &Path) -> io::Result<()> {
    for folder in subtree(path).iter().rev() {
        let mut outcome = Ok(());
        wait(REMOVE_TIME, || {
            outcome = match fs::remove_dir(folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                done => done,
            };
            !matches!(&outcome, Err(error) if error.kind() == io::ErrorKind::ResourceBusy)
        });
        outcome?;
    }
    Ok(())
}

/// Asks again and again, first at once, until `done` or the time is over. The kernel offers no event for these.
fn wait(time: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + time;
    let mut pause = Duration::from_micros(200);
    while !done() && Instant::now() < deadline {
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}
