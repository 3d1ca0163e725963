//! The changes that the dispatcher makes to a node's observed part: registered, described anew, leaving, lost. Pure.

use std::sync::Arc;

use prost::Message as _;
use skep_core::change::{Change, NodeObserved, Op};
use skep_core::object::{Node, NodeStatus};
use skep_identity::Role;
use skep_proto::id::NodeId;
use skep_proto::time::UnixMs;
use skep_proto::v1::{NodeDescription, NodeRole, NodeState};

use super::health::Lost;
use super::limits::DESCRIPTION_BYTES;

/// Longest hostname (hostname(7)).
const HOSTNAME_BYTES: usize = 253;

/// Why a node's description is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DescriptionError {
    #[error("the node does not describe itself")]
    Missing,
    #[error("the node's description has {0} bytes, {DESCRIPTION_BYTES} are allowed")]
    Size(usize),
    #[error("the node's hostname is empty, longer than {HOSTNAME_BYTES} bytes, or not printable")]
    Hostname,
}

/// Whether a hostname may be shown to people.
pub(crate) fn is_hostname(name: &str) -> bool {
    let printable = |c: char| !c.is_whitespace() && !c.is_control();
    !name.is_empty() && name.len() <= HOSTNAME_BYTES && name.chars().all(printable)
}

/// Checks what a node says of itself.
pub(crate) fn checked(description: Option<NodeDescription>) -> Result<NodeDescription, DescriptionError> {
    let description = description.ok_or(DescriptionError::Missing)?;
    let size = description.encoded_len();
    if size > DESCRIPTION_BYTES {
        return Err(DescriptionError::Size(size));
    }
    if !is_hostname(&description.hostname) {
        return Err(DescriptionError::Hostname);
    }
    Ok(description)
}

/// The role in the store's words.
pub(crate) fn stored_role(role: Role) -> NodeRole {
    match role {
        Role::Worker => NodeRole::Worker,
        Role::Manager => NodeRole::Manager,
    }
}

/// The node has a session, from `addr`.
pub(crate) fn registered(node: &Node, description: NodeDescription, role: Role, addr: String, now: UnixMs) -> Change {
    let description = Arc::new(description);
    let same = node.description.as_ref() == Some(&description);
    change(NodeObserved {
        node: Some(node.id),
        description: (!same).then_some(description),
        status: Some(status(node, NodeState::Ready, String::new(), addr, now)),
        role: Some(stored_role(role)),
    })
}

/// The node has a session after all.
pub(crate) fn ready(node: &Node, addr: String, now: UnixMs) -> Change {
    let status = status(node, NodeState::Ready, String::new(), addr, now);
    change(NodeObserved { node: Some(node.id), status: Some(status), ..NodeObserved::default() })
}

/// The node says something new of itself.
pub(crate) fn described(node: NodeId, description: NodeDescription) -> Change {
    let description = Some(Arc::new(description));
    change(NodeObserved { node: Some(node), description, ..NodeObserved::default() })
}

/// The node leaves the swarm: nobody waits for it to come back.
pub(crate) fn left(node: &Node, now: UnixMs) -> Change {
    let message = "the node has left the swarm".to_owned();
    let status = status(node, NodeState::Down, message, node.status.addr.clone(), now);
    change(NodeObserved { node: Some(node.id), status: Some(status), ..NodeObserved::default() })
}

/// The node's daemon stops in an orderly way.
pub(crate) fn stopping(node: &Node, now: UnixMs) -> Change {
    let message = "the daemon is stopping".to_owned();
    let status = status(node, NodeState::Disconnected, message, node.status.addr.clone(), now);
    change(NodeObserved { node: Some(node.id), status: Some(status), ..NodeObserved::default() })
}

