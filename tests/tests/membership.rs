//! Nodes come and go, and change what they are: join, promote, demote, drain, remove, recover.
#![allow(clippy::unwrap_used)]

use std::process::Stdio;
use std::time::{Duration, Instant};

use skep_tests::{IDLE, Lab, until, until_some};

const SOON: Duration = Duration::from_secs(60);

/// Waits until the host is no manager any more.
#[track_caller]
fn no_manager(lab: &Lab, host: u32) {
    until_some(&format!("host {host} to be a worker"), SOON, || {
        let nodes = lab.nodes();
        if nodes.get(&host).is_some_and(|node| node["ManagerStatus"] == "") {
            Ok(())
        } else {
            Err(format!("{nodes:#?}"))
        }
    });
}

#[test]
fn managers_are_made_and_unmade() {
    let lab = Lab::with_managers("roles", 5, 3);
    lab.create("web", &["--replicas", "10"], &IDLE);
    let before = lab.running("web", 10, SOON);
    let processes = lab.pids(&before);
    lab.run(&["node", "promote", "host4", "host5"]).ok();
    lab.settled(5, SOON);
    lab.skep(4, &["service", "ls"]).ok();
    let leader = lab.leader();
    lab.ask(leader % 5 + 1);
    lab.run(&["node", "demote", &format!("host{leader}")]).ok();
    no_manager(&lab, leader);
    lab.settled(4, SOON);
    assert_ne!(lab.leader(), leader);
    until("the demoted host to be a worker itself", SOON, || {
        let output = lab.skep(leader, &["service", "ls"]);
        output.code == 1 && output.stderr.contains("worker")
    });
    let next = lab.leader();
    let keep = (1..=5).find(|host| *host != leader && *host != next).unwrap();
    lab.ask(keep);
    for host in (1..=5).filter(|host| ![leader, keep].contains(host)) {
        lab.run(&["node", "demote", &format!("host{host}")]).ok();
        no_manager(&lab, host);
    }
    lab.settled(1, SOON);
    lab.run(&["node", "demote", &format!("host{keep}")]).fails(1, "last manager");
    // No task noticed.
    assert_eq!(lab.pids(&lab.running("web", 10, SOON)), processes);
    lab.run(&["node", "promote", &format!("host{leader}")]).ok();
    lab.settled(2, SOON);
}

#[test]
fn a_drained_node_is_emptied_and_a_paused_one_is_left_alone() {
    let lab = Lab::with_managers("drain", 3, 1);
    lab.create("web", &["--replicas", "6"], &IDLE);
    lab.running("web", 6, SOON);
    let on = |host: &str| lab.running("web", 6, SOON).iter().filter(|task| task.node == host).count();
    lab.run(&["node", "update", "--availability", "drain", "host3"]).ok();
    until("host3 to be empty", SOON, || on("host3") == 0);
    lab.run(&["node", "update", "--availability", "pause", "host2"]).ok();
    let kept = on("host2");
    assert!(kept > 0);
    lab.run(&["node", "update", "--availability", "active", "host3"]).ok();
    lab.run(&["service", "scale", "--detach", "web=9"]).ok();
    let tasks = lab.running("web", 9, SOON);
    assert_eq!(tasks.iter().filter(|task| task.node == "host2").count(), kept, "nothing new on a paused node");
    // Labels decide where tasks may be.
    lab.run(&["node", "update", "--label-add", "zone=a", "host1"]).ok();
    lab.create("zoned", &["--replicas", "2", "--constraint", "node.labels.zone==a"], &IDLE);
    assert!(lab.running("zoned", 2, SOON).iter().all(|task| task.node == "host1"));
}

