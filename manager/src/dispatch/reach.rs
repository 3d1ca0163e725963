//! Where a node can be reached: by a session here, or through the manager that has it. Used by the log broker, and by
//! whoever has something to tell a node.

use std::sync::{Arc, Mutex, PoisonError};

use skep_proto::id::NodeId;
use tokio::sync::watch;
use tonic::transport::Channel;

use super::homes::{Home, Homes, Registered};
use super::links::ManagerLinks;
use super::sessions::Sessions;

/// The way to a node. Two ways are equal if they lead by the same session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// By this session of this manager.
    Here(u64),
    /// By a session of another manager.
    There(Home),
}

/// Sessions here, and what the leader says of those elsewhere. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Reach(Arc<Shared>);

struct Shared {
    me: NodeId,
    sessions: Sessions,
    homes: Mutex<Homes>,
    links: Arc<dyn ManagerLinks>,
}

impl Reach {
    /// `me` is this manager's node.
    pub(crate) fn new(me: NodeId, sessions: Sessions, links: Arc<dyn ManagerLinks>) -> Self {
        Self(Arc::new(Shared { me, sessions, homes: Mutex::default(), links }))
    }

    /// The way to a node. `None`: it has no session that this manager knows of.
    pub(crate) fn route(&self, node: NodeId) -> Option<Route> {
        if let Some(connection) = self.0.sessions.connection(node) {
            return Some(Route::Here(connection));
        }
        let home = self.homes(|homes| homes.of(node))?;
        (home.manager != self.0.me).then_some(Route::There(home))
    }

    /// Waits for sessions that come or go, here or elsewhere.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.0.sessions.watch()
    }

    /// A channel to another manager.
    pub(crate) fn manager(&self, node: NodeId) -> Option<Channel> {
        self.0.links.manager(node)
    }

    /// The sessions here.
    pub(crate) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    /// Reads the table.
    pub(crate) fn homes<T>(&self, read: impl FnOnce(&Homes) -> T) -> T {
        read(&self.0.homes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the table, and ends the sessions here of nodes that have a newer one elsewhere.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Homes)) {
        let mut homes = self.0.homes.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut homes);
        let open = self.0.sessions.open().map(|(node, open)| (node, open.registered));
        let moved: Vec<_> = open.filter(|(node, registered)| self.has_left(&homes, *node, *registered)).collect();
        drop(homes);
        for (node, registered) in moved {
            self.0.sessions.moved(node, registered);
        }
        self.0.sessions.notify();
    }

    /// Whether a session here, of this registration, has been followed by another one elsewhere.
    pub(crate) fn is_superseded(&self, node: NodeId, registered: Registered) -> bool {
        self.homes(|homes| self.has_left(homes, node, registered))
    }

    fn has_left(&self, homes: &Homes, node: NodeId, registered: Registered) -> bool {
        homes.of(node).is_some_and(|home| home.manager != self.0.me && home.open.registered > registered)
    }
}
