//! As much of the standard test harness as `cargo test` and `cargo nextest` use: listing, filters, one line a test.

use std::io::Write;
use std::panic;
use std::process::ExitCode;
use std::time::Instant;

/// A test's name and body; it fails by panicking.
pub(crate) type Test = (&'static str, fn());

pub(crate) fn main(args: &[String], tests: &[Test]) -> ExitCode {
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let mut out = std::io::stdout();
    if has("--list") {
        // None is marked as ignored.
        for (name, _) in tests.iter().filter(|_| !has("--ignored")) {
            writeln!(out, "{name}: test").expect("stdout is open");
        }
        return ExitCode::SUCCESS;
    }
    let filters: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|f| if has("--exact") { *f == name } else { name.contains(f.as_str()) })
    };
    let root = nix::unistd::geteuid().is_root();
    let mut failed = Vec::new();
    for (name, test) in tests.iter().filter(|(name, _)| wanted(name)) {
        if !root {
            writeln!(out, "test {name} ... skipped: needs root").expect("stdout is open");
            continue;
        }
        let start = Instant::now();
        let outcome = if panic::catch_unwind(test).is_ok() { "ok" } else { "FAILED" };
        writeln!(out, "test {name} ... {outcome} ({:.2} s)", start.elapsed().as_secs_f64()).expect("stdout is open");
        if outcome != "ok" {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    writeln!(out, "failed: {failed:?}").expect("stdout is open");
    ExitCode::from(101)
}
