//! Whether a node that proved who it was may be it again. Pure.

use skep_core::object::Node;
use skep_core::{ca, roles};
use skep_identity::Returned;
use skep_proto::id::NodeId;
use skep_proto::v1::NodeRole;

/// Why it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoReturn {
    #[error("node {node} is a {}: its way back needs that role's token, see `skep swarm join-token {}`", word(*.role), word(*.role))]
    Role { node: NodeId, role: NodeRole },
    #[error(
        "the certificate is not of a root that this swarm trusts, and its key is not the one that node {0} had last: it has \
         to leave (`skep swarm leave --force`) and join again"
    )]
    Unknown(NodeId),
    #[error(
        "node {0} has a newer certificate with another key: it has to leave (`skep swarm leave --force`) and join again"
    )]
    Superseded(NodeId),
}

fn word(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    }
}

/// `role` is the token's. A certificate whose root is trusted no more counts if its key is what the node told of last, and
/// an old one is of no use once a newer one is known.
pub(super) fn check(node: &Node, returned: &Returned, role: NodeRole) -> Result<(), NoReturn> {
    let own = roles::certificate_role(node);
    if own != role {
        return Err(NoReturn::Role { node: node.id, role: own });
    }
    let known = ca::certificate(node);
    if known.is_some_and(|known| known.key == returned.key) {
        return Ok(());
    }
    if !returned.is_trusted {
        return Err(NoReturn::Unknown(node.id));
    }
    let end = returned.identity.not_after.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let is_newer = |known_ms: i64| u128::try_from(known_ms).is_ok_and(|ms| ms > end.as_millis());
    match known {
        Some(known) if is_newer(known.not_after_ms) => Err(NoReturn::Superseded(node.id)),
        _ => Ok(()),
    }
}
