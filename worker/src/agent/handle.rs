//! The agent as the daemon has it: what it is started with, its handle, what it tells.
//!
//! Holds no state but channels: whatever is asked is answered by the actor ([`super::Agent`]), or read from what it
//! publishes.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use skep_image::Digest;
use skep_proto::id::{NodeId, TaskId};
use skep_proto::v1::{ManagerAddr, NodeDescription, TaskStatus};
use tokio::sync::{mpsc, oneshot, watch};

use super::reports::Reports;
use crate::description::{DescriptionConfig, describe};
use crate::executor::{ExecError, Executor};
use crate::networks::Networks;
use crate::payload::Payloads;
use crate::record::RecordError;
use crate::session::{Connector, SessionState, SessionTiming};

/// What an agent is started with.
pub struct AgentConfig {
    /// The node, as its certificate says.
    pub node_id: NodeId,
    /// Folder of the agent's own state; the record lies in it.
    pub data_dir: PathBuf,
    /// What the daemon knows of the host.
    pub description: DescriptionConfig,
    /// Runs the containers.
    pub executor: Arc<dyn Executor>,
    /// This host's networks.
    pub networks: Networks,
    /// Opens connections with the node's identity.
    pub connector: Arc<dyn Connector>,
    /// Managers to try besides those that the record knows.
    pub managers: Vec<String>,
    /// Where events for the daemon go.
    pub events: mpsc::UnboundedSender<AgentEvent>,
    /// Time limits of the session.
    pub timing: SessionTiming,
}

impl fmt::Debug for AgentConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentConfig")
            .field("node_id", &self.node_id)
            .field("data_dir", &self.data_dir)
            .finish_non_exhaustive()
    }
}

/// What the daemon has to deal with.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentEvent {
    /// Renew the certificate now.
    RenewCertificate,
    /// The node was removed from the swarm; its tasks are being stopped.
    Removed,
    /// The managers there are now.
    Managers(Vec<ManagerAddr>),
}

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The record cannot be used.
    #[error("cannot use the agent's state in {}", path.display())]
    Record {
        /// Folder of the record.
        path: PathBuf,
        /// Why.
        #[source]
        source: RecordError,
    },
    /// What earlier agents left cannot be taken over.
    #[error("cannot take over the containers of this host")]
    Recover(#[source] ExecError),
}

/// What a handle asks of the actor, which answers when it is done.
pub(super) enum Command {
    Shutdown(oneshot::Sender<()>),
    StopAll(oneshot::Sender<()>),
}

/// The running agent; clones are cheap. Dropping all handles shuts it down as [`shutdown`](Self::shutdown) does.
#[derive(Clone)]
pub struct AgentHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) quit: Arc<watch::Sender<bool>>,
    pub(super) reports: Reports,
    pub(super) description: watch::Sender<NodeDescription>,
    pub(super) config: watch::Sender<DescriptionConfig>,
    pub(super) payloads: watch::Receiver<Arc<Payloads>>,
}

impl fmt::Debug for AgentHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentHandle").field("session", &self.reports.session).finish_non_exhaustive()
    }
}

impl AgentHandle {
    /// Says goodbye to the manager and ends. Containers go on.
    pub async fn shutdown(&self) {
        self.quit.send_replace(true);
        self.command(Command::Shutdown).await;
    }

    /// Stops and removes every container and forgets every assignment (the node leaves its swarm), then ends. Takes as
    /// long as the longest grace period.
    pub async fn stop_all(&self) {
        self.command(Command::StopAll).await;
    }

    async fn command(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) {
        let (done, wait) = oneshot::channel();
        // An agent that has ended has nothing left to do.
        if self.commands.send(command(done)).await.is_ok() {
            let _ = wait.await;
        }
    }

    /// How the session stands, now and later.
    pub fn session(&self) -> watch::Receiver<SessionState> {
        self.reports.session.state()
    }

    /// Newest status of every held task.
    pub fn tasks(&self) -> Vec<(TaskId, TaskStatus)> {
        self.reports.snapshot()
    }

    /// Containers that run now.
    pub fn containers_running(&self) -> usize {
        self.reports.containers_running()
    }

    /// Images that tasks need now, for `image ls` and `image rm`.
    pub fn images_in_use(&self) -> HashSet<Digest> {
        self.reports.images_in_use()
    }

    /// Whether the managers know every status.
    pub fn all_acknowledged(&self) -> bool {
        self.reports.session.all_acknowledged()
    }

    /// How many versions of secrets and configs are in memory.
    pub fn payloads_held(&self) -> usize {
        self.payloads.borrow().len()
    }

    /// What the node says of itself.
    pub fn description(&self) -> NodeDescription {
        self.description.borrow().clone()
    }

    /// Changes what the daemon says of the host (labels, addresses); pushed if it differs.
    pub fn redescribe(&self, config: DescriptionConfig) {
        update_description(&self.description, &config);
        self.config.send_replace(config);
    }
}

/// Describes the host anew; pushed if it differs.
pub(super) fn update_description(sender: &watch::Sender<NodeDescription>, config: &DescriptionConfig) {
    let fresh = describe(config);
    sender.send_if_modified(|known| {
        let changed = *known != fresh;
        *known = fresh;
        changed
    });
}
