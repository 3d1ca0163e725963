//! How reads are answered: from the applied state, after the version that the caller has seen; and how long lists go
//! out in pieces.

use std::pin::Pin;
use std::time::Duration;

use skep_core::store::State;
use skep_proto::v1::ReadOptions;
use tokio_stream::Stream;
use tonic::Status;

use crate::store::Store;

/// How long a read waits for the version that it asks for.
const VERSION_DEADLINE: Duration = Duration::from_secs(5);

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The state to answer from.
pub(crate) async fn state(store: &Store, read: Option<ReadOptions>) -> Result<State, Status> {
    let version = read.unwrap_or_default().min_version;
    tokio::time::timeout(VERSION_DEADLINE, store.applied(version)).await.map_err(|_| {
        Status::unavailable(format!("this manager has not seen version {version} yet: try again in a moment"))
    })?;
    Ok(store.state())
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
