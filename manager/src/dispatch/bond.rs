//! Whether this manager hears a leader, which is what its sessions rest on: without one, nothing that nodes report is
//! stored, and nobody learns that they live. Sessions then end, so that nodes turn to managers that do.
//!
//! The leader is heard by its messages to this manager (`relay/client.rs`). That another one leads now is a reason to wait
//! for it as long again.

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
}

impl Bond {
    /// Nothing was heard yet.
    pub(super) fn new() -> Self {
        Self { heard: Mutex::new(Instant::now()), holds: watch::channel(false).0 }
    }

    /// The leader spoke to this manager, or is this manager.
    pub(super) fn heard(&self) {
        self.renewed();
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

/// Ends the bond when no leader is heard for too long.
pub(super) async fn watch(dispatcher: Dispatcher) {
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
