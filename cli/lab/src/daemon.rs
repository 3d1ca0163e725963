//! The hosts' daemons: starting, waiting until they answer, and ending them.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::command::{SOCKET, set_environment};
use crate::enter::{Mode, daemon_cgroup, enter_command};
use crate::error::{Context, LabError, Result};
use crate::interrupt;
use crate::lab::{Binary, HostDir, Lab, find_host, host_cgroup};
use crate::logs;
use crate::namespaces::path_in;
use crate::network;
use crate::process::ProcessId;
use crate::state::{HostState, LabState};

/// A daemon that does not listen after this long will not.
const READY_TIME: Duration = Duration::from_secs(30);
/// How long a graceful stop may take.
const STOP_TIME: Duration = Duration::from_secs(30);

/// Starts the daemons of these hosts, which are on, and waits until all of them answer.
///
/// A daemon begins only once it is recorded in the lab's state. One that is not ready in time is left as it is.
pub(crate) fn start(lab: &Lab, state: &mut LabState, binary: &Binary, numbers: &[u16]) -> Result<()> {
    let cgroups = lab.cgroups()?;
    let mut started = Vec::with_capacity(numbers.len());
    for number in numbers {
        cgroups.create(&daemon_cgroup(*number))?;
        let parent = cgroups.parent_of_tasks(&host_cgroup(*number));
        let args = state.daemon_args.clone();
        let host = find_host(state, *number)?;
        let new = NewDaemon::launch(lab, binary, host, &parent, &args)?;
        host.daemon = Some(new.id);
        started.push(new);
    }
    state.save(&lab.state_file())?;
    for daemon in &mut started {
        daemon.go();
    }
    let deadline = Instant::now() + READY_TIME;
    started.iter().try_for_each(|daemon| daemon.wait_ready(deadline))
}

/// A launched daemon that has not been let go yet, or is not known to be ready.
struct NewDaemon {
    number: u16,
    id: ProcessId,
    holder: ProcessId,
    child: Child,
    dir: HostDir,
    /// Length of the log before this start.
    log_before: u64,
}

impl NewDaemon {
    fn launch(lab: &Lab, binary: &Binary, host: &HostState, cgroup_parent: &str, args: &[String]) -> Result<Self> {
        let holder = host.holder.ok_or(LabError::PoweredOff(host.number))?;
        let dir = lab.host_dir(host.number);
        let path = dir.log();
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).context("open", &path)?;
        let log_before = log.metadata().context("look at", &path)?.len();
        let mut command = enter_command(&binary.exe, &lab.name, host.number, holder, Mode::Daemon);
        add_daemon_command(&mut command, &binary.exe, host, &dir.data(), cgroup_parent, args);
        set_environment(&mut command, &binary.bin)?;
        // A daemon has no use for the client's address of itself.
        command.env_remove("SKEP_HOST").env_remove("SKEP_LAB_DIR");
        let stderr = log.try_clone().context("open", &path)?;
        let child = command.stdin(Stdio::piped()).stdout(log).stderr(stderr).spawn().context("run", &binary.exe)?;
        let pid = i32::try_from(child.id()).expect("a pid fits");
        let log = || logs::end_of_log(&path, log_before);
        let id = ProcessId::of(pid).ok_or_else(|| LabError::DaemonEnded { host: host.number, log: log() })?;
        Ok(Self { number: host.number, id, holder, child, dir, log_before })
    }

    /// Lets it begin.
    fn go(&mut self) {
        use std::io::Write;
        if let Some(mut stdin) = self.child.stdin.take() {
            // A launcher that has failed meanwhile says why in the log, which `wait_ready` shows.
            let _ = stdin.write_all(b"g");
        }
    }

    fn wait_ready(&self, deadline: Instant) -> Result<()> {
        let socket = path_in(self.holder, SOCKET);
        let mut pause = Duration::from_millis(2);
        loop {
            // A socket file of an earlier daemon refuses; only a listening one accepts.
            if UnixStream::connect(&socket).is_ok() {
                return Ok(());
            }
            interrupt::check()?;
            let log = || logs::end_of_log(&self.dir.log(), self.log_before);
            if !self.id.is_alive() {
                return Err(LabError::DaemonEnded { host: self.number, log: log() });
            }
            if Instant::now() >= deadline {
                return Err(LabError::DaemonNotReady { host: self.number, within: READY_TIME, log: log() });
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

/// What runs on the host: `skep daemon …`.
fn add_daemon_command(
    command: &mut Command,
    exe: &Path,
    host: &HostState,
    data: &Path,
    cgroup_parent: &str,
    args: &[String],
) {
    command.arg(exe).arg("daemon").arg("--data-dir").arg(data);
    command.args(["--socket", SOCKET, "--cgroup-parent", cgroup_parent, "--boot-id", &host.boot_id]);
    command.arg("--advertise-addr").arg(network::address(host.number).to_string());
    command.args(args);
}

/// Kills the daemons of these hosts; all must be running.
pub(crate) fn kill(lab: &Lab, state: &mut LabState, numbers: &[u16]) -> Result<()> {
    let mut running = Vec::with_capacity(numbers.len());
    for number in numbers {
        let host = find_host(state, *number)?;
        running.push(host.live_daemon().ok_or(LabError::DaemonNotRunning(*number))?);
    }
    for daemon in &running {
        signal(*daemon, Signal::SIGKILL)?;
    }
    let deadline = Instant::now() + STOP_TIME;
    for (number, daemon) in numbers.iter().zip(running) {
        wait_for_end(*number, daemon, deadline)?;
        find_host(state, *number)?.daemon = None;
    }
    state.save(&lab.state_file())
}

/// Stops the daemons of these hosts gracefully; those that do not run are left alone.
pub(crate) fn stop(lab: &Lab, state: &mut LabState, numbers: &[u16]) -> Result<()> {
    let mut running = Vec::with_capacity(numbers.len());
    for number in numbers {
        match find_host(state, *number)?.live_daemon() {
            Some(daemon) => running.push((*number, daemon)),
            None => eprintln!("host {number}: its daemon is not running"),
        }
    }
    for (_, daemon) in &running {
        signal(*daemon, Signal::SIGTERM)?;
    }
    let deadline = Instant::now() + STOP_TIME;
    for (number, daemon) in running {
        wait_for_end(number, daemon, deadline)?;
        find_host(state, number)?.daemon = None;
    }
    state.save(&lab.state_file())
}

pub(crate) fn signal(process: ProcessId, signal: Signal) -> Result<()> {
    let name = || process.pid.to_string();
    match process.open().context("open process", name())? {
        Some(handle) => handle.signal(signal).context("signal process", name()),
        None => Ok(()),
    }
}

fn wait_for_end(host: u16, process: ProcessId, deadline: Instant) -> Result<()> {
    let name = || process.pid.to_string();
    let Some(handle) = process.open().context("open process", name())? else { return Ok(()) };
    if handle.wait_until(deadline).context("wait for process", name())? {
        return Ok(());
    }
    Err(LabError::DaemonDoesNotStop { host, within: STOP_TIME })
}
