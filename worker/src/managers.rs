//! Which manager to try next, and after what pause. Pure: random numbers come from the caller.
//!
//! Used by the session after every lost or refused connection.

use std::time::Duration;

use skep_proto::id::NodeId;
use skep_proto::v1::ManagerAddr;

/// First pause after all known managers failed once.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause while no manager has told its heartbeat's period.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Known managers, in a random order that changes with every round of tries: nodes spread over all of them. Only two have
/// a place of their own: the manager on this host is tried first, the one that was just lost last.
#[derive(Debug, Clone)]
pub struct ManagerPicker {
    own: NodeId,
    /// Told by a manager; the seeds where none was.
    known: Vec<ManagerAddr>,
    seeds: Vec<String>,
    /// Not yet tried in this round; the last one is next.
    round: Vec<String>,
    /// The manager whose session was lost, until another one took the node in.
    lost: Option<String>,
    /// Rounds that failed wholly since the last success.
    failed_rounds: u32,
    longest_pause: Duration,
}

impl ManagerPicker {
    /// `seeds` are tried when nothing else is known or when all that is known fails. `own` is this node.
    pub fn new(own: NodeId, seeds: Vec<String>, known: Vec<ManagerAddr>) -> Self {
        Self { own, known, seeds, round: Vec::new(), lost: None, failed_rounds: 0, longest_pause: LONGEST_PAUSE }
    }

    /// Takes a new list. An empty one is ignored: it would strand the node.
    pub fn learn(&mut self, managers: Vec<ManagerAddr>) {
        if !managers.is_empty() && managers != self.known {
            self.known = managers;
            self.round.clear();
        }
    }

    /// Takes the period of the managers' heartbeat as the longest pause. A manager that begins to lead waits for three
    /// periods before a node counts as down: however long there was none, every node must have tried it by then.
    pub fn heartbeat(&mut self, period: Duration) {
        self.longest_pause = period.max(FIRST_PAUSE);
    }

    /// A manager took the node in.
    pub fn succeeded(&mut self) {
        self.failed_rounds = 0;
        self.round.clear();
        self.lost = None;
    }

    /// The session at this manager broke off: the others come first.
    pub fn lost(&mut self, addr: &str) {
        self.succeeded();
        self.lost = Some(addr.to_owned());
    }

    /// Whether there is another manager than this one to turn to.
    pub fn has_other_than(&self, addr: &str) -> bool {
        self.known.iter().any(|manager| manager.addr != addr)
    }

    /// The next address and how long to wait before it. `random` gives a number in 0..n. `None`: no manager is known.
    pub fn next(&mut self, mut random: impl FnMut(u64) -> u64) -> Option<(String, Duration)> {
        let mut pause = Duration::ZERO;
        if self.round.is_empty() {
            self.begin_round(&mut random);
            pause = self.pause(&mut random);
            self.failed_rounds = self.failed_rounds.saturating_add(1);
        }
        self.round.pop().map(|addr| (addr, pause))
    }

    fn begin_round(&mut self, random: &mut impl FnMut(u64) -> u64) {
        // The seeds join in only after a whole round of known managers failed.
        let seeds = self.known.is_empty() || self.failed_rounds > 0;
        self.round = self.known.iter().map(|manager| manager.addr.clone()).collect();
        for seed in self.seeds.iter().filter(|_| seeds) {
            if !self.round.contains(seed) {
                self.round.push(seed.clone());
            }
        }
        for at in (1..self.round.len()).rev() {
            let other = usize::try_from(random(at as u64 + 1)).unwrap_or(0);
            self.round.swap(at, other.min(at));
        }
        let own = self.known.iter().find(|manager| NodeId::from_wire(&manager.node_id) == Ok(self.own));
        // A stable sort: the others keep their random order.
        let place = |addr: &String| match () {
            () if Some(addr) == self.lost.as_ref() => 0,
            () if own.is_some_and(|own| own.addr == *addr) => 2,
            () => 1,
        };
        self.round.sort_by_key(place);
    }

