//! Picks nodes so that tasks spread evenly: first over the values of the preferred labels, outermost first, then over
//! nodes. A heap at each level, so that n picks from m nodes cost O(m + n log m).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// What decides between nodes of one leaf: the smallest is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// The node failed this revision often of late.
    pub(super) failing: bool,
    /// Tasks of the service on it.
    pub(super) of_service: u64,
    /// Tasks on it.
    pub(super) tasks: u64,
    /// Seeded hash: ties fall differently in every pass.
    pub(super) tie: u64,
}

/// A node on offer.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    /// Index of the candidate.
    pub(super) candidate: usize,
    pub(super) rank: Rank,
    /// Values of the preferred labels, outermost first. A missing label is a branch of its own.
    pub(super) path: Vec<String>,
}

/// What a try of a candidate came to.
pub(super) enum Try {
    /// Placed; the rank it has from now on.
    Placed(Rank),
    /// It has no room; it is not offered again.
    Full,
}

/// The tree of offers.
pub(super) struct Spread {
    /// Tasks of the service below.
    tasks: u64,
    level: Level,
}

enum Level {
    Branches { order: BinaryHeap<Reverse<(u64, usize)>>, branches: Vec<Spread> },
    Nodes(BinaryHeap<Reverse<(Rank, usize)>>),
}

impl Spread {
    /// Builds the tree; every path must have the same length.
    pub(super) fn new(offers: Vec<Offer>) -> Self {
        Self::build(offers, 0)
    }

    fn build(offers: Vec<Offer>, depth: usize) -> Self {
        let tasks = offers.iter().map(|offer| offer.rank.of_service).sum();
        let deeper = offers.first().is_some_and(|offer| offer.path.len() > depth);
        if !deeper {
            let nodes = offers.into_iter().map(|offer| Reverse((offer.rank, offer.candidate))).collect();
            return Self { tasks, level: Level::Nodes(nodes) };
        }
        let mut by_value: BTreeMap<String, Vec<Offer>> = BTreeMap::new();
        for offer in offers {
            by_value.entry(offer.path[depth].clone()).or_default().push(offer);
        }
        let branches: Vec<Self> = by_value.into_values().map(|offers| Self::build(offers, depth + 1)).collect();
        let order = branches.iter().enumerate().map(|(index, branch)| Reverse((branch.tasks, index))).collect();
        Self { tasks, level: Level::Branches { order, branches } }
    }

    /// Offers candidates, best first, until `attempt` places one. `None` when all are full.
    pub(super) fn pick(&mut self, attempt: &mut dyn FnMut(usize) -> Try) -> Option<usize> {
        let picked = match &mut self.level {
            Level::Nodes(nodes) => loop {
                let Reverse((_, candidate)) = nodes.pop()?;
                if let Try::Placed(rank) = attempt(candidate) {
                    nodes.push(Reverse((rank, candidate)));
                    break candidate;
                }
            },
            Level::Branches { order, branches } => loop {
                let Reverse((_, index)) = order.pop()?;
                if let Some(candidate) = branches[index].pick(attempt) {
                    order.push(Reverse((branches[index].tasks, index)));
                    break candidate;
                }
            },
        };
        self.tasks += 1;
        Some(picked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(candidate: usize, of_service: u64, path: &[&str]) -> Offer {
        let rank = Rank { failing: false, of_service, tasks: of_service, tie: 0 };
        Offer { candidate, rank, path: path.iter().map(|value| (*value).to_owned()).collect() }
    }

    fn place(spread: &mut Spread, counts: &mut [u64], room: u64) -> Option<usize> {
        spread.pick(&mut |candidate| {
            if counts[candidate] >= room {
                return Try::Full;
            }
            counts[candidate] += 1;
            let count = counts[candidate];
            Try::Placed(Rank { failing: false, of_service: count, tasks: count, tie: 0 })
        })
    }

    #[test]
    fn labels_come_before_nodes() {
        // One node in zone a, three in zone b: half of the tasks go to a.
        let mut counts = [0; 4];
        let mut spread =
            Spread::new(vec![offer(0, 0, &["a"]), offer(1, 0, &["b"]), offer(2, 0, &["b"]), offer(3, 0, &["b"])]);
        for _ in 0..12 {
            place(&mut spread, &mut counts, 100);
        }
        assert_eq!(counts, [6, 2, 2, 2]);
    }

    #[test]
    fn a_full_branch_overflows_into_the_others() {
        let mut counts = [0; 2];
        let mut spread = Spread::new(vec![offer(0, 0, &["a"]), offer(1, 0, &["b"])]);
        let mut placed = 0;
        while place(&mut spread, &mut counts, 2).is_some() {
            placed += 1;
        }
        assert_eq!((placed, counts), (4, [2, 2]));
    }
}
