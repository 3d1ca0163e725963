//! A lab under test: runs `skep lab` on it, and looks what it leaves on the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The longest that anything here may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A lab of its own name and directory, taken down when dropped.
pub(crate) struct World {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
}

impl World {
    pub(crate) fn new(scene: &str) -> Self {
        let name = format!("t-{scene}-{}", std::process::id());
        let dir = std::env::temp_dir().join("skep-lab-test").join(&name);
        Self { name, dir }
    }

    /// `skep lab --name … --lab-dir … <args>`
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("lab").args(["--name", &self.name]).arg("--lab-dir").arg(&self.dir).args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs it, must succeed, returns stdout.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it, must fail with exit code 1, returns stderr.
    pub(crate) fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// A command on a host, must succeed; stdout without the last newline.
    pub(crate) fn exec(&self, host: u16, command: &[&str]) -> String {
        let host = host.to_string();
        let args: Vec<&str> = ["exec", host.as_str(), "--"].into_iter().chain(command.iter().copied()).collect();
        self.ok(&args).trim_end().to_owned()
    }

    /// Starts a process on a host that outlives the command; its pid.
    pub(crate) fn background(&self, host: u16) -> i32 {
        self.exec(host, &["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]).parse().unwrap()
    }

    /// The name that answers from host `from` at host `to`'s address; None if nobody does.
    pub(crate) fn probe(&self, from: u16, to: u16) -> Option<String> {
        let address = format!("10.90.0.{to}:{}", crate::stand_in::NAME_PORT);
        let output = self.run(&["exec", &from.to_string(), "--", "skep", "probe", &address]);
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }

    /// One line of `ls --format json`.
    pub(crate) fn host(&self, number: u16) -> serde_json::Value {
        let listing = self.ok(&["ls", "--format", "json"]);
        let rows = listing.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        rows.into_iter().find(|row| row["Number"] == number).unwrap()
    }

    /// What this lab has on the machine; empty after `down`.
    pub(crate) fn traces(&self) -> Vec<String> {
        let mut traces = Vec::new();
        if self.dir.exists() {
            traces.push(format!("directory {}", self.dir.display()));
        }
        for hierarchy in cgroup_mounts() {
            let cgroup = hierarchy.join("skep").join(&self.name);
            if cgroup.exists() {
                traces.push(format!("cgroup {}", cgroup.display()));
            }
        }
        for pid in pids() {
            let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
            if cmdline.contains(&self.name) && pid != i32::try_from(std::process::id()).unwrap() {
                traces.push(format!("process {pid} {cmdline}"));
            }
            // The mounts of others too: a namespace that lives on would hold them.
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            if mounts.contains(&self.name) {
                traces.push(format!("mount seen by process {pid}"));
            }
        }
        traces
    }

    pub(crate) fn assert_gone(&self) {
        assert_eq!(self.traces(), Vec::<String>::new());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.run(&["down"]);
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_dir(self.dir.parent().unwrap());
    }
}

/// Names of the machine's own network interfaces, and its named network namespaces.
pub(crate) fn machine_network() -> Vec<String> {
    let names = |dir: &str| -> Vec<_> {
        fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    [names("/sys/class/net"), names("/run/netns")].concat()
}

/// True for a process that runs; a zombie does not.
pub(crate) fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
}

pub(crate) fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).collect()
}

pub(crate) fn cgroup_mounts() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroup = |line: &&str| line.contains(" - cgroup ") || line.contains(" - cgroup2 ");
    mounts.lines().filter(cgroup).map(|line| PathBuf::from(line.split(' ').nth(4).unwrap())).collect()
}

/// Asks until it is so, or panics after [`DEADLINE`].
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a child's end.
pub(crate) fn wait_child(child: &mut Child) -> std::process::ExitStatus {
    let mut status = None;
    wait_for("the end of a child", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref()).unwrap()
}
