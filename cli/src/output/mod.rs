//! Everything that a person or a script reads: data on standard output, all else on standard error.
//!
//! Nothing else in the crate writes to either. A reader that goes away (`| head`) ends the command quietly.

pub(crate) mod format;
pub(crate) mod human;
pub(crate) mod json;
pub(crate) mod natural;
pub(crate) mod table;
pub(crate) mod template;
pub(crate) mod terminal;
pub(crate) mod time;

use std::io::Write as _;

use crate::failure::Failure;

/// Writes data to standard output.
pub(crate) fn data(bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes.as_ref()).and_then(|()| out.flush()).map_err(|error| Failure::from_output(&error))
}

/// Writes a line to standard error. A closed standard error is nobody's problem.
pub(crate) fn note(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Writes warnings from the daemon.
pub(crate) fn warnings<T: std::fmt::Display>(warnings: &[T]) {
    for warning in warnings {
        note(format_args!("warning: {warning}"));
    }
}
