//! Coalescing of equal work: callers that want the same thing at the same time share one run and its outcome. Used for
//! downloads, layers and whole images. Runs are driven by their callers: when all have gone, the run is dropped.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

type Run<T> = Shared<BoxFuture<'static, T>>;

/// Runs in progress by key.
pub(crate) struct Flights<K, T: Clone> {
    runs: Mutex<HashMap<K, WeakShared<BoxFuture<'static, T>>>>,
}

impl<K: Hash + Eq, T: Clone> Default for Flights<K, T> {
    fn default() -> Self {
        Self { runs: Mutex::default() }
    }
}

impl<K: Hash + Eq + Clone, T: Clone> Flights<K, T> {
    /// Joins the run of `key`, or starts the one that `make` gives. The flag tells whether it was joined.
    pub(crate) async fn run(&self, key: K, make: impl FnOnce() -> BoxFuture<'static, T>) -> (T, bool) {
        let (run, joined) = self.join(&key, make);
        let outcome = run.await;
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        // A finished run must not answer later callers: what it made may be gone by then.
        if runs.get(&key).is_some_and(|weak| weak.upgrade().is_none_or(|run| run.peek().is_some())) {
            runs.remove(&key);
        }
        (outcome, joined)
    }

    fn join(&self, key: &K, make: impl FnOnce() -> BoxFuture<'static, T>) -> (Run<T>, bool) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = runs.get(key).and_then(WeakShared::upgrade)
            && run.peek().is_none()
        {
            return (run, true);
        }
        let run = make().shared();
        if let Some(weak) = run.downgrade() {
            runs.insert(key.clone(), weak);
        }
        (run, false)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn equal_work_runs_once_and_survives_its_starter() {
        let flights = Arc::new(Flights::<u8, usize>::default());
        let runs = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let start = || {
            let (flights, runs, gate) = (flights.clone(), runs.clone(), gate.clone());
            tokio::spawn(async move {
                let work = move || {
                    async move {
                        let run = runs.fetch_add(1, Ordering::SeqCst);
                        gate.acquire().await.unwrap().forget();
                        run
                    }
                    .boxed()
                };
                flights.run(1, work).await
            })
        };
        let first = start();
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let second = start();
        let third = start();
        tokio::task::yield_now().await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        gate.add_permits(1);
        assert_eq!((second.await.unwrap(), third.await.unwrap()), ((0, true), (0, true)));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        // Later work runs anew.
        gate.add_permits(1);
        assert_eq!(start().await.unwrap(), (1, false));
        assert!(flights.runs.lock().unwrap().is_empty());
    }
}
