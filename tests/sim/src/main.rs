//! `skep-sim`: runs many seeds, or one with its trace. Ends with 1 if anything was wrong; each failure names its seed.
//!
//!     skep-sim --seeds 200 [--from 0] [--threads 2]
//!     skep-sim --seed 17 [--trace]
#![allow(clippy::print_stdout, reason = "it is a command")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use skep_sim::{Options, Report, run, running};

/// Of what is wrong with a seed so much is printed.
const LINES: usize = 8;

/// What the command line says.
#[derive(Debug)]
struct Args {
    from: u64,
    seeds: u64,
    threads: usize,
    one: bool,
    options: Options,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut args = Args { from: 0, seeds: 200, threads, one: false, options: Options::default() };
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64, String> {
            let value = words.next().ok_or_else(|| format!("{word} needs a number"))?;
            value.parse().map_err(|_| format!("{word} needs a number, not {value:?}"))
        };
        match word.as_str() {
            "--seeds" => args.seeds = number()?,
            "--from" => args.from = number()?,
            "--threads" => args.threads = usize::try_from(number()?).unwrap_or(1).max(1),
            "--seed" => (args.from, args.seeds, args.one) = (number()?, 1, true),
            "--forget" => args.options.forgets = number()?,
            "--trace" => args.options.trace = true,
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok(args)
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(why) => {
            println!("{why}\nusage: skep-sim [--seeds N] [--from N] [--threads N] | --seed N [--trace]");
            return ExitCode::from(64);
        }
    };
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    }
    // A panic within a host may end the process: the seed must be known.
    std::panic::set_hook(Box::new(|panic| match running() {
        Some(seed) => println!("seed {seed}: {panic}\n  again: make sim SEED={seed}"),
        None => println!("{panic}"),
    }));
    let begun = Instant::now();
    let reports = run_all(&args);
    if args.one {
        for report in &reports {
            println!("{}", describe(report));
        }
    }
    let wrong = reports.iter().filter(|report| !report.wrong.is_empty()).count();
    let sum = |of: fn(&Report) -> usize| reports.iter().map(of).sum::<usize>();
    println!(
        "{} seeds from {}: {wrong} wrong; {} writes acknowledged, {} unknown, {} reads, {} leaders, {} crashes, \
         {:.0} simulated s in {:.1} s",
        reports.len(),
        args.from,
        sum(|it| it.acknowledged),
        sum(|it| it.unknown),
        sum(|it| it.reads),
        sum(|it| it.leaders),
        sum(|it| it.crashes),
        reports.iter().map(|it| it.simulated.as_secs_f64()).sum::<f64>(),
        begun.elapsed().as_secs_f64(),
    );
    ExitCode::from(u8::from(wrong > 0))
}

/// Runs the seeds on several threads, each seed on one.
fn run_all(args: &Args) -> Vec<Report> {
    let next = AtomicU64::new(0);
    let reports = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= args.seeds {
                        return;
                    }
                    let report = run(args.from + number, args.options);
                    if !args.one && !report.wrong.is_empty() {
                        println!("{}", describe(&report));
                    }
                    reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
                }
            });
        }
    });
    reports.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn describe(report: &Report) -> String {
    let mut text = format!("seed {}: trace {}", report.seed, &report.trace_hash[..16]);
    for line in report.wrong.iter().take(LINES) {
        text.push_str("\n  WRONG: ");
        text.push_str(line);
    }
    if !report.wrong.is_empty() {
        text.push_str(&format!("\n  again: make sim SEED={}", report.seed));
    }
    text
}
