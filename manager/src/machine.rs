//! The state machine behind Raft: decodes committed entries, applies them, publishes the new state, wakes whoever
//! waits for what changed, and feeds the leader's loops.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use skep_core::codec;
use skep_core::event::Event;
use skep_core::store::State;
use skep_core::watch;
use skep_raft::{FatalError, Snapshot, StateMachine};
use tokio::sync::mpsc;

use crate::loops::Feed;
use crate::store::Applied;

/// Where the loops' feed goes while this manager leads.
pub(crate) type FeedSlot = Arc<Mutex<Option<mpsc::UnboundedSender<Feed>>>>;

/// The machine.
pub(crate) struct Machine {
    state: State,
    applied: Applied,
    feed: FeedSlot,
}

impl Machine {
    pub(crate) fn new(applied: Applied, feed: FeedSlot) -> Self {
        Self { state: applied.state(), applied, feed }
    }

    fn publish(&self, events: Vec<Event>) {
        let topics = watch::topics(&events, &self.state);
        self.applied.publish(self.state.clone(), topics);
        let feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(feed) = feed.as_ref() {
            // The loops are ending: what they miss now they find at their next start.
            let _ = feed.send(Feed { events });
        }
    }
}

impl StateMachine for Machine {
    /// Store version after each transaction of the entry.
    type Response = Vec<u64>;
    type Snapshot = Frozen;

    fn apply(&mut self, _index: u64, entry: &[u8]) -> Result<Self::Response, FatalError> {
        let transactions = codec::decode_entry(entry).map_err(FatalError::new)?;
        let mut versions = Vec::with_capacity(transactions.len());
        let mut events = Vec::new();
        for transaction in &transactions {
            let applied = self.state.apply(transaction);
            versions.push(applied.version);
            events.extend(applied.events);
        }
        self.publish(events);
        Ok(versions)
    }

    fn count_changes(&self, entry: &[u8]) -> u64 {
        // An entry that does not decode is refused by `apply`; its count does not matter.
        let transactions = codec::decode_entry(entry).unwrap_or_default();
        let changes = transactions.iter().flat_map(|transaction| &transaction.groups).map(|group| group.0.len());
        changes.sum::<usize>() as u64
    }

    fn freeze(&self) -> Frozen {
        Frozen(self.state.clone())
    }

    fn restore(&mut self, _index: u64, from: &mut dyn Read) -> Result<(), FatalError> {
        self.state = codec::read_snapshot(from).map_err(FatalError::new)?;
        // Everything may be different: whoever waits for anything looks again when the next entry comes.
        self.publish(Vec::new());
        Ok(())
    }
}

/// A state to be written to a snapshot; an O(1) clone.
pub(crate) struct Frozen(State);

impl Snapshot for Frozen {
    fn write(&self, to: &mut dyn Write) -> std::io::Result<()> {
        codec::write_snapshot(&self.0, to)
    }

    fn digest(&self) -> Option<[u8; 32]> {
        Some(self.0.digest())
    }
}
