//! Running a command on a host to its end, with a deadline, for `up`.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::enter::{Mode, enter_command};
use crate::error::{Context, LabError, Result};
use crate::interrupt;
use crate::lab::{Binary, Lab};
use crate::logs;
use crate::process::{PidFd, ProcessId};

/// The socket of a host's daemon, as the host sees it.
pub(crate) const SOCKET: &str = "/run/skep/skep.sock";

/// How often a wait looks whether Ctrl-C was pressed.
const INTERRUPT_CHECK: Duration = Duration::from_millis(100);

/// Sets what a command on a host finds in its environment: the daemon's address, and this binary as `skep`.
pub(crate) fn set_environment(command: &mut Command, bin: &Path) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsStr::new("/usr/sbin:/usr/bin:/sbin:/bin").to_owned());
    let folders = std::iter::once(PathBuf::from(bin)).chain(std::env::split_paths(&path));
    let joined = std::env::join_paths(folders).map_err(std::io::Error::other).context("put into PATH", bin)?;
    command.env("PATH", joined).env("SKEP_HOST", format!("unix://{SOCKET}"));
    Ok(())
}

/// Runs `skep` commands on one host.
pub(crate) struct HostCli<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) binary: &'a Binary,
    pub(crate) number: u16,
    pub(crate) holder: ProcessId,
}

impl HostCli<'_> {
    /// Runs `skep <args>` and returns its stdout. `shown` is how messages name the command: without secrets.
    pub(crate) fn skep(&self, args: &[&str], shown: &str, deadline: Instant) -> Result<String> {
        let mut command = enter_command(&self.binary.exe, &self.lab.name, self.number, self.holder, Mode::Exec);
        command.arg("skep").args(args);
        set_environment(&mut command, &self.binary.bin)?;
        let failed = |outcome: String, output: String| LabError::HostCommand {
            host: self.number,
            command: shown.to_owned(),
            outcome,
            output,
            log: logs::end_of_log(&self.lab.host_dir(self.number).log(), 0),
        };
        let finished = run_until(command, deadline)?;
        interrupt::check()?;
        match finished.status {
            Some(status) if status.success() => Ok(finished.stdout),
            Some(status) => Err(failed(status.to_string(), finished.stderr)),
            None => Err(failed("no answer in time".to_owned(), finished.stderr)),
        }
    }
}

struct Finished {
    /// None: killed because the deadline passed or the user interrupted.
    status: Option<std::process::ExitStatus>,
    stdout: String,
    stderr: String,
}

fn run_until(mut command: Command, deadline: Instant) -> Result<Finished> {
    let program = PathBuf::from(command.get_program());
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("run", &program)?;
    let stdout = read_in_background(child.stdout.take().expect("stdout is piped"));
    let stderr = read_in_background(child.stderr.take().expect("stderr is piped"));
    let pid = i32::try_from(child.id()).expect("a pid fits");
    let handle = PidFd::open(pid).context("open process", pid.to_string())?;
    let mut in_time = true;
    if let Some(handle) = handle {
        while !handle.wait_until(deadline.min(Instant::now() + INTERRUPT_CHECK)).context("wait for", &program)? {
            if Instant::now() >= deadline || interrupt::check().is_err() {
                in_time = false;
                child.kill().context("kill", &program)?;
                break;
            }
        }
    }
    let status = child.wait().context("wait for", &program)?;
    let text = |reader: thread::JoinHandle<String>| reader.join().unwrap_or_default();
    Ok(Finished { status: in_time.then_some(status), stdout: text(stdout), stderr: text(stderr).trim().to_owned() })
}

fn read_in_background(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is shown all the same.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
