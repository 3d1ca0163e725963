//! How reads are answered: from the applied state of whichever manager is asked, after the version that the caller has
//! seen; and how long lists go out in pieces. A manager that hears no leader may be behind without knowing it, and
//! refuses unless the caller takes that.

use std::pin::Pin;
use std::time::Duration;

use skep_core::store::State;
use skep_proto::id::RequestId;
use skep_proto::v1::ReadOptions;
use tokio_stream::Stream;
use tonic::Status;

use super::error::IntoStatus;
use crate::peers::DISK_FULL;
use crate::store::Store;

/// How long a read waits for the version that it asks for.
const VERSION_DEADLINE: Duration = Duration::from_secs(5);

/// How long a read waits for a leader to be heard: an election takes about a second.
const LEADER_PATIENCE: Duration = Duration::from_secs(2);

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The state to answer a read from.
pub(crate) async fn state(store: &Store, read: Option<ReadOptions>) -> Result<State, Status> {
    let ReadOptions { min_version, allow_stale } = read.unwrap_or_default();
    if !allow_stale && !store.peers().is_led() && !store.peers().led_within(LEADER_PATIENCE).await {
        return Err(no_leader());
    }
    if !allow_stale && store.peers().stands_still() {
        return Err(Status::unavailable(DISK_FULL));
    }
    tokio::time::timeout(VERSION_DEADLINE, store.applied(min_version)).await.map_err(|_| {
        Status::unavailable(format!("this manager has not seen version {min_version} yet: try again in a moment"))
    })?;
    Ok(store.state())
}

/// The state to decide a write on: with everything that was acknowledged before, by whichever manager. Every handler
/// that writes begins with it.
pub(crate) async fn fresh(store: &Store) -> Result<State, Status> {
    store.fresh().await.map_err(IntoStatus::into_status)
}

/// The answer that the first try of a write got: its object, and the version. In a fresh state: one that another manager
/// took may not be applied here yet.
pub(crate) fn first_answer(state: &State, request: Option<RequestId>) -> Option<(Vec<u8>, u64)> {
    let first = state.request(request?)?;
    Some((first.object_id.clone(), first.version))
}

/// Why a manager without a leader does not answer.
pub(crate) fn no_leader() -> Status {
    Status::unavailable(
        "this manager hears no leader, so what it knows may be old: a majority of the managers must run and reach each \
         other; start them, ask another manager, or allow a stale answer",
    )
}

/// Streams `items` in pieces of at most `size`; at least one piece, so that the client learns the version.
pub(crate) fn pieces<T: Send + 'static, A: Send + 'static>(
    items: Vec<T>,
    size: usize,
    answer: impl Fn(Vec<T>) -> A + Send + 'static,
) -> Answers<A> {
    let mut rest = items.into_iter();
    let mut first = true;
    Box::pin(tokio_stream::iter(std::iter::from_fn(move || {
        let piece: Vec<T> = rest.by_ref().take(size).collect();
        if piece.is_empty() && !first {
            return None;
        }
        first = false;
        Some(Ok(answer(piece)))
    })))
}
