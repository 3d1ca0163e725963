//! `skep lab partition` and `skep lab heal`: which pairs of hosts cannot reach each other.

use std::collections::BTreeSet;

use crate::error::{LabError, Result};
use crate::lab::{Lab, find_host};
use crate::network;
use crate::state::LabState;

/// Cuts all pairs between the two groups, besides those already cut.
pub(crate) fn partition(lab: &Lab, left: &[u16], right: &[u16]) -> Result<()> {
    let (_lock, mut state) = lab.lock_and_load()?;
    for number in left.iter().chain(right) {
        find_host(&mut state, *number)?;
    }
    let mut cuts = state.cuts.clone();
    cuts.extend(network::pairs_between(left, right)?);
    set(lab, state, cuts)
}

/// Joins all.
pub(crate) fn heal(lab: &Lab) -> Result<()> {
    let (_lock, state) = lab.lock_and_load()?;
    set(lab, state, BTreeSet::new())
}

fn set(lab: &Lab, mut state: LabState, cuts: BTreeSet<(u16, u16)>) -> Result<()> {
    let missing = || LabError::Remains { name: lab.name.clone(), what: "has lost its bridge" };
    let bridge = state.bridge.filter(|bridge| bridge.is_alive()).ok_or_else(missing)?;
    network::set_cuts(bridge, &cuts)?;
    state.cuts = cuts;
    state.save(&lab.state_file())
}
