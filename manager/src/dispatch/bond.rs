//! Whether this manager hears a leader, which is what its sessions rest on: without one, nothing that nodes report is
//! stored, and nobody learns that they live. Sessions then end, so that nodes turn to managers that do. Likewise at a
//! follower whose disk is full: what it knows is old, so that its nodes would hear of no new task.
//!
//! The leader is heard by its messages to this manager (`relay/client.rs`). That another one leads now is a reason to wait
//! for it as long again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::Dispatcher;
use super::limits::{LEADER_BEAT, LEADERLESS};

/// See the module.
pub(super) struct Bond {
    heard: Mutex<Instant>,
    holds: watch::Sender<bool>,
    /// The leader is heard, but what it says is not stored.
    still: AtomicBool,
}

impl Bond {
    /// Nothing was heard yet.
    pub(super) fn new() -> Self {
        Self { heard: Mutex::new(Instant::now()), holds: watch::channel(false).0, still: AtomicBool::new(false) }
    }

    /// The leader spoke to this manager, or is this manager.
    pub(super) fn heard(&self) {
        self.renewed();
        if self.still.load(Ordering::Acquire) {
            return;
        }
        let now_holds = self.holds.send_if_modified(|holds| !std::mem::replace(holds, true));
        if now_holds {
            info!("the leader is heard: sessions are taken");
        }
    }

    /// There is a new leader, or there will be: what holds may hold for as long again.
    pub(super) fn renewed(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether sessions may stand.
    pub(super) fn holds(&self) -> bool {
        *self.holds.borrow()
    }

    /// Told when that changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.holds.subscribe()
    }

    /// No session may stand any more.
    pub(super) fn stop(&self) {
        self.holds.send_replace(false);
    }

    fn last(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the bond when no leader is heard for too long, or when the disk is full.
pub(super) async fn watch(dispatcher: Dispatcher) {
    tokio::join!(watch_leader(&dispatcher), watch_disk(&dispatcher));
}

/// Ends no bond of a leader: it hands over, or is alone.
async fn watch_disk(dispatcher: &Dispatcher) {
    let bond = &dispatcher.0.bond;
    // Raft runs by then.
    if bond.subscribe().wait_for(|holds| *holds).await.is_err() {
        return;
    }
    let Some(mut status) = dispatcher.0.store.peers().raft_status() else { return };
    let mut leading = dispatcher.0.leading.subscribe();
    loop {
        let leads = leading.borrow_and_update().is_some();
        let still = status.borrow_and_update().disk_full && !leads;
        if bond.still.swap(still, Ordering::AcqRel) != still {
            if still {
                warn!("this manager's disk is full: sessions end, nodes turn to other managers");
                bond.stop();
            } else if leads {
                // A follower's leader will speak again.
                bond.heard();
            }
        }
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            changed = leading.changed() => if changed.is_err() { return },
        }
    }
}

async fn watch_leader(dispatcher: &Dispatcher) {
    let bond = &dispatcher.0.bond;
    let mut holds = bond.subscribe();
    loop {
        if holds.wait_for(|holds| *holds).await.is_err() {
            return;
        }
        if dispatcher.leading().is_some() {
            bond.renewed();
        }
        let silent = bond.last().elapsed();
        if silent < LEADERLESS {
            sleep(LEADERLESS - silent).await;
            continue;
        }
        // This manager may itself have been late: what waits to be read is read first.
        sleep(LEADER_BEAT).await;
        if bond.last().elapsed() > LEADERLESS && dispatcher.leading().is_none() {
            warn!("no leader is heard: sessions end, nodes turn to other managers");
            bond.stop();
        }
    }
}
