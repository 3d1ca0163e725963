//! Between managers (`relay.proto`): every manager keeps one stream to the leader, by which it tells which nodes it hears,
//! whose sessions it has and which images they hold; the leader tells all of them where nodes have their sessions, and by
//! its messages that it leads.
//!
//! `client.rs` is the side of those who do not lead, `server.rs` the leader's. Both sides are level-triggered: they compare
//! what is with what was told, and a new stream begins with everything.

mod client;
mod server;

use skep_proto::id::NodeId;
use skep_proto::time::UnixMs;
use skep_proto::v1;

pub(super) use self::client::run;
use super::homes::{Home, Open, Registered};

/// What the leader wants of a node whose session is elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// It is to renew its certificate.
    Renew(NodeId),
    /// Its session is to end; it may come back.
    Reconnect(NodeId),
}

fn to_session(node: NodeId, open: Open) -> v1::RelayedSession {
    let Open { connection, registered: Registered { version, at } } = open;
    v1::RelayedSession { node_id: node.to_vec(), connection, version, registered_at_ms: at.0 }
}

/// `None`: what managers of this version do not say.
fn from_session(session: &v1::RelayedSession) -> Option<(NodeId, Open)> {
    let node = NodeId::from_wire(&session.node_id).ok()?;
    let registered = Registered { version: session.version, at: UnixMs(session.registered_at_ms) };
    Some((node, Open { connection: session.connection, registered }))
}

fn to_home(node: NodeId, home: Home) -> v1::Home {
    v1::Home { manager_id: home.manager.to_vec(), session: Some(to_session(node, home.open)) }
}

fn from_home(home: &v1::Home) -> Option<(NodeId, Home)> {
    let manager = NodeId::from_wire(&home.manager_id).ok()?;
    let (node, open) = from_session(home.session.as_ref()?)?;
    Some((node, Home { manager, open }))
}

fn ids(list: &[Vec<u8>]) -> impl Iterator<Item = NodeId> {
    list.iter().filter_map(|id| NodeId::from_wire(id).ok())
}
