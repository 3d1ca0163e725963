//! The handle that the rest of the manager has on the state: read it, wait for it, write to it. Reads are O(1) clones
//! of the applied state and never block the writer; writes go through the sequencer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_core::apply::Refused;
use skep_core::change::{Change, Group, Transaction};
use skep_core::store::State;
use skep_proto::id::RequestId;
use skep_proto::time::UnixMs;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::topic::{Topic, TopicWatch, Topics};

/// How long a write may take before its caller hears "result unknown".
pub const WRITE_DEADLINE: Duration = Duration::from_secs(10);

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
    /// This manager does not lead.
    #[error("there is no leader right now: try again in a moment")]
    NoLeader,
    /// It was proposed, and no answer came in time.
    #[error(
        "result unknown: the write was not confirmed in time and may still happen; a retry with the same request id is safe"
    )]
    Unknown,
    /// The manager is stopping, or its storage failed.
    #[error("the manager is stopping: {0}")]
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
}

/// The handle.
#[derive(Clone)]
pub struct Store {
    applied: Applied,
    submissions: mpsc::Sender<Submission>,
    clock: Clock,
}

impl Applied {
    /// Starts from a state.
    pub(crate) fn new(state: State) -> Self {
        let version = watch::channel(state.version()).0;
        Self { state: Arc::new(Mutex::new(state)), version, topics: Topics::default() }
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
}

impl Store {
    pub(crate) fn new(applied: Applied, submissions: mpsc::Sender<Submission>, clock: Clock) -> Self {
        Self { applied, submissions, clock }
    }

    /// The applied state; O(1).
    pub fn state(&self) -> State {
        self.applied.state()
    }

    /// The leader's clock: wall time that never steps within a process.
    pub fn now(&self) -> UnixMs {
        self.clock.now()
    }

    /// Starts waiting for a part of the state. Take the snapshot after this call.
    pub fn watch(&self, topic: Topic) -> TopicWatch {
        self.applied.topics.watch(topic)
    }

    /// Returns when `version` is applied here.
    pub async fn applied(&self, version: u64) {
        // An error means that the store is gone, and the caller with it.
        let _ = self.applied.version.subscribe().wait_for(|applied| *applied >= version).await;
    }

    /// Writes a transaction of independent groups: a loop's or the dispatcher's. Refused groups are reported.
    pub async fn write_groups(&self, groups: Vec<Group>) -> Result<Written, WriteError> {
        self.submit(Transaction { groups, at: self.now(), ..Transaction::default() }).await
    }

    /// Writes a user's changes: all or none. A retry with the same `request` gets the first answer. `object_id` is
    /// named in the answer.
    pub async fn write(
        &self,
        request: Option<RequestId>,
        object_id: Vec<u8>,
        changes: Vec<Change>,
    ) -> Result<Written, WriteError> {
        let groups = vec![Group(changes)];
        let mut written = self.submit(Transaction { request, at: self.now(), groups, object_id }).await?;
        match written.refused.pop() {
            Some((_, refused)) => Err(WriteError::Refused(refused)),
            None => Ok(written),
        }
    }

    async fn submit(&self, transaction: Transaction) -> Result<Written, WriteError> {
        let (answer, answered) = oneshot::channel();
        let stopped = || WriteError::Stopped("the sequencer has ended".to_owned());
        self.submissions.send(Submission { transaction, answer }).await.map_err(|_| stopped())?;
        match tokio::time::timeout(WRITE_DEADLINE, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(WriteError::Unknown),
        }
    }
}
