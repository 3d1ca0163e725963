//! Joining the hosts of a new lab to one swarm, by the same commands that a user would type on them.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use serde::Deserialize;

use crate::command::HostCli;
use crate::error::{LabError, Result};
use crate::interrupt;
use crate::lab::{Binary, Lab, find_host};
use crate::logs;
use crate::network;
use crate::state::{LabState, host_name};

/// How long one command may take, and how long the hosts may need to become ready after the last of them.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where managers listen.
const MANAGER_PORT: u16 = 2377;

/// Makes host 1 the first manager, joins the others (the first `managers` as managers) and waits until all are ready.
pub(crate) fn form(lab: &Lab, state: &mut LabState, binary: &Binary, manager_count: u16) -> Result<()> {
    let count = u16::try_from(state.hosts.len()).expect("a lab has at most 250 hosts");
    let mut hosts = Vec::with_capacity(state.hosts.len());
    for number in 1..=count {
        let holder = find_host(state, number)?.holder.ok_or(LabError::PoweredOff(number))?;
        hosts.push(HostCli { lab, binary, number, holder });
    }
    let Some((first, others)) = hosts.split_first() else { return Ok(()) };
    let address = network::address(1).to_string();
    eprintln!("making a swarm of {count} ({manager_count} manager{})", if manager_count == 1 { "" } else { "s" });
    first.skep(&["swarm", "init", "--advertise-addr", &address], "skep swarm init", Instant::now() + PATIENCE)?;
    let manager_token = if manager_count > 1 { Some(join_token(first, "manager")?) } else { None };
    let worker_token = if count > manager_count { Some(join_token(first, "worker")?) } else { None };
    let token_of = |number| if number <= manager_count { &manager_token } else { &worker_token };
    let joining = others.iter().filter_map(|host| Some((host, token_of(host.number).as_deref()?)));
    join_at_once(&joining.collect::<Vec<_>>())?;
    wait_ready(first, count, manager_count)
}

fn join_token(host: &HostCli<'_>, role: &str) -> Result<String> {
    let shown = format!("skep swarm join-token -q {role}");
    let answer = host.skep(&["swarm", "join-token", "-q", role], &shown, Instant::now() + PATIENCE)?;
    Ok(answer.trim().to_owned())
}

fn join(host: &HostCli<'_>, token: &str) -> Result<()> {
    let manager = format!("{}:{MANAGER_PORT}", network::address(1));
    let shown = format!("skep swarm join --token … {manager}");
    host.skep(&["swarm", "join", "--token", token, &manager], &shown, Instant::now() + PATIENCE).map(drop)
}

/// Managers and workers together: the swarm lets in as many as come, and makes them voters one by one by itself.
fn join_at_once(hosts: &[(&HostCli<'_>, &str)]) -> Result<()> {
    /// More would only stand in each other's way on one machine.
    const AT_ONCE: usize = 8;
    for some in hosts.chunks(AT_ONCE) {
        thread::scope(|scope| {
            let joining: Vec<_> = some.iter().map(|(host, token)| scope.spawn(|| join(host, token))).collect();
            joining.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(LabError::Interrupted)))
        })?;
    }
    Ok(())
}

/// Roles by host name, from the first host that knows them; empty where none does, or where the caller may not ask.
pub(crate) fn roles(lab: &Lab, state: &LabState) -> BTreeMap<String, &'static str> {
    /// A listing should not wait for a swarm in trouble.
    const PATIENCE: Duration = Duration::from_secs(3);
    let Ok(binary) = Binary::of(lab) else { return BTreeMap::new() };
    let deadline = Instant::now() + PATIENCE;
    let live = state.hosts.iter().filter(|host| geteuid().is_root() && host.live_daemon().is_some());
    let answer = live.filter_map(|host| Some((host.number, host.holder?))).find_map(|(number, holder)| {
        let host = HostCli { lab, binary: &binary, number, holder };
        host.skep(&["node", "ls", "--format", "json"], "skep node ls --format json", deadline).ok()
    });
    let mut nodes = answer.as_deref().map(parse_nodes).unwrap_or_default();
    // A host that left and joined again is listed twice: the node that lives is the host's.
    nodes.sort_by_key(|node| node.status.eq_ignore_ascii_case("ready"));
    nodes.into_iter().map(|node| (node.hostname.clone(), node.role())).collect()
}

