//! What the agent's session tells the rest of the daemon: which managers there are, that the certificate is to be
//! renewed, that the node is no longer in the swarm. Latest values only; clones share them.

use std::sync::Arc;

use skep_worker::SessionState;
use tokio::sync::{Notify, watch};

/// Told by the agent, read by renewal, seat and membership.
#[derive(Clone, Debug)]
pub(crate) struct Contacts {
    /// This node's own address as a manager.
    own: Arc<str>,
    managers: watch::Sender<Vec<String>>,
    /// Notified when the certificate is to be renewed now.
    pub(crate) renew: Arc<Notify>,
    removed: watch::Sender<bool>,
    /// Address of the manager that has the session.
    session: watch::Sender<Option<String>>,
}

impl Contacts {
    /// Knows these managers, `host:port`; `own` is where this node is one, or would be.
    pub(crate) fn new(own: &str, managers: Vec<String>) -> Self {
        Self {
            own: own.into(),
            managers: watch::Sender::new(managers),
            renew: Arc::default(),
            removed: watch::Sender::new(false),
            session: watch::Sender::new(None),
        }
    }

    /// These are the managers now, those only heard of earlier behind them.
    pub(crate) fn learn(&self, managers: Vec<String>) {
        self.managers.send_replace(managers);
    }

    /// All managers known, present ones first.
    pub(crate) fn managers(&self) -> Vec<String> {
        self.managers.borrow().clone()
    }

    /// Managers in the order in which to ask them: first the one that has the session, which answers and has applied
    /// what it told the node; last this node's own, which may just have been taken out of Raft without knowing it.
    pub(crate) fn to_ask(&self) -> Vec<String> {
        let mut all: Vec<String> = self.session.borrow().iter().cloned().collect();
        let others: Vec<String> = self.managers().into_iter().filter(|known| !all.contains(known)).collect();
        all.extend(others);
        let (own, mut rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|addr| **addr == *self.own);
        rest.extend(own);
        rest
    }

    /// The swarm removed this node.
    pub(crate) fn removed(&self) {
        self.removed.send_replace(true);
    }

    /// Turns true when the swarm has removed this node.
    pub(crate) fn watch_removed(&self) -> watch::Receiver<bool> {
        self.removed.subscribe()
    }

    /// Follows the session's state.
    pub(crate) fn session(&self, state: &SessionState) {
        let addr = match state {
            SessionState::Connected { addr } => Some(addr.clone()),
            SessionState::Connecting { .. } | SessionState::Removed | SessionState::Closed => None,
        };
        self.session.send_replace(addr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_of_the_session_is_asked_first_and_the_own_one_last() {
        let contacts = Contacts::new("own:1", vec!["own:1".to_owned(), "a:1".to_owned(), "b:1".to_owned()]);
        contacts.session(&SessionState::Connected { addr: "b:1".to_owned() });
        assert_eq!(contacts.to_ask(), ["b:1", "a:1", "own:1"]);
        contacts.session(&SessionState::Connected { addr: "c:1".to_owned() });
        assert_eq!(contacts.to_ask(), ["c:1", "a:1", "b:1", "own:1"]);
        contacts.session(&SessionState::Closed);
        assert_eq!(contacts.to_ask(), ["a:1", "b:1", "own:1"]);
        contacts.session(&SessionState::Connected { addr: "own:1".to_owned() });
        assert_eq!(contacts.to_ask(), ["a:1", "b:1", "own:1"]);
    }
}
