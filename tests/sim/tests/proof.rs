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

/// Whether a seed with something planted is wrong, in these words.
fn is_wrong(seed: u64, planted: &[&str], words: &[&str]) -> bool {
    let output = simulate(&[planted, &["--seed", &seed.to_string()]].concat());
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    let is_told = told.lines().any(|line| words.iter().all(|word| line.contains(word)));
    is_told && !output.status.success()
}

#[test]
fn a_disk_that_forgets_what_it_had_synced_is_noticed() {
    // openraft itself catches such a disk at most seeds, and stops.
    let loses = |seed| is_wrong(seed, &["--forget", "3"], &["acknowledged at version", "is missing"]);
    assert!((0..100).any(loses), "no lost write was noticed");
}

#[test]
fn a_recovery_that_loses_what_was_there_is_noticed() {
    let loses = |seed| is_wrong(seed, &["--lose", "6"], &["acknowledged at version", "is missing"]);
    assert!((0..100).any(loses), "no lost write was noticed");
}

#[test]
fn a_voter_that_lost_its_files_and_still_counts_is_noticed() {
    let loses = |seed| is_wrong(seed, &["--return", "1"], &["told of", "what it never was"]);
    assert!((0..100).any(loses), "no lost write was noticed");
}

#[test]
fn a_full_disk_that_throws_away_what_it_says_it_has_is_noticed() {
    let full = ["--only", "full-disks"];
    for seed in 0..4 {
        assert!(!is_wrong(seed, &full, &["WRONG"]), "seed {seed}");
    }
    let swallows = [full, ["--swallow", "1"]].concat();
    let loses = |seed| is_wrong(seed, &swallows, &["acknowledged at version", "is missing"]);
    assert!((0..20).any(loses), "no lost write was noticed");
}

/// Found once: the others have another leader before this one knows that it lost its quorum. Its reads were stale, and a
/// removal that had nothing to remove in its state was answered as done.
#[test]
fn a_leader_that_was_replaced_answers_nothing_that_is_stale() {
    for seed in 0..12 {
        let storm = ["--only", "cut-leader"];
        assert!(!is_wrong(seed, &storm, &["WRONG"]), "seed {seed}");
    }
}
