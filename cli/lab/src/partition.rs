//! `skep lab partition` and `skep lab heal`: which pairs of hosts cannot reach each other.

use std::collections::BTreeSet;

use crate::args::HostNumbers;
use crate::error::{LabError, Result};
use crate::lab::{Lab, find_host};
use crate::network;
use crate::state::LabState;

/// Cuts all pairs between the two groups, besides those already cut.
pub(crate) fn partition(lab: &Lab, left: &HostNumbers, right: &HostNumbers) -> Result<()> {
    let (_lock, mut state) = lab.lock_and_load()?;
    let (left, right) = sides(left, right, state.hosts.len());
    for number in left.iter().chain(&right) {
        find_host(&mut state, *number)?;
    }
    let mut cuts = state.cuts.clone();
    cuts.extend(network::pairs_between(&left, &right)?);
    set(lab, state, cuts)
}

/// `all` on one side means all that are not on the other.
fn sides(left: &HostNumbers, right: &HostNumbers, count: usize) -> (Vec<u16>, Vec<u16>) {
    let but = |these: &[u16]| HostNumbers::All.of(count).into_iter().filter(|number| !these.contains(number)).collect();
    match (left, right) {
        (HostNumbers::All, HostNumbers::These(these)) => (but(these), these.clone()),
        (HostNumbers::These(these), HostNumbers::All) => (these.clone(), but(these)),
        _ => (left.of(count), right.of(count)),
    }
}

/// Joins all links of these hosts.
pub(crate) fn heal(lab: &Lab, hosts: &HostNumbers) -> Result<()> {
    let (_lock, mut state) = lab.lock_and_load()?;
    let hosts = hosts.of(state.hosts.len());
    for number in &hosts {
        find_host(&mut state, *number)?;
    }
    let left = state.cuts.iter().filter(|(a, b)| !hosts.contains(a) && !hosts.contains(b)).copied().collect();
    set(lab, state, left)
}

fn set(lab: &Lab, mut state: LabState, cuts: BTreeSet<(u16, u16)>) -> Result<()> {
    let missing = || LabError::Remains { name: lab.name.clone(), what: "has lost its bridge" };
    let bridge = state.bridge.filter(|bridge| bridge.is_alive()).ok_or_else(missing)?;
    network::set_cuts(bridge, &cuts)?;
    state.cuts = cuts;
    state.save(&lab.state_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_on_one_side_are_all_the_others() {
        let two = HostNumbers::These(vec![2]);
        assert_eq!(sides(&two, &HostNumbers::All, 4), (vec![2], vec![1, 3, 4]));
        assert_eq!(sides(&HostNumbers::All, &two, 3), (vec![1, 3], vec![2]));
        assert_eq!(sides(&two, &HostNumbers::These(vec![3]), 4), (vec![2], vec![3]));
    }
}