    /// Random between half of and the whole of 100 ms × 2^n, so that nodes do not come back in step. After a success
    /// the first try still waits up to 100 ms: all nodes of a lost manager start at the same moment.
    fn pause(&self, random: &mut impl FnMut(u64) -> u64) -> Duration {
        if self.failed_rounds == 0 {
            return Duration::from_millis(random(FIRST_PAUSE.as_millis() as u64));
        }
        let longest = FIRST_PAUSE.saturating_mul(1 << (self.failed_rounds - 1).min(16)).min(self.longest_pause);
        let half = longest / 2;
        half + Duration::from_millis(random(half.as_millis() as u64 + 1))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const OWN: NodeId = NodeId::new(7);

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn managers(list: &[&str]) -> Vec<ManagerAddr> {
        let manager = |(number, name): (usize, &&str)| ManagerAddr {
            node_id: NodeId::new(number as u128 + 5).to_vec(),
            addr: (*name).to_owned(),
        };
        list.iter().enumerate().map(manager).collect()
    }

    #[test]
    fn all_known_managers_are_tried_before_a_pause_then_the_seeds_too() {
        let mut picker = ManagerPicker::new(NodeId::new(1), names(&["s"]), managers(&["a", "b", "c"]));
        let mut first: Vec<_> = (0..3).map(|_| picker.next(|n| n - 1).unwrap()).collect();
        assert!(first[0].1 < FIRST_PAUSE && first[1].1.is_zero() && first[2].1.is_zero());
        first.sort();
        assert!(first.iter().map(|(addr, _)| addr.as_str()).eq(["a", "b", "c"]));
        let second: Vec<_> = (0..4).map(|_| picker.next(|n| n - 1).unwrap()).collect();
        assert!(second.iter().any(|(addr, _)| addr == "s"));
        assert_eq!(second[0].1, FIRST_PAUSE);
    }

    #[test]
    fn pauses_grow_to_a_heartbeat_and_start_anew_after_success() {
        let mut picker = ManagerPicker::new(OWN, names(&["s"]), Vec::new());
        let pauses: Vec<_> = (0..7).map(|_| picker.next(|_| 0).unwrap().1.as_millis()).collect();
        assert_eq!(pauses, [0, 50, 100, 200, 400, 500, 500]);
        assert_eq!(picker.next(|n| n - 1).unwrap().1, LONGEST_PAUSE);

        let mut picker = ManagerPicker::new(OWN, names(&["s"]), Vec::new());
        picker.heartbeat(Duration::from_secs(5));
        let pauses: Vec<_> = (0..12).map(|_| picker.next(|_| 0).unwrap().1.as_millis()).collect();
        assert_eq!(pauses, [0, 50, 100, 200, 400, 800, 1600, 2500, 2500, 2500, 2500, 2500]);
        assert_eq!(picker.next(|n| n - 1).unwrap().1, Duration::from_secs(5));
        picker.succeeded();
        assert_eq!(picker.next(|_| 0).unwrap().1, Duration::ZERO);
    }

    #[test]
    fn an_empty_list_does_not_strand_the_node() {
        let mut picker = ManagerPicker::new(OWN, Vec::new(), managers(&["a"]));
        picker.learn(Vec::new());
        assert_eq!(picker.next(|_| 0).unwrap().0, "a");
        assert!(ManagerPicker::new(OWN, Vec::new(), Vec::new()).next(|_| 0).is_none());
    }

    #[test]
    fn the_own_manager_comes_first_and_the_lost_one_last() {
        let order = |picker: &mut ManagerPicker, seed: u64| -> Vec<String> {
            (0..4).map(|_| picker.next(|n| seed % n).unwrap().0).collect()
        };
        for seed in 0..20 {
            // The third one is this node's.
            let mut picker = ManagerPicker::new(OWN, Vec::new(), managers(&["a", "b", "own", "d"]));
            assert_eq!(order(&mut picker, seed)[0], "own");
            picker.lost("own");
            assert_eq!(order(&mut picker, seed)[3], "own");
            picker.lost("b");
            let tried = order(&mut picker, seed);
            assert_eq!((tried[0].as_str(), tried[3].as_str()), ("own", "b"));
            picker.succeeded();
            assert!(order(&mut picker, seed).contains(&"b".to_owned()));
        }
    }

    #[test]
    fn nodes_spread_over_the_managers() {
        let mut first = std::collections::BTreeMap::<String, u32>::new();
        let mut seed = 1_u64;
        for _ in 0..900 {
            let mut picker = ManagerPicker::new(NodeId::new(1), Vec::new(), managers(&["a", "b", "c"]));
            let random = |n| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 33) % n
            };
            *first.entry(picker.next(random).unwrap().0).or_default() += 1;
        }
        assert!(first.len() == 3 && first.values().all(|count| (200..400).contains(count)), "{first:?}");
    }
}
