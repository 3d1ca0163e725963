//! What a caller is at this moment, beyond what the certificate says: a manager's certificate outlives a demotion by as
//! long as it takes to renew it, or by its whole life if its holder does not want to. So the state decides, at each call
//! that only some may make; answers that go on for long end with their caller's role. The gate before all handlers
//! (`skep_identity::transport::gated`) asks here.
//!
//! A node that the state does not know is believed: removed ones are refused before any call (`DenyList`), and who is
//! new may be known to others already.

use std::sync::Arc;
use std::time::SystemTime;

use futures::future::BoxFuture;
use skep_core::object::Client;
use skep_core::roles;
use skep_core::store::State;
use skep_identity::transport::{Judge, Known, gated};
use skep_identity::{CLOCK_TOLERANCE, Caller, ClientIdentity, Role};
use skep_proto::access::{Rule, Standing};
use skep_proto::id::{ClientId, NodeId};
use skep_proto::v1::{ClientRole, NodeRole};
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
                Caller::Client(client) => return self.client(client).await,
            };
            Ok(Known { standing, who: caller.to_string() })
        })
    }

    fn fallen(&self, caller: &Caller, rule: Rule) -> BoxFuture<'static, Status> {
        let store = self.0.clone();
        match caller {
            Caller::Node(peer) => Box::pin(demoted(store, peer.node_id)),
            Caller::Client(client) => Box::pin(dismissed(store, client.client_id, rule)),
            Caller::Local { .. } | Caller::Anonymous { .. } => Box::pin(std::future::pending()),
        }
    }
}

impl ByState {
    /// A person, by the role that the state gives him at this moment.
    async fn client(&self, caller: &ClientIdentity) -> Result<Known, Status> {
        if caller.not_after + CLOCK_TOLERANCE < SystemTime::now() {
            return Err(Status::unauthenticated(format!(
                "the certificate of client {} has expired: an admin makes a new one with `skep client renew`",
                caller.client_id
            )));
        }
        let known = |state: &State| state.client(caller.client_id).map(|client| known(client));
        if let Some(known) = known(&self.0.state()) {
            return Ok(known);
        }
        // It may be a new one, of which this manager has not heard yet.
        let state = self.0.fresh().await.map_err(|error| Status::unavailable(error.to_string()))?;
        known(&state).ok_or_else(|| removed(caller.client_id))
    }
}

fn known(client: &Client) -> Known {
    let standing = match client.role {
        ClientRole::Viewer => Standing::Viewer,
        ClientRole::Operator => Standing::Operator,
        ClientRole::Admin => Standing::Admin,
    };
    Known { standing, who: format!("client {}", client.name) }
}

/// Why a client that the state does not have is refused.
fn removed(client: ClientId) -> Status {
    Status::unauthenticated(format!(
        "this swarm has no client {client} (any more): ask an admin for a certificate (`skep client create`)"
    ))
}

/// Returns when a client may not call this any more.
async fn dismissed(store: Store, client: ClientId, rule: Rule) -> Status {
    let mut changes = store.watch(Topic::Client(client));
    loop {
        match store.state().client(client).map(|client| known(client)) {
            None => return removed(client),
            Some(known) if !rule.callers.has(known.standing) => {
                return Status::permission_denied(rule.refusal(&known.who, known.standing));
            }
            Some(_) => changes.changed().await,
        }
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
