//! The lead changes hands in order, and comes back when that fails.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;
#[path = "common/wires.rs"]
mod wires;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{PATIENCE, put, wait};
use skep_raft::{Consensus, MembershipError, ProposeError, TransferError};
use wires::{Wires, all_applied, leader_of, put_somewhere};

async fn hands_over(voters: u64, at_most: Duration) {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::new(dir.path(), |_| {});
    let nodes = wires.group(voters).await;
    for target in [voters, 2, 1, 2] {
        let (_, index) = put_somewhere(&nodes, "before", "1").await;
        all_applied(&nodes, index).await;
        let id = leader_of(&nodes).await;
        let term = nodes[&id].0.status().borrow().term;
        let begun = Instant::now();
        let now = nodes[&id].0.transfer_leadership(Some(target), PATIENCE).await.unwrap();
        let took = begun.elapsed();
        assert_eq!(now, target);
        wait(&nodes[&target].0, "leads", |status| status.leads()).await;
        put(&nodes[&target].0, "after", "1").await;
        println!("{voters} voters: handed over in {took:?}");
        assert!(took < at_most, "{took:?}");
        assert_eq!(nodes[&target].0.status().borrow().term, term + 1, "one election");
    }
    wires.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_voters_hand_over_at_once() {
    hands_over(3, Duration::from_millis(900)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_voters_hand_over_after_the_lease() {
    hands_over(5, Duration::from_millis(1500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_fails_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::new(dir.path(), |_| {});
    let nodes = wires.group(3).await;
    let leader = &nodes[&1].0;
    let refused = leader.transfer_leadership(Some(9), PATIENCE).await;
    assert!(matches!(refused, Err(TransferError::Refused(_))), "{refused:?}");
    let refused = nodes[&2].0.transfer_leadership(None, PATIENCE).await;
    assert!(matches!(refused, Err(TransferError::NotLeader { leader: Some(_) })), "{refused:?}");
    let term = leader.status().borrow().term;
    wires.cut(&[3]);
    put(leader, "ahead", "1").await;
    let transfer = leader.transfer_leadership(Some(3), Duration::from_millis(400));
    wait(leader, "handing over", |status| status.handing_over).await;
    let meanwhile = leader.propose(Bytes::from_static(b"a=1"), PATIENCE).await;
    assert_eq!(meanwhile, Err(ProposeError::HandingOver));
    let failed = transfer.await;
    assert!(matches!(failed, Err(TransferError::TimedOut { .. })), "{failed:?}");
    wait(leader, "over", |status| !status.handing_over).await;
    put(leader, "goes", "on").await;
    assert_eq!(leader.status().borrow().term, term);
    wires.heal();
    wires.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_hands_over_before_it_is_demoted_and_before_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::new(dir.path(), |_| {});
    let mut nodes = wires.group(3).await;
    put(&nodes[&1].0, "a", "1").await;
    let Err(MembershipError::NotLeader { leader: Some(new) }) = nodes[&1].0.demote(1, PATIENCE).await else {
        panic!("it demoted itself");
    };
    wait(&nodes[&new.id].0, "leads", |status| status.leads()).await;
    nodes[&new.id].0.demote(1, PATIENCE).await.unwrap();
    wait(&nodes[&1].0, "learns", |status| status.membership.learners.contains_key(&1)).await;
    nodes[&new.id].0.promote(1, PATIENCE).await.unwrap();
    wait(&nodes[&new.id].0, "voters", |status| status.membership.voters.len() == 3 && !status.membership.changing)
        .await;

    let begun = Instant::now();
    wires.stop(new.id).await;
    nodes.remove(&new.id);
    put_somewhere(&nodes, "b", "1").await;
    println!("leader stopped in order, next write after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_millis(800), "{:?}", begun.elapsed());
    wires.stop_all().await;
}