#[test]
fn a_removed_node_is_out_within_two_seconds() {
    let lab = Lab::with_managers("out", 4, 3);
    lab.create("web", &["--replicas", "8"], &IDLE);
    lab.running("web", 8, SOON);
    lab.run(&["node", "rm", "host4"]).fails(1, "not down");
    lab.run(&["node", "rm", "host3"]).fails(1, "manager");
    // A log stream that the node serves, and an image fetch from it and by it, end with it.
    let mut logs = lab.spawn(&["service", "logs", "--follow", "web"]);
    let mut logs = logs.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    lab.run(&["node", "rm", "--force", "host4"]).ok();
    until("the node to know that it is out", Duration::from_secs(2), || {
        let info = lab.skep(4, &["info"]);
        info.stdout.contains("removed") || info.stdout.contains("inactive")
    });
    assert!(started.elapsed() < Duration::from_secs(4));
    let tasks = lab.running("web", 8, SOON);
    assert!(tasks.iter().all(|task| task.node != "host4"));
    until("its containers to be stopped", SOON, || {
        !lab.skep(4, &["info", "--format", "{{.ContainersRunning}}"]).stdout.trim().starts_with(|c: char| c > '0')
    });
    let _ = logs.kill();
    let _ = logs.wait();
    // It may come back as a new node.
    lab.skep(4, &["swarm", "leave", "--force"]).ok();
    let token = lab.run(&["swarm", "join-token", "--quiet", "worker"]).ok();
    lab.skep(4, &["swarm", "join", "--token", &token, "10.90.0.1:2377"]).ok();
    lab.settled(3, SOON);
}

#[test]
fn a_removed_manager_serves_nobody() {
    let lab = Lab::with_managers("dismiss", 4, 3);
    lab.create("web", &["--replicas", "4"], &["sh", "-c", "while true; do echo line; sleep 0.2; done"]);
    lab.running("web", 4, SOON);
    if lab.leader() == 3 {
        lab.run(&["node", "demote", "host3"]).ok();
        no_manager(&lab, 3);
        lab.run(&["node", "promote", "host3"]).ok();
        lab.settled(3, SOON);
    }
    // A call that it answers ends with it.
    let mut logs = lab.on(3, &["skep", "service", "logs", "--follow", "web"]);
    let mut logs = logs.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    lab.run(&["node", "rm", "--force", "host3"]).ok();
    // Within two seconds, on a machine that has nothing else to do.
    until("its open call to end", Duration::from_secs(5), || logs.try_wait().unwrap().is_some());
    let asked = lab.skep(3, &["service", "ls"]);
    assert!(asked.code == 1 && asked.stdout.is_empty(), "{asked:?}");
    lab.settled(2, SOON);
    assert!(lab.running("web", 4, SOON).iter().all(|task| task.node != "host3"));
}

#[test]
fn a_lost_quorum_is_recovered_and_the_others_join_again() {
    let lab = Lab::with_managers("recover", 4, 3);
    lab.create("web", &["--replicas", "8"], &IDLE);
    lab.running("web", 8, SOON);
    lab.run(&["swarm", "init", "--force-new-cluster"]).fails(1, "majority");
    lab.command(&["power-off", "2,3"]).ok();
    until("the quorum to be lost", SOON, || lab.run(&["service", "ls"]).code == 75);
    lab.run(&["swarm", "init", "--force-new-cluster", "--advertise-addr", "10.90.0.1"]).ok();
    lab.running("web", 8, SOON);
    lab.run(&["service", "scale", "--detach", "web=9"]).ok();
    lab.running("web", 9, SOON);

    // Those that were left behind find out, and are workers until they are wanted as managers again.
    lab.command(&["start", "2,3"]).ok();
    lab.settled(1, SOON);
    for host in [2, 3] {
        until_some("the one left behind to be a worker", SOON, || {
            let info = lab.skep(host, &["info"]);
            if info.stdout.contains("Role: worker") { Ok(()) } else { Err(format!("{info:?}")) }
        });
    }
    lab.run(&["node", "promote", "host2", "host3"]).ok();
    lab.settled(3, SOON);
    lab.running("web", 9, SOON);
    assert_eq!(lab.run(&["swarm", "doctor"]).code, 0);
}
