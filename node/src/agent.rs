//! This host's agent: started with what the host has, and its events turned into what the daemon acts on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use skep_identity::PeerIdentity;
use skep_identity::transport::Refusal;
use skep_worker::{
    Agent, AgentConfig, AgentEvent, AgentHandle, DescriptionConfig, Networks, SessionState, SessionTiming,
};
use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::contacts::Contacts;
use crate::host::Host;
use crate::links::Links;
use crate::membership::RecordFile;

/// The agent.
#[derive(Clone)]
pub(crate) struct MemberAgent {
    pub(crate) handle: AgentHandle,
    /// A manager did not believe this node's certificate, or this node not its one, and none has since.
    refused: Arc<AtomicBool>,
}

impl MemberAgent {
    /// Starts it; containers that run are taken over. What it hears goes to `contacts` and, where a restart needs it,
    /// to `record`.
    pub(crate) async fn start(
        host: &Host,
        identity: &PeerIdentity,
        links: Arc<Links>,
        contacts: Contacts,
        record: RecordFile,
        description: DescriptionConfig,
    ) -> anyhow::Result<Self> {
        let (events, received) = mpsc::unbounded_channel();
        let networks = Networks::new(host.netd.channel());
        let config = AgentConfig {
            node_id: identity.node_id,
            data_dir: host.config.data_dir.clone(),
            description,
            executor: host.executor(identity.node_id, links.clone(), networks.clone()),
            networks,
            connector: links,
            managers: contacts.managers(),
            events,
            timing: SessionTiming::default(),
        };
        let handle = Agent::start(config).await.context("cannot start the agent")?;
        let refused = Arc::default();
        tokio::spawn(follow_session(handle.session(), contacts.clone(), Arc::clone(&refused)));
        tokio::spawn(listen(received, contacts, record));
        Ok(Self { handle, refused })
    }

    /// Returns when a manager has accepted its session.
    pub(crate) async fn connected(&self) {
        let accepted = |state: &SessionState| matches!(state, SessionState::Connected { .. });
        // An error: the agent has ended, and nobody waits any more.
        let _ = self.handle.session().wait_for(accepted).await;
    }

    /// Whether, since the last session, a manager did not believe this node's certificate, or this node not its one. Not the
    /// last try alone: another manager may be away.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Why there is no session right now, in words. Empty: there is one, or nothing is known yet.
    pub(crate) fn trouble(&self) -> String {
        match &*self.handle.session().borrow() {
            SessionState::Connecting { error: Some(error) } => format!("no session with a manager: {error}"),
            SessionState::Connecting { error: None }
            | SessionState::Connected { .. }
            | SessionState::Removed
            | SessionState::Closed => String::new(),
        }
    }
}

/// Ends with the agent.
async fn listen(mut events: mpsc::UnboundedReceiver<AgentEvent>, contacts: Contacts, record: RecordFile) {
    while let Some(event) = events.recv().await {
        match event {
            AgentEvent::RenewCertificate => contacts.renew.notify_one(),
            AgentEvent::Managers(managers) => {
                let present: Vec<String> = managers.into_iter().map(|manager| manager.addr).collect();
                let mut known = record.get();
                known.learn(&present);
                contacts.learn(known.managers);
                if let Err(error) = record.update(|record| record.learn(&present)).await {
                    warn!(error = %format!("{error:#}"), "the new list of managers is not on disk");
                }
            }
            AgentEvent::Removed => {
                warn!("this node was removed from the swarm; its tasks are stopped");
                contacts.removed();
            }
        }
    }
}

/// Ends with the agent.
async fn follow_session(mut session: watch::Receiver<SessionState>, contacts: Contacts, refused: Arc<AtomicBool>) {
    loop {
        let state = session.borrow_and_update().clone();
        if let Some(is_refused) = told_of_trust(&state) {
            refused.store(is_refused, Ordering::Relaxed);
        }
        contacts.session(&state);
        if session.changed().await.is_err() {
            return;
        }
    }
}

/// Whether managers and this node do not believe each other's certificates. `None`: this state says nothing about it.
fn told_of_trust(state: &SessionState) -> Option<bool> {
    let stranger = Refusal::OtherCluster.to_string();
    match state {
        SessionState::Connected { .. } => Some(false),
        SessionState::Connecting { error: Some(error) } => {
            (error.contains(&stranger) || error.contains("it belongs to another cluster")).then_some(true)
        }
        SessionState::Connecting { error: None } | SessionState::Removed | SessionState::Closed => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_counts_until_a_manager_believes_this_node() {
        let failed = |error: &str| told_of_trust(&SessionState::Connecting { error: Some(error.to_owned()) });
        assert_eq!(failed(&format!("a:1: transport error: {}", Refusal::OtherCluster)), Some(true));
        assert_eq!(failed(&format!("a:1: {}: it belongs to another cluster", Refusal::Peer)), Some(true));
        assert_eq!(failed("b:1: connection refused"), None);
        assert_eq!(told_of_trust(&SessionState::Connecting { error: None }), None);
        assert_eq!(told_of_trust(&SessionState::Connected { addr: "a:1".to_owned() }), Some(false));
    }
}
