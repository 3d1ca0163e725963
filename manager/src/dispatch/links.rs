//! How the dispatcher reaches the other managers. The connections are not its own: whoever composes the manager gives
//! them.

use futures::future::BoxFuture;
use skep_proto::id::NodeId;
use tonic::transport::Channel;

/// Where the leader is, as this manager knows it.
#[derive(Clone, Debug)]
pub enum LeaderLink {
    /// It is this manager, or none is heard: there is nothing to relay to.
    None,
    /// Another one, over this channel.
    Other(Channel),
}

/// Connections to other managers.
pub trait ManagerLinks: Send + Sync + 'static {
    /// Where the leader is right now.
    fn leader(&self) -> LeaderLink;
    /// Returns when the leader has changed since this call.
    fn leader_changed(&self) -> BoxFuture<'static, ()>;
    /// A channel to another manager, which connects by itself. `None`: the state knows no address of it.
    fn manager(&self, node: NodeId) -> Option<Channel>;
}

/// No other managers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl ManagerLinks for Alone {
    fn leader(&self) -> LeaderLink {
        LeaderLink::None
    }

    fn leader_changed(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    fn manager(&self, _node: NodeId) -> Option<Channel> {
        None
    }
}
