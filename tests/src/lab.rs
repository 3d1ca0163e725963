//! A lab of hosts that goes down with the test, also when the test fails; and the `skep` binary run on its hosts.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::images::busybox;
use crate::wait::until_some;

/// The binary under test.
pub fn skep_binary() -> PathBuf {
    match std::env::var_os("SKEP_BIN") {
        Some(path) => PathBuf::from(path),
        None => panic!("SKEP_BIN is not set: run the end-to-end tests with `make e2e`"),
    }
}

/// What a command printed.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Panics unless the command succeeded; returns what it printed, trimmed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == 0, "exit code {}\nstdout: {}\nstderr: {}", self.code, self.stdout, self.stderr);
        self.stdout.trim().to_owned()
    }

    /// Panics unless the command failed with `code` and a message that contains `part`.
    #[track_caller]
    pub fn fails(self, code: i32, part: &str) {
        assert!(
            self.code == code && self.stderr.contains(part),
            "expected exit code {code} and {part:?}, got {}\nstdout: {}\nstderr: {}",
            self.code,
            self.stdout,
            self.stderr
        );
        assert!(!self.stderr.contains("panicked"), "a panic reached the user: {}", self.stderr);
    }
}

/// A shell as process 1 that ends at once when asked; `sleep` alone would wait for its grace period.
pub const IDLE: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1 & wait; done"];

/// Several hosts on this machine.
pub struct Lab {
    name: String,
    dir: PathBuf,
    hosts: u32,
    /// The manager that `list`, `tasks` and the like ask.
    asked: Cell<u32>,
}

impl Lab {
    /// Brings up `nodes` hosts with one manager; `args` are further arguments of `lab up`.
    #[track_caller]
    pub fn up(name: &str, nodes: u32, args: &[&str]) -> Self {
        Self::start(name, nodes, &[&["--managers", "1"], args].concat())
    }

    /// Brings up `nodes` hosts with one manager, and loads `busybox:1` on it.
    #[track_caller]
    pub fn with_busybox(name: &str, nodes: u32) -> Self {
        Self::with_managers(name, nodes, 1)
    }

    /// Brings up `nodes` hosts, the first `managers` of them managers, and loads `busybox:1` on the first.
    #[track_caller]
    pub fn with_managers(name: &str, nodes: u32, managers: u32) -> Self {
        let lab = Self::start(name, nodes, &["--managers", &managers.to_string()]);
        lab.load_busybox();
        lab
    }

    /// Hosts with daemons, not initialised.
    #[track_caller]
    pub fn without_swarm(name: &str, nodes: u32, args: &[&str]) -> Self {
        Self::start(name, nodes, &[&["--no-swarm"], args].concat())
    }

    #[track_caller]
    fn start(name: &str, nodes: u32, args: &[&str]) -> Self {
        let name = format!("{name}{}", std::process::id());
        let dir = std::env::temp_dir().join(format!("skep-lab-{name}"));
        Self::at(&name, dir, nodes, args)
    }

    /// Brings up `nodes` hosts under a name and in a folder of the caller's choice.
    #[track_caller]
    pub fn at(name: &str, dir: PathBuf, nodes: u32, args: &[&str]) -> Self {
        // Made first, so that a lab that fails half-way goes down too.
        let lab = Self { name: name.to_owned(), dir, hosts: nodes, asked: Cell::new(1) };
        let count = nodes.to_string();
        lab.command(&[&["up", "--nodes", &count], args].concat()).ok();
        lab
    }

    /// `skep lab <args>` for this lab.
    pub fn command(&self, args: &[&str]) -> Output {
        run(self.lab_command().args(args), None)
    }

    pub(crate) fn lab_command(&self) -> Command {
        let mut command = Command::new(skep_binary());
        command.args(["lab", "--name", &self.name, "--lab-dir"]).arg(&self.dir);
        command
    }

    /// A command on a host, not yet started.
    pub fn on(&self, host: u32, args: &[&str]) -> Command {
        let mut command = self.lab_command();
        command.args(["exec", &host.to_string(), "--"]).args(args);
        command
    }

    /// Runs a command on a host.
    pub fn exec(&self, host: u32, args: &[&str]) -> Output {
        run(&mut self.on(host, args), None)
    }

    /// Runs `skep <args>` on a host.
    pub fn skep(&self, host: u32, args: &[&str]) -> Output {
        self.exec(host, &[&["skep"], args].concat())
    }

    /// Runs `skep <args>` on a host with `stdin` from a file.
    pub fn skep_with_input(&self, host: u32, args: &[&str], input: &Path) -> Output {
        run(&mut self.on(host, &[&["skep"], args].concat()), Some(input))
    }

    /// Loads `busybox:1` on the manager that is asked.
    #[track_caller]
    pub fn load_busybox(&self) {
        self.skep_with_input(self.asked.get(), &["image", "load"], &busybox("busybox:1").archive()).ok();
    }

    /// From now on this manager is asked by the methods that name no host.
    pub fn ask(&self, host: u32) {
        self.asked.set(host);
    }

    /// Runs `skep <args>` on the manager that is asked.
    pub fn run(&self, args: &[&str]) -> Output {
        self.skep(self.asked.get(), args)
    }

    /// The same, not yet started.
    pub fn spawn(&self, args: &[&str]) -> Command {
        self.on(self.asked.get(), &[&["skep"], args].concat())
    }

