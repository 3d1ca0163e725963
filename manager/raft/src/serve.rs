//! [`Consensus`] on a [`RaftNode`]: errors of the engine become ours, deadlines are kept.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::error::ClientWriteError;
use tokio::sync::{oneshot, watch};

use crate::consensus::{
    BarrierError, Committed, Consensus, Member, MembershipError, ProposeError, RaftId, Role, Status, TransferError,
};
use crate::engine;
use crate::members::{self, Change, ChangeError, Making};
use crate::node::{Inner, RaftNode};
use crate::reads::Round;
use crate::state_machine::StateMachine;
use crate::status;
use crate::types::Command;

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Inner {
    fn member(&self, id: Option<RaftId>) -> Option<Member> {
        status::find(&self.status.borrow().membership, id?)
    }

    /// Refuses what can be refused before it is proposed.
    fn check_proposal(&self, entry: &Bytes) -> Result<(), ProposeError> {
        if entry.len() > self.entry_limit {
            return Err(ProposeError::TooLarge { bytes: entry.len(), limit: self.entry_limit });
        }
        let status = self.status.borrow();
        if status.role == Role::Stopped {
            drop(status);
            return Err(self.stopped());
        }
        if !status.is_leader() {
            return Ok(());
        }
        if self.shared.is_handing_over() {
            return Err(ProposeError::HandingOver);
        }
        if self.shared.space.is_full() {
            let (free_bytes, needed_bytes) = self.shared.space.figures();
            return Err(ProposeError::DiskFull { free_bytes, needed_bytes });
        }
        let silent = status.millis_since_quorum_ack(engine::now());
        match silent {
            Some(silent_ms) if silent_ms > millis(self.shared.silence_limit()) => {
                Err(ProposeError::NoQuorum { silent_ms })
            }
            _ => Ok(()),
        }
    }

    fn stopped(&self) -> ProposeError {
        let reason = self.stop_reason();
        if &*reason == status::SHUT_DOWN { ProposeError::Stopped { reason } } else { ProposeError::Storage(reason) }
    }

    fn barrier_stopped(&self) -> BarrierError {
        BarrierError::Stopped { reason: self.stop_reason() }
    }

    fn leads_others(&self) -> bool {
        let status = self.status.borrow();
        status.is_leader() && !status.is_sole_voter()
    }

    /// A leader does not demote itself: whoever takes over does.
    fn hand_over_first(self: &Arc<Self>, timeout: Duration) -> BoxFuture<'static, Result<(), MembershipError>> {
        let transfer = self.transfer(None, timeout);
        let inner = Arc::clone(self);
        async move {
            match transfer.await {
                Ok(id) => Err(MembershipError::NotLeader { leader: inner.member(Some(id)) }),
                Err(TransferError::NotLeader { leader }) => Err(MembershipError::NotLeader { leader }),
                Err(TransferError::Stopped { reason }) => Err(MembershipError::Stopped { reason }),
                Err(error @ (TransferError::Refused(_) | TransferError::TimedOut { .. })) => {
                    Err(MembershipError::Refused(error.to_string()))
                }
            }
        }
        .boxed()
    }

    fn transfer(
        self: &Arc<Self>,
        to: Option<RaftId>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<RaftId, TransferError>> {
        let inner = Arc::clone(self);
        let hand_over = self.hand_over.clone();
        // A task of its own: a caller that goes away must not leave the heartbeats stopped.
        let task = self.handle.spawn(async move { hand_over.run(to, timeout).await });
        async move {
            let started = engine::now();
            match task.await {
                Ok(Ok(id)) => Ok(id),
                Ok(Err(failure)) => {
                    if inner.status.borrow().role == Role::Stopped {
                        return Err(TransferError::Stopped { reason: inner.stop_reason() });
                    }
                    let waited = engine::now().saturating_duration_since(started);
                    Err(failure.explain(|id| inner.member(id), millis(waited)))
                }
                Err(_) => Err(TransferError::Stopped { reason: inner.stop_reason() }),
            }
        }
        .boxed()
    }

    fn change(self: &Arc<Self>, change: Change, timeout: Duration) -> BoxFuture<'static, Result<(), MembershipError>> {
        if let Change::Demote(id) | Change::Remove(id) = change
            && id == self.shared.id
            && self.leads_others()
        {
            return self.hand_over_first(timeout);
        }
        if !self.shared.transport.reaches_peers() && matches!(change, Change::AddLearner(_) | Change::Promote(_)) {
            const WHY: &str = "several managers: this node's transport reaches no peers";
            return async { Err(MembershipError::NotSupported(WHY)) }.boxed();
        }
        let inner = Arc::clone(self);
        let task = self.handle.spawn(members::change(self.raft.clone(), change, Making::new(&self.shared)));
        async move {
            match tokio::time::timeout(timeout, task).await {
                Ok(Ok(Ok(()))) => Ok(()),
                Ok(Ok(Err(ChangeError::NotLeader(id)))) => Err(MembershipError::NotLeader { leader: inner.member(id) }),
                Ok(Ok(Err(ChangeError::Refused(why)))) => Err(MembershipError::Refused(why)),
                Ok(Ok(Err(ChangeError::Stopped)) | Err(_)) => {
                    Err(MembershipError::Stopped { reason: inner.stop_reason() })
                }
                Err(_) => Err(MembershipError::ResultUnknown { waited_ms: millis(timeout) }),
            }
        }
        .boxed()
    }
}

