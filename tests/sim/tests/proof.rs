//! That the simulation can be relied on: a seed repeats exactly, and what must be noticed is.

use std::process::Command;

use skep_sim::{Options, run};

#[test]
fn a_seed_run_twice_gives_the_same_trace() {
    for seed in 1..6 {
        let (first, second) = (run(seed, Options::default()), run(seed, Options::default()));
        assert_eq!(first.trace_hash, second.trace_hash, "seed {seed}");
        assert!(first.acknowledged > 0 && first.wrong.is_empty(), "{first:?}");
    }
    assert_ne!(run(1, Options::default()).trace_hash, run(2, Options::default()).trace_hash);
}

/// In processes of their own, as openraft ends the process when it catches such a disk itself.
#[test]
fn a_disk_that_forgets_what_it_had_synced_is_noticed() {
    let loses = |seed: &u64| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skep-sim"));
        let output = command.args(["--forget", "3", "--seed", &seed.to_string()]).output().expect("the binary runs");
        let told = String::from_utf8_lossy(&output.stdout);
        !output.status.success()
            && told.lines().any(|line| line.contains("acknowledged at") && line.contains("is missing"))
    };
    assert!((0..60).any(|seed| loses(&seed)), "no lost write was noticed");
}
