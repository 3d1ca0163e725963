//! How a node becomes a manager: it asks for its Raft id, and the leader writes it down. The role manager then adds it
//! to Raft; nothing here changes Raft's membership.

use std::time::Duration;

use skep_core::change::{Change, Op};
use skep_core::object::{Cluster, ManagerStatus, Node};
use skep_core::store::State;
use skep_identity::UnlockKey;
use skep_proto::id::NodeId;
use skep_proto::v1::quorum_client::QuorumClient;
use skep_proto::v1::{EnterRequest, EnterResponse, NodeRole};
use skep_raft::{RaftId, Status as RaftStatus};
use tonic::Status;
use tonic::transport::Channel;

use super::level::FEATURE_LEVEL;

/// How long one call may take: the leader writes, and another manager may hand the call on.
pub(super) const DEADLINE: Duration = Duration::from_secs(15);
/// Bytes of a `host:port`; the longest DNS name has 253.
const ADDR_BYTES: usize = 260;

/// Asks any manager, over a channel with this node's manager certificate, for this node's Raft id: for
/// `ManagerConfig::raft_id`, as long as the Raft directory is kept. `addr` is its own managers' port, as others reach
/// it. A retry before this node is a member gets the same answer. With it comes what new Raft files are sealed with.
pub async fn enter(channel: Channel, addr: &str) -> Result<Entered, Status> {
    let request = EnterRequest { addr: addr.to_owned(), feature_level: FEATURE_LEVEL, node_id: Vec::new() };
    let EnterResponse { raft_id, unlock_key, data_key_epoch } = ask(channel, request).await?;
    let unlock_key = match unlock_key.is_empty() {
        true => None,
        false => {
            let key = <[u8; 32]>::try_from(unlock_key);
            Some(UnlockKey::new(key.map_err(|_| Status::internal("the manager's unlock key has a wrong length"))?))
        }
    };
    Ok(Entered { raft_id, unlock_key, data_key_epoch })
}

/// What a node that becomes a manager gets.
#[derive(Debug)]
pub struct Entered {
    /// Its id in Raft.
    pub raft_id: RaftId,
    /// With autolock.
    pub unlock_key: Option<UnlockKey>,
    /// `Cluster.data_key_epoch`.
    pub data_key_epoch: u64,
}

pub(super) async fn ask(channel: Channel, request: EnterRequest) -> Result<EnterResponse, Status> {
    match tokio::time::timeout(DEADLINE, QuorumClient::new(channel).enter(request)).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded("the manager did not answer in time: try again")),
    }
}

/// What the leader does about a node that enters.
#[derive(Debug)]
pub(super) enum Entry {
    /// It has its id already.
    Known(RaftId),
    /// It gets this one.
    New(RaftId, Vec<Change>),
}

/// Why a node does not become a manager.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the swarm's state is not there yet: try again in a moment")]
    NoState,
    #[error("this node was removed from the swarm: it has to join again")]
    Gone,
    #[error("this node is to be a worker: promote it with `skep node promote {0}` first")]
    Worker(NodeId),
    #[error("the address {0:?} is none that other managers can reach: use HOST:PORT")]
    Address(String),
    #[error("the address {addr} is that of manager {node} already")]
    AddressTaken { addr: String, node: NodeId },
    #[error(
        "the swarm uses features of level {swarm}, this node's skep has level {own}: upgrade skep on it and try again"
    )]
    TooOld { own: u32, swarm: u32 },
}

/// Decides. A node that is in Raft already and asks again has lost its Raft directory: its old id is never used again,
/// as a voter that forgot its votes could vote twice.
pub(super) fn decide(state: &State, raft: &RaftStatus, node: NodeId, addr: &str, level: u32) -> Result<Entry, Refusal> {
    let cluster = state.cluster().ok_or(Refusal::NoState)?;
    let node = state.node(node).ok_or(Refusal::Gone)?;
    if node.spec.role() != NodeRole::Manager {
        return Err(Refusal::Worker(node.id));
    }
    if !is_address(addr) {
        return Err(Refusal::Address(addr.chars().take(ADDR_BYTES).collect()));
    }
    if level < cluster.feature_level {
        return Err(Refusal::TooOld { own: level, swarm: cluster.feature_level });
    }
    let at_addr = |other: &&std::sync::Arc<Node>| other.manager.as_ref().is_some_and(|manager| manager.addr == addr);
    if let Some(other) = state.nodes().filter(at_addr).find(|other| other.id != node.id) {
        return Err(Refusal::AddressTaken { addr: addr.to_owned(), node: other.id });
    }
    match &node.manager {
        Some(manager) if manager.addr == addr && !has_been_member(raft, manager.raft_id) => {
            Ok(Entry::Known(manager.raft_id))
        }
        _ => Ok(allocate(cluster, node, addr)),
    }
}

/// Whether Raft has ever heard from it.
fn has_been_member(raft: &RaftStatus, id: RaftId) -> bool {
    raft.membership.voters.contains_key(&id) || raft.matched.get(&id).is_some_and(Option::is_some)
}

fn allocate(cluster: &Cluster, node: &Node, addr: &str) -> Entry {
    let raft_id = cluster.last_raft_id + 1;
    let numbered = Cluster { last_raft_id: raft_id, ..cluster.clone() };
    let manager = Some(ManagerStatus { raft_id, addr: addr.to_owned() });
    let entered = Node { manager, ..node.clone() };
    let changes = vec![
        Change::update(cluster.meta.version, Op::PutCluster(numbered)),
        Change::update(node.meta.version, Op::PutNode(entered)),
    ];
    Entry::New(raft_id, changes)
}

/// `host:port` with a host that others can mean the same by.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let unspecified = ["0.0.0.0", "[::]", ""].contains(&host);
    text.len() <= ADDR_BYTES && !unspecified && port.parse::<u16>().is_ok_and(|port| port != 0)
}
