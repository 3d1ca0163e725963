//! When to make a snapshot, and what of the log may go after it. One task of the Raft runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::Limits;
use crate::consensus::{Role, Status};
use crate::engine;
use crate::shared::Shared;
use crate::store::log::LogStore;
use crate::store::machine::Gauge;
use crate::types::Raft;

pub(crate) struct Policy {
    pub(crate) raft: Raft,
    pub(crate) log: LogStore,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) limits: Limits,
    /// Takes the place of the limit of bytes; 0: it does not.
    pub(crate) snapshot_after_bytes: Arc<AtomicU64>,
    pub(crate) shared: Arc<Shared>,
}

/// Whether enough was applied since the newest snapshot. `set_bytes` takes the place of the limit, unless it is 0.
fn is_due(limits: &Limits, set_bytes: u64, (bytes, changes): (u64, u64)) -> bool {
    let most_bytes = if set_bytes == 0 { limits.snapshot_after_bytes } else { set_bytes };
    bytes >= most_bytes || changes >= limits.snapshot_after_changes
}

/// After this long without an effect an order to the engine is given again.
const REPEAT: Duration = Duration::from_secs(5);

/// The last order of a kind, so that it is given once and not with every applied entry.
#[derive(Debug, Default)]
struct Order<T>(Option<(T, Instant)>);

impl<T: PartialEq> Order<T> {
    /// Whether to give the order `what` now.
    fn give(&mut self, what: T, now: Instant) -> bool {
        let given = self.0.as_ref().is_some_and(|(last, at)| *last == what && now < *at + REPEAT);
        if !given {
            self.0 = Some((what, now));
        }
        !given
    }
}

impl Policy {
    pub(crate) async fn run(self, mut status: watch::Receiver<Status>) {
        let mut snapshot_after = Order::default();
        let mut purge_to = Order::default();
        loop {
            let (newest, stopped) = {
                let status = status.borrow_and_update();
                (status.snapshot.as_ref().map(|snapshot| snapshot.index), status.role == Role::Stopped)
            };
            if stopped {
                return;
            }
            let now = engine::now();
            let target = newest.and_then(|index| self.log.purge_target(index, &self.limits));
            if let Some(upto) = target
                && purge_to.give(upto, now)
                && self.raft.trigger().purge_log(upto).await.is_err()
            {
                return;
            }
            let set_bytes = self.snapshot_after_bytes.load(Ordering::Relaxed);
            if is_due(&self.limits, set_bytes, self.gauge.since_snapshot())
                && !self.shared.space.is_full()
                && snapshot_after.give(newest, now)
                && self.raft.trigger().snapshot().await.is_err()
            {
                return;
            }
            if let Ok(Err(_)) = tokio::time::timeout(REPEAT, status.changed()).await {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_or_changes_make_a_snapshot_due() {
        let limits = Limits { snapshot_after_bytes: 100, snapshot_after_changes: 10, ..Limits::default() };
        assert!(!is_due(&limits, 0, (99, 9)));
        assert!(is_due(&limits, 0, (100, 0)));
        assert!(is_due(&limits, 0, (0, 10)));
        assert!(!is_due(&limits, 200, (199, 9)));
        assert!(is_due(&limits, 50, (50, 0)));
    }

    #[test]
    fn an_order_is_given_once_until_it_changes_or_has_no_effect() {
        let begin = Instant::now();
        let mut order = Order::default();
        assert!(order.give(1, begin));
        assert!(!order.give(1, begin + REPEAT / 2));
        assert!(order.give(2, begin + REPEAT / 2));
        assert!(order.give(2, begin + REPEAT * 2));
    }
}
