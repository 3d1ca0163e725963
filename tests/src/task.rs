//! What a test does inside a task's containers, and on the wire between hosts.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::lab::{Lab, Output, Running, run};

impl Lab {
    /// Runs a program of a task's image with its root and its network.
    pub fn inside(&self, task: &Running, args: &[&str]) -> Output {
        run(self.enter(task).args(args), None)
    }

    /// The same, not yet started; its arguments are to be added.
    pub fn enter(&self, task: &Running) -> Command {
        let pid = self.pid(&task.id).to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid, "--mount", "--net", "--root", "--wd", "--"]);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }
}

/// What a name stands for inside a task, IPv4 only. Empty: there is no such name.
#[track_caller]
pub fn addresses(lab: &Lab, task: &Running, name: &str) -> BTreeSet<String> {
    let pid = lab.pid(&task.id).to_string();
    let mut command = Command::new("nsenter");
    // The machine's own program: busybox's takes no long answers.
    command.args(["--target", &pid, "--net", "--", "dig", "+short", "+time=2", "@127.0.0.11", name, "A"]);
    let said = run(&mut command, None).stdout;
    said.lines().filter(|line| line.parse::<std::net::Ipv4Addr>().is_ok()).map(str::to_owned).collect()
}

/// A capture's file.
const FILE: &str = "packets";

/// All packets of a host's network while it lives.
pub struct Capture {
    child: Child,
    /// Holds its file, and goes with it.
    dir: TempDir,
}

impl Capture {
    /// Begins; returns when packets are seen.
    #[track_caller]
    pub fn start(lab: &Lab, host: u32) -> Self {
        let dir = tempfile::tempdir().expect("a folder for the capture");
        let mut command = lab.on(host, &["tcpdump", "--immediate-mode", "-i", "eth0", "-U", "-s", "0", "-w"]);
        let mut child = command.arg(dir.path().join(FILE)).stderr(Stdio::piped()).spawn().expect("tcpdump starts");
        let mut said = BufReader::new(child.stderr.take().expect("its stderr is ours")).lines();
        let listens = said.by_ref().map_while(Result::ok).any(|line| line.contains("listening on"));
        assert!(listens, "tcpdump does not listen");
        // Goes on being read, so that it never waits for us.
        std::thread::spawn(move || said.for_each(drop));
        Self { child, dir }
    }

    /// Whether it saw these bytes so far.
    pub fn saw(&self, mark: &str) -> bool {
        let bytes = std::fs::read(self.dir.path().join(FILE)).unwrap_or_default();
        bytes.windows(mark.len()).any(|window| window == mark.as_bytes())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        let _ = kill(pid, Signal::SIGINT);
        let _ = self.child.wait();
    }
}
