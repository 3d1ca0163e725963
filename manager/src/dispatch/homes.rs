//! Where nodes have their sessions: the leader's table, and its copy at every other manager. Pure.
//!
//! Of two sessions of a node the one that was registered later counts, in whatever order they are told.

use std::collections::HashMap;

use skep_proto::id::NodeId;
use skep_proto::time::UnixMs;

/// When a node registered. Later ones are greater, wherever they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Registered {
    /// Store version with the registration.
    pub(crate) version: u64,
    /// The swarm's time of it: a registration that changes nothing has the version before it.
    pub(crate) at: UnixMs,
}

/// An open session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    /// Tells it from other sessions of the node at the same manager.
    pub(crate) connection: u64,
    pub(crate) registered: Registered,
}

/// Where a node's session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    pub(crate) manager: NodeId,
    pub(crate) open: Open,
}

/// Homes by node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Homes(HashMap<NodeId, Home>);

/// What makes one table of another.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct HomesDifference {
    pub(crate) put: Vec<(NodeId, Home)>,
    pub(crate) remove: Vec<NodeId>,
}

impl Homes {
    /// Where the node's session is.
    pub(crate) fn of(&self, node: NodeId) -> Option<Home> {
        self.0.get(&node).copied()
    }

    /// A manager has a session of the node. A newer one elsewhere stays.
    pub(crate) fn opened(&mut self, node: NodeId, home: Home) {
        let newer = self
            .of(node)
            .is_some_and(|known| known.manager != home.manager && known.open.registered > home.open.registered);
        if !newer {
            self.0.insert(node, home);
        }
    }

    /// The manager has no session of the node any more.
    pub(crate) fn closed(&mut self, node: NodeId, manager: NodeId) {
        if self.of(node).is_some_and(|home| home.manager == manager) {
            self.0.remove(&node);
        }
    }

    /// All sessions of a manager.
    pub(crate) fn replace(&mut self, manager: NodeId, sessions: impl IntoIterator<Item = (NodeId, Open)>) {
        self.retain_managers(|each| each != manager);
        for (node, open) in sessions {
            self.opened(node, Home { manager, open });
        }
    }

    /// Forgets the sessions of all managers but these.
    pub(crate) fn retain_managers(&mut self, keep: impl Fn(NodeId) -> bool) {
        self.0.retain(|_, home| keep(home.manager));
    }

    /// What the leader says of a node.
    pub(crate) fn put(&mut self, node: NodeId, home: Home) {
        self.0.insert(node, home);
    }

    /// The leader says that the node has no session.
    pub(crate) fn remove(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    /// What is to be said to one who knows `told`.
    pub(crate) fn since(&self, told: &Self) -> HomesDifference {
        let news = self.0.iter().filter(|(node, home)| told.of(**node) != Some(**home));
        let gone = told.0.keys().filter(|node| !self.0.contains_key(node));
        HomesDifference { put: news.map(|(node, home)| (*node, *home)).collect(), remove: gone.copied().collect() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const A: NodeId = NodeId::new(101);
    const B: NodeId = NodeId::new(102);
    const NODE: NodeId = NodeId::new(1);

    fn open(connection: u64, version: u64) -> Open {
        Open {
            connection,
            registered: Registered { version: version / 2, at: UnixMs(i64::try_from(version % 2).unwrap()) },
        }
    }

    fn home(manager: NodeId, connection: u64, version: u64) -> Home {
        Home { manager, open: open(connection, version) }
    }

    #[test]
    fn the_newer_registration_counts_in_whatever_order_it_is_told() {
        for order in [[home(A, 0, 8), home(B, 0, 9)], [home(B, 0, 9), home(A, 0, 8)]] {
            let mut homes = Homes::default();
            order.into_iter().for_each(|home| homes.opened(NODE, home));
            assert_eq!(homes.of(NODE), Some(home(B, 0, 9)));
            // The older one's end is no news.
            homes.closed(NODE, A);
            assert_eq!(homes.of(NODE), Some(home(B, 0, 9)));
            homes.closed(NODE, B);
            assert_eq!(homes.of(NODE), None);
        }
    }

    #[test]
    fn a_manager_speaks_for_itself_only() {
        let mut homes = Homes::default();
        homes.replace(A, [(NODE, open(1, 5)), (NodeId::new(2), open(2, 6))]);
        homes.replace(B, [(NODE, open(1, 7))]);
        homes.replace(A, [(NODE, open(1, 5))]);
        assert_eq!(homes.of(NODE), Some(home(B, 1, 7)));
        assert_eq!(homes.of(NodeId::new(2)), None);
        homes.retain_managers(|manager| manager == A);
        assert_eq!(homes, Homes::default());
    }

    #[test]
    fn differences_add_up() {
        let (mut homes, mut told) = (Homes::default(), Homes::default());
        let mut seed = 3_u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        for round in 0..2_000 {
            let node = NodeId::new(u128::from(random(9)));
            let manager = if random(2) == 0 { A } else { B };
            match random(5) {
                0 => homes.closed(node, manager),
                1 => homes.replace(manager, [(node, open(round, round))]),
                _ => homes.opened(node, home(manager, round, random(round + 1))),
            }
            if random(3) == 0 {
                let news = homes.since(&told);
                news.remove.into_iter().for_each(|node| told.remove(node));
                news.put.into_iter().for_each(|(node, home)| told.put(node, home));
                assert_eq!(homes, told);
                assert_eq!(homes.since(&told), HomesDifference::default());
            }
        }
    }
}
