//! VXLAN network identifiers of overlays.

use crate::store::State;

/// The lowest that is given; below it are those that people give by hand. Swarm's number.
pub(super) const FIRST: u32 = 4096;
/// The highest there is: 24 bits (RFC 7348 section 5).
const LAST: u32 = (1 << 24) - 1;

/// The one after the highest that is in use, so that a freed one rests; when there is none, the lowest that is free.
/// `None`: all are taken.
pub(super) fn choose(state: &State) -> Option<u32> {
    let highest = state.last_vni().unwrap_or(0);
    match (highest + 1).max(FIRST) {
        next if next <= LAST => Some(next),
        _ => (FIRST..=LAST).find(|vni| state.network_by_vni(*vni).is_none()),
    }
}
