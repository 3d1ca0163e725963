//! Which nodes are heard, and which have been silent for too long. Pure: time comes in as arguments.
//!
//! Used by `pulse.rs` under its lock. Each call is O(log n) in the number of nodes; nothing here writes or waits.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use skep_proto::id::NodeId;

/// After a change of leader the grace ends after this many windows, however slowly registrations trickle in.
const MOST_GRACE_WINDOWS: u32 = 10;
/// A node's deadline is put off at most so often in a row because the manager itself was late.
const MOST_EXCUSES: u8 = 3;

/// A node that was silent for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) node: NodeId,
    /// For how long nothing was heard; since this manager leads, for a node that it never heard.
    pub(crate) silent: Duration,
}

/// Nodes by the moment at which their silence becomes too long.
#[derive(Debug)]
pub(crate) struct Health {
    /// Silence after which a node is lost.
    window: Duration,
    nodes: HashMap<NodeId, Watched>,
    deadlines: BTreeSet<(Instant, NodeId)>,
    awaited: Option<Awaited>,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    heard: Instant,
    deadline: Instant,
    excuses: u8,
}

/// Nodes that had a session with the leader before, and have to come back.
#[derive(Debug)]
struct Awaited {
    nodes: HashSet<NodeId>,
    since: Instant,
    until: Instant,
    at_most: Instant,
}

impl Health {
    /// Watches nobody yet. A node is lost after `window` without a word.
    pub(crate) fn new(window: Duration) -> Self {
        Self { window, nodes: HashMap::new(), deadlines: BTreeSet::new(), awaited: None }
    }

    /// Changes the window, for deadlines that are set from now on.
    pub(crate) fn set_window(&mut self, window: Duration) {
        self.window = window;
    }

    /// Leadership begins: these nodes had sessions, and have one window to come back. It is extended whenever one does,
    /// since the others may only be waiting for their turn.
    pub(crate) fn await_nodes(&mut self, nodes: impl IntoIterator<Item = NodeId>, now: Instant) {
        let nodes: HashSet<NodeId> = nodes.into_iter().filter(|node| !self.nodes.contains_key(node)).collect();
        self.awaited = (!nodes.is_empty()).then(|| Awaited {
            nodes,
            since: now,
            until: now + self.window,
            at_most: now + self.window * MOST_GRACE_WINDOWS,
        });
    }

    /// The node said something.
    pub(crate) fn heard(&mut self, node: NodeId, now: Instant) {
        if let Some(awaited) = &mut self.awaited
            && awaited.nodes.remove(&node)
        {
            awaited.until = awaited.until.max(now + self.window).min(awaited.at_most);
            if awaited.nodes.is_empty() {
                self.awaited = None;
            }
        }
        let watched = Watched { heard: now, deadline: now + self.window, excuses: 0 };
        self.set(node, watched);
    }

    /// The node is none of our business any more (it was removed).
    pub(crate) fn forget(&mut self, node: NodeId) {
        if let Some(old) = self.nodes.remove(&node) {
            self.deadlines.remove(&(old.deadline, node));
        }
        if let Some(awaited) = &mut self.awaited {
            awaited.nodes.remove(&node);
        }
    }

    /// Whether the node was heard and is not lost.
    pub(crate) fn hears(&self, node: NodeId) -> bool {
        self.nodes.contains_key(&node)
    }

