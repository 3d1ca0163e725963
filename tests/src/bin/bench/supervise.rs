//! The process that a user starts: it runs the measuring one as its child and cleans up after it, however that ends:
//! well, by a panic (which aborts in a release build, so that no destructor runs), or by Ctrl-C. It measures nothing.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

use crate::cgroup::Hierarchies;
use crate::command;
use crate::run::Run;
use crate::skep::lab_command;
use crate::swarm::DOCKER_CONFIG_DIR;

/// What a shell answers after Ctrl-C.
const EXIT_INTERRUPTED: u8 = 130;

/// Measures in a child process with these arguments, and cleans up.
pub(crate) fn run(args: &[String]) -> ExitCode {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("bench: containers and cgroups need root");
        return ExitCode::FAILURE;
    }
    match supervise(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn supervise(args: &[String]) -> Result<ExitCode> {
    let signals = block_signals()?;
    let run = Run::create()?;
    let had_docker_config = Path::new(DOCKER_CONFIG_DIR).exists();
    let ended = measure(&run, args, &signals);
    let cleaned = clean_up(&run, had_docker_config);
    let code = match ended? {
        Ended::Interrupted => ExitCode::from(EXIT_INTERRUPTED),
        Ended::ByItself(status) if status.success() => ExitCode::SUCCESS,
        Ended::ByItself(status) => {
            if status.code().is_none() {
                eprintln!("bench: the measuring process was ended by {status}");
            }
            ExitCode::FAILURE
        }
    };
    cleaned.map(|()| code)
}

enum Ended {
    ByItself(ExitStatus),
    Interrupted,
}

fn measure(run: &Run, args: &[String], signals: &SigSet) -> Result<Ended> {
    let exe = std::env::current_exe().context("cannot find this program")?;
    let mut child = Command::new(exe).args(args).envs(run.environment()).spawn().context("cannot start measuring")?;
    let ended = wait(&mut child, signals);
    if !matches!(ended, Ok(Ended::ByItself(_))) {
        // Fails only when it has ended already.
        let _ = child.kill();
        child.wait().context("cannot wait for the measuring process")?;
    }
    ended
}

fn wait(child: &mut Child, signals: &SigSet) -> Result<Ended> {
    loop {
        if signals.wait().context("cannot wait for signals")? != Signal::SIGCHLD {
            return Ok(Ended::Interrupted);
        }
        if let Some(status) = child.try_wait().context("cannot wait for the measuring process")? {
            return Ok(Ended::ByItself(status));
        }
    }
}

/// Blocks what ends a run, to be waited for. Children start with nothing blocked: `std::process` sees to that.
fn block_signals() -> Result<SigSet> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    Ok(signals)
}

/// Removes everything that is named after the run; goes on where a step fails, and tells all that failed.
fn clean_up(run: &Run, had_docker_config: bool) -> Result<()> {
    let mut failed = Vec::new();
    let mut step = |outcome: Result<()>| failed.extend(outcome.err().map(|error| format!("{error:#}")));
    step(lab_down(run));
    step(Hierarchies::discover().and_then(|cgroups| cgroups.destroy(&run.peer_cgroup())));
    if !had_docker_config {
        step(remove_docker_config());
    }
    if failed.is_empty() {
        // Only now: what still runs may have mounts in there.
        let removed = fs::remove_dir_all(run.dir());
        return removed.with_context(|| format!("cannot remove {}", run.dir().display()));
    }
    bail!("cannot clean up: {}; {} is left", failed.join("; "), run.dir().display())
}

fn lab_down(run: &Run) -> Result<()> {
    if !run.lab_dir().exists() {
        return Ok(());
    }
    command::run(lab_command(run).arg("down")).map(drop)
}

/// The peer's set-up makes the folder to mount over it; it is empty, or was there before.
fn remove_docker_config() -> Result<()> {
    match fs::remove_dir(DOCKER_CONFIG_DIR) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(format!("cannot remove {DOCKER_CONFIG_DIR}"))
        }
        _ => Ok(()),
    }
}
