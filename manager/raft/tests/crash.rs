//! kill -9 while writing: what was acknowledged is there after the restart.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use common::{Node, PATIENCE, start_with};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use skep_raft::{Config, Consensus, Wanted};

const DIR: &str = "SKEP_RAFT_CRASH_DIR";
const FROM: &str = "SKEP_RAFT_CRASH_FROM";
const ROUNDS: u64 = 10;
const IN_FLIGHT: usize = 8;

/// Snapshots and purges happen all the time, so that kills meet them too.
fn small(config: &mut Config) {
    config.limits.snapshot_after_changes = 150;
    config.limits.keep_entries = 20;
}

/// Not a test of its own: the process that the test below kills. Prints each number that was acknowledged.
#[tokio::test]
#[ignore = "started by acknowledged_entries_survive_kill_9"]
async fn child_writer() {
    let (Ok(dir), Ok(from)) = (std::env::var(DIR), std::env::var(FROM)) else { return };
    let (node, _) = start_with(Path::new(&dir), small).await;
    tokio::spawn(replace_keys(node.clone()));
    let mut numbers = from.parse::<u64>().unwrap()..;
    let mut answers = FuturesOrdered::new();
    let mut acknowledged = from.parse::<u64>().unwrap();
    loop {
        while answers.len() < IN_FLIGHT {
            let number = numbers.next().unwrap();
            let value = "v".repeat((number as usize * 37) % 9000);
            answers.push_back(node.propose(Bytes::from(format!("n{number}={value}")), PATIENCE));
        }
        answers.next().await.unwrap().unwrap();
        std::io::stdout().write_all(format!("\nack {acknowledged}\n").as_bytes()).unwrap();
        acknowledged += 1;
    }
}

/// One data key after the other, so that kills meet that too.
async fn replace_keys(node: Node) {
    loop {
        let epoch = node.keys().unwrap().0 + 1;
        if let Err(error) = node.rekey(Wanted { epoch, key: None }).await {
            eprintln!("the data key was not replaced: {error}");
            std::process::exit(3);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs the writer until it has acknowledged `count` numbers, kills it, and answers the first number not acknowledged.
fn write_and_kill(dir: &Path, from: u64, count: u64) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_writer", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env(FROM, from.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut next = from;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        assert!(!line.contains("was not replaced"), "{line}");
        let Some(number) = line.strip_prefix("ack ").and_then(|number| number.parse::<u64>().ok()) else { continue };
        assert_eq!(number, next);
        next += 1;
        if next == from + count {
            // SIGKILL; lines still in the pipe are acknowledgements too.
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(next >= from + count, "the writer ended by itself after {} numbers", next - from);
    next
}

#[tokio::test]
async fn acknowledged_entries_survive_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let (mut next, mut keys) = (0, 0);
    for round in 0..ROUNDS {
        // A different moment each time: early, in the middle, around snapshots and purges.
        next = write_and_kill(dir.path(), next, 3 + round * round * 7);
        let (node, pairs) = start_with(dir.path(), small).await;
        for number in 0..next {
            let value = pairs.get(&format!("n{number}")).unwrap_or_else(|| panic!("round {round}: {number} is lost"));
            assert_eq!(value.len(), (number as usize * 37) % 9000, "round {round}: {number}");
        }
        keys = node.keys().unwrap().0;
        node.shutdown().await;
    }
    assert!(next > 1000);
    assert!(keys >= ROUNDS, "the data key was replaced {keys} times");
}
