//! A service is changed without being broken: rolling updates, broken ones, rollbacks, health checks.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use serde_json::Value;
use skep_tests::{IDLE, Lab, until, until_some};

const SOON: Duration = Duration::from_secs(60);

fn inspect(lab: &Lab, service: &str) -> Value {
    let printed = lab.run(&["service", "inspect", service]).ok();
    serde_json::from_str::<Value>(&printed).unwrap()[0].clone()
}

/// Waits for the update's state.
#[track_caller]
fn update_state(lab: &Lab, service: &str, wanted: &str) {
    until_some(&format!("update state {wanted}"), SOON, || {
        let status = inspect(lab, service)["UpdateStatus"].clone();
        if status["State"] == wanted { Ok(()) } else { Err(status.to_string()) }
    });
}

/// How many running tasks of the service have this variable.
fn running_with(lab: &Lab, service: &str, variable: &str) -> usize {
    let tasks = lab.tasks(service).into_iter().filter(|task| {
        let running = task["CurrentState"].as_str().is_some_and(|state| state.starts_with("Running"));
        running && task["DesiredState"] == "Running"
    });
    let ids = tasks.filter_map(|task| task["ID"].as_str().map(str::to_owned));
    ids.filter(|id| lab.run(&["task", "inspect", id]).stdout.contains(variable)).count()
}

#[test]
fn ten_replicas_are_updated_one_at_a_time() {
    let lab = Lab::with_managers("rolling", 3, 1);
    lab.create("web", &["--replicas", "10", "--env", "GENERATION=1"], &IDLE);
    lab.running("web", 10, SOON);
    lab.run(&["service", "update", "--detach", "--env-add", "GENERATION=2", "web"]).ok();
    let mut fewest = usize::MAX;
    until_some("ten new tasks", SOON, || {
        let tasks = lab.tasks("web");
        let text = |task: &Value, field: &str| task[field].as_str().unwrap_or_default().to_owned();
        let running = tasks.iter().filter(|task| text(task, "CurrentState").starts_with("Running")).count();
        fewest = fewest.min(running);
        let replaced = tasks.iter().filter(|task| text(task, "DesiredState") == "Shutdown").count();
        if replaced == 10 && running == 10 { Ok(()) } else { Err(format!("{replaced} replaced, {running} run")) }
    });
    assert!(fewest >= 8, "one at a time: never less than nine run, and one may be in between; saw {fewest}");
    until("the last old one to be gone", SOON, || running_with(&lab, "web", "GENERATION=2") == 10);
    update_state(&lab, "web", "completed");
    // Labels and counts change no task.
    let before = lab.running("web", 10, SOON);
    lab.run(&["service", "update", "--detach", "--label-add", "a=b", "web"]).ok();
    lab.run(&["service", "update", "--detach", "--replicas", "9", "web"]).ok();
    let after = lab.running("web", 9, SOON);
    assert!(after.iter().all(|task| before.contains(task)));
}

#[test]
fn a_broken_image_is_paused_and_rolled_back_by_hand() {
    let lab = Lab::with_managers("broken", 3, 1);
    lab.create("web", &["--replicas", "4", "--env", "GENERATION=1"], &IDLE);
    let before = lab.running("web", 4, SOON);
    lab.run(&["service", "update", "--detach", "--args", "sh -c 'exit 3'", "web"]).ok();
    update_state(&lab, "web", "paused");
    let message = inspect(&lab, "web")["UpdateStatus"]["Message"].to_string();
    assert!(message.contains("update paused due to failure or early termination of task"), "{message}");
    // The second one may have begun: a task counts as running until it fails.
    let tasks = lab.tasks("web");
    let left = tasks
        .iter()
        .filter(|task| task["DesiredState"] == "Running" && before.iter().any(|old| task["ID"] == old.id.as_str()));
    assert!(left.count() >= 2, "the rest is left alone");

    lab.run(&["service", "rollback", "--detach", "web"]).ok();
    update_state(&lab, "web", "rollback_completed");
    lab.running("web", 4, SOON);
    let history = lab.run(&["service", "history", "--format", "json", "web"]).ok();
    assert_eq!(history.lines().count(), 3, "{history}");
    // Any kept revision can be gone back to.
    lab.run(&["service", "rollback", "--detach", "--to", "1", "web"]).ok();
    lab.running("web", 4, SOON);
    lab.run(&["service", "rollback", "--detach", "--to", "99", "web"]).fails(1, "99");
}

#[test]
fn a_broken_update_rolls_itself_back() {
    let lab = Lab::with_managers("self", 2, 1);
    let policy = ["--replicas", "3", "--update-failure-action", "rollback", "--update-order", "start-first"];
    lab.create("web", &policy, &IDLE);
    lab.running("web", 3, SOON);
    lab.run(&["service", "update", "--detach", "--args", "sh -c 'exit 3'", "web"]).ok();
    update_state(&lab, "web", "rollback_completed");
    lab.running("web", 3, SOON);
}

#[test]
fn a_leader_lost_in_the_middle_of_an_update_is_not_missed() {
    let lab = Lab::with_managers("middle", 5, 3);
    lab.create("web", &["--replicas", "10", "--env", "GENERATION=1", "--update-delay", "300ms"], &IDLE);
    lab.running("web", 10, SOON);
    let leader = lab.leader();
    lab.ask(leader % 3 + 1);
    lab.run(&["service", "update", "--detach", "--env-add", "GENERATION=2", "web"]).ok();
    until("the update to begin", SOON, || running_with(&lab, "web", "GENERATION=2") >= 2);
    lab.command(&["kill", &leader.to_string()]).ok();
    update_state(&lab, "web", "completed");
    lab.command(&["start", &leader.to_string()]).ok();
    lab.settled(3, SOON);
    lab.running("web", 10, SOON);
    assert_eq!(running_with(&lab, "web", "GENERATION=2"), 10);
    assert_eq!(lab.run(&["swarm", "doctor"]).code, 0);
}

#[test]
fn running_means_healthy_and_the_unhealthy_are_replaced() {
    let lab = Lab::with_managers("health", 2, 1);
    let check = ["--health-cmd", "test -e /tmp/well", "--health-interval", "200ms", "--health-retries", "3"];
    let restart = ["--restart-delay", "1s"];
    let late = "sleep 2; touch /tmp/well; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let started = Instant::now();
    let patient = ["--health-start-period", "20s", "--health-start-interval", "200ms"];
    lab.create("late", &[&check[..], &patient, &restart].concat(), &["sh", "-c", late]);
    let running = lab.running("late", 1, SOON);
    assert!(started.elapsed() >= Duration::from_secs(2), "running means healthy");
    let on = host(&running[0].node);
    let pid = lab.pid(&running[0].id).to_string();
    lab.exec(on, &["rm", &format!("/proc/{pid}/root/tmp/well")]).ok();
    until("the unhealthy task to be replaced", SOON, || {
        lab.tasks("late").iter().any(|task| task["Error"].as_str().is_some_and(|error| error.contains("unhealthy")))
    });
    let next = lab.running("late", 1, SOON);
    assert_ne!(next, running);
    // Never healthy: it never runs, and says why.
    lab.create("never", &[&check[..], &restart].concat(), &IDLE);
    until("the sick task to be ended", SOON, || {
        lab.tasks("never").iter().any(|task| task["Error"].as_str().is_some_and(|error| error.contains("unhealthy")))
    });
}

fn host(name: &str) -> u32 {
    skep_tests::host_number(name).unwrap()
}
