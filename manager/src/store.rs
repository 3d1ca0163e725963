//! The handle that the rest of the manager has on the state: read it, wait for it, write to it. Reads are O(1) clones
//! of the applied state and never block the writer; writes go through the leader's sequencer, wherever that is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_core::apply::Refused;
use skep_core::change::{Change, Group, Transaction};
use skep_core::event::Event;
use skep_core::store::State;
use skep_proto::id::RequestId;
use skep_proto::time::UnixMs;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::peers::{Peers, Route, ask};
use crate::topic::{Topic, TopicWatch, Topics};

/// How long a write may take before its caller hears "result unknown".
pub const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a user's write waits for a leader: an election takes about a second.
const LEADER_PATIENCE: Duration = Duration::from_secs(3);
/// Pause before a write is tried again, unless the leader changes sooner.
const RETRY: Duration = Duration::from_millis(50);

/// What a write came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Store version after it.
    pub version: u64,
    /// The id that the transaction named, or that the first try named when this was a retry.
    pub object_id: Vec<u8>,
    /// Groups that were refused, by index. Empty for a user's write, which is refused whole.
    pub refused: Vec<(usize, Refused)>,
}

/// Why a write did not happen, or may not have.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// The state does not allow it.
    #[error("{0}")]
    Refused(Refused),
    /// Nothing was written: no leader is heard, or the leader has no quorum.
    #[error(
        "there is no leader right now: a majority of the managers must run and reach each other; try again in a moment"
    )]
    NoLeader,
    /// It was proposed, and no answer came in time.
    #[error(
        "result unknown: the write was not confirmed in time and may still happen; a retry with the same request id is safe"
    )]
    Unknown,
    /// Nothing was written: the manager is stopping, its disk is full, its storage failed, or it refuses the call.
    #[error("the manager cannot write: {0}")]
    Stopped(String),
}

/// A write on its way to the sequencer.
pub(crate) struct Submission {
    pub(crate) transaction: Transaction,
    pub(crate) answer: oneshot::Sender<Result<Written, WriteError>>,
}

/// The applied state and its readers; owned by the state machine, shared by all.
#[derive(Clone)]
pub struct Applied {
    state: Arc<Mutex<State>>,
    version: watch::Sender<u64>,
    topics: Topics,
    followers: Arc<Mutex<Vec<mpsc::UnboundedSender<Fed>>>>,
}

/// What was applied at once.
#[derive(Clone)]
pub struct Fed {
    /// What changed, in order.
    pub events: Arc<[Event]>,
    /// The state after it.
    pub state: State,
    /// Anything may have changed: the state came as a whole.
    pub replaced: bool,
}

/// The handle.
#[derive(Clone)]
pub struct Store {
    applied: Applied,
    submissions: mpsc::Sender<Submission>,
    clock: Clock,
    peers: Peers,
}

impl Applied {
    /// Starts from a state.
    pub(crate) fn new(state: State) -> Self {
        let version = watch::channel(state.version()).0;
        Self { state: Arc::new(Mutex::new(state)), version, topics: Topics::default(), followers: Arc::default() }
    }

    /// The present state; O(1).
    pub(crate) fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Version of the present state.
    pub(crate) fn version(&self) -> u64 {
        *self.version.borrow()
    }

    /// Publishes a newer state and wakes the waiters of `topics`.
    pub(crate) fn publish(&self, state: State, topics: impl IntoIterator<Item = Topic>) {
        let version = state.version();
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        self.version.send_replace(version);
        self.topics.wake(topics, version);
    }

    /// Publishes a state that came as a whole (a snapshot), and wakes every waiter.
    pub(crate) fn replace(&self, state: State) {
        let version = state.version();
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        self.version.send_replace(version);
        self.topics.wake_all(version);
    }

    /// Tells those who follow every event. Comes after the state is published.
    pub(crate) fn tell(&self, events: &Arc<[Event]>, state: &State, replaced: bool) {
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        let fed = || Fed { events: Arc::clone(events), state: state.clone(), replaced };
        followers.retain(|follower| follower.send(fed()).is_ok());
    }

    /// Starts waiting for a part of the state.
    pub(crate) fn watch(&self, topic: Topic) -> TopicWatch {
        self.topics.watch(topic)
    }

    /// Returns when `version` is applied.
    pub(crate) async fn reach(&self, version: u64) {
        // An error means that the store is gone, and the caller with it.
        let _ = self.version.subscribe().wait_for(|applied| *applied >= version).await;
    }
}

impl Store {
    /// `peers` say who leads; `submissions` lead to this manager's own sequencer.
    pub(crate) fn new(applied: Applied, submissions: mpsc::Sender<Submission>, clock: Clock, peers: Peers) -> Self {
        Self { applied, submissions, clock, peers }
    }

    /// The other managers, and who leads.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The applied state; O(1).
    pub fn state(&self) -> State {
        self.applied.state()
    }

