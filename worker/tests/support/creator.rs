//! `create-container <dir>` for the tests: runs what the hidden command of `skep` runs.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match (args.next(), args.next()) {
        (Some(command), Some(dir)) if command == "create-container" => skep_runtime::creator::main(Path::new(&dir)),
        _ => ExitCode::from(64),
    }
}
