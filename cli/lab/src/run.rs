//! From the parsed command line to the work, and from its outcome to the exit code.

use std::process::ExitCode;

use nix::unistd::geteuid;

use crate::args::{LabAction, LabCommand};
use crate::enter::{ENTER_COMMAND, enter_main};
use crate::error::LabError;
use crate::exec;
use crate::holder::{HOLDER_COMMAND, holder_main};
use crate::lab::Lab;
use crate::{cgroup, down, list, logs, partition, power, up};

/// What shells answer for a command ended by SIGINT.
const EXIT_INTERRUPTED: u8 = 130;

/// Runs one `skep lab` command. `exec` does not return: this process becomes the command.
///
/// # Errors
/// Those of [`LabError`], for the caller to print with their sources.
pub fn run(command: LabCommand) -> anyhow::Result<ExitCode> {
    match act(command) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(LabError::Interrupted) => {
            eprintln!("interrupted");
            Ok(ExitCode::from(EXIT_INTERRUPTED))
        }
        Err(error) => Err(error.into()),
    }
}

fn act(command: LabCommand) -> Result<(), LabError> {
    let lab = Lab::new(command.name, command.lab_dir)?;
    if !matches!(command.action, LabAction::Ls { .. } | LabAction::Logs { .. }) && !geteuid().is_root() {
        return Err(LabError::NotRoot);
    }
    if cgroup::caller_is_in(&lab.name)? {
        return Err(LabError::Inside(lab.name));
    }
    match command.action {
        LabAction::Up(args) => up::up(&lab, &args),
        LabAction::Exec { host, command } => exec::exec(&lab, host, &command).map(|never| match never {}),
        LabAction::Start { hosts } => power::start(&lab, &hosts),
        LabAction::Stop { hosts } => power::stop(&lab, &hosts),
        LabAction::Kill { hosts } => power::kill(&lab, &hosts),
        LabAction::PowerOff { hosts } => power::power_off_command(&lab, &hosts),
        LabAction::Partition { left, right } => partition::partition(&lab, &left, &right),
        LabAction::Heal { hosts } => partition::heal(&lab, &hosts),
        LabAction::Ls { format } => list::list(&lab, format),
        LabAction::Logs { host, follow, tail } => logs::print(&lab, host, follow, tail),
        LabAction::Down { keep_data } => down::down(&lab, keep_data),
    }
}

/// Serves the hidden subcommands `lab-host` and `lab-enter` if this process was started as one of them.
///
/// The `skep` binary calls it first of all: before it starts a thread, opens a file or parses its arguments.
pub fn internal_main() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    match args.next()?.to_str()? {
        HOLDER_COMMAND => Some(holder_main(args)),
        ENTER_COMMAND => Some(enter_main(args)),
        _ => None,
    }
}