impl<M: StateMachine> Consensus for RaftNode<M> {
    type Response = M::Response;

    fn propose(
        &self,
        entry: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Committed<M::Response>, ProposeError>> {
        let inner = Arc::clone(&self.inner);
        if let Err(error) = inner.check_proposal(&entry) {
            return async { Err(error) }.boxed();
        }
        // Sending to the core never waits while the core runs, so the order of calls is the order in the log.
        let Some(Ok(answer)) = inner.raft.client_write_ff(Command(entry)).now_or_never() else {
            return async move { Err(inner.stopped()) }.boxed();
        };
        async move {
            let started = engine::now();
            match tokio::time::timeout(timeout, answer).await {
                Ok(Ok(Ok(done))) => {
                    let response = done.data.response.and_then(|response| response.downcast::<M::Response>().ok());
                    let response = response.expect("the state machine answers every proposed entry with its own type");
                    let (index, term) = (done.log_id.index, done.log_id.leader_id.term);
                    Ok(Committed { index, term, response: *response })
                }
                // Not appended, or cut off by a newer leader's log: without effect either way.
                Ok(Ok(Err(ClientWriteError::ForwardToLeader(to)))) => {
                    Err(ProposeError::NotLeader { leader: inner.member(to.leader_id) })
                }
                // Membership answers do not come here; and a core that ends may have written the entry.
                Ok(Ok(Err(ClientWriteError::ChangeMembershipError(_))) | Err(_)) | Err(_) => {
                    Err(ProposeError::ResultUnknown {
                        waited_ms: millis(engine::now().saturating_duration_since(started)),
                    })
                }
            }
        }
        .boxed()
    }

    fn read_barrier(&self, timeout: Duration) -> BoxFuture<'static, Result<u64, BarrierError>> {
        let inner = Arc::clone(&self.inner);
        if inner.shared.is_handing_over() {
            // A round would renew the lease that is to run out.
            return async { Err(BarrierError::NotLeader { leader: None }) }.boxed();
        }
        let (sender, answer) = oneshot::channel();
        if inner.barriers.send(sender).is_err() {
            return async move { Err(inner.barrier_stopped()) }.boxed();
        }
        async move {
            let started = engine::now();
            match tokio::time::timeout(timeout, answer).await {
                Ok(Ok(Round::Applied(index))) => Ok(index),
                Ok(Ok(Round::NotLeader(id))) => Err(BarrierError::NotLeader { leader: inner.member(id) }),
                Ok(Ok(Round::NoQuorum)) | Err(_) => {
                    Err(BarrierError::NoQuorum { waited_ms: millis(engine::now().saturating_duration_since(started)) })
                }
                Ok(Ok(Round::Stopped) | Err(_)) => Err(inner.barrier_stopped()),
            }
        }
        .boxed()
    }

    fn status(&self) -> watch::Receiver<Status> {
        self.inner.status.subscribe()
    }

    fn add_learner(&self, member: Member, timeout: Duration) -> BoxFuture<'static, Result<(), MembershipError>> {
        self.inner.change(Change::AddLearner(member), timeout)
    }

    fn promote(&self, id: RaftId, timeout: Duration) -> BoxFuture<'static, Result<(), MembershipError>> {
        self.inner.change(Change::Promote(id), timeout)
    }

    fn demote(&self, id: RaftId, timeout: Duration) -> BoxFuture<'static, Result<(), MembershipError>> {
        self.inner.change(Change::Demote(id), timeout)
    }

    fn remove(&self, id: RaftId, timeout: Duration) -> BoxFuture<'static, Result<(), MembershipError>> {
        self.inner.change(Change::Remove(id), timeout)
    }

    fn transfer_leadership(
        &self,
        to: Option<RaftId>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<RaftId, TransferError>> {
        self.inner.transfer(to, timeout)
    }

    fn snapshot_now(&self) -> BoxFuture<'static, Result<(), BarrierError>> {
        let inner = Arc::clone(&self.inner);
        async move { inner.raft.trigger().snapshot().await.map_err(|_| inner.barrier_stopped()) }.boxed()
    }

    fn campaign(&self) -> BoxFuture<'static, Result<(), BarrierError>> {
        let inner = Arc::clone(&self.inner);
        async move { inner.raft.trigger().elect().await.map_err(|_| inner.barrier_stopped()) }.boxed()
    }

    fn shutdown(&self) -> BoxFuture<'static, ()> {
        let inner = Arc::clone(&self.inner);
        async move { inner.shutdown().await }.boxed()
    }
}
