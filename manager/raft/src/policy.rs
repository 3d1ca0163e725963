//! When to make a snapshot, and what of the log may go after it. One task of the Raft runtime.

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::Limits;
use crate::consensus::{Role, Status};
use crate::store::log::LogStore;
use crate::store::machine::Gauge;
use crate::types::Raft;

pub(crate) struct Policy {
    pub(crate) raft: Raft,
    pub(crate) log: LogStore,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) limits: Limits,
}

/// Whether enough was applied since the newest snapshot.
fn is_due(limits: &Limits, (bytes, changes): (u64, u64)) -> bool {
    bytes >= limits.snapshot_after_bytes || changes >= limits.snapshot_after_changes
}

impl Policy {
    pub(crate) async fn run(self, mut status: watch::Receiver<Status>) {
        // The snapshot that was there when the running one was asked for.
        let mut asked_at: Option<Option<u64>> = None;
        let mut purged_for = None;
        loop {
            let (newest, stopped) = {
                let status = status.borrow_and_update();
                (status.snapshot.as_ref().map(|snapshot| snapshot.index), status.role == Role::Stopped)
            };
            if stopped {
                return;
            }
            if asked_at.is_some_and(|before| before != newest) {
                asked_at = None;
            }
            if newest != purged_for {
                if let Some(upto) = newest.and_then(|index| self.log.purge_target(index, &self.limits))
                    && self.raft.trigger().purge_log(upto).await.is_err()
                {
                    return;
                }
                purged_for = newest;
            }
            if asked_at.is_none() && is_due(&self.limits, self.gauge.since_snapshot()) {
                if self.raft.trigger().snapshot().await.is_err() {
                    return;
                }
                asked_at = Some(newest);
            }
            if status.changed().await.is_err() {
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
        assert!(!is_due(&limits, (99, 9)));
        assert!(is_due(&limits, (100, 0)));
        assert!(is_due(&limits, (0, 10)));
    }
}
