//! Mutual TLS channels to other managers. Each manager is reached over three, so that nothing queues behind what is
//! larger or slower: Raft's small messages, Raft's snapshots, and all other calls.
//!
//! A channel connects at its first call and again when it is cut. It speaks to that manager only: to the node that the
//! state names for the Raft id, where it names one. Removed managers' connections are closed by the deny list.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use skep_identity::transport::{ChannelOptions, channel};
use skep_identity::{ClientTls, DenyList, Expected, LiveCredentials};
use skep_proto::id::NodeId;
use skep_raft::RaftId;
use tonic::transport::Channel;

use crate::store::Applied;

/// What a channel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// Appends, heartbeats, votes.
    Raft,
    /// Pieces of snapshots.
    Bulk,
    /// Everything else.
    Calls,
}

/// The channels. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct Links(Arc<Shared>);

struct Shared {
    way: Way,
    applied: Applied,
    open: Mutex<HashMap<(RaftId, Lane), Link>>,
}

/// How other managers are reached.
enum Way {
    Tls(LiveCredentials, DenyList),
    #[cfg(feature = "sim")]
    Simulated(crate::sim::Connect),
}

/// A channel, and what it was made for.
struct Link {
    addr: String,
    /// `None`: the state did not know it yet.
    node: Option<NodeId>,
    channel: Channel,
}

impl Links {
    pub(super) fn new(credentials: &LiveCredentials, deny: &DenyList, applied: &Applied) -> Self {
        Self::by(Way::Tls(credentials.clone(), deny.clone()), applied)
    }

    /// In a simulated network.
    #[cfg(feature = "sim")]
    pub(super) fn simulated(connect: crate::sim::Connect, applied: &Applied) -> Self {
        Self::by(Way::Simulated(connect), applied)
    }

    fn by(way: Way, applied: &Applied) -> Self {
        Self(Arc::new(Shared { way, applied: applied.clone(), open: Mutex::default() }))
    }

    /// The node of a Raft id, if the state names one. An id is never given to a second node.
    pub(super) fn node(&self, id: RaftId) -> Option<NodeId> {
        let state = self.0.applied.state();
        let mut nodes = state.nodes();
        nodes.find(|node| node.manager.as_ref().is_some_and(|manager| manager.raft_id == id)).map(|node| node.id)
    }

    /// The channel to a manager. Its tasks run on the runtime of the first call: Raft's on Raft's own.
    pub(super) fn channel(&self, id: RaftId, addr: &str, lane: Lane) -> Channel {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let known = open.get(&(id, lane)).filter(|link| link.addr == addr);
        let node = match known {
            Some(Link { node: Some(_), channel, .. }) => return channel.clone(),
            Some(Link { node: None, channel, .. }) => match self.node(id) {
                None => return channel.clone(),
                // Better known than before: from now on that node only.
                found => found,
            },
            None => self.node(id),
        };
        let expected = node.map_or_else(Expected::manager, Expected::manager_node);
        let channel = match &self.0.way {
            Way::Tls(credentials, deny) => {
                let tls = ClientTls::member(credentials, deny, expected);
                channel(vec![addr.to_owned()], tls, ChannelOptions::MANAGERS)
            }
            #[cfg(feature = "sim")]
            Way::Simulated(connect) => connect(addr),
        };
        // Managers that are gone leave their channels behind; new channels come seldom.
        open.retain(|(other, _), link| link.node.is_none() || *other == id || self.node(*other).is_some());
        open.insert((id, lane), Link { addr: addr.to_owned(), node, channel: channel.clone() });
        channel
    }
}
