//! Asks before much is removed at once.

use std::io::{BufRead as _, Write as _};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;

/// Asks on standard error and reads one line; anything but yes, and nobody there to ask, is no. `what` is what would go.
pub(super) fn removal(what: &str) -> Result<(), Failure> {
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] ");
    drop(err);
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    output::note("nothing was removed; -f does not ask");
    Err(Failure::Reported(Exit::Failed))
}
