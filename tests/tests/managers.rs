//! Three managers: any of them may die, be cut off or come back, and nobody loses a write or a container.
#![allow(clippy::unwrap_used)]

use std::process::Stdio;
use std::time::Duration;

use skep_tests::{IDLE, Lab, Running, alive, host_number, until, until_some};

const SOON: Duration = Duration::from_secs(60);
/// The managers of these labs.
const MANAGERS: [u32; 3] = [1, 2, 3];

/// A manager that is not `host`.
fn other_than(host: u32) -> u32 {
    *MANAGERS.iter().find(|manager| **manager != host).unwrap()
}

/// Hosts as `lab` takes them: `1,3`.
fn hosts(hosts: &[u32]) -> String {
    hosts.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn sorted(mut tasks: Vec<Running>) -> Vec<Running> {
    tasks.sort();
    tasks
}

#[test]
fn a_leader_killed_during_a_scale_loses_nothing() {
    let lab = Lab::with_managers("scale", 5, 3);
    lab.create("web", &["--replicas", "5"], &IDLE);
    let before = lab.running("web", 5, SOON);
    let processes = lab.pids(&before);
    let leader = lab.leader();
    lab.ask(other_than(leader));

    let mut scaling = lab.spawn(&["service", "scale", "--detach", "web=40"]);
    let mut scaling = scaling.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    lab.command(&["kill", &leader.to_string()]).ok();
    assert!(scaling.wait().unwrap().success(), "the command waits for the next leader");

    lab.running("web", 40, SOON);
    let next = lab.leader();
    assert_ne!(next, leader);
    let on_leader = before.iter().filter(|task| host_number(&task.node) == Some(leader));
    assert!(on_leader.clone().count() > 0);
    assert!(on_leader.clone().all(|task| alive(processes[&task.id])), "a killed daemon's containers run on");
    lab.command(&["start", &leader.to_string()]).ok();
    lab.settled(3, SOON);
    lab.running("web", 40, SOON);
    assert_eq!(lab.leader(), next, "who comes back does not take the lead");
    assert_eq!(lab.run(&["swarm", "doctor"]).code, 0);
}

#[test]
fn a_create_tried_again_across_a_leaders_death_makes_one_service() {
    let lab = Lab::with_managers("once", 3, 3);
    // The host that holds the only copy would take it along.
    lab.create("spread", &["--mode", "global"], &IDLE);
    lab.running("spread", 3, SOON);
    for round in 0..3 {
        let leader = lab.leader();
        lab.ask(other_than(leader));
        let name = format!("web{round}");
        let head = ["service", "create", "--quiet", "--detach", "--replicas", "2", "--name", &name, "busybox:1"];
        let creating = lab.spawn(&[&head[..], &IDLE].concat()).stdout(Stdio::piped()).spawn().unwrap();
        lab.command(&["kill", &leader.to_string()]).ok();
        let output = creating.wait_with_output().unwrap();
        assert!(output.status.success(), "round {round}");
        let services = lab.list(other_than(leader), &["service", "ls", "--filter", &format!("name={name}")]);
        assert_eq!(services.len(), 1, "{services:#?}");
        let id = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(id.starts_with(services[0]["ID"].as_str().unwrap()), "the id that was said is the service's");
        lab.running(&name, 2, SOON);
        lab.command(&["start", &leader.to_string()]).ok();
        lab.settled(3, SOON);
    }
}

#[test]
fn a_leader_that_is_cut_off_has_no_say() {
    let lab = Lab::with_managers("cut", 5, 3);
    lab.create("web", &["--replicas", "4"], &IDLE);
    lab.running("web", 4, SOON);
    let leader = lab.leader();
    let rest: Vec<u32> = (1..=5).filter(|host| *host != leader).collect();
    lab.command(&["partition", &leader.to_string(), &hosts(&rest)]).ok();

    lab.ask(other_than(leader));
    until("another leader", SOON, || {
        lab.nodes().iter().any(|(host, node)| *host != leader && node["ManagerStatus"] == "Leader")
    });
    // What the cut-off side is asked to do has no effect, then or later.
    lab.skep(leader, &["service", "scale", "--detach", "web=1"]).fails(75, "");
    lab.skep(leader, &["service", "ls"]).fails(75, "leader");
    let stale = lab.skep(leader, &["service", "ls", "--allow-stale"]);
    assert!(stale.ok().contains("web"));
    lab.run(&["service", "scale", "--detach", "web=6"]).ok();
    lab.running("web", 6, SOON);

    lab.command(&["heal"]).ok();
    lab.settled(3, SOON);
    lab.ask(leader);
    until("the old leader to know what it missed", SOON, || lab.tasks("web").len() >= 6);
    lab.running("web", 6, SOON);
    assert_eq!(lab.run(&["swarm", "doctor"]).code, 0);
}

#[test]
fn a_minority_is_not_missed_and_a_majority_is() {
    let lab = Lab::with_managers("major", 4, 3);
    lab.create("web", &["--replicas", "4"], &IDLE);
    let before = lab.running("web", 4, SOON);
    let processes = lab.pids(&before);
    lab.command(&["kill", "3"]).ok();
    lab.run(&["service", "scale", "--detach", "web=5"]).ok();
    lab.running("web", 5, SOON);

    lab.command(&["kill", "2"]).ok();
    until("the last manager to notice", SOON, || lab.run(&["service", "scale", "--detach", "web=9"]).code == 75);
    lab.run(&["node", "ls"]).fails(75, "");
    assert!(processes.values().all(|pid| alive(*pid)), "containers need no manager");
    lab.command(&["start", "2,3"]).ok();
    lab.settled(3, SOON);
    lab.run(&["service", "scale", "--detach", "web=4"]).ok();
    lab.running("web", 4, SOON);
}

#[test]
fn a_swarm_whose_daemons_all_die_goes_on_where_it_was() {
    let lab = Lab::with_managers("all", 5, 3);
    lab.create("web", &["--replicas", "10"], &IDLE);
    let before = sorted(lab.running("web", 10, SOON));
    let processes = lab.pids(&before);
    lab.command(&["kill", "1,2,3,4,5"]).ok();
    lab.command(&["start", "1,2,3,4,5"]).ok();
    lab.settled(3, SOON);
    assert_eq!(sorted(lab.running("web", 10, SOON)), before, "the same tasks");
    assert_eq!(lab.pids(&before), processes, "the same processes");
}

#[test]
fn tasks_of_a_lost_host_run_elsewhere_in_seconds() {
    let lab = Lab::with_managers("lost", 5, 3);
    lab.create("web", &["--replicas", "10"], &IDLE);
    lab.running("web", 10, SOON);
    let leader = lab.leader();
    lab.ask(other_than(leader));
    for lost in [leader, 5] {
        lab.command(&["power-off", &lost.to_string()]).ok();
        until_some("its tasks to run elsewhere", SOON, || {
            let tasks = lab.tasks("web");
            let running = tasks.iter().filter(|task| {
                let text = |field: &str| task[field].as_str().unwrap_or_default();
                let elsewhere = host_number(text("Node")) != Some(lost);
                elsewhere && text("DesiredState") == "Running" && text("CurrentState").starts_with("Running")
            });
            if running.count() == 10 { Ok(()) } else { Err(format!("{tasks:#?}")) }
        });
        lab.command(&["start", &lost.to_string()]).ok();
        lab.settled(3, SOON);
        lab.running("web", 10, SOON);
    }
}

#[test]
fn every_manager_answers_reads_writes_and_logs() {
    let lab = Lab::with_managers("any", 4, 3);
    let counting = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.2; done";
    lab.create("web", &["--replicas", "4"], &["sh", "-c", counting]);
    for manager in MANAGERS {
        lab.ask(manager);
        // Read your own write, at once, on another manager than the one that took it.
        let name = format!("made{manager}");
        lab.create(&name, &["--replicas", "1"], &IDLE);
        lab.ask(manager % 3 + 1);
        lab.run(&["service", "scale", "--detach", &format!("{name}=2")]).ok();
        lab.ask(manager);
        lab.run(&["service", "inspect", &name]).ok();
        lab.running("web", 4, SOON);
        let logs = lab.run(&["service", "logs", "--tail", "3", "web"]).ok();
        for slot in 1..=4 {
            assert!(logs.contains(&format!("web.{slot}.")), "manager {manager}: {logs}");
        }
    }
    lab.skep(4, &["service", "ls"]).fails(1, "this node is a worker");
}
