//! A manager whose disk is full takes no part until there is space, says so, and comes back by itself; the others go on.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use skep_tests::{IDLE, Lab, until, until_some};

const SOON: Duration = Duration::from_secs(60);
const MANAGERS: [u32; 3] = [1, 2, 3];
/// Size of the managers' disks, MiB: a sixteenth of it is what a manager wants to be free.
const DISK: u32 = 128;
/// Not enough for a manager, enough for a container.
const LITTLE: u64 = 4 << 20;

fn managers_on_small_disks(name: &str) -> Lab {
    let lab = Lab::with_managers(name, 4, 3);
    lab.on_small_disks(&MANAGERS, DISK);
    lab.settled(3, SOON);
    // What is written goes to the worker's disk.
    lab.create("web", &["--replicas", "2", "--constraint", "node.hostname==host4"], &IDLE);
    lab.running("web", 2, SOON);
    lab
}

/// Waits until the host's daemon tells its operator about the disk.
#[track_caller]
fn says_full(lab: &Lab, host: u32) {
    until_some("the full disk to show", SOON, || {
        let info = lab.skep(host, &["info"]);
        if info.stdout.contains("disk is full") { Ok(()) } else { Err(format!("{info:?}")) }
    });
}

/// Whoever asks this manager for a change, or for what is, is told why not.
#[track_caller]
fn is_refused(lab: &Lab, host: u32) {
    for command in [&["service", "scale", "--detach", "web=1"][..], &["service", "ls"]] {
        lab.skep(host, command).fails(75, "disk of this manager's data directory is full");
    }
    lab.skep(host, &["service", "ls", "--allow-stale"]).ok();
}

/// Frees the disk and waits until the manager is one of three again, and knows `count` replicas of `web`.
#[track_caller]
fn comes_back(lab: &Lab, host: u32, count: usize) {
    lab.empty_disk(host);
    lab.settled(3, SOON);
    until_some("nothing to trouble it", SOON, || {
        let info = lab.skep(host, &["info"]);
        if info.stdout.contains("disk is full") { Err(format!("{info:?}")) } else { Ok(()) }
    });
    lab.ask(host);
    lab.running("web", count, SOON);
    // It votes and writes: with one of the others away it is needed.
    let leader = lab.leader();
    let away = MANAGERS.into_iter().find(|other| ![host, leader].contains(other)).unwrap();
    lab.command(&["kill", &away.to_string()]).ok();
    lab.run(&["service", "scale", "--detach", &format!("web={}", count + 1)]).ok();
    lab.running("web", count + 1, SOON);
    assert_eq!(lab.run(&["swarm", "doctor"]).code, 0);
}

#[test]
fn a_leader_with_a_full_disk_hands_over_and_comes_back_by_itself() {
    let lab = managers_on_small_disks("fulllead");
    let full = lab.leader();
    lab.ask(full % 3 + 1);
    let before = lab.upheavals();
    lab.fill_disk(full, LITTLE);
    until("another leader", SOON, || lab.leader() != full);
    assert!(lab.log(full).contains("the disk is full: this manager takes no changes until there is space"));
    says_full(&lab, full);
    // The others go on.
    lab.run(&["service", "scale", "--detach", "web=4"]).ok();
    lab.running("web", 4, SOON);
    // Every node is told so, those too that had their session at this manager: its own node has room for a container.
    lab.create("spread", &["--mode", "global"], &IDLE);
    lab.running("spread", 4, SOON);
    is_refused(&lab, full);
    let after = lab.upheavals();
    assert_eq!(
        (after.leaders, after.downs),
        (before.leaders + 1, before.downs),
        "one change of the leader, no node down"
    );
    comes_back(&lab, full, 4);
}

#[test]
fn a_follower_without_a_byte_left_takes_no_part_and_comes_back_by_itself() {
    let lab = managers_on_small_disks("fullfollow");
    let leader = lab.leader();
    let full = leader % 3 + 1;
    lab.ask(leader);
    lab.fill_disk(full, 0);
    says_full(&lab, full);
    is_refused(&lab, full);
    for count in [3, 4] {
        lab.run(&["service", "scale", "--detach", &format!("web={count}")]).ok();
        lab.running("web", count, SOON);
    }
    assert_eq!(lab.leader(), leader, "a follower's disk is not the leader's business");
    comes_back(&lab, full, 4);
}
