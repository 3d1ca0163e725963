//! What is decided about clients: from when on there are any. Pure.

use crate::store::State;

/// From which feature level of the swarm on there are clients: managers below it could not read them.
pub const FEATURE_LEVEL: u32 = 4;

/// Whether all managers understand clients. A swarm that is being made has only the one.
pub fn all_managers_know(state: &State) -> bool {
    state.cluster().is_none_or(|cluster| cluster.feature_level >= FEATURE_LEVEL)
}
