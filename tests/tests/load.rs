//! A manager that works hard stays the leader, and its nodes stay up.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use skep_tests::{Lab, Upheavals};

const CONTAINERS: usize = 200;

#[test]
fn two_hundred_containers_start_on_the_leaders_node_and_nothing_else_happens() {
    let lab = Lab::with_managers("load", 3, 3);
    let leader = lab.leader();
    let before = lab.upheavals();
    let constraint = format!("node.hostname==host{leader}");
    let started = Instant::now();
    lab.create("many", &["--replicas", &CONTAINERS.to_string(), "--constraint", &constraint], &["sleep", "1000"]);
    lab.running("many", CONTAINERS, Duration::from_secs(120));
    eprintln!("{CONTAINERS} containers run on the leader's node after {:?}", started.elapsed());
    let after = lab.upheavals();
    let Upheavals { leaders, downs } = after;
    assert_eq!(after, before, "{leaders} leaders and {downs} downs in all");
    assert_eq!(lab.leader(), leader);
}
