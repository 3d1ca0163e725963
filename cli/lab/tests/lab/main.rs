//! `skep lab` on the real kernel. This test binary is also the `skep` that its labs run: a stand-in daemon and client
//! (`stand_in`), so that the lab is proved by itself. Needs root; without it each test is skipped and says so.

#![allow(clippy::unwrap_used)]

mod harness;
mod scenes;
mod stand_in;
mod world;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Lab(skep_lab::LabCommand),
}

fn main() -> ExitCode {
    if let Some(code) = skep_lab::internal_main() {
        return code;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("lab") => match skep_lab::run(match Cli::parse().command {
            Command::Lab(lab) => lab,
        }) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("skep: {error:#}");
                ExitCode::FAILURE
            }
        },
        Some("daemon" | "swarm" | "node" | "probe" | "hold") => stand_in::main(&args),
        _ => harness::main(&args, scenes::ALL),
    }
}
