//! The feature level: what all managers' builds understand. The leader raises the swarm's when the last manager is
//! upgraded; it never falls, and a build below it may not become a manager.

use std::time::Duration;

use skep_core::change::{Change, Op};
use skep_core::clients;
use skep_core::network;
use skep_core::object::Cluster;
use skep_core::store::State;
use skep_proto::id::NetworkId;
use skep_proto::v1::DescribeRequest;
use skep_proto::v1::quorum_client::QuorumClient;
use tracing::{debug, info, warn};

use super::Peers;
use crate::store::Store;
use crate::topic::Topic;

/// Feature level of this build. 2: networks. 3: secrets and configs, keys at rest. 4: clients.
pub(crate) const FEATURE_LEVEL: u32 = clients::FEATURE_LEVEL;
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
            match store.write(None, Vec::new(), raise(&state, cluster, level)).await {
                Ok(_) => info!(level, "all managers have this feature level"),
                Err(error) => debug!(%error, "the feature level was not raised"),
            }
        }
        // A manager's upgrade is not seen in the state; its role's change is.
        let _ = tokio::time::timeout(ASK_EVERY, nodes.changed()).await;
    }
}

/// The swarm at a level, with what a swarm that is made at that level has: the routing mesh's network. It is made here once
/// and never again: whoever removed it wants none.
fn raise(state: &State, cluster: &Cluster, level: u32) -> Vec<Change> {
    let raised = Cluster { feature_level: level, ..Cluster::clone(cluster) };
    let mut changes = vec![Change::update(cluster.meta.version, Op::PutCluster(raised.clone()))];
    if cluster.feature_level < network::FEATURE_LEVEL && level >= network::FEATURE_LEVEL {
        let mut state = state.clone();
        state.put(raised);
        match network::make_ingress(&state, NetworkId::new(rand::random())) {
            Ok(ingress) => changes.push(Change::create(Op::PutNetwork(ingress))),
            Err(error) => {
                warn!(%error, "no network for the routing mesh: make one with `skep network create --ingress`")
            }
        }
    }
    changes
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_core::change::{Group, Transaction};
    use skep_core::object::Meta;
    use skep_proto::id::ClusterId;
    use skep_proto::time::UnixMs;
    use skep_proto::v1::ClusterSpec;

    use super::*;

    fn swarm(pool: &str) -> State {
        let mut state = State::default();
        state.put(Cluster {
            id: ClusterId::new(1),
            meta: Meta::default(),
            spec: ClusterSpec { address_pools: vec![pool.to_owned()], ..ClusterSpec::default() },
            root_cert_pem: String::new(),
            root_key_pem: String::new(),
            worker_token_secret: [0; 16],
            manager_token_secret: [1; 16],
            feature_level: network::FEATURE_LEVEL - 1,
            last_raft_id: 1,
            recovery_epoch: 0,
            unlock_key: None,
            data_key_epoch: 0,
            root_rotation: None,
        });
        state
    }

    fn raised(mut state: State, level: u32) -> State {
        let groups = vec![Group(raise(&state, state.cluster().unwrap(), level))];
        let applied = state.apply(&Transaction { at: UnixMs(1), groups, ..Transaction::default() });
        assert!(applied.refused.is_empty(), "{:?}", applied.refused);
        assert_eq!(state.cluster().unwrap().feature_level, level);
        state
    }

    #[test]
    fn an_upgraded_swarm_has_a_routing_mesh() {
        let state = raised(swarm("10.0.0.0/8"), network::FEATURE_LEVEL);
        let ingress = state.ingress_network().unwrap();
        assert_eq!((&*ingress.spec.name, ingress.subnets[0].cidr.to_string()), ("ingress", "10.255.0.0/16".to_owned()));
    }

    #[test]
    fn pools_without_room_do_not_hold_the_level_up() {
        let state = raised(swarm("10.0.0.0/31"), network::FEATURE_LEVEL);
        assert_eq!(state.network_count(), 0);
    }

    #[test]
    fn one_that_was_removed_does_not_come_back() {
        let mut state = raised(swarm("10.0.0.0/8"), network::FEATURE_LEVEL);
        let ingress = state.ingress_network().unwrap().id;
        state.remove(&skep_core::store::ObjectKey::Network(ingress));
        assert_eq!(raised(state, network::FEATURE_LEVEL + 1).network_count(), 0);
    }
}
