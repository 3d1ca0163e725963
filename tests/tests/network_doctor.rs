//! `skep network doctor` on a lab: says nothing where all is well, and finds what lies between two hosts and on one of them,
//! with what to do about it. The managers see none of that by themselves.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::Value;
use skep_tests::{Lab, Output, until_some};

const SOON: Duration = Duration::from_secs(60);

/// Asks until all is well.
#[track_caller]
fn well(lab: &Lab, what: &str) {
    until_some(what, SOON, || {
        let said = lab.run(&["network", "doctor"]);
        let fine = said.code == 0 && said.stdout.is_empty() && said.stderr.contains(": all well");
        if fine { Ok(()) } else { Err(format!("{said:?}")) }
    });
}

/// What is wrong, each a JSON object. What is only worth knowing, such as which device the mesh has, is left out.
fn findings(said: &Output) -> Vec<Value> {
    let found = said.stdout.lines().map(|line| serde_json::from_str(line).unwrap());
    found.filter(|finding: &Value| finding["Severity"] != "ok").collect()
}

/// The node that a finding is about, and the other one.
fn hosts(finding: &Value) -> [&str; 2] {
    let mut hosts = ["Node", "Peer"].map(|field| finding[field].as_str().unwrap());
    hosts.sort_unstable();
    hosts
}

#[test]
fn faults_between_hosts_and_on_them_are_found_with_what_to_do() {
    let lab = Lab::with_busybox("doctor", 3);
    lab.run(&["network", "create", "front"]).ok();
    lab.create("each", &["--network", "front", "--mode", "global"], &["sleep", "1000"]);
    lab.running("each", 3, SOON);
    well(&lab, "the network to be well");
    let said = lab.run(&["network", "doctor", "front"]);
    assert!(said.stderr.contains("checked 3 hosts, 3 pairs of them, 1 network: all well"), "{said:?}");
    lab.run(&["network", "doctor", "back"]).fails(1, "no such network: back");

    // Each host's end of the mesh, and how it sees the others: it has just sent them packets.
    let node: Value = serde_json::from_str(&lab.run(&["node", "inspect", "host2"]).ok()).unwrap();
    let peers = node[0]["Mesh"]["Peers"].as_array().unwrap();
    let mut names: Vec<&str> = peers.iter().map(|peer| peer["Name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["host1", "host3"], "{node}");
    for peer in peers {
        assert!(!peer["LastHandshake"].as_str().unwrap().is_empty(), "{peer}");
        assert!(peer["ReceivedBytes"].as_u64() > Some(0) && peer["SentBytes"].as_u64() > Some(0), "{peer}");
    }
    assert!(node[0]["Fabric"]["Address"].as_str().unwrap().starts_with("100.64.0."), "{node}");
    let network: Value = serde_json::from_str(&lab.run(&["network", "inspect", "--verbose", "front"]).ok()).unwrap();
    let on_it = network[0]["Peers"].as_array().unwrap();
    assert_eq!(on_it.len(), 3, "{network}");
    for peer in on_it {
        let seen = peer["Mesh"]["Peers"].as_array().unwrap();
        assert!(seen.len() == 2 && seen.iter().all(|seen| seen["LastHandshake"] != ""), "{peer}");
    }

    // Two hosts that reach the managers, and not each other. Both find it; it is said once.
    lab.command(&["partition", "2", "3"]).ok();
    let said = lab.run(&["network", "doctor", "--format", "json"]);
    assert_eq!(said.code, 1, "{said:?}");
    let found = findings(&said);
    assert_eq!(found.len(), 1, "{said:?}");
    assert_eq!((found[0]["Severity"].as_str(), found[0]["Area"].as_str()), (Some("error"), Some("reachability")));
    assert_eq!(hosts(&found[0]), ["host2", "host3"], "{said:?}");
    assert!(found[0]["Problem"].as_str().unwrap().contains("answers neither by itself nor through network front"));
    let said = lab.run(&["network", "doctor", "front"]);
    assert!(said.code == 1 && said.stdout.contains("    -> check that it runs"), "{said:?}");
    assert!(["host2", "host3"].iter().all(|host| said.stdout.contains(host)), "{said:?}");
    assert!(said.stderr.contains("3 pairs of them, 1 network: 1 error"), "{said:?}");
    lab.command(&["heal"]).ok();
    well(&lab, "the healed network to be well");

    // One host's device carries less than the network needs: told of that host, with the command that helps, and that large
    // packets do not come through.
    lab.exec(2, &["ip", "link", "set", "eth0", "mtu", "1400"]).ok();
    let said = lab.run(&["network", "doctor", "--format", "json"]);
    assert_eq!(said.code, 1, "{said:?}");
    let found = findings(&said);
    assert!(found.iter().all(|finding| finding["Area"] == "mtu" && hosts(finding).contains(&"host2")), "{said:?}");
    let own = found.iter().find(|finding| finding["Node"] == "host2" && finding["Peer"] == "");
    let own = own.unwrap_or_else(|| panic!("{said:?}"));
    assert!(own["Problem"].as_str().unwrap().contains("eth0 of this host carries 1400"), "{own}");
    let advice = own["Advice"].as_str().unwrap();
    assert!(advice.contains("`ip link set eth0 mtu 1500`") && advice.contains("`--opt mtu=1270`"), "{own}");
    assert!(found.iter().any(|finding| finding["Peer"] != ""), "{said:?}");
    lab.exec(2, &["ip", "link", "set", "eth0", "mtu", "1500"]).ok();
    well(&lab, "the network to be well again");
}
