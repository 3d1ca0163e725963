//! What a caller is at this moment, beyond what the certificate says: a manager's certificate outlives a demotion by as
//! long as it takes to renew it, or by its whole life if its holder does not want to. So the state decides, at each call
//! that only some may make; answers that go on for long end with their caller's role. The gate before all handlers
//! (`skep_identity::transport::gated`) asks here.
//!
//! A node that the state does not know is believed: removed ones are refused before any call (`DenyList`), and who is
//! new may be known to others already.

use std::sync::Arc;

use futures::future::BoxFuture;
use skep_core::roles;
use skep_core::store::State;
use skep_identity::transport::{Judge, Known, gated};
use skep_identity::{Caller, Role};
use skep_proto::access::{Rule, Standing};
use skep_proto::id::NodeId;
use skep_proto::v1::NodeRole;
use tonic::Status;
use tonic::service::Routes;

use crate::store::Store;
use crate::topic::Topic;

/// The routes behind the gate, which goes by this manager's state.
pub(crate) fn guard(routes: Routes, store: &Store) -> Routes {
    gated(routes, Arc::new(ByState(store.clone())))
}

/// Judges by the applied state.
struct ByState(Store);

impl Judge for ByState {
    fn standing<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Result<Known, Status>> {
        Box::pin(async move {
            let standing = match caller {
                Caller::Local { .. } => Standing::Local,
                Caller::Anonymous { .. } => Standing::Anonymous,
                Caller::Node(peer) if peer.role == Role::Worker => Standing::Worker,
                Caller::Node(peer) if is_demoted(&self.0.state(), peer.node_id) => return Err(refusal(peer.node_id)),
                Caller::Node(_) => Standing::Manager,
            };
            Ok(Known { standing, who: caller.to_string() })
        })
    }

    fn fallen(&self, caller: &Caller, _: Rule) -> BoxFuture<'static, Status> {
        let node = caller.node_id();
        let store = self.0.clone();
        Box::pin(async move {
            match node {
                Some(node) => demoted(store, node).await,
                None => std::future::pending().await,
            }
        })
    }
}

/// Whether the state says that the node is no manager (any more), nor on its way to be one or out of Raft.
pub(crate) fn is_demoted(state: &State, node: NodeId) -> bool {
    state.node(node).is_some_and(|node| roles::certificate_role(node) == NodeRole::Worker)
}

/// Returns when a manager is one no longer.
async fn demoted(store: Store, node: NodeId) -> Status {
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
