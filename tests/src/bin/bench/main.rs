//! `make bench`: figures of skep next to those of its peers, measured in the same run on the same machine.
//!
//!     bench            all metrics but those of networks
//!     bench net.       those of networks: `make bench-net`
//!     bench NAME…      those whose names start with one of these
//!     bench --list     the names
//!
//! Needs root, `SKEP_BIN` (a release build), and Debian's `busybox-static`; a peer that is not installed is left out.
//! Prints `metric | skep | peer | ratio` to stdout, everything else to stderr, and appends one JSON object a metric to
//! `target/bench/results.jsonl`. Exit codes: 0 all measured, 1 something of skep's could not be measured, 64 usage, 130
//! interrupted. Whatever happens, nothing is left behind: see [`supervise`].

mod cgroup;
mod command;
mod contest;
mod engine_api;
mod failover;
mod host_process;
mod load;
mod metric;
mod net;
mod report;
mod rotation;
mod run;
mod samples;
mod scheduler;
mod skep;
mod supervise;
mod swarm;

use std::process::ExitCode;

use anyhow::Result;

use metric::Selection;
use report::Report;
use run::Run;

/// `EX_USAGE` of sysexits.h.
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args == ["--list"] {
        report::print_names();
        return ExitCode::SUCCESS;
    }
    let selection = match Selection::parse(&args) {
        Ok(selection) => selection,
        Err(message) => {
            eprintln!("bench: {message}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match Run::of_supervisor() {
        None => supervise::run(&args),
        Some(run) => match measure(&run, &selection) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("bench: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

/// Measures what is selected; false if something of skep's is missing.
fn measure(run: &Run, selection: &Selection) -> Result<bool> {
    let mut report = Report::open()?;
    if selection.has(&metric::SCHEDULER_100K) {
        scheduler::measure(&mut report)?;
    }
    if selection.has(&metric::CA_ROTATE_1000) {
        rotation::measure(&mut report)?;
    }
    let mut complete = true;
    if selection.has_any(metric::CONTAINERS) {
        complete &= contest::measure(run, selection, &mut report)?;
    }
    if selection.has_any(metric::FAILOVER) {
        failover::measure(run, selection, &mut report)?;
    }
    if metric::NET.iter().any(|metrics| selection.has_any(metrics)) {
        complete &= net::measure(run, selection, &mut report)?;
    }
    Ok(complete)
}
