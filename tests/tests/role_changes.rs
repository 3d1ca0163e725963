//! A change of role that is interrupted by `kill -9`, of the node that changes or of the leader, is completed by itself.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use skep_tests::{IDLE, Lab, until_some};

const SOON: Duration = Duration::from_secs(60);
/// The node whose role changes.
const CHANGED: u32 = 4;
/// Moments of the kill after the order: before anything was done, in the middle of it, about when it is done.
const MOMENTS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(60), Duration::from_millis(250), Duration::from_millis(700)];

/// A swarm of three managers and a worker, whose role is changed again and again.
struct Changes {
    lab: Lab,
    /// Ids in Raft of seats that were given up: none of them may come again.
    used: BTreeSet<u64>,
    services: usize,
}

impl Changes {
    fn new(name: &str) -> Self {
        let lab = Lab::with_managers(name, 4, 3);
        lab.create("spread", &["--mode", "global"], &IDLE);
        lab.running("spread", 4, SOON);
        Self { lab, used: BTreeSet::new(), services: 0 }
    }

    /// Orders the change, kills `killed` a moment later, starts it again, and waits until all is done and well.
    fn interrupted(&mut self, verb: &str, killed: u32, moment: Duration) {
        eprintln!("{verb} host{CHANGED}, kill host{killed} after {moment:?}");
        let lab = &self.lab;
        lab.ask(killed % 3 + 1);
        let processes = lab.pids(&lab.running("spread", 4, SOON));
        let before = lab.raft_id(CHANGED);
        lab.run(&["node", verb, &format!("host{CHANGED}")]).ok();
        // The kill's moment is what varies here; nothing is waited for.
        thread::sleep(moment);
        lab.command(&["kill", &killed.to_string()]).ok();
        lab.command(&["start", &killed.to_string()]).ok();
        let managers = if verb == "promote" { 4 } else { 3 };
        lab.settled(managers, SOON);
        if verb == "promote" {
            self.is_manager();
        } else {
            self.is_worker();
            self.used.extend(before);
        }
        self.writes();
        let lab = &self.lab;
        assert_eq!(lab.pids(&lab.running("spread", 4, SOON)), processes, "no container noticed");
    }

    /// Ids in Raft, as the swarm knows them and as the hosts do.
    fn ids(&self, hosts: &[u32]) -> Result<BTreeSet<u64>, String> {
        let mut ids = BTreeSet::new();
        for host in hosts {
            let printed = self.lab.run(&["node", "inspect", &format!("host{host}")]);
            let nodes: serde_json::Value = serde_json::from_str(&printed.stdout).unwrap_or_default();
            let known = nodes[0]["ManagerStatus"]["RaftID"].as_u64();
            let own = self.lab.raft_id(*host);
            if known.is_none() || known != own {
                return Err(format!("host {host} has {own:?}, known is {known:?}: {printed:?}"));
            }
            ids.extend(known);
        }
        Ok(ids)
    }

    fn is_manager(&self) {
        let ids = until_some("each manager to have one id", SOON, || self.ids(&[1, 2, 3, CHANGED]));
        assert_eq!(ids.len(), 4, "two managers have one id: {ids:?}");
        assert!(ids.is_disjoint(&self.used), "an id was used again: {ids:?}, {:?}", self.used);
        until_some("the new manager to answer", SOON, || {
            let asked = self.lab.skep(CHANGED, &["service", "ls"]);
            if asked.code == 0 { Ok(()) } else { Err(format!("{asked:?}")) }
        });
    }

    fn is_worker(&self) {
        until_some("the former manager to have nothing left of it", SOON, || {
            let (seat, files) = (self.lab.swarm_file(CHANGED)["seat"].clone(), self.lab.data(CHANGED).join("raft"));
            let asked = self.lab.skep(CHANGED, &["service", "ls"]);
            let refused = asked.code == 1 && asked.stderr.contains("this node is a worker");
            let ports = self.lab.exec(CHANGED, &["ss", "-Hltn", "sport", "=", ":2377"]).ok();
            match seat.is_null() && !files.exists() && refused && ports.is_empty() {
                true => Ok(()),
                false => Err(format!("seat {seat}, files {}, {asked:?}, {ports:?}", files.exists())),
            }
        });
        assert_eq!(self.ids(&[1, 2, 3]).unwrap().len(), 3);
    }

    fn writes(&mut self) {
        self.services += 1;
        let name = format!("made{}", self.services);
        self.lab.create(&name, &["--replicas", "1"], &IDLE);
        self.lab.running(&name, 1, SOON);
        assert_eq!(self.lab.run(&["swarm", "doctor"]).code, 0);
    }
}

#[test]
fn a_node_killed_in_the_middle_of_its_change_completes_it() {
    let mut changes = Changes::new("rolekill");
    for moment in MOMENTS {
        changes.interrupted("promote", CHANGED, moment);
        changes.interrupted("demote", CHANGED, moment);
    }
}

#[test]
fn a_leader_killed_in_the_middle_of_a_change_leaves_it_to_the_next() {
    let mut changes = Changes::new("roleleader");
    for moment in &MOMENTS[..3] {
        for verb in ["promote", "demote"] {
            let leader = changes.lab.leader();
            changes.interrupted(verb, leader, *moment);
        }
    }
}
