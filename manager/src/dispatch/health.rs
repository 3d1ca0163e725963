//! Which nodes are heard, and which have been silent for too long. Pure: time comes in as arguments.
//!
//! Used by `pulse.rs` under its lock. Calls for one node are O(log n) in the number of nodes; nothing here writes or waits.
//!
//! Nodes are heard by the leader itself, or by other managers that relay it. A relay that is late is not the nodes'
//! fault: they are excused for a while.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use skep_proto::id::NodeId;

/// After a change of leader the grace ends after this many windows, however slowly registrations trickle in.
const MOST_GRACE_WINDOWS: u32 = 10;
/// A node's deadline is put off at most so often in a row because a manager was late.
const MOST_EXCUSES: u8 = 3;
/// A manager that relayed nothing for so long is late: four of its messages are missing.
const RELAY_LATE: Duration = Duration::from_secs(1);

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
    /// Managers that relay, each with the moment of its last message.
    relays: HashMap<NodeId, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    /// When it was heard, or else since when it should have been.
    since: Instant,
    /// Not only expected.
    heard: bool,
    /// The manager that relayed it; `None`: this one.
    via: Option<NodeId>,
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
        Self { window, nodes: HashMap::new(), deadlines: BTreeSet::new(), awaited: None, relays: HashMap::new() }
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

    /// The node should have a session, says the state: it is watched from now on, if it was not before.
    pub(crate) fn expect(&mut self, node: NodeId, now: Instant) {
        let awaited = self.awaited.as_ref().is_some_and(|awaited| awaited.nodes.contains(&node));
        if !awaited && !self.nodes.contains_key(&node) {
            let deadline = now + self.window;
            self.set(node, Watched { since: now, heard: false, via: None, deadline, excuses: 0 });
        }
    }

    /// A manager relays, whatever it is.
    pub(crate) fn relay_heard(&mut self, relay: NodeId, now: Instant) {
        self.relays.insert(relay, now);
    }

    /// A manager relays no more: its nodes have a window from now on to come back through another one.
    pub(crate) fn relay_lost(&mut self, relay: NodeId, now: Instant) {
        self.relays.remove(&relay);
        let its = self.nodes.iter().filter(|(_, watched)| watched.via == Some(relay));
        let its: Vec<(NodeId, Watched)> = its.map(|(node, watched)| (*node, *watched)).collect();
        for (node, watched) in its {
            let deadline = watched.deadline.max(now + self.window);
            self.set(node, Watched { via: None, deadline, ..watched });
        }
    }

    /// The node said something, here or (`via`) to another manager.
    pub(crate) fn heard(&mut self, node: NodeId, via: Option<NodeId>, now: Instant) {
        if let Some(awaited) = &mut self.awaited
            && awaited.nodes.remove(&node)
        {
            awaited.until = awaited.until.max(now + self.window).min(awaited.at_most);
            if awaited.nodes.is_empty() {
                self.awaited = None;
            }
        }
        let watched = Watched { since: now, heard: true, via, deadline: now + self.window, excuses: 0 };
        self.set(node, watched);
    }

    /// Forgets all nodes but these.
    pub(crate) fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        let awaited = self.awaited.iter().flat_map(|awaited| &awaited.nodes);
        let gone: Vec<NodeId> = self.nodes.keys().chain(awaited).copied().filter(|node| !keep(*node)).collect();
        gone.into_iter().for_each(|node| self.forget(node));
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
        self.nodes.get(&node).is_some_and(|watched| watched.heard)
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
            let Some(watched) = self.nodes.get(&node).copied() else {
                self.deadlines.pop_first();
                continue;
            };
            let relay = watched.via.and_then(|relay| self.relays.get(&relay));
            if relay.is_some_and(|last| now.duration_since(*last) > RELAY_LATE) && watched.excuses < MOST_EXCUSES {
                let deadline = now + self.window;
                self.set(node, Watched { deadline, excuses: watched.excuses + 1, ..watched });
                continue;
            }
            self.deadlines.pop_first();
            self.nodes.remove(&node);
            let silent = now.duration_since(watched.since);
            lost.push(Lost { node, silent });
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
        health.heard(id(1), None, start);
        health.heard(id(2), None, start + MS);
        assert_eq!(health.next_deadline(), Some(start + WINDOW));
        health.heard(id(1), None, start + 2 * MS);
        assert_eq!(health.next_deadline(), Some(start + MS + WINDOW));
        assert_eq!(lost(&mut health, start + WINDOW), [] as [u128; 0]);
        let told = health.expired(start + MS + WINDOW);
        assert_eq!(told, [Lost { node: id(2), silent: WINDOW }]);
        assert!(health.hears(id(1)) && !health.hears(id(2)));
        assert_eq!(lost(&mut health, start + MS + WINDOW), [] as [u128; 0]);
        // It comes back.
        health.heard(id(2), None, start + 2 * WINDOW);
        assert!(health.hears(id(2)));
    }

    #[test]
    fn a_removed_node_is_never_lost() {
        let start = Instant::now();
        let mut health = Health::new(WINDOW);
        health.heard(id(1), None, start);
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
        health.heard(id(1), None, start + WINDOW - MS);
        assert_eq!(lost(&mut health, start + WINDOW), [] as [u128; 0]);
        // A node that nobody waits for extends nothing.
        health.heard(id(9), None, start + WINDOW + 500 * MS);
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
            health.heard(id(node), None, now);
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
        health.heard(id(1), None, start);
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

    #[test]
    fn an_expected_node_is_watched_but_not_heard() {
        let start = Instant::now();
        let mut health = Health::new(WINDOW);
        health.await_nodes([id(2)], start);
        health.heard(id(3), None, start + MS);
        for node in 1..=3 {
            health.expect(id(node), start + MS);
        }
        assert!(!health.hears(id(1)) && health.hears(id(3)));
        assert_eq!(lost(&mut health, start + MS + WINDOW), [1, 2, 3]);
        // Nobody wrote it down yet: it is told again, later.
        health.expect(id(1), start + 2 * WINDOW);
        assert_eq!(lost(&mut health, start + 2 * WINDOW), [] as [u128; 0]);
        assert_eq!(lost(&mut health, start + 3 * WINDOW), [1]);
        health.expect(id(4), start);
        health.retain(|_| false);
        assert_eq!(health.next_deadline(), None);
    }

    #[test]
    fn a_late_relay_excuses_its_nodes_for_a_while() {
        let start = Instant::now();
        let (mut health, relay) = (Health::new(WINDOW), id(100));
        health.relay_heard(relay, start);
        health.heard(id(1), Some(relay), start);
        health.heard(id(2), None, start);
        let mut now = start;
        now += WINDOW;
        assert_eq!(lost(&mut health, now), [2], "its relay says nothing either");
        now += WINDOW;
        assert_eq!(lost(&mut health, now), [] as [u128; 0]);
        now += WINDOW;
        health.relay_heard(relay, now - MS);
        assert_eq!(lost(&mut health, now), [1], "the relay is back and has not heard it");
        health.heard(id(1), Some(relay), now);
        for _ in 0..MOST_EXCUSES {
            now += WINDOW;
            assert_eq!(lost(&mut health, now), [] as [u128; 0]);
        }
        assert_eq!(lost(&mut health, now + WINDOW), [1]);
    }

    #[test]
    fn nodes_of_a_lost_relay_have_a_window_to_come_back() {
        let start = Instant::now();
        let (mut health, relay) = (Health::new(WINDOW), id(100));
        health.relay_heard(relay, start);
        for node in 1..=3 {
            health.heard(id(node), Some(relay), start);
        }
        let gone = start + WINDOW / 2;
        health.relay_lost(relay, gone);
        health.heard(id(1), None, gone + WINDOW / 2);
        health.heard(id(2), Some(id(101)), gone + WINDOW / 2);
        assert_eq!(lost(&mut health, gone + WINDOW - MS), [] as [u128; 0]);
        assert_eq!(lost(&mut health, gone + WINDOW), [3]);
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
                    health.heard(id(node), None, now);
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
