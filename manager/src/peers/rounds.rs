//! Questions at the same time are one. Who asks while an answer is under way waits for the next one, as that answer may
//! be older than the question.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};

type Round<T> = Shared<BoxFuture<'static, T>>;

/// At most one question under way, and one that waits for it.
pub(super) struct Rounds<T: Clone> {
    /// The round that has not begun.
    next: Arc<Mutex<Option<Round<T>>>>,
    /// Held by the round that is under way.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl<T: Clone> Default for Rounds<T> {
    fn default() -> Self {
        Self { next: Arc::default(), turn: Arc::default() }
    }
}

impl<T: Clone + Send + Sync + 'static> Rounds<T> {
    /// The answer of a round that begins after this call. `ask` is called if no such round waits yet.
    pub(super) async fn join<F>(&self, ask: impl FnOnce() -> F + Send + 'static) -> T
    where
        F: Future<Output = T> + Send + 'static,
    {
        let round =
            self.next.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| self.round(ask)).clone();
        round.await
    }

    fn round<F>(&self, ask: impl FnOnce() -> F + Send + 'static) -> Round<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (next, turn) = (Arc::clone(&self.next), Arc::clone(&self.turn));
        let round = async move {
            let _turn = turn.lock().await;
            // From here on it has begun: later callers need another.
            next.lock().unwrap_or_else(PoisonError::into_inner).take();
            ask().await
        };
        round.boxed().shared()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn callers_share_the_next_round_and_never_one_under_way() {
        let rounds = Arc::new(Rounds::<u32>::default());
        let (asked, may_answer) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
        let join = || {
            let (rounds, asked, may_answer) = (Arc::clone(&rounds), Arc::clone(&asked), Arc::clone(&may_answer));
            tokio::spawn(async move {
                let ask = move || async move {
                    let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
                    may_answer.acquire().await.unwrap().forget();
                    number
                };
                rounds.join(ask).await
            })
        };
        let first = join();
        while asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let later: Vec<_> = (0..10).map(|_| join()).collect();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        may_answer.add_permits(2);
        assert_eq!(first.await.unwrap(), 1);
        for one in later {
            assert_eq!(one.await.unwrap(), 2);
        }
    }

    #[tokio::test]
    async fn who_goes_away_leaves_the_round_to_the_others() {
        let rounds = Arc::new(Rounds::<u32>::default());
        let gone = rounds.join(std::future::pending);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(5), gone).await.is_err());
        assert_eq!(rounds.join(|| async { 7 }).await, 7);
    }
}
