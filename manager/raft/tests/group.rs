//! Several voters over a transport inside the process: replication, failover, membership, catching up.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;
#[path = "common/wires.rs"]
mod wires;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{PATIENCE, put, put_many, wait};
use skep_raft::{BarrierError, Config, Consensus, Member, MembershipError, ProposeError, StopCause};
use wires::{Wires, all_applied, leader_of, put_somewhere};

/// Snapshots, purges and chunks happen with little data.
fn small(config: &mut Config) {
    config.limits.snapshot_after_changes = 300;
    config.limits.keep_entries = 10;
    config.limits.snapshot_chunk_bytes = 1000;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_voters_replicate_fail_over_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::new(dir.path(), small);
    let mut nodes = wires.group(3).await;
    put_many(&nodes[&1].0, 100, "one").await;
    let index = put(&nodes[&1].0, "last", "1").await;
    all_applied(&nodes, index).await;
    assert!(nodes.values().all(|(_, pairs)| pairs.len() == 101));
    let refused = nodes[&2].0.propose(Bytes::from_static(b"a=1"), PATIENCE).await;
    assert_eq!(
        refused,
        Err(ProposeError::NotLeader { leader: Some(Member { id: 1, address: "127.0.0.1:2377".into() }) })
    );
    assert!(matches!(nodes[&2].0.read_barrier(PATIENCE).await, Err(BarrierError::NotLeader { leader: Some(_) })));

    wires.kill(1).await;
    nodes.remove(&1);
    let (leader, applied) = put_somewhere(&nodes, "after", "failover").await;
    assert_eq!(nodes[&leader].1.get("last").unwrap(), "1");

    let (back, pairs) = wires.start(1).await;
    wait(&back, "caught up", |status| status.last_applied >= Some(applied)).await;
    assert_eq!(pairs.get("after").unwrap(), "failover");
    wires.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_quorum_says_so_and_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::new(dir.path(), small);
    let nodes = wires.group(3).await;
    let id = leader_of(&nodes).await;
    let leader = &nodes[&id].0;
    put(leader, "a", "1").await;
    assert!(leader.status().borrow().heard.len() == 2, "{:?}", leader.status().borrow());
    wires.cut(&[id]);
    let unknown = leader.propose(Bytes::from_static(b"b=1"), Duration::from_millis(200)).await;
    assert!(matches!(unknown, Err(ProposeError::ResultUnknown { .. })), "{unknown:?}");
    wait(leader, "no quorum", |status| status.is_leader() && !status.has_quorum && !status.hears_leader).await;
    let refused = leader.propose(Bytes::from_static(b"c=1"), PATIENCE).await;
    assert!(matches!(refused, Err(ProposeError::NoQuorum { silent_ms }) if silent_ms > 500), "{refused:?}");
    let barrier = leader.read_barrier(PATIENCE).await;
    assert!(matches!(barrier, Err(BarrierError::NoQuorum { .. })), "{barrier:?}");
    // Meanwhile the others go on, and the old leader follows when it hears them.
    let mut others = nodes.clone();
    others.remove(&id);
    let (other, index) = put_somewhere(&others, "d", "1").await;
    assert_ne!(other, id);
    wires.heal();
    all_applied(&nodes, index).await;
    wait(leader, "follows", |status| status.leader.as_ref().is_some_and(|leader| leader.id == other)).await;
    assert_eq!(nodes[&id].1.get("c"), None);
    wires.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_far_behind_gets_the_snapshot_and_members_can_go() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::new(dir.path(), small);
    let nodes = wires.group(3).await;
    wires.cut(&[3]);
    let leader = &nodes[&1].0;
    put_many(leader, 1000, "many").await;
    let behind = nodes[&3].0.status().borrow().last_log.unwrap();
    let status = wait(leader, "purged", |status| status.first_log > behind + 1).await;
    assert!(status.snapshot.unwrap().bytes > 3 * 1000, "several chunks");
    // The first tries get a few chunks through at best: each begins anew.
    wires.disturb(0.5, Duration::from_millis(5));
    wires.cut(&[]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    wires.heal();
    let (id, index) = put_somewhere(&nodes, "healed", "1").await;
    let status = wait(&nodes[&3].0, "caught up", |status| status.last_applied >= Some(index)).await;
    assert!(status.snapshot.is_some());
    assert_eq!(nodes[&3].1.len(), 1001);
    assert_eq!(nodes[&3].1.get("k999").unwrap(), "many");

    let leader = &nodes[&id].0;
    let gone = if id == 2 { 3 } else { 2 };
    leader.demote(gone, PATIENCE).await.unwrap();
    wait(leader, "a learner", |status| status.membership.learners.contains_key(&gone)).await;
    leader.remove(gone, PATIENCE).await.unwrap();
    let status = wait(leader, "two members", |status| status.membership.learners.is_empty()).await;
    assert_eq!(status.membership.voters.len(), 2);
    let unknown = leader.promote(9, PATIENCE).await;
    assert!(matches!(unknown, Err(MembershipError::Refused(_))), "{unknown:?}");
    put(leader, "after", "1").await;
    wires.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_cut_off_restarted_or_removed_do_not_disturb_a_leader() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::new(dir.path(), small);
    let mut nodes = wires.group(3).await;
    put(&nodes[&1].0, "a", "1").await;
    let term = nodes[&1].0.status().borrow().term;
    let undisturbed = |nodes: &std::collections::BTreeMap<u64, _>| {
        let (node, _): &(common::Node, common::Pairs) = &nodes[&1];
        let status = node.status().borrow().clone();
        assert!(status.is_leader() && status.term == term, "{status:?}");
    };
    // As a pause of seconds: its timer runs out several times.
    wires.cut(&[3]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    wires.heal();
    let index = put(&nodes[&1].0, "b", "1").await;
    all_applied(&nodes, index).await;
    undisturbed(&nodes);

    wires.kill(2).await;
    nodes.insert(2, wires.start(2).await);
    let index = put(&nodes[&1].0, "c", "1").await;
    all_applied(&nodes, index).await;
    undisturbed(&nodes);

    wires.cut(&[3]);
    nodes[&1].0.remove(3, PATIENCE).await.unwrap();
    wires.heal();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(nodes[&3].0.status().borrow().term, term, "it was refused before any election");
    assert!(!nodes[&3].0.status().borrow().hears_leader);
    put(&nodes[&1].0, "d", "1").await;
    undisturbed(&nodes);
    wires.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_is_replaced_within_a_second_and_a_half() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::new(dir.path(), small);
    let mut nodes = wires.group(3).await;
    let mut gaps = Vec::new();
    for round in 0..5 {
        put_somewhere(&nodes, "before", "1").await;
        let id = leader_of(&nodes).await;
        wires.silence(id);
        let begun = Instant::now();
        nodes.remove(&id);
        put_somewhere(&nodes, &format!("after{round}"), "1").await;
        gaps.push(begun.elapsed());
        wires.kill(id).await;
        nodes.insert(id, wires.start(id).await);
        let (_, index) = put_somewhere(&nodes, "back", "1").await;
        all_applied(&nodes, index).await;
    }
    gaps.sort_unstable();
    println!("write gaps after a leader was killed: {gaps:?}");
    assert!(gaps[2] <= Duration::from_millis(1500), "{gaps:?}");
    wires.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn read_barriers_cost_one_round() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::new(dir.path(), small);
    let nodes = wires.group(3).await;
    let leader = &nodes[&1].0;
    let mut times = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        leader.read_barrier(PATIENCE).await.unwrap();
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let begun = Instant::now();
    let all = futures::future::join_all((0..1000).map(|_| leader.read_barrier(PATIENCE))).await;
    assert!(all.into_iter().all(|one| one.is_ok()));
    println!("read barrier: p50 {:?}, p99 {:?}; 1000 at once {:?}", times[100], times[198], begun.elapsed());
    assert!(times[100] < Duration::from_millis(30), "{:?}", times[100]);
    wires.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_a_manager_that_diverged_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::new(dir.path(), |config| config.limits.digest_every = 50);
    let nodes = wires.group(3).await;
    // What no entry wrote: a bit that fell over in memory.
    nodes[&2].1.0.lock().unwrap().insert("stray".to_owned(), "bit".to_owned());
    put_many(&nodes[&1].0, 60, "x").await;
    let status = wait(&nodes[&2].0, "stopped", |status| status.stopped.is_some()).await;
    assert_eq!(status.stop_cause, Some(StopCause::Diverged));
    let reason = status.stopped.unwrap();
    assert!(reason.contains("differs from the others' at log index 50"), "{reason}");
    put(&nodes[&1].0, "goes", "on").await;
    assert!(nodes[&3].0.status().borrow().stopped.is_none());
    wires.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_diverged_is_found_out_by_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::new(dir.path(), |config| config.limits.digest_every = 50);
    let mut nodes = wires.group(3).await;
    nodes[&1].1.0.lock().unwrap().insert("stray".to_owned(), "bit".to_owned());
    put_many(&nodes[&1].0, 60, "x").await;
    let status = wait(&nodes[&1].0, "stopped", |status| status.stopped.is_some()).await;
    assert_eq!(status.stop_cause, Some(StopCause::Diverged));
    nodes.remove(&1);
    put_somewhere(&nodes, "goes", "on").await;
    wires.stop_all().await;
}
