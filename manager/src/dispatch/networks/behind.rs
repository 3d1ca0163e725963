//! Which nodes have not applied a version of a network's table yet, for the leader's drainer, which asks whenever nodes have
//! applied more: in a swarm of a thousand nodes some hundred times for one task. All members are looked at once for each
//! version that is waited for; after that only those that were behind, up to the first that still is. Pure.
//!
//! A node that becomes a member later is no concern: the first table that it gets is as new as its membership.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use skep_proto::id::{NetworkId, NodeId};

/// Nodes that were behind, by network. Made anew now and then, as it remembers what it once saw.
#[derive(Debug, Default)]
pub(crate) struct Behind(BTreeMap<NetworkId, Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// All members but `nodes` have applied this version.
    target: u64,
    nodes: VecDeque<NodeId>,
}

/// What is known of nodes and one network.
pub(crate) struct NodesView<M, C, V> {
    /// All that are to have the table.
    pub(crate) members: M,
    /// Whether a node is one of them, and connected.
    pub(crate) counts: C,
    /// What it has applied. `None`: nothing.
    pub(crate) version: V,
}

impl Behind {
    /// Whether all that count have applied `since`.
    pub(crate) fn all_have<M, C, V>(&mut self, network: NetworkId, since: u64, view: NodesView<M, C, V>) -> bool
    where
        M: FnOnce() -> BTreeSet<NodeId>,
        C: Fn(NodeId) -> bool,
        V: Fn(NodeId) -> Option<u64>,
    {
        let NodesView { members, counts, version } = view;
        let waiting = self.0.entry(network).or_default();
        if since > waiting.target {
            waiting.nodes = members().into_iter().filter(|node| version(*node) < Some(since)).collect();
            waiting.target = since;
        }
        // Those that do not hinder this answer, but may the next.
        let mut passed = Vec::new();
        let mut all = true;
        while let Some(node) = waiting.nodes.pop_front() {
            let has = version(node);
            if has >= Some(waiting.target) {
                continue;
            }
            if has < Some(since) && counts(node) {
                waiting.nodes.push_front(node);
                all = false;
                break;
            }
            passed.push(node);
        }
        waiting.nodes.extend(passed);
        all
    }

    /// Nothing is waited for any more.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const NETWORK: NetworkId = NetworkId::new(1);

    /// Nodes with what they have applied, and whether they are connected.
    struct Nodes {
        all: BTreeMap<NodeId, (Option<u64>, bool)>,
        looks: Cell<usize>,
    }

    impl Nodes {
        fn new(count: u128) -> Self {
            let all = (1..=count).map(|id| (NodeId::new(id), (Some(1), true))).collect();
            Self { all, looks: Cell::new(0) }
        }

        fn ask(&self, behind: &mut Behind, since: u64) -> bool {
            let look = |node| {
                self.looks.set(self.looks.get() + 1);
                self.all.get(&node)
            };
            let view = NodesView {
                members: || self.all.keys().copied().collect(),
                counts: |node| look(node).is_some_and(|(_, connected)| *connected),
                version: |node| look(node).and_then(|(version, _)| *version),
            };
            behind.all_have(NETWORK, since, view)
        }

        fn truth(&self, since: u64) -> bool {
            self.all.values().all(|(version, connected)| !connected || *version >= Some(since))
        }
    }

    #[test]
    fn a_thousand_nodes_that_answer_one_by_one_are_looked_at_a_few_times_each() {
        let mut nodes = Nodes::new(1_000);
        let mut behind = Behind::default();
        // In an order of no pattern; asked after each.
        let order: Vec<NodeId> = (0..1_000_u128).map(|at| NodeId::new(at * 617 % 1_000 + 1)).collect();
        for node in order {
            assert!(!nodes.ask(&mut behind, 2));
            nodes.all.insert(node, (Some(2), true));
        }
        assert!(nodes.ask(&mut behind, 2));
        assert!(nodes.looks.get() < 6_000, "{} looks, not a million", nodes.looks.get());
    }

    /// Whatever comes and goes, it says what looking at all of them says.
    #[test]
    fn says_what_all_say() {
        let mut seed = 1_u64;
        // Numerical Recipes' generator: any order will do.
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) & u64::from(u32::MAX);
            (seed >> 8) % below
        };
        for _ in 0..2_000 {
            let (mut nodes, mut behind) = (Nodes::new(5), Behind::default());
            for _ in 0..40 {
                let node = NodeId::new(u128::from(1 + random(5)));
                let number = random(6);
                let new = match (random(4), nodes.all.get(&node).copied()) {
                    // Nodes only go forward.
                    (0, Some((version, connected))) => Some((version.max(Some(number)), connected)),
                    (1, Some((version, connected))) => Some((version, !connected)),
                    (2, Some(_)) => {
                        nodes.all.remove(&node);
                        None
                    }
                    // One that comes has the newest.
                    (2, None) => Some((Some(6), true)),
                    _ => {
                        assert_eq!(nodes.ask(&mut behind, number), nodes.truth(number));
                        None
                    }
                };
                nodes.all.extend(new.map(|new| (node, new)));
            }
        }
    }
}
