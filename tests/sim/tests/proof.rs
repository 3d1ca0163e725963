//! That the simulation can be relied on: a seed repeats exactly, and what must be noticed is.

use std::process::{Command, Output};

fn simulate(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_skep-sim")).args(words).output().expect("the binary runs")
}

#[test]
fn a_seed_run_twice_gives_the_same_trace() {
    let trace = |seed: u64| {
        let output = simulate(&["--trace", "--seed", &seed.to_string()]);
        assert!(output.status.success(), "seed {seed}");
        output.stdout
    };
    for seed in 1..9 {
        let first = trace(seed);
        assert!(String::from_utf8_lossy(&first).contains("Done("), "seed {seed} did nothing");
        assert!(first == trace(seed), "seed {seed} is another one the second time");
    }
    assert!(trace(1) != trace(2));
}

#[test]
fn a_disk_that_forgets_what_it_had_synced_is_noticed() {
    let loses = |seed: u64| {
        let output = simulate(&["--forget", "3", "--seed", &seed.to_string()]);
        let told = String::from_utf8_lossy(&output.stdout);
        let lost = told.lines().any(|line| line.contains("acknowledged at version") && line.contains("is missing"));
        lost && !output.status.success()
    };
    // openraft itself catches such a disk at most seeds, and stops.
    assert!((0..100).any(loses), "no lost write was noticed");
}