fn wait_ready(first: &HostCli<'_>, count: u16, managers: u16) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(20);
    loop {
        let answer = first.skep(&["node", "ls", "--format", "json"], "skep node ls --format json", deadline)?;
        let not_ready = match first_not_ready(&answer, count, managers) {
            None if managers > 1 => first_without_vote(first, managers, deadline)?,
            found => found,
        };
        let Some((host, state)) = not_ready else { return Ok(()) };
        if Instant::now() + pause >= deadline {
            let log = logs::end_of_log(&first.lab.host_dir(host).log(), 0);
            return Err(LabError::NodeNotReady { host, within: PATIENCE, state, log });
        }
        interrupt::check()?;
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// One line of `skep node ls --format json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NodeLine {
    hostname: String,
    status: String,
    /// `Leader`, `Reachable`, `Unreachable`, or empty for a worker.
    #[serde(default)]
    manager_status: String,
}

impl NodeLine {
    fn role(&self) -> &'static str {
        match self.manager_status.to_ascii_lowercase().as_str() {
            "" => "worker",
            "leader" => "leader",
            _ => "manager",
        }
    }
}

/// A line that is not a node's (a warning, say) is none.
fn parse_nodes(node_ls: &str) -> Vec<NodeLine> {
    node_ls.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The first manager that has no vote yet, and why: its node's message says what its role waits for.
fn first_without_vote(first: &HostCli<'_>, managers: u16, deadline: Instant) -> Result<Option<(u16, String)>> {
    #[derive(Deserialize)]
    struct Node {
        #[serde(rename = "Status")]
        status: Status,
    }
    #[derive(Deserialize)]
    struct Status {
        #[serde(rename = "Message", default)]
        message: String,
    }
    for number in 1..=managers {
        let name = host_name(number);
        let answer = first.skep(&["node", "inspect", &name], &format!("skep node inspect {name}"), deadline)?;
        let nodes: Vec<Node> = serde_json::from_str(&answer).unwrap_or_default();
        match nodes.into_iter().next() {
            Some(node) if node.status.message.is_empty() => {}
            Some(node) => return Ok(Some((number, node.status.message))),
            None => return Ok(Some((number, "not shown by `skep node inspect`".to_owned()))),
        }
    }
    Ok(None)
}

/// The first host of `count` that is not ready, and what is said of it.
///
/// Ready are nodes with status `Ready`, the first `managers` of them with a manager that takes part in the quorum.
fn first_not_ready(node_ls: &str, count: u16, managers: u16) -> Option<(u16, String)> {
    let nodes = parse_nodes(node_ls);
    (1..=count).find_map(|number| {
        let name = host_name(number);
        let Some(node) = nodes.iter().find(|node| node.hostname == name) else {
            return Some((number, "not listed by `skep node ls`".to_owned()));
        };
        let manages = ["leader", "reachable"].iter().any(|status| node.manager_status.eq_ignore_ascii_case(status));
        if !node.status.eq_ignore_ascii_case("ready") {
            Some((number, format!("status {:?}", node.status)))
        } else if number <= managers && !manages {
            Some((number, format!("manager status {:?}", node.manager_status)))
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_read_by_host() {
        let one = r#"{"ID":"x","Hostname":"host1","Status":"Ready","Availability":"Active","ManagerStatus":"Leader"}"#;
        let two = r#"{"Hostname":"host2","Status":"Unknown"}"#;
        let both = format!("{one}\n{two}\n");
        let host = |answer: &str, count, managers| first_not_ready(answer, count, managers).map(|(host, _)| host);
        assert_eq!(host(&both, 1, 1), None);
        assert_eq!(first_not_ready(&both, 2, 1), Some((2, "status \"Unknown\"".to_owned())));
        assert_eq!(first_not_ready(one, 3, 1), Some((2, "not listed by `skep node ls`".to_owned())));
        assert_eq!(host("nonsense", 1, 1), Some(1));
        let ready = both.replace("Unknown", "Ready");
        assert_eq!(host(&ready, 2, 1), None);
        assert_eq!(first_not_ready(&ready, 2, 2), Some((2, "manager status \"\"".to_owned())));
    }
}
