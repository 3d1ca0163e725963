//! `skep lab exec`: this process becomes the command, so exit code, signals, terminal and descriptors are its own.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;

use crate::command::set_environment;
use crate::enter::{Mode, enter_command};
use crate::error::{Context, LabError, Result};
use crate::lab::{Binary, Lab, find_host};

/// Returns only if it fails.
pub(crate) fn exec(lab: &Lab, number: u16, command: &[OsString]) -> Result<std::convert::Infallible> {
    let mut state = lab.load()?;
    let host = find_host(&mut state, number)?;
    let holder = host.holder.filter(|holder| holder.is_alive()).ok_or(LabError::PoweredOff(number))?;
    let binary = Binary::of(lab)?;
    let mut enter = enter_command(&binary.exe, &lab.name, number, holder, Mode::Exec);
    enter.args(command);
    set_environment(&mut enter, &binary.bin)?;
    Err(enter.exec()).context("run", &binary.exe)
}
