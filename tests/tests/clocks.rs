//! Wall clocks that step by an hour disturb nothing: timers are monotonic, certificates and tickets tolerate it, and the
//! swarm's own clock does not follow. The machine's clock stays as it is: daemons are given clocks of their own.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use skep_tests::{IDLE, Lab, Upheavals, until, until_some};

const SOON: Duration = Duration::from_secs(60);
/// The worker whose clock steps.
const WORKER: u32 = 4;
/// How far off a time may be that is told of something that has just happened, in seconds.
const SANE: i64 = 120;

/// Seconds since the epoch of an RFC 3339 time; date(1) reads it.
fn seconds(time: &str) -> i64 {
    let read = Command::new("date").args(["-u", "+%s", "-d", time]).output().unwrap();
    String::from_utf8_lossy(&read.stdout).trim().parse().unwrap_or_else(|_| panic!("{time:?} is no time"))
}

fn now() -> i64 {
    seconds("now")
}

/// By how many seconds a daemon's clock is off, going by the last line of its log with `text`, once there are `count`.
#[track_caller]
fn told(lab: &Lab, host: u32, text: &str, count: usize) -> i64 {
    let line = until_some("a line of the log", SOON, || {
        let log = lab.log(host);
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(text)).collect();
        let found = lines.last().filter(|_| lines.len() >= count).map(|line| (*line).to_owned());
        found.ok_or_else(|| format!("{} of {count} in {log}", lines.len()))
    });
    seconds(line.split_whitespace().next().unwrap()) - now()
}

#[test]
fn steps_of_an_hour_disturb_nothing() {
    let lab = Lab::with_managers("clock", 4, 3);
    let leader = lab.leader();
    lab.ask(leader % 3 + 1);
    for host in [WORKER, leader] {
        lab.command(&["kill", &host.to_string()]).ok();
        lab.start_on_own_clock(host);
    }
    lab.settled(3, SOON);
    // Another one leads after the restart.
    until("the first leader to lead again", SOON, || {
        let leads = lab.leader();
        if leads == leader {
            return true;
        }
        lab.run(&["node", "demote", &format!("host{leads}")]).ok();
        lab.settled(2, SOON);
        lab.run(&["node", "promote", &format!("host{leads}")]).ok();
        lab.settled(3, SOON);
        false
    });
    lab.create("spread", &["--mode", "global"], &IDLE);
    let tasks = lab.running("spread", 4, SOON);
    let processes = lab.pids(&tasks);
    let before = lab.upheavals();

    let mut renewals = lab.log(WORKER).matches("certificate was renewed").count();
    let mut orders = lab.log(leader).matches("is asked to renew its certificate").count();
    for (round, offset, hours) in [(1, "+1h", 1_i64), (2, "-1h", -1), (3, "+0", 0)] {
        lab.step_clock(leader, offset);
        lab.step_clock(WORKER, offset);
        // Writes, and new tasks on the nodes whose clocks stepped. Their times are the swarm's.
        let name = format!("made{round}");
        lab.create(&name, &["--mode", "global"], &IDLE);
        for task in lab.running(&name, 4, SOON) {
            let status = lab.task(&task.id);
            for time in [&status["Status"]["Timestamp"], &status["CreatedAt"]] {
                let off = seconds(time.as_str().unwrap()) - now();
                assert!(off.abs() < SANE, "a clock of {offset}: off by {off} s: {status:#}");
            }
        }
        for task in lab.tasks(&name) {
            let state = task["CurrentState"].as_str().unwrap();
            assert!(!state.contains("hour") && !state.contains('-'), "{task:#}");
        }
        // A new certificate by the stepped clock of one for the stepped clock of the other, taken by all.
        lab.run(&["node", "promote", &format!("host{WORKER}")]).ok();
        lab.settled(4, SOON);
        lab.run(&["node", "demote", &format!("host{WORKER}")]).ok();
        lab.settled(3, SOON);
        (renewals, orders) = (renewals + 2, orders + 2);
        for (host, text, count) in
            [(WORKER, "certificate was renewed", renewals), (leader, "is asked to renew its certificate", orders)]
        {
            let off = told(&lab, host, text, count);
            assert!((off - hours * 3600).abs() < SANE, "host {host}'s clock did not step: it is off by {off} s");
        }
    }

    assert_eq!(lab.leader(), leader);
    let after = lab.upheavals();
    let Upheavals { leaders, downs } = after;
    assert_eq!(after, before, "{leaders} leaders and {downs} downs in all");
    assert_eq!(lab.pids(&lab.running("spread", 4, SOON)), processes, "no task was restarted");
    assert_eq!(lab.run(&["swarm", "doctor"]).code, 0);
}
