//! Connections that others make to a task, and its programs' part in them: whether they listen already, and whether any wait to
//! be accepted. Closing a listening socket resets the latter, although their clients have been told that they are
//! connected.
//!
//! Called when a published task has started, before others are led to it, and before a task is stopped that gets no new
//! connections. Never keeps it from running or stopping for long.

use std::collections::BTreeSet;
use std::time::Duration;

use skep_netlink::tcp::TcpSockets;
use skep_netlink::{Inside, Namespace, NetlinkError};
use skep_proto::id::TaskId;
use skep_proto::v1::{AttachResponse, PortSpec, Protocol};
use skep_runtime::State;
use tokio::time::Instant;

use super::{Inner, blocking};
use crate::executor::{ExecError, TaskJob, chain};

/// A program that accepts nothing for so long is stopped as it is.
const SETTLE_FOR: Duration = Duration::from_secs(2);
/// A task that listens later than that counts as running before.
const LISTEN_WITHIN: Duration = Duration::from_secs(10);
/// A busy program accepts many connections in this time.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// TCP ports of the task itself that its host or the routing mesh leads connections to.
pub(super) fn published(job: &TaskJob, attached: &AttachResponse) -> BTreeSet<u16> {
    let tcp = |port: &&PortSpec| port.protocol() == Protocol::Tcp;
    let ports = job.ports.iter().chain(&attached.ports).filter(tcp);
    ports.filter_map(|port| u16::try_from(port.target_port).ok()).collect()
}

impl Inner {
    /// Waits until the task's programs listen on the ports that it is published at; a sentence if some do not.
    pub(super) async fn listening(&self, task: TaskId) -> Result<(), String> {
        let missing = self.tasks().get(&task).map(|entry| entry.published.clone()).unwrap_or_default();
        let Some(mut sockets) = self.sockets(task).await.filter(|_| !missing.is_empty()) else { return Ok(()) };
        let until = Instant::now() + LISTEN_WITHIN;
        loop {
            let (handle, heard) = match look(sockets, TcpSockets::listening).await {
                Ok((handle, Some(heard))) => (handle, heard),
                Ok((_, None)) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%task, error = %chain(&error), "cannot see whether a task listens");
                    return Ok(());
                }
            };
            let missing: Vec<String> = missing.difference(&heard).map(u16::to_string).collect();
            if missing.is_empty() || self.has_ended(task) {
                return Ok(());
            }
            if Instant::now() >= until {
                let ports = missing.join(", ");
                return Err(format!("nothing in it listens on TCP port {ports}, which is published"));
            }
            sockets = handle;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Whether a container of it has: nothing is to be waited for.
    fn has_ended(&self, task: TaskId) -> bool {
        let ended = |container: &skep_runtime::Container| matches!(container.state(), State::Exited(_));
        self.tasks().get(&task).is_none_or(|entry| entry.containers.values().any(ended))
    }

    /// Waits until nothing waits in the queues of the task's sandbox.
    pub(super) async fn settle(&self, task: TaskId) {
        let Some(mut sockets) = self.sockets(task).await else { return };
        let until = Instant::now() + SETTLE_FOR;
        loop {
            match look(sockets, TcpSockets::waiting).await {
                Ok((_, 0)) => return,
                Ok((_, waiting)) if Instant::now() >= until => {
                    tracing::warn!(%task, waiting, "stopping a task that does not accept its connections");
                    return;
                }
                Ok((handle, _)) => sockets = handle,
                Err(error) => {
                    tracing::warn!(%task, error = %chain(&error), "cannot see whether connections wait for a task");
                    return;
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The sockets of the task's sandbox. `None`: it has none of its own, or it is gone.
    async fn sockets(&self, task: TaskId) -> Option<TcpSockets> {
        let attached = self.tasks().get(&task).is_some_and(|entry| entry.attached);
        let path = self.host().ok().filter(|_| attached)?.sandboxes.net(&task.to_string());
        let open = blocking(move || {
            let open = |path| Namespace::open(path)?.enter(Inside::tcp_sockets);
            open(&path).map_err(|error| ExecError::caused("cannot look into the task's sandbox", error))
        });
        match open.await {
            Ok(sockets) => Some(sockets),
            Err(error) => {
                tracing::warn!(%task, error = %chain(&error), "cannot see a task's connections");
                None
            }
        }
    }
}

/// Asks away from the runtime's threads; gives the handle back.
async fn look<T: Send + 'static>(
    sockets: TcpSockets,
    what: fn(&TcpSockets) -> Result<T, NetlinkError>,
) -> Result<(TcpSockets, T), ExecError> {
    blocking(move || {
        let seen = what(&sockets).map_err(|error| ExecError::caused("cannot list TCP sockets", error))?;
        Ok((sockets, seen))
    })
    .await
}
