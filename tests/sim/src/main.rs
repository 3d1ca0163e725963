//! `skep-sim`: runs many seeds, or one with its trace. Ends with 1 if anything was wrong; each failure names its seed.
//!
//!     skep-sim --seeds 200 [--from 0] [--jobs 2]
//!     skep-sim --seed 17 [--trace]
//!
//! `--forget N`, `--swallow 1`, `--lose N` and `--return 1` plant bugs (`skep_sim::Lies`): then it must fail. With `--seed`,
//! `--only cut-leader|restart|full-disks` makes a storm of one kind, and `--bug trusts-lead` plants a bug of the past.
//!
//! Each seed has a process of its own, so that it repeats exactly, and a panic that ends the process takes no other with
//! it.
#![allow(clippy::print_stdout, reason = "it is a command")]

use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use skep_raft::sim::Bug;
use skep_sim::{Lies, Only, Options, Report, run};

/// Of what is wrong with a seed so much is printed.
const LINES: usize = 8;
/// What a child's last line begins with; the rest is its report.
const REPORT: &str = "report ";

/// What the command line says.
#[derive(Debug)]
struct Args {
    from: u64,
    seeds: u64,
    jobs: usize,
    mode: Mode,
    options: Options,
}

#[derive(Debug, PartialEq, Eq)]
enum Mode {
    Many,
    One,
    /// One, for a parent.
    Child,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut args = Args { from: 0, seeds: 200, jobs, mode: Mode::Many, options: Options::default() };
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64, String> {
            let value = words.next().ok_or_else(|| format!("{word} needs a number"))?;
            value.parse().map_err(|_| format!("{word} needs a number, not {value:?}"))
        };
        match word.as_str() {
            "--seeds" => args.seeds = number()?,
            "--from" => args.from = number()?,
            "--jobs" => args.jobs = usize::try_from(number()?).unwrap_or(1).max(1),
            "--seed" => (args.from, args.mode) = (number()?, Mode::One),
            "--child" => (args.from, args.mode) = (number()?, Mode::Child),
            "--forget" => args.options.lies.forgets = number()?,
            "--swallow" => args.options.lies.swallows = number()? > 0,
            "--lose" => args.options.lies.loses = number()?,
            "--return" => args.options.lies.returns = number()? > 0,
            "--only" => args.options.only = Some(only(&words.next().unwrap_or_default())?),
            "--bug" => args.options.lies.bug = Some(bug(&words.next().unwrap_or_default())?),
            "--trace" => args.options.trace = true,
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok(args)
}

fn only(name: &str) -> Result<Only, String> {
    match name {
        "cut-leader" => Ok(Only::CutLeader),
        "restart" => Ok(Only::Restart),
        "full-disks" => Ok(Only::FullDisks),
        _ => Err(format!("--only needs cut-leader, restart or full-disks, not {name:?}")),
    }
}

fn bug(name: &str) -> Result<Bug, String> {
    match name {
        "trusts-lead" => Ok(Bug::TrustsLead),
        _ => Err(format!("--bug needs trusts-lead, not {name:?}")),
    }
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(why) => {
            println!("{why}\nusage: skep-sim [--seeds N] [--from N] [--jobs N] | --seed N [--trace]");
            return ExitCode::from(64);
        }
    };
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    }
    let reports = match args.mode {
        Mode::Many => many(&args),
        Mode::One => {
            let report = run(args.from, args.options);
            println!("{}", describe(&report));
            vec![report]
        }
        Mode::Child => {
            let report = run(args.from, args.options);
            println!("{REPORT}{}", serde_json::to_string(&report).unwrap_or_default());
            return ExitCode::SUCCESS;
        }
    };
    ExitCode::from(u8::from(reports.iter().any(|report| !report.wrong.is_empty())))
}

/// Runs the seeds, several at a time, and prints what is wrong and the sum.
fn many(args: &Args) -> Vec<Report> {
    let begun = Instant::now();
    let (next, reports) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= args.seeds {
                        return;
                    }
                    let report = child(args.from + number, args.options);
                    if !report.wrong.is_empty() {
                        println!("{}", describe(&report));
                    }
                    reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
                }
            });
        }
    });
    let reports = reports.into_inner().unwrap_or_else(PoisonError::into_inner);
    let sum = |of: fn(&Report) -> usize| reports.iter().map(of).sum::<usize>();
    println!(
        "{} seeds from {}: {} wrong; {} writes acknowledged, {} unknown, {} reads, {} leaders, {} crashes, \
         {} let in, {} full disks, {} recoveries, {:.0} simulated s in {:.1} s",
        reports.len(),
        args.from,
        reports.iter().filter(|report| !report.wrong.is_empty()).count(),
        sum(|it| it.acknowledged),
        sum(|it| it.unknown),
        sum(|it| it.reads),
        sum(|it| it.leaders),
        sum(|it| it.crashes),
        sum(|it| it.entered),
        sum(|it| it.full),
        sum(|it| it.recoveries),
        reports.iter().map(|it| it.simulated.as_secs_f64()).sum::<f64>(),
        begun.elapsed().as_secs_f64(),
    );
    reports
}

/// Runs one seed in a process of its own.
fn child(seed: u64, options: Options) -> Report {
    let failed = |why: String| Report { seed, wrong: vec![why], ..Report::default() };
    let mut command = match std::env::current_exe() {
        Ok(path) => Command::new(path),
        Err(error) => return failed(format!("cannot find this program: {error}")),
    };
    let Lies { forgets, swallows, loses, returns, .. } = options.lies;
    let lies = [("--forget", forgets), ("--swallow", swallows.into()), ("--lose", loses), ("--return", returns.into())];
    command.args(["--child", &seed.to_string()]);
    for (lie, number) in lies {
        command.args([lie, &number.to_string()]);
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return failed(format!("cannot start a process: {error}")),
    };
    let told = String::from_utf8_lossy(&output.stdout);
    let report = told.lines().last().and_then(|line| line.strip_prefix(REPORT));
    report.and_then(|report| serde_json::from_str(report).ok()).unwrap_or_else(|| {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let panic = complaint.lines().skip_while(|line| !line.contains("panicked")).take(2).collect::<Vec<_>>();
        failed(format!("its process ended ({}): {}", output.status, panic.join(" ")))
    })
}

fn describe(report: &Report) -> String {
    let mut text = format!("seed {}: trace {}", report.seed, report.trace_hash.get(..16).unwrap_or("none"));
    for line in report.wrong.iter().take(LINES) {
        text.push_str("\n  WRONG: ");
        text.push_str(line);
    }
    if !report.wrong.is_empty() {
        text.push_str(&format!("\n  again: make sim SEED={}", report.seed));
    }
    text
}
