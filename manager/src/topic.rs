//! Wakes whoever waits for a part of the state. Level-triggered: a wake says "look again", the waiter compares
//! snapshots, so that no missed event can mislead it. An event costs its topics' waiters only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

pub use skep_core::watch::Topic;
use tokio::sync::watch;

/// The waiters.
#[derive(Clone, Default)]
pub struct Topics {
    senders: Arc<Mutex<HashMap<Topic, watch::Sender<u64>>>>,
}

/// Waits for a topic.
pub struct TopicWatch {
    receiver: watch::Receiver<u64>,
}

impl Topics {
    /// Starts waiting. What happened before is not reported: take the snapshot after this.
    pub fn watch(&self, topic: Topic) -> TopicWatch {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        // Waiters come and go: forget the topics that nobody waits for, now and then.
        if senders.len() >= 64 && senders.len().is_power_of_two() {
            senders.retain(|_, sender| sender.receiver_count() > 0);
        }
        let sender = senders.entry(topic).or_insert_with(|| watch::channel(0).0);
        TopicWatch { receiver: sender.subscribe() }
    }

    /// Wakes every waiter: the whole state was replaced.
    pub fn wake_all(&self, version: u64) {
        let senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        for sender in senders.values() {
            sender.send_replace(version);
        }
    }

    /// Wakes the waiters of the topics; `version` is the store's.
    pub fn wake(&self, topics: impl IntoIterator<Item = Topic>, version: u64) {
        let senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        for topic in topics {
            if let Some(sender) = senders.get(&topic) {
                sender.send_replace(version);
            }
        }
    }
}

impl TopicWatch {
    /// Returns when the topic changed since the last call. Never returns once the store is gone.
    pub async fn changed(&mut self) {
        if self.receiver.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