    /// Creates a service of `busybox:1` and does not wait for it.
    #[track_caller]
    pub fn create(&self, name: &str, flags: &[&str], command: &[&str]) {
        let head = ["service", "create", "--detach", "--name", name];
        self.run(&[&head[..], flags, &["busybox:1"], command].concat()).ok();
    }

    /// `node ls`, by host number.
    pub fn nodes(&self) -> BTreeMap<u32, Value> {
        let printed = self.run(&["node", "ls", "--format", "json"]);
        let nodes = printed.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        nodes.filter_map(|node| Some((host_number(node["Hostname"].as_str()?)?, node))).collect()
    }

    /// The host whose manager leads, as the manager that is asked sees it.
    #[track_caller]
    pub fn leader(&self) -> u32 {
        until_some("a leader", Duration::from_secs(20), || {
            let nodes = self.nodes();
            let leader = nodes.iter().find(|(_, node)| node["ManagerStatus"] == "Leader");
            leader.map(|(host, _)| *host).ok_or_else(|| format!("{nodes:#?}"))
        })
    }

    /// Waits until every node is ready and `managers` of them are managers that the leader hears.
    #[track_caller]
    pub fn settled(&self, managers: usize, deadline: Duration) {
        until_some("all nodes to be ready", deadline, || {
            let nodes = self.nodes();
            let ready = nodes.values().filter(|node| node["Status"] == "Ready").count();
            let heard = |node: &&Value| ["Leader", "Reachable"].iter().any(|status| node["ManagerStatus"] == *status);
            let voters = nodes.values().filter(heard).count();
            let all = ready == nodes.len() && !nodes.is_empty() && voters == managers;
            if all { Ok(()) } else { Err(format!("{nodes:#?}")) }
        });
    }

    /// First processes of tasks, by task.
    #[track_caller]
    pub fn pids(&self, tasks: &[Running]) -> BTreeMap<String, u64> {
        tasks.iter().map(|task| (task.id.clone(), self.pid(&task.id))).collect()
    }

    /// The objects that a listing prints as JSON, one a line.
    #[track_caller]
    pub fn list(&self, host: u32, args: &[&str]) -> Vec<Value> {
        let printed = self.skep(host, &[args, &["--format", "json"]].concat()).ok();
        printed.lines().map(|line| serde_json::from_str(line).expect("a listing prints JSON")).collect()
    }

    /// Waits until `service` has exactly `count` running tasks that are wanted; returns their ids and nodes.
    #[track_caller]
    pub fn running(&self, service: &str, count: usize, deadline: Duration) -> Vec<Running> {
        until_some(&format!("{count} running tasks of {service}"), deadline, || {
            let tasks = self.tasks(service);
            let running: Vec<Running> = tasks.iter().filter_map(Running::of).collect();
            let wanted = tasks.iter().filter(|task| task["DesiredState"] == "Running").count();
            if running.len() == count && wanted == count {
                return Ok(running);
            }
            Err(format!("{} running of {wanted} wanted: {tasks:#?}", running.len()))
        })
    }

    /// `service ps`, all of it; empty when the service is unknown.
    pub fn tasks(&self, service: &str) -> Vec<Value> {
        let output = self.run(&["service", "ps", "--no-trunc", "--format", "json", service]);
        output.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// `task inspect` of one task.
    #[track_caller]
    pub fn task(&self, id: &str) -> Value {
        let printed = self.run(&["task", "inspect", id]).ok();
        let tasks: Value = serde_json::from_str(&printed).expect("inspect prints JSON");
        tasks[0].clone()
    }

    /// First process of a task's first container, as the machine sees it.
    #[track_caller]
    pub fn pid(&self, task: &str) -> u64 {
        let status = self.task(task);
        status["Status"]["ContainerStatus"]["PID"]
            .as_u64()
            .filter(|pid| *pid > 0)
            .unwrap_or_else(|| panic!("task {task} has no process: {status:#}"))
    }

    /// How many hosts it has.
    pub(crate) fn hosts(&self) -> u32 {
        self.hosts
    }

    /// Directory of the lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// A task that runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Running {
    pub id: String,
    pub name: String,
    /// Hostname.
    pub node: String,
}

/// Number of the lab's host of that name.
pub fn host_number(hostname: &str) -> Option<u32> {
    hostname.strip_prefix("host")?.parse().ok()
}

impl Running {
    fn of(task: &Value) -> Option<Self> {
        let runs = task["DesiredState"] == "Running" && task["CurrentState"].as_str()?.starts_with("Running");
        let text = |field: &str| task[field].as_str().map(str::to_owned);
        runs.then_some(Self { id: text("ID")?, name: text("Name")?, node: text("Node")? })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in 1..=self.hosts {
                let logs = self.command(&["logs", &host.to_string(), "--tail", "40"]);
                eprintln!("--- daemon of host {host}\n{}{}", logs.stdout, logs.stderr);
            }
        }
        let down = self.command(&["down"]);
        if down.code == 0 {
            // What the test put beside the lab's own files, which are gone.
            let _ = std::fs::remove_dir_all(self.dir());
        }
        if !std::thread::panicking() {
            assert!(down.code == 0, "the lab does not go down: {}", down.stderr);
        }
    }
}

pub(crate) fn run(command: &mut Command, input: Option<&Path>) -> Output {
    let stdin = input.map_or_else(Stdio::null, |path| std::fs::File::open(path).expect("the input exists").into());
    let output = command.stdin(stdin).output().expect("skep starts");
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
