//! What this host says of itself to the managers, put together from what its parts know: the host, netd, the credentials.

use std::sync::{Arc, Mutex, PoisonError};

use skep_identity::{Credentials, LiveCredentials};
use skep_worker::AgentHandle;
use skep_worker::description::DescriptionConfig;

/// Tells the managers through the agent. Clones share the description.
#[derive(Clone)]
pub(crate) struct Describer {
    agent: AgentHandle,
    config: Arc<Mutex<DescriptionConfig>>,
}

impl Describer {
    /// `config` is what the agent was started with.
    pub(crate) fn new(agent: AgentHandle, config: DescriptionConfig) -> Self {
        Self { agent, config: Arc::new(Mutex::new(config)) }
    }

    /// Changes a part of it; told if it differs.
    pub(crate) fn change(&self, change: impl FnOnce(&mut DescriptionConfig)) {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut config);
        self.agent.redescribe(config.clone());
    }

    /// Tells of every certificate that this host gets. Runs as long as it is a member.
    pub(crate) async fn follow(self, live: LiveCredentials) {
        let mut credentials = live.subscribe();
        loop {
            let now = Arc::clone(&credentials.borrow_and_update());
            self.change(|config| *config = with_certificate(config.clone(), &now));
            if credentials.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The description with this certificate.
pub(crate) fn with_certificate(config: DescriptionConfig, credentials: &Credentials) -> DescriptionConfig {
    DescriptionConfig { certificate: Some(credentials.facts()), ..config }
}
