//! Connections that wait for a task's programs when it is to stop: closing a listening socket resets them, although their
//! clients have been told that they are connected. So they are accepted first.
//!
//! Called before a task is stopped that gets no new connections. Never keeps it from stopping.

use std::time::Duration;

use skep_netlink::backlog::Backlog;
use skep_netlink::{Inside, Namespace};
use skep_proto::id::TaskId;
use tokio::time::Instant;

use super::{Inner, blocking};
use crate::executor::{ExecError, chain};

/// A program that accepts nothing for so long is stopped as it is.
const SETTLE_FOR: Duration = Duration::from_secs(2);
/// A busy program accepts many connections in this time.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl Inner {
    /// Waits until nothing waits in the queues of the task's sandbox.
    pub(super) async fn settle(&self, task: TaskId) {
        let attached = self.tasks().get(&task).is_some_and(|entry| entry.attached);
        let Some(path) = self.host().ok().filter(|_| attached).map(|host| host.sandboxes.net(&task.to_string())) else {
            return;
        };
        let until = Instant::now() + SETTLE_FOR;
        let open = blocking(move || {
            let open = |path| Namespace::open(path)?.enter(Inside::backlog);
            open(&path).map_err(|error| ExecError::caused("cannot look into the task's sandbox", error))
        });
        let waited = async {
            let mut backlog = open.await?;
            loop {
                let (handle, waiting) = blocking(move || count(backlog)).await?;
                if waiting == 0 || Instant::now() >= until {
                    return Ok::<_, ExecError>(waiting);
                }
                backlog = handle;
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        match waited.await {
            Ok(0) => {}
            Ok(waiting) => tracing::warn!(%task, waiting, "stopping a task that does not accept its connections"),
            Err(error) => {
                tracing::warn!(%task, error = %chain(&error), "cannot see whether connections wait for a task")
            }
        }
    }
}

fn count(backlog: Backlog) -> Result<(Backlog, u64), ExecError> {
    let waiting = backlog.waiting().map_err(|error| ExecError::caused("cannot count connections", error))?;
    Ok((backlog, waiting))
}
