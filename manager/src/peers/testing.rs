//! Peers for tests of what uses them.
#![allow(clippy::unwrap_used)]

use std::time::SystemTime;

use skep_identity::ca::{DEFAULT_NODE_VALIDITY, NodeGrant, RootCa};
use skep_identity::{Credentials, DenyList, LiveCredentials, NodeKey, Role};
use skep_proto::id::{ClusterId, NodeId};

use super::{Leader, Peers};
use crate::clock::Clock;
use crate::store::Applied;

/// Of a manager that leads.
pub(crate) fn leading(applied: &Applied, clock: &Clock) -> Peers {
    let ca = RootCa::generate(ClusterId::new(1), SystemTime::now()).unwrap();
    let (key, node_id) = (NodeKey::generate().unwrap(), NodeId::new(1));
    let grant = NodeGrant { node_id, role: Role::Manager, validity: DEFAULT_NODE_VALIDITY };
    let issued = ca.issue(&key.signing_request().unwrap(), &grant, SystemTime::now()).unwrap();
    let credentials = LiveCredentials::new(Credentials::new(key, &issued.chain_pem, ca.bundle()).unwrap());
    let peers = Peers::new(&credentials, &DenyList::new(), applied, clock);
    peers.publish(Some(Leader { raft_id: 1, node: Some(node_id), addr: String::new(), is_self: true }));
    peers
}
