//! Where a node can fetch an image from, and its ticket for it: only for an image that one of its tasks runs.

use std::time::SystemTime;

use rand::seq::SliceRandom as _;
use skep_core::store::State;
use skep_identity::{Credentials, ticket};
use skep_proto::id::NodeId;
use skep_proto::v1::{ImagePeer, ImageSourcesResponse, NodeState};
use tonic::Status;

use super::images::{ImageIndex, is_digest, peer_address};
use super::limits::{IMAGE_PEERS, TICKET_LIFE};

/// Answers a node's question. Peers come in random order, so that an image spreads over all who hold it.
// Statuses are tonic's own currency between a handler and its helpers.
#[allow(clippy::result_large_err)]
pub(super) fn answer(
    state: &State,
    images: &ImageIndex,
    credentials: &Credentials,
    caller: NodeId,
    digest: &str,
) -> Result<ImageSourcesResponse, Status> {
    if !is_digest(digest) {
        return Err(Status::invalid_argument("the digest is not `sha256:` with 64 hex digits"));
    }
    if !runs(state, caller, digest) {
        return Err(Status::permission_denied("no task of this node runs that image"));
    }
    let mut peers = peers(state, images, caller, digest);
    peers.shuffle(&mut rand::thread_rng());
    peers.truncate(IMAGE_PEERS);
    let ticket = ticket::issue(credentials, caller, digest, SystemTime::now() + TICKET_LIFE)
        .map_err(|error| Status::internal(error.to_string()))?;
    Ok(ImageSourcesResponse { peers, ticket })
}

/// Whether a task of the node, not ended, runs the image.
fn runs(state: &State, node: NodeId, digest: &str) -> bool {
    let live = state.tasks_on_node(node).filter(|task| task.occupies_node());
    live.filter_map(|task| state.revision(task.revision))
        .any(|revision| revision.template.containers.iter().any(|container| container.image_digest == digest))
}

/// Everyone else who holds the image and can be reached.
fn peers(state: &State, images: &ImageIndex, caller: NodeId, digest: &str) -> Vec<ImagePeer> {
    let holders = images.holders(digest).into_iter().filter(|node| *node != caller);
    holders
        .filter_map(|id| {
            let node = state.node(id).filter(|node| node.status.state == NodeState::Ready)?;
            let said = &node.description.as_ref()?.peer_addr;
            Some(ImagePeer { node_id: id.to_vec(), addr: peer_address(said, &node.status.addr)? })
        })
        .collect()
}
