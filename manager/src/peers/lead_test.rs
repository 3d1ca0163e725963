//! When a leader answers reads from its own state: only while nobody else can lead. Raft is scripted, for the real one
//! cannot be caught between the moment when it is deposed and the one when it learns that.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt as _;
use skep_core::store::State;
use skep_raft::{BarrierError, Committed, Member, MembershipError, ProposeError, Role, Status};

use super::*;

/// Raft with a given status, whose barrier passes or not.
struct Scripted {
    status: watch::Sender<Status>,
    passes: bool,
    barriers: AtomicUsize,
}

impl Scripted {
    fn unused<T: Send + 'static>() -> BoxFuture<'static, Result<T, MembershipError>> {
        async { Err(MembershipError::NotSupported("not in this test")) }.boxed()
    }
}

impl Consensus for Scripted {
    type Response = Vec<u64>;

    fn propose(&self, _: Bytes, _: Duration) -> BoxFuture<'static, Result<Committed<Vec<u64>>, ProposeError>> {
        async { Err(ProposeError::HandingOver) }.boxed()
    }

    fn read_barrier(&self, _: Duration) -> BoxFuture<'static, Result<u64, BarrierError>> {
        self.barriers.fetch_add(1, Ordering::SeqCst);
        let passes = self.passes;
        async move { if passes { Ok(1) } else { Err(BarrierError::NotLeader { leader: None }) } }.boxed()
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    fn add_learner(&self, _: Member, _: Duration) -> BoxFuture<'static, Result<(), MembershipError>> {
        Self::unused()
    }

    fn promote(&self, _: RaftId, _: Duration) -> BoxFuture<'static, Result<(), MembershipError>> {
        Self::unused()
    }

    fn demote(&self, _: RaftId, _: Duration) -> BoxFuture<'static, Result<(), MembershipError>> {
        Self::unused()
    }

    fn remove(&self, _: RaftId, _: Duration) -> BoxFuture<'static, Result<(), MembershipError>> {
        Self::unused()
    }

    fn snapshot_now(&self) -> BoxFuture<'static, Result<(), BarrierError>> {
        async { Ok(()) }.boxed()
    }

    fn campaign(&self) -> BoxFuture<'static, Result<(), BarrierError>> {
        async { Ok(()) }.boxed()
    }

    fn shutdown(&self) -> BoxFuture<'static, ()> {
        async {}.boxed()
    }
}

/// What a read at a manager comes to that takes itself for the leader, and how many barriers it asked for. A quorum
/// confirmed it so long ago. `None`: it refuses, as who does not lead.
async fn read(confirmed: Duration, handing_over: bool, passes: bool) -> (Option<u64>, usize) {
    let (applied, clock) = (Applied::new(State::default()), Clock::start());
    let peers = testing::leading(&applied, &clock);
    let mut status = Status::initial(1);
    (status.role, status.has_quorum, status.handing_over) = (Role::Leader, true, handing_over);
    status.quorum_acked_at = Instant::now().checked_sub(confirmed);
    assert!(status.quorum_acked_at.is_some());
    let raft = Arc::new(Scripted { status: watch::channel(status).0, passes, barriers: AtomicUsize::new(0) });
    let consensus: Arc<dyn Consensus<Response = Vec<u64>>> = Arc::clone(&raft) as _;
    peers.know_raft(&consensus);
    let answer = peers.read_version(Duration::ZERO).await;
    assert!(matches!(answer, Ok(_) | Err(WriteError::NoLeader)), "{answer:?}");
    (answer.ok(), raft.barriers.load(Ordering::SeqCst))
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
