//! Which addresses are taken, kept as runs without a gap: the next free address after any other is found in O(log n),
//! however full the network is. A clone is free, so that a plan can mark what it gives away.

use std::net::IpAddr;

use imbl::OrdMap;
use skep_proto::cidr::{next, previous};
use skep_proto::id::NetworkId;

/// Taken addresses of all networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TakenAddresses {
    /// First address of each longest run, and its last.
    runs: OrdMap<(NetworkId, IpAddr), IpAddr>,
}

impl TakenAddresses {
    /// Whether the address is taken.
    pub fn contains(&self, network: NetworkId, address: IpAddr) -> bool {
        self.run_of(network, address).is_some()
    }

    /// Takes an address; false where it was taken.
    pub fn insert(&mut self, network: NetworkId, address: IpAddr) -> bool {
        if self.contains(network, address) {
            return false;
        }
        let before = previous(address).and_then(|before| self.run_of(network, before));
        let after = next(address).and_then(|after| self.run_of(network, after));
        if let Some((first, _)) = after {
            self.runs.remove(&(network, first));
        }
        let (first, last) = (before.map_or(address, |run| run.0), after.map_or(address, |run| run.1));
        self.runs.insert((network, first), last);
        true
    }

    /// Frees an address; false where it was free.
    pub fn remove(&mut self, network: NetworkId, address: IpAddr) -> bool {
        let Some((first, last)) = self.run_of(network, address) else {
            return false;
        };
        self.runs.remove(&(network, first));
        if let Some(before) = previous(address).filter(|before| *before >= first) {
            self.runs.insert((network, first), before);
        }
        if let Some(after) = next(address).filter(|after| *after <= last) {
            self.runs.insert((network, after), last);
        }
        true
    }

    /// The first free address from `from` to `last`, both included. They must be of one family.
    pub fn first_free(&self, network: NetworkId, from: IpAddr, last: IpAddr) -> Option<IpAddr> {
        let free = match self.run_of(network, from) {
            None => from,
            Some((_, end)) => next(end)?,
        };
        (free <= last).then_some(free)
    }

    /// How many addresses from `first` to `last` are taken. O(runs).
    pub fn count(&self, network: NetworkId, first: IpAddr, last: IpAddr) -> u128 {
        let mut count = 0u128;
        let mut at = first;
        // Runs that begin in the range, and the one that `first` lies in.
        while at <= last {
            let run = match self.run_of(network, at) {
                Some((_, end)) => Some((at, end)),
                None => self.runs.range((network, at)..=(network, last)).next().map(|((_, start), end)| (*start, *end)),
            };
            let Some((start, end)) = run else { break };
            let end = end.min(last);
            count = count.saturating_add(distance(start, end).saturating_add(1));
            match next(end) {
                Some(after) => at = after,
                None => break,
            }
        }
        count
    }

    /// First and last of the run that the address lies in.
    fn run_of(&self, network: NetworkId, address: IpAddr) -> Option<(IpAddr, IpAddr)> {
        let ((of, first), last) = self.runs.range(..=(network, address)).next_back()?;
        // Every IPv4 address sorts before every IPv6 one.
        (*of == network && *last >= address).then_some((*first, *last))
    }
}

/// How many steps lead from one address to a later one of its family.
fn distance(from: IpAddr, to: IpAddr) -> u128 {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => u128::from(to.to_bits().saturating_sub(from.to_bits())),
        (IpAddr::V6(from), IpAddr::V6(to)) => to.to_bits().saturating_sub(from.to_bits()),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn address(number: u8, v6: bool) -> IpAddr {
        if v6 {
            IpAddr::from((0xfdu128 << 120 | u128::from(number)).to_be_bytes())
        } else {
            IpAddr::from([0, 0, 0, number])
        }
    }

    proptest! {
        /// Against a plain set: the same answers, and equal sets are equal runs whatever the order.
        #[test]
        fn runs_are_a_set(steps in vec((1..3u128, 0..24u8, any::<bool>(), any::<bool>()), 0..120)) {
            let mut taken = TakenAddresses::default();
            let mut model = BTreeSet::new();
            for (network, number, v6, insert) in steps {
                let (network, address) = (NetworkId::new(network), address(number, v6));
                if insert {
                    prop_assert_eq!(taken.insert(network, address), model.insert((network, address)));
                } else {
                    prop_assert_eq!(taken.remove(network, address), model.remove(&(network, address)));
                }
            }
            let mut fresh = TakenAddresses::default();
            for (network, address) in model.iter().rev() {
                fresh.insert(*network, *address);
            }
            prop_assert_eq!(&fresh, &taken);
            for network in [1, 2, 3].map(NetworkId::new) {
                for (number, v6) in (0..26).flat_map(|number| [(number, false), (number, true)]) {
                    let (from, last) = (address(number, v6), address(25, v6));
                    prop_assert_eq!(taken.contains(network, from), model.contains(&(network, from)));
                    let free = (number..=25).map(|at| address(at, v6)).find(|at| !model.contains(&(network, *at)));
                    prop_assert_eq!(taken.first_free(network, from, last), free);
                    let count = (number..=25).filter(|at| model.contains(&(network, address(*at, v6)))).count();
                    prop_assert_eq!(taken.count(network, from, last), count as u128);
                }
            }
        }
    }

    #[test]
    fn the_ends_of_a_family_are_no_trap() {
        let mut taken = TakenAddresses::default();
        let (network, last) = (NetworkId::new(1), IpAddr::from([255; 4]));
        assert!(taken.insert(network, last));
        assert_eq!(taken.first_free(network, last, last), None);
        assert_eq!(taken.count(network, last, last), 1);
        assert!(taken.remove(network, last));
        assert_eq!(taken, TakenAddresses::default());
    }
}
