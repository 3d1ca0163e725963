//! This host's agent: started with what the host has, and its events turned into what the daemon acts on.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use skep_identity::PeerIdentity;
use skep_worker::{Agent, AgentConfig, AgentEvent, AgentHandle, SessionState, SessionTiming};
use tokio::sync::{Notify, mpsc, watch};
use tracing::warn;

use crate::host::Host;
use crate::links::Links;

/// The agent and what it tells.
#[derive(Clone)]
pub(crate) struct MemberAgent {
    pub(crate) handle: AgentHandle,
    /// `host:port` of the managers, the newest list.
    pub(crate) managers: watch::Receiver<Vec<String>>,
    /// Notified when a manager wants the certificate renewed.
    pub(crate) renew: Arc<Notify>,
}

impl MemberAgent {
    /// Starts it; containers that run are taken over.
    pub(crate) async fn start(
        host: &Host,
        identity: &PeerIdentity,
        links: Arc<Links>,
        managers: Vec<String>,
        address: IpAddr,
    ) -> anyhow::Result<Self> {
        let (events, received) = mpsc::unbounded_channel();
        let config = AgentConfig {
            node_id: identity.node_id,
            data_dir: host.config.data_dir.clone(),
            description: host.description_config(Some(address)),
            executor: host.executor(identity.node_id, links.clone()),
            connector: links,
            managers: managers.clone(),
            events,
            timing: SessionTiming::default(),
        };
        let handle = Agent::start(config).await.context("cannot start the agent")?;
        let (known, managers) = watch::channel(managers);
        let renew = Arc::new(Notify::new());
        tokio::spawn(listen(received, known, Arc::clone(&renew)));
        Ok(Self { handle, managers, renew })
    }

    /// Returns when a manager has accepted its session.
    pub(crate) async fn connected(&self) {
        let accepted = |state: &SessionState| matches!(state, SessionState::Connected { .. });
        // An error: the agent has ended, and nobody waits any more.
        let _ = self.handle.session().wait_for(accepted).await;
    }

    /// Why there is no session right now, in words. Empty: there is one, or nothing is known yet.
    pub(crate) fn trouble(&self) -> String {
        match &*self.handle.session().borrow() {
            SessionState::Connecting { error: Some(error) } => format!("no session with a manager: {error}"),
            SessionState::Removed => {
                "this node was removed from the swarm: use `skep swarm leave` to clean up, then join again".to_owned()
            }
            SessionState::Connecting { error: None } | SessionState::Connected { .. } | SessionState::Closed => {
                String::new()
            }
        }
    }
}

async fn listen(
    mut events: mpsc::UnboundedReceiver<AgentEvent>,
    known: watch::Sender<Vec<String>>,
    renew: Arc<Notify>,
) {
    while let Some(event) = events.recv().await {
        match event {
            AgentEvent::RenewCertificate => renew.notify_one(),
            AgentEvent::Managers(managers) => {
                known.send_replace(managers.into_iter().map(|manager| manager.addr).collect());
            }
            AgentEvent::Removed => warn!("this node was removed from the swarm; its tasks are stopped"),
        }
    }
}
