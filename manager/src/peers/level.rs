//! The feature level: what all managers' builds understand. The leader raises the swarm's when the last manager is
//! upgraded; it never falls, and a build below it may not become a manager.

use std::time::Duration;

use skep_core::change::{Change, Op};
use skep_core::object::Cluster;
use skep_core::store::State;
use skep_proto::v1::DescribeRequest;
use skep_proto::v1::quorum_client::QuorumClient;
use tracing::{debug, info};

use super::Peers;
use crate::store::Store;
use crate::topic::Topic;

/// Feature level of this build. 2: networks.
pub(crate) const FEATURE_LEVEL: u32 = skep_core::network::FEATURE_LEVEL;
/// How often the others are asked while they are not all as far as this build.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// How long one answer may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Raises the swarm's level to this build's once every manager has it. Runs while this manager leads.
pub(crate) async fn keep(store: Store) {
    let mut nodes = store.watch(Topic::Nodes);
    loop {
        let state = store.state();
        let Some(cluster) = state.cluster() else {
            // A new swarm's first write comes after the lead.
            nodes.changed().await;
            continue;
        };
        if cluster.feature_level >= FEATURE_LEVEL {
            return;
        }
        let lowest = lowest(&state, store.peers()).await;
        if let Some(level) = lowest.filter(|level| *level > cluster.feature_level) {
            let raised = Cluster { feature_level: level, ..Cluster::clone(cluster) };
            let change = Change::update(cluster.meta.version, Op::PutCluster(raised));
            match store.write(None, Vec::new(), vec![change]).await {
                Ok(_) => info!(level, "all managers have this feature level"),
                Err(error) => debug!(%error, "the feature level was not raised"),
            }
        }
        // A manager's upgrade is not seen in the state; its role's change is.
        let _ = tokio::time::timeout(ASK_EVERY, nodes.changed()).await;
    }
}

/// The lowest level of all managers. `None`: one does not answer.
async fn lowest(state: &State, peers: &Peers) -> Option<u32> {
    let own = peers.leader().borrow().as_ref().map(|leader| leader.raft_id);
    let mut lowest = FEATURE_LEVEL;
    for manager in state.nodes().filter_map(|node| node.manager.as_ref()) {
        if Some(manager.raft_id) == own {
            continue;
        }
        let mut client = QuorumClient::new(peers.channel(manager.raft_id, &manager.addr));
        let asked = tokio::time::timeout(DEADLINE, client.describe(DescribeRequest::default())).await;
        lowest = lowest.min(asked.ok()?.ok()?.into_inner().feature_level);
    }
    Some(lowest)
}
