//! `skep lab-enter`: joins a host's cgroup and namespaces and becomes the given command.
//!
//! A process of its own, started by `skep lab`, because only a process with a single thread can change its mount
//! namespace. It must start no thread and keep nothing open.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use crate::cgroup::CgroupTree;
use crate::error::{Context, LabError, Result};
use crate::holder::exec_cgroup;
use crate::lab::host_cgroup;
use crate::namespaces::Namespaces;
use crate::process::ProcessId;

/// The hidden subcommand.
pub(crate) const ENTER_COMMAND: &str = "lab-enter";
/// What shells answer for a command that cannot be found, and one that cannot be run.
const EXIT_NOT_FOUND: u8 = 127;
const EXIT_CANNOT_RUN: u8 = 126;
/// What `env` and its like answer when they fail themselves.
const EXIT_FAILED: u8 = 125;

/// What the command is to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A user's command: keeps terminal, descriptors and working directory.
    Exec,
    /// The daemon: a session of its own, no stdin, and only once a byte on stdin says that it is recorded.
    Daemon,
}

/// Cgroup of a host's daemon.
pub(crate) fn daemon_cgroup(number: u16) -> String {
    format!("{}/daemon", host_cgroup(number))
}

/// The command `skep lab-enter … -- `, to which the caller adds program and arguments.
pub(crate) fn enter_command(exe: &Path, lab: &str, number: u16, holder: ProcessId, mode: Mode) -> Command {
    let mut command = Command::new(exe);
    command.arg(ENTER_COMMAND).arg(lab).arg(number.to_string());
    command.arg(holder.pid.to_string()).arg(holder.start_ticks.to_string());
    command.arg(match mode {
        Mode::Exec => "exec",
        Mode::Daemon => "daemon",
    });
    command.arg("--");
    command
}

/// Entry of `skep lab-enter LAB NUMBER PID START exec|daemon -- COMMAND…`; `args` are what follows the subcommand.
///
/// Returns only if it fails: 127 if there is no such command, 126 if it cannot be run, 125 for anything else.
pub fn enter_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let Some(args) = EnterArgs::parse(args.into_iter().collect()) else {
        eprintln!("usage: skep lab-enter LAB NUMBER PID START exec|daemon -- COMMAND…");
        return ExitCode::from(EXIT_FAILED);
    };
    if let Err(error) = args.enter() {
        eprintln!("skep lab: {:#}", anyhow::Error::from(error));
        return ExitCode::from(EXIT_FAILED);
    }
    let error = Command::new(&args.program).args(&args.args).exec();
    eprintln!("skep lab: cannot run {}: {error}", args.program.display());
    let missing = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    ExitCode::from(if missing { EXIT_NOT_FOUND } else { EXIT_CANNOT_RUN })
}

struct EnterArgs {
    lab: String,
    number: u16,
    holder: ProcessId,
    mode: Mode,
    program: OsString,
    args: Vec<OsString>,
}

impl EnterArgs {
    fn parse(args: Vec<OsString>) -> Option<Self> {
        let mut args = args.into_iter();
        let mut text = || args.next()?.into_string().ok();
        let (lab, number) = (text()?, text()?.parse().ok()?);
        let holder = ProcessId { pid: text()?.parse().ok()?, start_ticks: text()?.parse().ok()? };
        let mode = match text()?.as_str() {
            "exec" => Mode::Exec,
            "daemon" => Mode::Daemon,
            _ => return None,
        };
        (text()? == "--").then_some(())?;
        Some(Self { lab, number, holder, mode, program: args.next()?, args: args.collect() })
    }

    fn enter(&self) -> Result<()> {
        let cgroups = CgroupTree::discover(&self.lab)?;
        let folder = std::env::current_dir();
        match self.mode {
            Mode::Exec => cgroups.join(&exec_cgroup(self.number))?,
            Mode::Daemon => {
                close_inherited().context("close", "inherited descriptors")?;
                setsid().context("leave", "the session")?;
                cgroups.join(&daemon_cgroup(self.number))?;
            }
        }
        // After the cgroup: whoever powers the host off from here on also kills this process.
        let namespaces = Namespaces::open(self.holder)
            .context("open the namespaces of", format!("/proc/{}", self.holder.pid))?
            .ok_or(LabError::PoweredOff(self.number))?;
        namespaces.enter().context("enter", "the host's namespaces")?;
        match self.mode {
            // Entering has changed it to the host's root; a folder that the host hides is no reason to fail.
            Mode::Exec => folder.and_then(std::env::set_current_dir).unwrap_or_default(),
            Mode::Daemon => wait_until_recorded()?,
        }
        Ok(())
    }
}

fn wait_until_recorded() -> Result<()> {
    if !matches!(io::stdin().read(&mut [0]), Ok(1)) {
        return Err(LabError::Interrupted);
    }
    let null = std::fs::File::open("/dev/null").context("open", "/dev/null")?;
    dup2_stdin(null).context("redirect", "stdin")
}

/// Stdin, stdout and stderr become `/dev/null`.
pub(crate) fn silence_stdio() -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}

/// Closes all descriptors but stdin, stdout and stderr: one inherited from a user's shell would keep its reader waiting
/// for as long as the lab is up.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: called first thing in a process that has opened nothing itself that it would use later.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    match nix::errno::Errno::result(done) {
        Ok(_) => Ok(()),
        // Linux before 5.9.
        Err(nix::errno::Errno::ENOSYS) => close_one_by_one(),
        Err(errno) => Err(errno.into()),
    }
}

fn close_one_by_one() -> io::Result<()> {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // SAFETY: as above; closing the folder's own, already closed descriptor again does nothing.
        unsafe { libc::close(fd) };
    }
    Ok(())
}
