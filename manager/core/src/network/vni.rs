//! VXLAN network identifiers of overlays.

use skep_proto::id::NetworkId;

use crate::ids::mix;
use crate::store::State;

/// The lowest that is given; below it are those that people give by hand. Swarm's number.
pub(super) const FIRST: u32 = 4096;
/// The highest there is: 24 bits (RFC 7348 section 5).
pub(super) const LAST: u32 = (1 << 24) - 1;

/// The network's own by its id, which is random, or the next one that is free: so a freed one is not soon another's, which
/// hosts that are slow to take the old network down would mix up with it. `None`: all are taken.
pub(super) fn choose(state: &State, id: NetworkId) -> Option<u32> {
    let folded = mix((id.value() >> 64) as u64 ^ (id.value() & u128::from(u64::MAX)) as u64);
    let own = FIRST + (folded % u64::from(LAST - FIRST + 1)) as u32;
    (own..=LAST).chain(FIRST..own).find(|vni| state.network_by_vni(*vni).is_none())
}
