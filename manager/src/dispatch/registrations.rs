//! Registrations: one of each node at a time, and when the description was written that a node gave last. A node may open
//! sessions as often as it likes; without this each of them would be a write of as much as a description may be, in the line
//! that all nodes share. Used by sessions; it never writes anything itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_proto::id::NodeId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::limits::DESCRIBE_EVERY;

/// Registrations under way. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub(super) struct Registrations(Arc<Mutex<HashMap<NodeId, Entry>>>);

#[derive(Default)]
struct Entry {
    /// A registration is under way.
    busy: bool,
    /// Whose turn is next.
    next: Option<oneshot::Sender<Turn>>,
    /// When a description of the node was written last.
    described: Option<Instant>,
}

/// The node's registration that is under way; the next one's turn comes when it is dropped.
pub(super) struct Turn {
    registrations: Registrations,
    node: NodeId,
}

impl Registrations {
    /// Waits until no other registration of the node is under way. `None`: a newer one came meanwhile, and goes first; an
    /// honest node has given this one up.
    pub(super) async fn turn(&self, node: NodeId) -> Option<Turn> {
        let turn = {
            let mut nodes = self.lock();
            let entry = nodes.entry(node).or_default();
            if std::mem::replace(&mut entry.busy, true) {
                let (sender, turn) = oneshot::channel();
                // Whoever waited until now is told by the loss of its sender.
                entry.next = Some(sender);
                Err(turn)
            } else {
                Ok(Turn { registrations: self.clone(), node })
            }
        };
        match turn {
            Ok(turn) => Some(turn),
            Err(turn) => turn.await.ok(),
        }
    }

    /// From when on the node's description may be written again.
    pub(super) fn describe_at(&self, node: NodeId) -> Option<Instant> {
        self.lock().get(&node)?.described.map(|written| written + DESCRIBE_EVERY)
    }

    /// A description of the node is being written.
    pub(super) fn described(&self, node: NodeId, now: Instant) {
        self.lock().entry(node).or_default().described = Some(now);
    }

    /// Forgets what says nothing any more.
    pub(super) fn sweep(&self, now: Instant) {
        let says = |entry: &Entry| entry.busy || entry.described.is_some_and(|written| written + DESCRIBE_EVERY > now);
        self.lock().retain(|_, entry| says(entry));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let mut nodes = self.registrations.lock();
            let Some(entry) = nodes.get_mut(&self.node) else { return };
            let next = entry.next.take();
            entry.busy = next.is_some();
            next
        };
        if let Some(next) = next {
            // Outside of the lock: if nobody waits any more, the turn comes back and is dropped here.
            let _ = next.send(Turn { registrations: self.registrations.clone(), node: self.node });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::FutureExt as _;

    use super::*;

    const NODE: NodeId = NodeId::new(1);

    #[tokio::test]
    async fn one_registration_of_a_node_at_a_time_and_of_those_that_wait_the_newest() {
        let registrations = Registrations::default();
        let first = registrations.turn(NODE).await.unwrap();
        assert!(registrations.turn(NodeId::new(2)).now_or_never().unwrap().is_some(), "others do not wait");
        let (mut second, mut third) = (Box::pin(registrations.turn(NODE)), Box::pin(registrations.turn(NODE)));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        assert!(second.await.is_none());
        drop(first);
        let third = third.await.unwrap();
        // One that waited and went away takes no turn with it, whenever it goes.
        let mut gone = Box::pin(registrations.turn(NODE));
        assert!(gone.as_mut().now_or_never().is_none());
        drop(third);
        drop(gone);
        let mut gone = Box::pin(registrations.turn(NODE));
        let held = gone.as_mut().now_or_never().unwrap().unwrap();
        let mut waits = Box::pin(registrations.turn(NODE));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(waits);
        drop(held);
        assert!(registrations.turn(NODE).now_or_never().unwrap().is_some());
        registrations.sweep(Instant::now());
        assert!(registrations.lock().is_empty());
    }

    #[tokio::test]
    async fn when_a_node_was_described_is_known_for_as_long_as_it_matters() {
        let (registrations, now) = (Registrations::default(), Instant::now());
        assert_eq!(registrations.describe_at(NODE), None);
        registrations.described(NODE, now);
        drop(registrations.turn(NODE).await);
        registrations.sweep(now);
        assert_eq!(registrations.describe_at(NODE), Some(now + DESCRIBE_EVERY));
        registrations.sweep(now + DESCRIBE_EVERY);
        assert_eq!(registrations.describe_at(NODE), None);
    }
}
