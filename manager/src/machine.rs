//! The state machine behind Raft: decodes committed entries, applies them, publishes the new state, wakes whoever
//! waits for what changed, and feeds the leader's loops.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use skep_core::codec;
use skep_core::event::Event;
use skep_core::store::State;
use skep_core::watch;
use skep_proto::time::UnixMs;
use skep_raft::{FatalError, Snapshot, StateMachine};
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::loops::Feed;
use crate::store::Applied;

/// Where the loops' feed goes while this manager leads.
pub(crate) type FeedSlot = Arc<Mutex<Option<mpsc::UnboundedSender<Feed>>>>;

/// The machine.
pub(crate) struct Machine {
    state: State,
    applied: Applied,
    feed: FeedSlot,
    clock: Clock,
}

impl Machine {
    /// `clock` is never behind what the machine has applied.
    pub(crate) fn new(applied: Applied, feed: FeedSlot, clock: Clock) -> Self {
        Self { state: applied.state(), applied, feed, clock }
    }

    fn publish(&self, events: Vec<Event>) {
        let topics = watch::topics(&events, &self.state);
        self.applied.publish(self.state.clone(), topics);
        let events: Arc<[Event]> = events.into();
        self.applied.tell(&events, &self.state, false);
        let feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(feed) = feed.as_ref() {
            // The loops are ending: what they miss now they find at their next start.
            let _ = feed.send(Feed { events });
        }
    }
}

impl StateMachine for Machine {
    /// Store version after each transaction of the entry; 0 for one that changed nothing, as it was refused or is a retry.
    type Response = Vec<u64>;
    type Snapshot = Frozen;

    fn apply(&mut self, _index: u64, entry: &[u8]) -> Result<Self::Response, FatalError> {
        let transactions = codec::decode_entry(entry).map_err(FatalError::new)?;
        let mut versions = Vec::with_capacity(transactions.len());
        let mut events = Vec::new();
        for transaction in &transactions {
            self.clock.at_least(transaction.at);
            let applied = self.state.apply(transaction);
            versions.push(if applied.events.is_empty() { 0 } else { applied.version });
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

    /// Everything may be different: everyone who waits for anything looks again. Only a follower's machine is restored,
    /// so that loops which still run here are those of a lost lead, and end.
    fn restore(&mut self, _index: u64, from: &mut dyn Read) -> Result<(), FatalError> {
        self.state = codec::read_snapshot(from).map_err(FatalError::new)?;
        self.clock.at_least(latest_write(&self.state));
        self.applied.replace(self.state.clone());
        let nothing: Arc<[Event]> = Arc::new([]);
        self.applied.tell(&nothing, &self.state, true);
        *self.feed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}

/// The leader's time of the latest write that the state shows.
fn latest_write(state: &State) -> UnixMs {
    let objects = state.objects();
    let written = objects.filter_map(|object| object.meta()).map(|meta| meta.updated_at);
    written.chain(state.requests().map(|request| request.at)).max().unwrap_or(UnixMs::ZERO)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_core::change::{Change, Group, Op, Transaction};
    use skep_core::object::{ImageName, Meta};
    use skep_proto::id::NodeId;

    use super::*;
    use crate::topic::Topic;

    fn entry(name: &str, at: UnixMs) -> Vec<u8> {
        let image = ImageName { name: name.into(), meta: Meta::default(), digest: "d".into(), platforms: Vec::new() };
        let group = Group(vec![Change::create(Op::PutImageName(image))]);
        codec::encode_entry(&[Transaction { groups: vec![group], at, ..Transaction::default() }])
    }

    fn machine() -> (Machine, Applied, FeedSlot, Clock) {
        let (applied, feed, clock) = (Applied::new(State::default()), FeedSlot::default(), Clock::start());
        (Machine::new(applied.clone(), Arc::clone(&feed), clock.clone()), applied, feed, clock)
    }

    #[tokio::test]
    async fn an_installed_snapshot_wakes_everyone_and_ends_the_loops() {
        let (mut source, ..) = machine();
        let later = Clock::start().now().plus(std::time::Duration::from_secs(3600));
        source.apply(1, &entry("web", later)).unwrap();
        let mut snapshot = Vec::new();
        source.freeze().write(&mut snapshot).unwrap();

        let (mut machine, applied, feed, clock) = machine();
        let (fed, mut loops) = mpsc::unbounded_channel();
        *feed.lock().unwrap() = Some(fed);
        let topics = [Topic::All, Topic::Nodes, Topic::Services, Topic::Cluster, Topic::Node(NodeId::new(1))];
        let mut watches: Vec<_> = topics.into_iter().map(|topic| applied.watch(topic)).collect();
        machine.restore(1, &mut snapshot.as_slice()).unwrap();
        for watch in &mut watches {
            watch.changed().await;
        }
        assert!(applied.state().image_name("web").is_some());
        assert_eq!((applied.version(), machine.freeze().digest()), (1, source.freeze().digest()));
        assert!(loops.recv().await.is_none(), "a restored machine has no loops");
        assert!(clock.now() >= later, "the clock is not behind what was written");
    }
}
