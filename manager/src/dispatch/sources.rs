//! Where a node can fetch an image from, and its ticket for it: only for an image that one of its tasks runs.

use std::time::SystemTime;

use rand::seq::SliceRandom as _;
use skep_core::store::State;
use skep_identity::{Credentials, ticket};
use skep_proto::id::NodeId;
use skep_proto::v1::{ImagePeer, ImageSourcesResponse, NodeState};
use tonic::Status;

use super::images::{is_digest, peer_address};
use super::limits::{IMAGE_PEERS, TICKET_LIFE};

/// Answers a node's question; `holders` say that they hold the image. Peers come in random order, so that an image spreads over all who hold it.
// Statuses are tonic's own currency between a handler and its helpers.
#[allow(clippy::result_large_err)]
pub(super) fn answer(
    state: &State,
    holders: Vec<NodeId>,
    credentials: &Credentials,
    caller: NodeId,
    digest: &str,
) -> Result<ImageSourcesResponse, Status> {
    check(state, caller, digest)?;
    let mut peers = peers(state, holders, caller);
    peers.shuffle(&mut rand::thread_rng());
    peers.truncate(IMAGE_PEERS);
    let ticket = ticket::issue(credentials, caller, digest, SystemTime::now() + TICKET_LIFE)
        .map_err(|error| Status::internal(error.to_string()))?;
    Ok(ImageSourcesResponse { peers, ticket })
}

/// Whether the question may be asked at all.
#[allow(clippy::result_large_err)]
pub(super) fn check(state: &State, caller: NodeId, digest: &str) -> Result<(), Status> {
    if !is_digest(digest) {
        return Err(Status::invalid_argument("the digest is not `sha256:` with 64 hex digits"));
    }
    if !runs(state, caller, digest) {
        return Err(Status::permission_denied("no task of this node runs that image"));
    }
    Ok(())
}

/// Whether a task of the node, not ended, runs the image.
fn runs(state: &State, node: NodeId, digest: &str) -> bool {
    let live = state.tasks_on_node(node).filter(|task| task.occupies_node());
    live.filter_map(|task| state.revision(task.revision))
        .any(|revision| revision.template.containers.iter().any(|container| container.image_digest == digest))
}

/// Everyone else who holds the image and can be reached.
fn peers(state: &State, holders: Vec<NodeId>, caller: NodeId) -> Vec<ImagePeer> {
    holders
        .into_iter()
        .filter(|node| *node != caller)
        .filter_map(|id| {
            let node = state.node(id).filter(|node| node.status.state == NodeState::Ready)?;
            let said = &node.description.as_ref()?.peer_addr;
            Some(ImagePeer { node_id: id.to_vec(), addr: peer_address(said, &node.status.addr)? })
        })
        .collect()
}
