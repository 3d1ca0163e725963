//! What the managers can tell of networks' health by themselves, and what hosts' answers mean together. Pure; used by
//! `skep network doctor`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use skep_proto::id::{NetworkId, NodeId};
use skep_proto::v1::{
    CheckArea, CheckSeverity, ClusterSpec, NetworkCheck, NetworkDriver, NetworkFinding, NodeState, Severity,
};

use super::pools::known_hosts;
use super::{Pools, given_range, table};
use crate::doctor;
use crate::object::{Network, Subnet};
use crate::store::{Holder, State};

/// How full a subnet may be before that is told, in percent.
const FULL: u128 = 90;

/// How full a subnet is: addresses that it has for tasks and services, and how many are taken. Gateways and reservations
/// are neither.
pub fn address_use(state: &State, network: &Network, subnet: &Subnet) -> (u128, u128) {
    let (first, last) = given_range(subnet);
    let own = |(address, holder): &(IpAddr, Holder)| {
        matches!(holder, Holder::Gateway | Holder::Reserved) && (first..=last).contains(address)
    };
    let own = state.addresses_of(network.id).filter(own).count() as u128;
    let places = subnet.cidr.offset(last).zip(subnet.cidr.offset(first)).map_or(0, |(last, first)| last - first + 1);
    let taken = state.taken_addresses().count(network.id, first, last);
    (places.saturating_sub(own), taken.saturating_sub(own))
}

fn finding(severity: CheckSeverity, area: CheckArea, problem: String, advice: &str) -> NetworkFinding {
    let advice = advice.to_owned();
    NetworkFinding { severity: severity.into(), area: area.into(), problem, advice, ..NetworkFinding::default() }
}

/// What is wrong with networks by what the managers know. `only`: with this one.
pub fn state_findings(state: &State, only: Option<NetworkId>) -> Vec<NetworkFinding> {
    use CheckSeverity::{Error, Warning};
    let mut found = Vec::new();
    for network in state.networks().filter(|network| only.is_none_or(|only| only == network.id)) {
        for subnet in &network.subnets {
            let (total, taken) = address_use(state, network, subnet);
            if total == 0 || taken * 100 < total * FULL {
                continue;
            }
            let name = &network.spec.name;
            let problem = format!("{taken} of {total} addresses of network {name} are taken ({})", subnet.cidr);
            let severity = if taken >= total { Error } else { Warning };
            let advice = "make a larger network (`--subnet`) and move services there, before tasks stay pending";
            let about = finding(severity, CheckArea::Addresses, problem, advice);
            found.push(NetworkFinding { network_id: network.id.to_vec(), ..about });
        }
    }
    if only.is_some() {
        return found;
    }
    let default = ClusterSpec::default();
    let pools = Pools::of(state.cluster().map_or(&default, |cluster| &cluster.spec));
    if pools.choose(state, &known_hosts(state)).is_none() {
        let problem = "the swarm's address pools have no subnet left for another network".to_owned();
        let advice = "remove networks that nothing uses, or give new ones a `--subnet` of their own";
        found.push(finding(Warning, CheckArea::Addresses, problem, advice));
    }
    for one in doctor::networks(state) {
        let severity = match one.severity {
            Severity::Error => Error,
            Severity::Warning => Warning,
            Severity::Note => CheckSeverity::Ok,
        };
        let problem = format!("{}: {}", one.object, one.message);
        found.push(finding(severity, CheckArea::Tables, problem, "see `skep swarm doctor`"));
    }
    for node in state.nodes().filter(|node| node.status.state == NodeState::Ready) {
        let fabric = node.description.as_ref().and_then(|description| description.fabric.as_ref());
        if fabric.is_none() {
            let problem = "this host has no end in the mesh: its netd does not run, or its daemon is older".to_owned();
            let advice = "look at its daemon's log for `netd`; until then no overlay works there";
            let about = finding(Error, CheckArea::Mesh, problem, advice);
            found.push(NetworkFinding { node_id: node.id.to_vec(), ..about });
        }
    }
    found
}

/// Hosts that should hold a network's table of a version and do not: its nodes among those that answered. `versions`: those
/// that were sent before they were asked.
pub fn lagging(
    state: &State,
    answers: &BTreeMap<NodeId, NetworkCheck>,
    versions: &BTreeMap<NetworkId, u64>,
) -> Vec<NetworkFinding> {
    let mut found = Vec::new();
    for (network, version) in versions {
        let Some(known) = state.network(*network) else { continue };
        for node in table::members(state, *network) {
            let Some(check) = answers.get(&node) else { continue };
            let applied = check.applied.iter().find(|applied| applied.object_id == network.to_vec());
            let problem = match applied {
                Some(applied) if applied.version >= *version => continue,
                Some(_) => "knows an older state of who is where",
                None => "does not know who is where",
            };
            let problem = format!("this host {problem} on network {}", known.spec.name);
            let advice = "if it stays so, restart its daemon; containers go on";
            let about = finding(CheckSeverity::Error, CheckArea::Tables, problem, advice);
            found.push(NetworkFinding { node_id: node.to_vec(), network_id: network.to_vec(), ..about });
        }
    }
    found
}

/// Pairs of hosts, the lower id first.
pub type Pairs = BTreeSet<(NodeId, NodeId)>;

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

