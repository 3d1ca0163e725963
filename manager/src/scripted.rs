//! Raft by a script, for tests of what asks it (and for `fuzzing`): its status, the fates of its entries and its barriers are
//! the test's. For what the real one of one voter cannot be brought to. No manager runs on it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use skep_raft::{BarrierError, Committed, Consensus, Member, MembershipError, ProposeError, RaftId, Status};
use tokio::sync::watch;

/// What becomes of an entry.
pub(crate) type Fate = BoxFuture<'static, Result<Committed<Vec<u64>>, ProposeError>>;

/// See the module.
pub(crate) struct Scripted {
    /// What it says of itself.
    pub(crate) status: watch::Sender<Status>,
    /// Asked when an entry is proposed, in the order of the proposals.
    propose: Box<dyn Fn(Bytes) -> Fate + Send + Sync>,
    /// Whether its barriers pass.
    passes: bool,
    barriers: AtomicUsize,
}

impl Scripted {
    /// One whose barriers pass, and that takes no entries.
    pub(crate) fn new(status: Status) -> Self {
        Self {
            status: watch::channel(status).0,
            propose: Box::new(|_| async { Err(ProposeError::HandingOver) }.boxed()),
            passes: true,
            barriers: AtomicUsize::new(0),
        }
    }

    /// Gives entries their fates.
    pub(crate) fn proposing(self, propose: impl Fn(Bytes) -> Fate + Send + Sync + 'static) -> Self {
        Self { propose: Box::new(propose), ..self }
    }

    /// Says whether barriers pass.
    #[cfg(test)]
    pub(crate) fn passing(self, passes: bool) -> Self {
        Self { passes, ..self }
    }

    /// How many barriers it was asked for.
    #[cfg(test)]
    pub(crate) fn barriers(&self) -> usize {
        self.barriers.load(Ordering::SeqCst)
    }

    fn unused<T: Send + 'static>() -> BoxFuture<'static, Result<T, MembershipError>> {
        async { Err(MembershipError::NotSupported("not by a script")) }.boxed()
    }
}

impl Consensus for Scripted {
    type Response = Vec<u64>;

    fn propose(&self, entry: Bytes, _: Duration) -> Fate {
        (self.propose)(entry)
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
