//! What a swarm of three managers and two workers survives, and how fast: many containers at the leader (`load.rs`), a
//! killed leader, a host without power, and a rolling update. skep alone: a Swarm of five daemons is no part of `make bench`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use skep_tests::{IDLE, Lab, host_number};

use crate::command::wait_for;
use crate::load;
use crate::metric::{self, Selection};
use crate::report::Report;
use crate::run::Run;
use crate::samples::median;

const NODES: u32 = 5;
const MANAGERS: usize = 3;
/// Leaders killed for the median.
const KILLS: usize = 5;
/// Hosts are back, and all is well again, by then.
const SETTLE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Measures what is selected of it.
pub(crate) fn measure(run: &Run, selection: &Selection, report: &mut Report) -> Result<()> {
    let managers = MANAGERS.to_string();
    let lab = Lab::at(run.lab_name(), run.lab_dir(), NODES, &["--managers", &managers]);
    lab.load_busybox();
    if selection.has_any(&[&metric::START_200_ON_LEADER, &metric::UPHEAVALS_200_ON_LEADER]) {
        load::measure(&lab, report)?;
    }
    if selection.has(&metric::UPDATE_10) {
        report.add(&metric::UPDATE_10, rolling_update(&lab)?, None)?;
    }
    if selection.has(&metric::LEADER_KILLED) {
        let gaps: Vec<f64> = (0..KILLS).map(|round| write_gap(&lab, round)).collect();
        report.add(&metric::LEADER_KILLED, median(&gaps).context("no leader was killed")?, None)?;
    }
    if selection.has(&metric::LEADER_LOST) {
        let leader = lab.leader();
        report.add(&metric::LEADER_LOST, tasks_elsewhere(&lab, "leader", leader)?, None)?;
    }
    if selection.has(&metric::WORKER_LOST) {
        report.add(&metric::WORKER_LOST, tasks_elsewhere(&lab, "worker", NODES)?, None)?;
    }
    Ok(())
}

/// Tasks of a service that are wanted and run, where `counts` says so.
pub(crate) fn running(lab: &Lab, service: &str, counts: impl Fn(&Value) -> bool) -> usize {
    let text = |task: &Value, field: &str| task[field].as_str().unwrap_or_default().to_owned();
    let runs = |task: &&Value| {
        text(task, "DesiredState") == "Running" && text(task, "CurrentState").starts_with("Running") && counts(task)
    };
    lab.tasks(service).iter().filter(runs).count()
}

/// Ten replicas, one at a time, without a delay, until the tenth new one runs.
fn rolling_update(lab: &Lab) -> Result<f64> {
    lab.create("rolling", &["--replicas", "10"], &IDLE);
    let old: Vec<String> = lab.running("rolling", 10, SETTLE).into_iter().map(|task| task.id).collect();
    let started = Instant::now();
    lab.run(&["service", "update", "--detach", "--env-add", "A=B", "rolling"]).ok();
    let is_new = |task: &Value| !old.iter().any(|id| task["ID"] == id.as_str());
    wait_for("the update", LOOK_AGAIN, || Ok(running(lab, "rolling", is_new) == 10))?;
    let seconds = started.elapsed().as_secs_f64();
    lab.run(&["service", "rm", "rolling"]).ok();
    Ok(seconds)
}

/// From the kill of the leader's daemon until the next write by another manager is acknowledged.
fn write_gap(lab: &Lab, round: usize) -> f64 {
    let leader = lab.leader();
    let other = (1..=u32::try_from(MANAGERS).unwrap_or(u32::MAX)).find(|host| *host != leader).unwrap_or(1);
    lab.ask(other);
    let kill = leader.to_string();
    lab.command(&["kill", &kill]).ok();
    let started = Instant::now();
    lab.create(&format!("probe{round}"), &["--replicas", "0"], &IDLE);
    let seconds = started.elapsed().as_secs_f64();
    lab.command(&["start", &kill]).ok();
    lab.settled(MANAGERS, SETTLE);
    seconds
}

/// From the loss of a host's power until ten replicas run elsewhere.
fn tasks_elsewhere(lab: &Lab, service: &str, lost: u32) -> Result<f64> {
    lab.create(service, &["--replicas", "10"], &IDLE);
    lab.running(service, 10, SETTLE);
    lab.ask(if lost == 1 { 2 } else { 1 });
    let host = lost.to_string();
    let started = Instant::now();
    lab.command(&["power-off", &host]).ok();
    let elsewhere = |task: &Value| task["Node"].as_str().and_then(host_number) != Some(lost);
    wait_for("the tasks to run elsewhere", LOOK_AGAIN, || Ok(running(lab, service, elsewhere) == 10))?;
    let seconds = started.elapsed().as_secs_f64();
    lab.command(&["start", &host]).ok();
    lab.settled(MANAGERS, SETTLE);
    Ok(seconds)
}
