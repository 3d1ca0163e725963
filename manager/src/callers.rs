//! Who may call, beyond what the certificate says: a manager's certificate outlives a demotion by as long as it takes to
//! renew it, or by its whole life if its holder does not want to. So the handlers of managers' and operators' calls ask
//! here, and the state decides; answers that go on for long end with their caller's role.
//!
//! A node that the state does not know is believed: removed ones are refused before any call (`DenyList`), and who is
//! new may be known to others already.

use skep_core::roles;
use skep_core::store::State;
use skep_identity::{Caller, PeerIdentity};
use skep_proto::id::NodeId;
use skep_proto::v1::NodeRole;
use tonic::{Request, Status};

use crate::store::Store;
use crate::topic::Topic;

/// Lets operators through: processes on this host, and managers.
// Statuses are tonic's own currency between a handler and its helpers.
#[allow(clippy::result_large_err)]
pub(crate) fn operator<T>(store: &Store, request: &Request<T>) -> Result<(), Status> {
    match Caller::of(request)? {
        Caller::Local { .. } => Ok(()),
        Caller::Node(_) | Caller::Anonymous { .. } => manager(store, request).map(drop),
    }
}

/// Lets managers through: by their certificate, and still by the state.
#[allow(clippy::result_large_err)]
pub(crate) fn manager<T>(store: &Store, request: &Request<T>) -> Result<PeerIdentity, Status> {
    let peer = Caller::of(request)?.require_manager()?;
    if is_demoted(&store.state(), peer.node_id) {
        return Err(refusal(peer.node_id));
    }
    Ok(peer.clone())
}

/// Whether the state says that the node is no manager (any more), nor on its way to be one or out of Raft.
pub(crate) fn is_demoted(state: &State, node: NodeId) -> bool {
    state.node(node).is_some_and(|node| roles::certificate_role(node) == NodeRole::Worker)
}

/// Returns when the caller of an answer that goes on is a manager no longer; never for a process on this host.
pub(crate) async fn demoted(store: Store, caller: Option<NodeId>) -> Status {
    let Some(node) = caller else { return std::future::pending().await };
    let mut changes = store.watch(Topic::Node(node));
    while !is_demoted(&store.state(), node) {
        changes.changed().await;
    }
    refusal(node)
}

/// Why a call of a demoted manager is refused.
pub(crate) fn refusal(node: NodeId) -> Status {
    Status::permission_denied(format!(
        "node {node} is no manager any more, though its certificate says so: it has to renew it"
    ))
}