/// Pairs of hosts, both of which answered, that share an overlay: tried in one direction at least, and not tried.
pub fn pairs(state: &State, answers: &BTreeMap<NodeId, NetworkCheck>, only: Option<NetworkId>) -> (Pairs, Pairs) {
    let mut tried = Pairs::new();
    for (node, check) in answers {
        let peers = check.paths.iter().filter_map(|path| NodeId::from_wire(&path.peer_id).ok());
        tried.extend(peers.map(|peer| pair(*node, peer)));
    }
    let mut sharing = Pairs::new();
    for network in state.networks().filter(|network| only.is_none_or(|only| only == network.id)) {
        if network.spec.driver() != NetworkDriver::Overlay {
            continue;
        }
        let members = table::members(state, network.id).into_iter().filter(|node| answers.contains_key(node));
        let members: Vec<NodeId> = members.collect();
        for (at, node) in members.iter().enumerate() {
            sharing.extend(members[at + 1..].iter().map(|other| pair(*node, *other)));
        }
    }
    let untried = sharing.difference(&tried).copied().collect();
    (tried, untried)
}

/// Two hosts that find the same of each other, and would do the same about it, say it once.
pub fn once_per_pair(findings: Vec<NetworkFinding>) -> Vec<NetworkFinding> {
    let mut at = BTreeMap::new();
    let mut once: Vec<NetworkFinding> = Vec::with_capacity(findings.len());
    for finding in findings {
        if finding.peer_id.is_empty() {
            once.push(finding);
            continue;
        }
        let of = |from: &Vec<u8>, to: &Vec<u8>| {
            (
                from.clone(),
                to.clone(),
                finding.network_id.clone(),
                finding.severity,
                finding.area,
                finding.advice.clone(),
            )
        };
        if let Some(other) = at.remove(&of(&finding.peer_id, &finding.node_id)) {
            let other: &mut NetworkFinding = &mut once[other];
            other.problem.push_str("; and the same the other way round");
            continue;
        }
        at.insert(of(&finding.node_id, &finding.peer_id), once.len());
        once.push(finding);
    }
    once
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::{AppliedVersion, FabricEndpoint, NetworkPath, NodeDescription};
    use std::sync::Arc;

    use super::*;
    use crate::example::{network, swarm};

    fn state() -> State {
        let mut state = swarm(2);
        state.set_version(1);
        let nodes: Vec<_> = state.nodes().cloned().collect();
        for (number, node) in nodes.into_iter().enumerate() {
            let mut node = (*node).clone();
            node.status.state = NodeState::Ready;
            let description = NodeDescription { fabric: Some(FabricEndpoint::default()), ..NodeDescription::default() };
            node.description = Some(Arc::new(description));
            node.fabric_number = Some(u32::try_from(number).unwrap() + 1);
            state.put(node);
        }
        state
    }

    #[test]
    fn what_the_managers_know() {
        let mut state = state();
        assert_eq!(state_findings(&state, None), []);
        // One address beside the gateway, and it is free.
        state.put(network(1, "front", "10.1.0.0/30", false));
        assert_eq!(state_findings(&state, None), []);
        state.put(network(2, "all", "10.0.0.0/8", false));
        let found = state_findings(&state, None);
        assert!(found.iter().any(|found| found.problem.contains("no subnet left")), "{found:?}");
        assert!(found.iter().any(|found| found.problem.contains("overlaps")), "{found:?}");
        assert_eq!(state_findings(&state, Some(NetworkId::new(1))), []);
        let mut node = (**state.nodes().next().unwrap()).clone();
        node.description = None;
        let id = node.id.to_vec();
        state.put(node);
        let found = state_findings(&state, None);
        assert!(found.iter().any(|found| found.node_id == id && found.area() == CheckArea::Mesh), "{found:?}");
    }

    #[test]
    fn what_both_find_is_said_once() {
        let about = |node: u8, peer: &[u8], advice: &str| NetworkFinding {
            node_id: vec![node; 16],
            peer_id: peer.to_vec(),
            problem: format!("host {node}"),
            advice: advice.to_owned(),
            ..NetworkFinding::default()
        };
        let mut found = vec![
            about(1, &[2; 16], "look"),
            about(1, &[3; 16], "look"),
            about(2, &[1; 16], "look"),
            about(2, &[1; 16], "pull"),
            about(3, &[], "look"),
        ];
        let network = NetworkFinding { network_id: vec![5; 16], ..about(3, &[1; 16], "look") };
        found.push(network);
        let once = once_per_pair(found);
        let said: Vec<&str> = once.iter().map(|finding| finding.problem.as_str()).collect();
        // Another host, another advice, no other host, one network only: none of them is the same.
        let both = "host 1; and the same the other way round";
        assert_eq!(said, [both, "host 1", "host 2", "host 3", "host 3"]);
    }

    #[test]
    fn pairs_are_counted_once() {
        let state = state();
        let [a, b]: [NodeId; 2] = state.nodes().map(|node| node.id).collect::<Vec<_>>().try_into().unwrap();
        let path = |to: NodeId| NetworkPath { peer_id: to.to_vec(), ..NetworkPath::default() };
        let answer = |to: NodeId| NetworkCheck { paths: vec![path(to)], ..NetworkCheck::default() };
        let (tried, untried) = pairs(&state, &[(a, answer(b)), (b, answer(a))].into(), None);
        assert_eq!((tried.len(), untried.len()), (1, 0));
        let applied = AppliedVersion { object_id: NetworkId::new(1).to_vec(), version: 3 };
        let check = NetworkCheck { applied: vec![applied], ..NetworkCheck::default() };
        // Nobody is on it.
        assert_eq!(lagging(&state, &[(a, check)].into(), &[(NetworkId::new(1), 4)].into()), []);
    }
}