    /// When [`Self::expired`] is to be asked next. `None`: when someone new was heard.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let first = self.deadlines.first().map(|(deadline, _)| *deadline);
        let grace = self.awaited.as_ref().map(|awaited| awaited.until);
        first.into_iter().chain(grace).min()
    }

    /// The nodes whose time is up. They are forgotten: each loss is told once.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<Lost> {
        let mut lost = Vec::new();
        while let Some(&(deadline, node)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(watched) = self.nodes.remove(&node) {
                let silent = now.duration_since(watched.heard);
                lost.push(Lost { node, silent });
            }
        }
        if let Some(awaited) = self.awaited.take_if(|awaited| awaited.until <= now) {
            let silent = now.duration_since(awaited.since);
            let mut nodes: Vec<NodeId> = awaited.nodes.into_iter().collect();
            nodes.sort_unstable();
            lost.extend(nodes.into_iter().map(|node| Lost { node, silent }));
        }
        lost
    }

    /// The manager itself was late, so that silence proves nothing: whoever is due now gets another window, though not
    /// for ever.
    pub(crate) fn excuse(&mut self, now: Instant) {
        let due: Vec<NodeId> =
            self.deadlines.iter().take_while(|(deadline, _)| *deadline <= now).map(|(_, node)| *node).collect();
        for node in due {
            if let Some(watched) = self.nodes.get(&node).copied()
                && watched.excuses < MOST_EXCUSES
            {
                let excused = Watched { deadline: now + self.window, excuses: watched.excuses + 1, ..watched };
                self.set(node, excused);
            }
        }
        if let Some(awaited) = &mut self.awaited
            && awaited.until <= now
        {
            awaited.until = (now + self.window).min(awaited.at_most);
        }
    }

    fn set(&mut self, node: NodeId, watched: Watched) {
        if let Some(old) = self.nodes.insert(node, watched) {
            self.deadlines.remove(&(old.deadline, node));
        }
        self.deadlines.insert((watched.deadline, node));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(3);
    const MS: Duration = Duration::from_millis(1);

    fn id(value: u128) -> NodeId {
        NodeId::new(value)
    }

    fn lost(health: &mut Health, now: Instant) -> Vec<u128> {
        let mut nodes: Vec<u128> = health.expired(now).iter().map(|lost| lost.node.value()).collect();
        nodes.sort_unstable();
        nodes
    }

    #[test]
    fn a_silent_node_is_lost_once_and_a_heard_one_is_not() {
        let start = Instant::now();
        let mut health = Health::new(WINDOW);
        assert_eq!(health.next_deadline(), None);
        health.heard(id(1), start);
        health.heard(id(2), start + MS);
        assert_eq!(health.next_deadline(), Some(start + WINDOW));
        health.heard(id(1), start + 2 * MS);
        assert_eq!(health.next_deadline(), Some(start + MS + WINDOW));
        assert_eq!(lost(&mut health, start + WINDOW), [] as [u128; 0]);
        let told = health.expired(start + MS + WINDOW);
        assert_eq!(told, [Lost { node: id(2), silent: WINDOW }]);
        assert!(health.hears(id(1)) && !health.hears(id(2)));
        assert_eq!(lost(&mut health, start + MS + WINDOW), [] as [u128; 0]);
        // It comes back.
        health.heard(id(2), start + 2 * WINDOW);
        assert!(health.hears(id(2)));
    }

    #[test]
    fn a_removed_node_is_never_lost() {
        let start = Instant::now();
        let mut health = Health::new(WINDOW);
        health.heard(id(1), start);
        health.await_nodes([id(2)], start);
        health.forget(id(1));
        health.forget(id(2));
        assert_eq!(lost(&mut health, start + 2 * WINDOW), [] as [u128; 0]);
    }

    #[test]
    fn after_a_change_of_leader_registrations_extend_the_grace() {
        let start = Instant::now();
        let mut health = Health::new(WINDOW);
        health.await_nodes([id(1), id(2), id(3)], start);
        health.heard(id(1), start + WINDOW - MS);
        assert_eq!(lost(&mut health, start + WINDOW), [] as [u128; 0]);
        // A node that nobody waits for extends nothing.
        health.heard(id(9), start + WINDOW + 500 * MS);
        let end = start + WINDOW - MS + WINDOW;
        assert_eq!(health.next_deadline(), Some(end));
        let told = health.expired(end);
        let silent: BTreeMap<_, _> = told.iter().map(|lost| (lost.node, lost.silent)).collect();
        assert_eq!(silent.get(&id(2)), Some(&(2 * WINDOW - MS)));
        assert_eq!(silent.len(), 3, "1 fell silent too: {told:?}");
    }

    #[test]
    fn the_grace_ends_however_slowly_nodes_trickle_in() {
        let start = Instant::now();
        let mut health = Health::new(WINDOW);
        health.await_nodes((0..100).map(id), start);
        let mut now = start;
        for node in 0..99 {
            now += WINDOW - MS;
            health.heard(id(node), now);
            if lost(&mut health, now).contains(&99) {
                break;
            }
        }
        assert!(now <= start + (MOST_GRACE_WINDOWS + 1) * WINDOW);
    }

    #[test]
    fn a_late_manager_excuses_but_not_for_ever() {
        let start = Instant::now();
        let mut health = Health::new(WINDOW);
        health.heard(id(1), start);
        let mut now = start;
        for _ in 0..MOST_EXCUSES {
            now += WINDOW;
            health.excuse(now);
            assert_eq!(lost(&mut health, now), [] as [u128; 0]);
        }
        now += WINDOW;
        health.excuse(now);
        assert_eq!(lost(&mut health, now), [1]);
    }

    /// Against the plainest model there is: for each node the moment it was last heard.
    #[test]
    fn it_agrees_with_a_plain_model() {
        let start = Instant::now();
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let (mut health, mut model) = (Health::new(WINDOW), BTreeMap::<u128, Instant>::new());
        let mut now = start;
        for _ in 0..20_000 {
            now += MS * u32::try_from(random(400)).unwrap();
            let node = u128::from(random(12));
            match random(10) {
                0 => {
                    health.forget(id(node));
                    model.remove(&node);
                }
                1..=6 => {
                    health.heard(id(node), now);
                    model.insert(node, now);
                }
                _ => {
                    let due: Vec<u128> =
                        model.iter().filter(|(_, heard)| **heard + WINDOW <= now).map(|(node, _)| *node).collect();
                    model.retain(|node, _| !due.contains(node));
                    assert_eq!(lost(&mut health, now), due);
                    assert_eq!(health.next_deadline(), model.values().min().map(|heard| *heard + WINDOW));
                }
            }
        }
    }
}