/// The node was silent for too long. `None`: it is down already.
pub(crate) fn down(node: &Node, lost: Lost, now: UnixMs) -> Option<Change> {
    let silent = lost.silent.as_secs_f64();
    let message = match node.status.state {
        NodeState::Down => return None,
        NodeState::Disconnected => format!("the daemon stopped and did not come back within {silent:.1} s"),
        NodeState::Unknown | NodeState::Ready => format!("heartbeat failure: nothing heard for {silent:.1} s"),
    };
    let status = status(node, NodeState::Down, message, node.status.addr.clone(), now);
    Some(change(NodeObserved { node: Some(node.id), status: Some(status), ..NodeObserved::default() }))
}

fn status(node: &Node, state: NodeState, message: String, addr: String, now: UnixMs) -> NodeStatus {
    let since = if node.status.state == state { node.status.since } else { now };
    NodeStatus { state, message, addr, since }
}

fn change(observed: NodeObserved) -> Change {
    Change::any(Op::ObserveNode(observed))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use skep_core::object::Meta;

    use super::*;

    fn node(state: NodeState) -> Node {
        Node {
            id: NodeId::new(1),
            meta: Meta::default(),
            spec: Arc::default(),
            description: None,
            status: NodeStatus { state, message: "old".into(), addr: "10.0.0.1".into(), since: UnixMs(5) },
            role: NodeRole::Worker,
            manager: None,
            fabric_number: None,
            ingress: None,
        }
    }

    fn observed(change: &Change) -> &NodeObserved {
        match &change.op {
            Op::ObserveNode(observed) => observed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_lost_node_says_why_and_since_when() {
        let lost = Lost { node: NodeId::new(1), silent: Duration::from_millis(3_012) };
        let change = down(&node(NodeState::Ready), lost, UnixMs(9)).unwrap();
        let status = observed(&change).status.clone().unwrap();
        assert_eq!(status.message, "heartbeat failure: nothing heard for 3.0 s");
        assert_eq!((status.state, status.since, status.addr.as_str()), (NodeState::Down, UnixMs(9), "10.0.0.1"));
        assert_eq!(down(&node(NodeState::Down), lost, UnixMs(9)), None);
        let change = down(&node(NodeState::Disconnected), lost, UnixMs(9)).unwrap();
        let message = observed(&change).status.clone().unwrap().message;
        assert_eq!(message, "the daemon stopped and did not come back within 3.0 s");
    }

    #[test]
    fn registering_again_keeps_the_time_and_sends_no_known_description() {
        let described = NodeDescription { hostname: "host1".into(), ..NodeDescription::default() };
        let mut known = node(NodeState::Ready);
        known.description = Some(Arc::new(described.clone()));
        let change = registered(&known, described.clone(), Role::Manager, "10.0.0.2".into(), UnixMs(9));
        let seen = observed(&change);
        assert_eq!(seen.description, None);
        assert_eq!(seen.role, Some(NodeRole::Manager));
        let status = seen.status.clone().unwrap();
        assert_eq!((status.since, status.addr.as_str(), status.message.as_str()), (UnixMs(5), "10.0.0.2", ""));
        let change = registered(&node(NodeState::Down), described, Role::Worker, String::new(), UnixMs(9));
        assert_eq!(observed(&change).status.clone().unwrap().since, UnixMs(9));
        assert!(observed(&change).description.is_some());
    }

    #[test]
    fn descriptions_are_checked() {
        let named = |hostname: &str| NodeDescription { hostname: hostname.into(), ..NodeDescription::default() };
        assert_eq!(checked(None), Err(DescriptionError::Missing));
        assert!(checked(Some(named("host-1.example"))).is_ok());
        for bad in ["", "two words", "bell\u{7}", &"x".repeat(254)] {
            assert_eq!(checked(Some(named(bad))), Err(DescriptionError::Hostname), "{bad:?}");
        }
        let mut large = named("host1");
        large.kernel = "x".repeat(DESCRIPTION_BYTES);
        assert!(matches!(checked(Some(large)), Err(DescriptionError::Size(_))));
    }
}
