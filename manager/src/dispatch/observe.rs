//! The changes that the dispatcher makes to a node's observed part: registered, described anew, leaving, lost. Pure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use prost::Message as _;
use skep_core::change::{Change, NodeObserved, Op};
use skep_core::object::{Node, NodeStatus};
use skep_core::store::State;
use skep_identity::Role;
use skep_proto::id::NodeId;
use skep_proto::time::UnixMs;
use skep_proto::v1::{FabricEndpoint, NodeDescription, NodeRole, NodeState};

use super::health::Lost;
use super::limits::DESCRIPTION_BYTES;

/// Longest hostname (hostname(7)).
const HOSTNAME_BYTES: usize = 253;
/// An x25519 public key (RFC 7748).
const KEY_BYTES: usize = 32;

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

/// Takes out of a node's description how other hosts reach it, where that cannot be or is another node's: hosts that are
/// told so would send it what is not its, or nothing at all. Says why. Without it the node has no part in networks, and all
/// else goes on. An address may be another's: one host may have joined twice, and what counts is the key.
pub(crate) fn without_bad_fabric(state: &State, node: NodeId, description: &mut NodeDescription) -> Option<String> {
    let fabric = description.fabric.as_ref()?;
    let stored = state.node(node).and_then(|node| fabric_of(node));
    if stored == Some(fabric) {
        return None;
    }
    let why = match fabric_flaw(fabric) {
        Some(why) => why.to_owned(),
        None => {
            let holder = state.nodes().find(|other| {
                other.id != node
                    && fabric_of(other).is_some_and(|known| keys(known).any(|key| keys(fabric).any(|own| own == key)))
            })?;
            format!("its WireGuard key is that of node {}: remove that node, or leave and join again", holder.id)
        }
    };
    description.fabric = None;
    Some(why)
}

fn fabric_of(node: &Node) -> Option<&FabricEndpoint> {
    node.description.as_ref()?.fabric.as_ref()
}

/// Its keys, newest first.
fn keys(fabric: &FabricEndpoint) -> impl Iterator<Item = &[u8]> {
    [&fabric.public_key, &fabric.previous_public_key].into_iter().map(Vec::as_slice).filter(|key| !key.is_empty())
}

/// What is wrong with it whatever else is known. Loopback is fine: a swarm may have one host only.
fn fabric_flaw(fabric: &FabricEndpoint) -> Option<&'static str> {
    let is_key = |key: &[u8]| key.len() == KEY_BYTES && key.iter().any(|byte| *byte != 0);
    let reachable = |address: IpAddr| match address.to_canonical() {
        IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_multicast() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast(),
    };
    let device = fabric.wireguard_addr.parse::<SocketAddr>();
    let plain = fabric.vxlan_addr.parse::<IpAddr>();
    let flaws = [
        (fabric.public_key.is_empty() || !keys(fabric).all(is_key), "a WireGuard key of it is none"),
        (
            !device.is_ok_and(|addr| addr.port() != 0 && reachable(addr.ip())),
            "the address of its WireGuard device is none",
        ),
        (!plain.is_ok_and(reachable), "its address for plain overlays is none"),
    ];
    flaws.into_iter().find_map(|(wrong, why)| wrong.then_some(why))
}

/// The role in the store's words.
pub(crate) fn stored_role(role: Role) -> NodeRole {
    match role {
        Role::Worker => NodeRole::Worker,
        Role::Manager => NodeRole::Manager,
    }
}

/// The node has a session, from `addr`. Without a description the stored one stays.
pub(crate) fn registered(
    node: &Node,
    description: Option<NodeDescription>,
    role: Role,
    addr: String,
    now: UnixMs,
) -> Change {
    let description = description.filter(|description| node.description.as_deref() != Some(description));
    change(NodeObserved {
        node: Some(node.id),
        description: description.map(Arc::new),
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
        let change = registered(&known, Some(described.clone()), Role::Manager, "10.0.0.2".into(), UnixMs(9));
        let seen = observed(&change);
        assert_eq!(seen.description, None);
        assert_eq!(seen.role, Some(NodeRole::Manager));
        let status = seen.status.clone().unwrap();
        assert_eq!((status.since, status.addr.as_str(), status.message.as_str()), (UnixMs(5), "10.0.0.2", ""));
        let change = registered(&node(NodeState::Down), Some(described), Role::Worker, String::new(), UnixMs(9));
        assert_eq!(observed(&change).status.clone().unwrap().since, UnixMs(9));
        assert!(observed(&change).description.is_some());
        let change = registered(&node(NodeState::Down), None, Role::Worker, String::new(), UnixMs(9));
        assert!(observed(&change).description.is_none());
    }

    #[test]
    fn a_place_in_the_mesh_is_a_key_of_its_own_and_addresses() {
        let good = FabricEndpoint {
            public_key: vec![7; 32],
            previous_public_key: vec![],
            wireguard_addr: "192.0.2.1:51820".into(),
            vxlan_addr: "192.0.2.1".into(),
        };
        let mut state = State::default();
        let mut other = Node { id: NodeId::new(2), ..node(NodeState::Ready) };
        let theirs = FabricEndpoint { public_key: vec![8; 32], previous_public_key: vec![9; 32], ..good.clone() };
        other.description = Some(Arc::new(NodeDescription { fabric: Some(theirs), ..NodeDescription::default() }));
        state.put(other);
        state.put(node(NodeState::Ready));
        let taken = |fabric: FabricEndpoint| {
            let mut description = NodeDescription { fabric: Some(fabric), ..NodeDescription::default() };
            let why = without_bad_fabric(&state, NodeId::new(1), &mut description);
            assert_eq!(description.fabric.is_none(), why.is_some());
            why
        };
        assert_eq!(taken(good.clone()), None);
        assert_eq!(taken(FabricEndpoint { wireguard_addr: "[2001:db8::1]:1".into(), ..good.clone() }), None);
        let key = |key: &[u8]| FabricEndpoint { public_key: key.to_vec(), ..good.clone() };
        let device = |addr: &str| FabricEndpoint { wireguard_addr: addr.into(), ..good.clone() };
        let plain = |addr: &str| FabricEndpoint { vxlan_addr: addr.into(), ..good.clone() };
        let bad =
            [key(&[]), key(&[7; 31]), key(&[0; 32]), FabricEndpoint { previous_public_key: vec![1], ..good.clone() }];
        for bad in
            bad.into_iter().chain(["", "192.0.2.1", "192.0.2.1:0", "0.0.0.0:1", "224.0.0.1:1", "[::]:1"].map(device))
        {
            assert!(taken(bad.clone()).is_some(), "{bad:?}");
        }
        for bad in ["", "host", "255.255.255.255", "ff02::1", "::ffff:224.0.0.1"].map(plain) {
            assert!(taken(bad.clone()).is_some(), "{bad:?}");
        }
        for bad in [key(&[8; 32]), key(&[9; 32]), FabricEndpoint { previous_public_key: vec![8; 32], ..good.clone() }] {
            let why = taken(bad).unwrap();
            assert!(why.contains(&NodeId::new(2).to_string()), "{why}");
        }
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
