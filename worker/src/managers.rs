//! Which manager to try next, and after what pause. Pure: random numbers come from the caller.
//!
//! Used by the session after every lost or refused connection.

use std::time::Duration;

/// First pause after all known managers failed once.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause while no manager has told its heartbeat's period.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Known managers, in a random order that changes with every round of tries.
#[derive(Debug, Clone)]
pub struct ManagerPicker {
    /// Addresses told by a manager; the seeds where none was.
    known: Vec<String>,
    seeds: Vec<String>,
    /// Not yet tried in this round.
    round: Vec<String>,
    /// Rounds that failed wholly since the last success.
    failed_rounds: u32,
    longest_pause: Duration,
}

impl Default for ManagerPicker {
    fn default() -> Self {
        Self { known: Vec::new(), seeds: Vec::new(), round: Vec::new(), failed_rounds: 0, longest_pause: LONGEST_PAUSE }
    }
}

impl ManagerPicker {
    /// `seeds` are tried when nothing else is known or when all that is known fails.
    pub fn new(seeds: Vec<String>, known: Vec<String>) -> Self {
        Self { known, seeds, ..Self::default() }
    }

    /// Takes a new list. An empty one is ignored: it would strand the node.
    pub fn learn(&mut self, addrs: Vec<String>) {
        if !addrs.is_empty() && addrs != self.known {
            self.known = addrs;
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
    }

    /// The next address and how long to wait before it. `random` gives a number in 0..n. `None`: no manager is known.
    pub fn next(&mut self, mut random: impl FnMut(u64) -> u64) -> Option<(String, Duration)> {
        let mut pause = Duration::ZERO;
        if self.round.is_empty() {
            // The seeds join in only after a whole round of known managers failed.
            let seeds = self.known.is_empty() || self.failed_rounds > 0;
            self.round.clone_from(&self.known);
            for seed in self.seeds.iter().filter(|_| seeds) {
                if !self.round.contains(seed) {
                    self.round.push(seed.clone());
                }
            }
            for at in (1..self.round.len()).rev() {
                let other = usize::try_from(random(at as u64 + 1)).unwrap_or(0);
                self.round.swap(at, other.min(at));
            }
            pause = self.pause(&mut random);
            self.failed_rounds = self.failed_rounds.saturating_add(1);
        }
        self.round.pop().map(|addr| (addr, pause))
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

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn all_known_managers_are_tried_before_a_pause_then_the_seeds_too() {
        let mut picker = ManagerPicker::new(names(&["s"]), names(&["a", "b", "c"]));
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
        let mut picker = ManagerPicker::new(names(&["s"]), Vec::new());
        let pauses: Vec<_> = (0..7).map(|_| picker.next(|_| 0).unwrap().1.as_millis()).collect();
        assert_eq!(pauses, [0, 50, 100, 200, 400, 500, 500]);
        assert_eq!(picker.next(|n| n - 1).unwrap().1, LONGEST_PAUSE);

        let mut picker = ManagerPicker::new(names(&["s"]), Vec::new());
        picker.heartbeat(Duration::from_secs(5));
        let pauses: Vec<_> = (0..12).map(|_| picker.next(|_| 0).unwrap().1.as_millis()).collect();
        assert_eq!(pauses, [0, 50, 100, 200, 400, 800, 1600, 2500, 2500, 2500, 2500, 2500]);
        assert_eq!(picker.next(|n| n - 1).unwrap().1, Duration::from_secs(5));
        picker.succeeded();
        assert_eq!(picker.next(|_| 0).unwrap().1, Duration::ZERO);
    }

    #[test]
    fn an_empty_list_does_not_strand_the_node() {
        let mut picker = ManagerPicker::new(Vec::new(), names(&["a"]));
        picker.learn(Vec::new());
        assert_eq!(picker.next(|_| 0).unwrap().0, "a");
        assert!(ManagerPicker::default().next(|_| 0).is_none());
    }
}
