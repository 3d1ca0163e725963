//! A host in the swarm.

use std::net::Ipv4Addr;
use std::sync::Arc;

use skep_proto::id::NodeId;
use skep_proto::time::UnixMs;
use skep_proto::v1::{Availability, NodeDescription, NodeRole, NodeSpec, NodeState};

use super::{Meta, NetworkAddresses};

/// A host: what an operator wants of it, and what is observed.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub id: NodeId,
    pub meta: Meta,
    pub spec: Arc<NodeSpec>,
    /// Observed: what it says of itself. `None` before it first registered.
    pub description: Option<Arc<NodeDescription>>,
    /// Observed: what the managers see.
    pub status: NodeStatus,
    /// Observed: role of its certificate.
    pub role: NodeRole,
    /// For managers.
    pub manager: Option<ManagerStatus>,
    /// Its number in the fabric, 1 and up, no other node's. `None`: it has none yet.
    pub fabric_number: Option<u32>,
    /// Its own addresses in the network of the routing mesh.
    pub ingress: Option<NetworkAddresses>,
}

/// What the managers see of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    pub state: NodeState,
    /// Why, for a person.
    pub message: String,
    /// Remote address of its session, without the port.
    pub addr: String,
    /// When the state last changed.
    pub since: UnixMs,
}

/// A manager's part in Raft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerStatus {
    pub raft_id: u64,
    /// `host:port` of its API.
    pub addr: String,
}

impl Node {
    /// Reported hostname; empty before it first registered.
    pub fn hostname(&self) -> &str {
        self.description.as_ref().map_or("", |description| &description.hostname)
    }

    /// Its address inside the mesh: 100.64.0.0/10 (RFC 6598) and its number. Used in namespaces of the mesh's own only.
    pub fn fabric_address(&self) -> Option<Ipv4Addr> {
        self.fabric_number.map(|number| Ipv4Addr::from_bits(0x6440_0000 | (number & 0x003f_ffff)))
    }

    /// Whether new tasks may go to it.
    pub fn takes_tasks(&self) -> bool {
        self.status.state == NodeState::Ready && self.spec.availability() == Availability::Active
    }
}
