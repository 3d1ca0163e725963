//! What the cluster's state says to every session alike: the heartbeat period, the managers. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use skep_core::store::State;
use skep_proto::id::NodeId;
use skep_proto::v1::{ManagerAddr, Managers};

use super::limits::{
    DEFAULT_PERIOD, HEARTBEATS_PER_SECOND, LONGEST_PERIOD, LONGEST_SCALED_PERIOD, MISSED_HEARTBEATS, SHORTEST_PERIOD,
};

/// What sessions tell their nodes, apart from their assignments.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ClusterView {
    /// How often a node sends a heartbeat.
    pub(crate) period: Duration,
    /// All managers that have an address.
    pub(crate) managers: Managers,
    /// Nodes that were removed and whose certificates have not ended.
    pub(crate) denied: Arc<BTreeSet<NodeId>>,
    /// Certificates whose signature is trusted, PEM.
    pub(crate) roots: Arc<str>,
}

impl ClusterView {
    /// Looks at every node.
    pub(crate) fn of(state: &State) -> Self {
        let denied = state.denied().map(|(node, _)| node).collect();
        let roots = state.cluster().map(|cluster| cluster.trusted_roots_pem()).unwrap_or_default();
        Self {
            period: heartbeat_period(state),
            managers: managers(state),
            denied: Arc::new(denied),
            roots: roots.into(),
        }
    }

    /// Silence after which a node is lost.
    pub(crate) fn window(&self) -> Duration {
        self.period * MISSED_HEARTBEATS
    }
}

/// How often a node sends a heartbeat. O(1).
pub(crate) fn heartbeat_period(state: &State) -> Duration {
    let spec = state.cluster().map(|cluster| cluster.spec.heartbeat_period_ms);
    period(spec.unwrap_or(0), state.node_count())
}

/// The same as the wire has it.
pub(crate) fn heartbeat_period_ms(state: &State) -> i64 {
    i64::try_from(heartbeat_period(state).as_millis()).unwrap_or(i64::MAX)
}

/// The heartbeat period for `nodes` nodes; `spec_ms` is the cluster's setting, 0 for the default.
fn period(spec_ms: i64, nodes: usize) -> Duration {
    let asked = match u64::try_from(spec_ms) {
        Ok(0) | Err(_) => DEFAULT_PERIOD,
        Ok(ms) => Duration::from_millis(ms).clamp(SHORTEST_PERIOD, LONGEST_PERIOD),
    };
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    let rate = u32::try_from(HEARTBEATS_PER_SECOND).unwrap_or(u32::MAX);
    let scaled = (Duration::from_secs(1).saturating_mul(nodes) / rate).min(LONGEST_SCALED_PERIOD);
    // Below a thousand nodes the setting alone counts, also when it is shorter than the default.
    if nodes <= rate { asked } else { asked.max(scaled) }
}

/// All managers that have an address. Looks at every node.
pub(crate) fn managers(state: &State) -> Managers {
    let managers = state.nodes().filter_map(|node| {
        let manager = node.manager.as_ref().filter(|manager| !manager.addr.is_empty())?;
        Some(ManagerAddr { node_id: node.id.to_vec(), addr: manager.addr.clone() })
    });
    Managers { managers: managers.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_period_follows_the_spec_and_grows_with_the_cluster() {
        let ms = Duration::from_millis;
        assert_eq!(period(0, 3), ms(1000));
        assert_eq!(period(-5, 3), ms(1000));
        assert_eq!(period(200, 1000), ms(200));
        assert_eq!(period(1, 3), SHORTEST_PERIOD);
        assert_eq!(period(i64::MAX, 3), LONGEST_PERIOD);
        assert_eq!(period(0, 1000), ms(1000));
        assert_eq!(period(0, 2500), ms(2500));
        assert_eq!(period(0, 100_000), ms(5000));
        assert_eq!(period(10_000, 100_000), ms(10_000));
    }
}