    /// The applied state, with every write that was acknowledged anywhere before this call: what a write is decided on.
    /// A follower asks the leader how far that is; callers at the same time share the question.
    pub async fn fresh(&self) -> Result<State, WriteError> {
        if self.peers.confirm_lead().await.is_err() {
            let version = self.peers.read_version(LEADER_PATIENCE).await?;
            let reached = tokio::time::timeout(LEADER_PATIENCE, self.applied(version)).await;
            reached.map_err(|_| WriteError::Stopped(format!("it is still catching up with version {version}")))?;
        }
        Ok(self.state())
    }

    /// The swarm's clock, as the leader keeps it: it never goes back, and never steps while this manager leads.
    pub fn now(&self) -> UnixMs {
        self.clock.now()
    }

    /// Starts waiting for a part of the state. Take the snapshot after this call.
    pub fn watch(&self, topic: Topic) -> TopicWatch {
        self.applied.watch(topic)
    }

    /// Follows every event from now on. Take the snapshot after this call; events that it shows already may come again.
    pub(crate) fn follow(&self) -> mpsc::UnboundedReceiver<Fed> {
        let (feed, fed) = mpsc::unbounded_channel();
        self.applied.followers.lock().unwrap_or_else(PoisonError::into_inner).push(feed);
        fed
    }

    /// Returns when `version` is applied here.
    pub async fn applied(&self, version: u64) {
        self.applied.reach(version).await;
    }

    /// Writes a transaction of independent groups: a loop's or the dispatcher's. Refused groups are reported. Tried
    /// once.
    pub async fn write_groups(&self, groups: Vec<Group>) -> Result<Written, WriteError> {
        let transaction = Transaction { groups, at: self.now(), ..Transaction::default() };
        self.submit(transaction, WRITE_DEADLINE).await
    }

    /// Writes a user's changes: all or none. A retry with the same `request` gets the first answer. `object_id` is
    /// named in the answer. While the lead changes hands it waits for the new leader; a write with a `request` is tried
    /// again even if it may have happened, as it then happens once only.
    pub async fn write(
        &self,
        request: Option<RequestId>,
        object_id: Vec<u8>,
        changes: Vec<Change>,
    ) -> Result<Written, WriteError> {
        let groups = vec![Group(changes)];
        let mut written = self.insist(Transaction { request, at: self.now(), groups, object_id }).await?;
        match written.refused.pop() {
            Some((_, refused)) => Err(WriteError::Refused(refused)),
            None => Ok(written),
        }
    }

    /// Tries until a leader takes it, the result is known, or time is up.
    async fn insist(&self, transaction: Transaction) -> Result<Written, WriteError> {
        let started = Instant::now();
        let mut leader = self.peers.leader();
        let mut may_have_happened = false;
        loop {
            leader.mark_unchanged();
            let left = WRITE_DEADLINE.saturating_sub(started.elapsed());
            match self.submit(transaction.clone(), left).await {
                Err(WriteError::NoLeader) => {}
                Err(WriteError::Unknown) if transaction.request.is_some() => may_have_happened = true,
                // A first try may still come true after this one was refused or stopped.
                Err(WriteError::Stopped(_)) if may_have_happened => return Err(WriteError::Unknown),
                done => return done,
            }
            let patience = if may_have_happened { WRITE_DEADLINE } else { LEADER_PATIENCE };
            if started.elapsed() + RETRY >= patience {
                return Err(if may_have_happened { WriteError::Unknown } else { WriteError::NoLeader });
            }
            // Either way it is tried again: the leader that is known may just be the one that went away.
            let _ = tokio::time::timeout(RETRY, leader.changed()).await;
        }
    }

    /// One try. A transaction that another manager wrote is applied here, too, when this returns.
    async fn submit(&self, transaction: Transaction, within: Duration) -> Result<Written, WriteError> {
        match self.peers.route() {
            Route::Nowhere => Err(WriteError::NoLeader),
            Route::Here => self.submit_here(transaction, within).await,
            Route::There(_, channel) => {
                let started = Instant::now();
                let written = ask::submit(channel, &transaction, within).await?;
                // It is written whether or not this manager sees it in time.
                let left = within.saturating_sub(started.elapsed());
                let _ = tokio::time::timeout(left, self.applied(written.version)).await;
                Ok(written)
            }
        }
    }

    /// Hands a transaction to this manager's own sequencer; refused unless it leads.
    pub(crate) async fn submit_here(&self, transaction: Transaction, within: Duration) -> Result<Written, WriteError> {
        if !self.peers.leads() {
            return Err(WriteError::NoLeader);
        }
        let (answer, answered) = oneshot::channel();
        let deadline = Instant::now() + within;
        let refuse = |why: &str| Err(WriteError::Stopped(why.to_owned()));
        match tokio::time::timeout_at(deadline, self.submissions.send(Submission { transaction, answer })).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return refuse("the sequencer has ended"),
            // It was not taken.
            Err(_) => return refuse("too many writes wait for a quorum or the disk: try again in a moment"),
        }
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(WriteError::Unknown),
        }
    }
}
