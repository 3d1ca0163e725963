//! When a leader answers reads from its own state: only while nobody else can lead. Raft is scripted, for the real one
//! cannot be caught between the moment when it is deposed and the one when it learns that.

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use skep_core::store::State;
use skep_raft::{Role, Status};

use super::*;
use crate::scripted::Scripted;

/// What a read at a manager comes to that takes itself for the leader, and how many barriers it asked for. A quorum
/// confirmed it so long ago. `None`: it refuses, as who does not lead.
async fn read(confirmed: Duration, handing_over: bool, passes: bool) -> (Option<u64>, usize) {
    let (applied, clock) = (Applied::new(State::default()), Clock::start());
    let peers = testing::leading(&applied, &clock);
    let mut status = Status::initial(1);
    (status.role, status.has_quorum, status.handing_over) = (Role::Leader, true, handing_over);
    status.quorum_acked_at = Instant::now().checked_sub(confirmed);
    assert!(status.quorum_acked_at.is_some());
    let raft = Arc::new(Scripted::new(status).passing(passes));
    let consensus: Arc<dyn Consensus<Response = Vec<u64>>> = Arc::clone(&raft) as _;
    peers.know_raft(&consensus);
    let answer = peers.read_version(Duration::ZERO).await;
    assert!(matches!(answer, Ok(_) | Err(WriteError::NoLeader)), "{answer:?}");
    (answer.ok(), raft.barriers())
}

#[tokio::test]
async fn a_leader_that_was_replaced_answers_no_read_from_its_stale_state() {
    assert_eq!(read(LEASE * 2, false, false).await, (None, 1));
    // A slow one that still leads asks, and answers.
    assert_eq!(read(LEASE * 2, false, true).await, (Some(0), 1));
}

#[tokio::test]
async fn a_lease_counts_except_while_the_lead_is_handed_over() {
    let now = Duration::ZERO;
    assert_eq!(read(now, false, false).await, (Some(0), 0), "it was just confirmed");
    assert_eq!(read(now, true, false).await, (None, 1), "the next one may write already");
    assert_eq!(read(now, true, true).await, (Some(0), 1));
}
