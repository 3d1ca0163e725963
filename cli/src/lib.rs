//! The command line as a library: so that its parsers can be tested from outside (`fuzzing`), and nothing else.
//!
//! Start reading at `command/mod.rs` for the commands, `client.rs` for how they reach a daemon, `output/` for what they
//! print, `exit.rs` for how they end.

mod client;
mod command;
mod exit;
mod failure;
#[doc(hidden)]
pub mod fuzzing;
mod output;
mod parse;
mod registry;
mod remote;
mod retry;
mod view;

use std::process::ExitCode;

/// The whole program. It only decides who gets the process: a lab's hidden program, or the command line.
pub fn main() -> ExitCode {
    // Before anything else: it must run single-threaded, with nothing opened and nothing parsed.
    if let Some(code) = skep_lab::internal_main() {
        return code;
    }
    command::main()
}
