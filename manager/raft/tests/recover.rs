//! Recovery from lost quorum: one manager goes on alone, the others of before are refused, new ones join.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/wires.rs"]
mod wires;

use common::{PATIENCE, put, put_many, wait};
use skep_raft::{Config, Consensus, Start, StopCause, recover};
use wires::{Wires, add_voter};

#[tokio::test(flavor = "multi_thread")]
async fn one_manager_goes_on_alone_and_the_others_are_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::new(dir.path(), |config| config.limits.snapshot_after_changes = 100);
    let nodes = wires.group(3).await;
    put_many(&nodes[&1].0, 150, "kept").await;
    let index = put(&nodes[&1].0, "last", "1").await;
    wires::all_applied(&nodes, index).await;
    drop(nodes);
    wires.stop_all().await;

    let config = Config::new(wires.path(2), 2, Start::Existing);
    let done = recover(&config, "node-2").unwrap();
    assert_eq!(done.epoch, 1);
    assert!(done.last_log >= Some(index));
    let (two, pairs) = wires.start(2).await;
    let status = wait(&two, "leads alone", |status| status.leads() && status.is_sole_voter()).await;
    assert_eq!(status.recovery_epoch, 1);
    put(&two, "after", "1").await;
    assert_eq!((pairs.len(), pairs.get("last").as_deref()), (152, Some("1")));

    // Those of before would elect a leader among them; the first word of the new group stops them.
    let (three, _) = wires.start(3).await;
    let status = wait(&three, "left behind", |status| status.stopped.is_some()).await;
    assert_eq!(status.stop_cause, Some(StopCause::LeftBehind));
    assert!(status.stopped.unwrap().contains("leave the cluster and join again"));
    assert!(two.status().borrow().leads());

    // A new manager learns the epoch as it joins, and keeps it.
    let (four, _) = wires.start(4).await;
    add_voter(&two, 4).await;
    let index = put(&two, "together", "1").await;
    wait(&four, "applied", |status| status.last_applied >= Some(index) && status.recovery_epoch == 1).await;
    wires.kill(4).await;
    let (four, pairs) = wires.start(4).await;
    assert_eq!(four.status().borrow().recovery_epoch.max(1), 1);
    let index = {
        wait(&two, "quorum again", |status| status.leads() || !status.is_leader()).await;
        let nodes = [(2, (two.clone(), pairs.clone())), (4, (four.clone(), pairs.clone()))].into_iter().collect();
        wires::put_somewhere(&nodes, "again", "1").await.1
    };
    let status = wait(&four, "applied", |status| status.last_applied >= Some(index)).await;
    assert_eq!(status.recovery_epoch, 1);
    wires.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_state_of_a_stopped_node_can_be_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let config = Config::new(&state, 1, Start::Existing);
    let empty = recover(&config, "a").unwrap_err().to_string();
    assert!(empty.contains("holds no state"), "{empty}");
    let (node, _) = common::start(&state).await;
    put(&node, "a", "1").await;
    let in_use = recover(&config, "a").unwrap_err().to_string();
    assert!(in_use.contains("in use by another skep daemon"), "{in_use}");
    node.shutdown().await;
    let other = recover(&Config::new(&state, 7, Start::Existing), "a").unwrap_err().to_string();
    assert!(other.contains("belongs to raft node 1"), "{other}");
    assert_eq!(recover(&config, "a").unwrap().epoch, 1);
    assert_eq!(recover(&config, "a").unwrap().epoch, 2);
    let (node, pairs) = common::start(&state).await;
    assert_eq!(pairs.get("a").unwrap(), "1");
    assert_eq!(wait(&node, "leads", |status| status.leads()).await.recovery_epoch, 2);
    node.read_barrier(PATIENCE).await.unwrap();
    node.shutdown().await;
}
