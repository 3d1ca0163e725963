//! This host's agent: started with what the host has, and its events turned into what the daemon acts on.

use std::sync::Arc;

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
        tokio::spawn(follow_session(handle.session(), contacts.clone()));
        tokio::spawn(listen(received, contacts, record));
        Ok(Self { handle })
    }

    /// Returns when a manager has accepted its session.
    pub(crate) async fn connected(&self) {
        let accepted = |state: &SessionState| matches!(state, SessionState::Connected { .. });
        // An error: the agent has ended, and nobody waits any more.
        let _ = self.handle.session().wait_for(accepted).await;
    }

    /// Whether the last manager that was asked did not believe this node's certificate, or this node its.
    pub(crate) fn is_refused(&self) -> bool {
        let stranger = Refusal::OtherCluster.to_string();
        matches!(&*self.handle.session().borrow(), SessionState::Connecting { error: Some(error) }
            if error.contains(&stranger) || error.contains("it belongs to another cluster"))
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
async fn follow_session(mut session: watch::Receiver<SessionState>, contacts: Contacts) {
    loop {
        contacts.session(&session.borrow_and_update().clone());
        if session.changed().await.is_err() {
            return;
        }
    }
}
