//! What a recovery from a lost quorum means for the state: the one manager that is left is the only one. Raft's part is
//! done offline (`skep_raft::recover`); the new leader does this before anything else, however often it is stopped in
//! between. Pure.

use std::sync::Arc;

use skep_core::change::{Change, Op};
use skep_core::object::{Cluster, ManagerStatus, Node};
use skep_core::store::State;
use skep_proto::id::NodeId;
use skep_proto::v1::{NodeRole, NodeSpec};

use crate::keys;

/// The changes that bring the state up to Raft's recovery epoch: none if it is there. The cluster, its authority and its
/// nodes stay what they are; the other managers of before are workers from now on, and may be promoted again.
pub(crate) fn plan(state: &State, epoch: u64, own: NodeId, manager: &ManagerStatus) -> Vec<Change> {
    let Some(cluster) = state.cluster().filter(|cluster| cluster.recovery_epoch < epoch) else { return Vec::new() };
    let mut recovered = Cluster { recovery_epoch: epoch, ..Cluster::clone(cluster) };
    if keys::is_known(cluster) {
        // The others are members no more.
        recovered.data_key_epoch += 1;
    }
    let mut changes = vec![Change::update(cluster.meta.version, Op::PutCluster(recovered))];
    for node in state.nodes() {
        let is_own = node.id == own;
        let (role, manager) =
            if is_own { (NodeRole::Manager, Some(manager.clone())) } else { (NodeRole::Worker, None) };
        if node.spec.role() != role || node.manager != manager {
            let spec = Arc::new(NodeSpec { role: role.into(), ..NodeSpec::clone(&node.spec) });
            let changed = Node { spec, manager, ..Node::clone(node) };
            changes.push(Change::update(node.meta.version, Op::PutNode(changed)));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_core::change::{Group, Transaction};
    use skep_core::object::{Meta, NodeStatus};
    use skep_proto::id::ClusterId;
    use skep_proto::v1::ClusterSpec;

    use super::*;

    fn node(id: u128, role: NodeRole, raft_id: Option<u64>) -> Change {
        Change::create(Op::PutNode(Node {
            id: NodeId::new(id),
            meta: Meta::default(),
            spec: Arc::new(NodeSpec { role: role.into(), ..NodeSpec::default() }),
            description: None,
            status: NodeStatus::default(),
            role,
            manager: raft_id.map(|raft_id| ManagerStatus { raft_id, addr: format!("host{id}:2377") }),
            fabric_number: None,
            ingress: None,
        }))
    }

    #[test]
    fn the_others_become_workers_and_the_second_time_nothing_happens() {
        let mut state = State::default();
        let cluster = Cluster {
            id: ClusterId::new(1),
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            root_cert_pem: String::new(),
            root_key_pem: String::new(),
            worker_token_secret: [0; 16],
            manager_token_secret: [0; 16],
            feature_level: 1,
            last_raft_id: 3,
            recovery_epoch: 0,
            unlock_key: None,
            data_key_epoch: 0,
            root_rotation: None,
        };
        let changes = vec![
            Change::create(Op::PutCluster(cluster)),
            node(1, NodeRole::Manager, Some(1)),
            node(2, NodeRole::Manager, Some(2)),
            // Promoted, and not there yet.
            node(3, NodeRole::Manager, None),
            node(4, NodeRole::Worker, None),
        ];
        let write = |state: &mut State, changes| {
            let transaction = Transaction { groups: vec![Group(changes)], ..Transaction::default() };
            assert_eq!(state.apply(&transaction).refused, []);
        };
        write(&mut state, changes);
        let own = ManagerStatus { raft_id: 2, addr: "moved:2377".to_owned() };
        let planned = plan(&state, 1, NodeId::new(2), &own);
        assert_eq!(planned.len(), 4);
        write(&mut state, planned);
        let role = |id| {
            let node = state.node(NodeId::new(id)).unwrap();
            (node.spec.role(), node.manager.clone())
        };
        assert_eq!(role(2), (NodeRole::Manager, Some(own.clone())));
        assert!([1, 3, 4].iter().all(|id| role(*id) == (NodeRole::Worker, None)));
        assert_eq!(state.cluster().unwrap().last_raft_id, 3, "ids are never used again");
        assert!(plan(&state, 1, NodeId::new(2), &own).is_empty());
    }
}
