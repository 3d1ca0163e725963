//! This host leaves its swarm, is removed from it, or takes back what a failed entry wrote.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use skep_identity::{Credentials, Role};
use skep_proto::id::NodeId;
use skep_proto::v1::SwarmState;
use tracing::{info, warn};

use super::member::Member;
use super::{LOCKED, Membership, REMOVED, blocking};

impl Membership {
    /// Leaves: containers stop, the local state goes.
    pub(crate) async fn leave(&self, force: bool) -> anyhow::Result<()> {
        let mut member = Arc::clone(&self.member).lock_owned().await;
        self.refuse_to_leave(&member, force)?;
        if let Some(running) = member.take() {
            running.end().await;
        }
        self.set_view(None);
        self.unfinished_join(|known| *known = None);
        self.host.clear_leftovers().await;
        self.forget().await?;
        self.board.outside();
        info!("left the swarm");
        Ok(())
    }

    fn refuse_to_leave(&self, member: &Option<Member>, force: bool) -> anyhow::Result<()> {
        if force {
            return Ok(());
        }
        let standing = self.standing();
        if standing.state == SwarmState::Inactive {
            bail!("this node is not part of a swarm");
        }
        if standing.state == SwarmState::Locked {
            bail!("{LOCKED}");
        }
        if standing.role == Some(Role::Manager) && member.is_some() {
            bail!(
                "you are attempting to leave the swarm on a node that is participating as a manager. The other managers \
                 must keep a majority without it: demote it first (`skep node demote`). Removing the last manager \
                 erases all current state of the swarm. Use `--force` to ignore this message"
            );
        }
        // A manager that could not start (damaged files) may hold the swarm's only state.
        if member.is_none() && standing.error != REMOVED && self.host.raft_dir().exists() {
            bail!(
                "this node holds a manager's state, which leaving erases: solve what `skep info` shows and restart the \
                 daemon, or use `--force` to erase it"
            );
        }
        Ok(())
    }

    /// The swarm removed this node: nothing of it runs here any more, and only `leave` is left to do. Its files stay
    /// until then, since nobody here has asked to delete them.
    pub(super) async fn removed(&self, node: NodeId) {
        let mut member = Arc::clone(&self.member).lock_owned().await;
        if member.as_ref().is_none_or(|running| running.live.current().node_id() != node) {
            return;
        }
        let Some(running) = member.take() else { return };
        warn!(%node, "this node was removed from the swarm: its tasks stop");
        // On disk first: a restart in the middle must not bring the tasks back.
        if let Err(error) = running.record.update(|record| record.removed = true).await {
            warn!(error = %format!("{error:#}"), "the removal is not on disk; the managers will tell it again");
        }
        self.set_view(None);
        self.board.failed(REMOVED.to_owned(), false);
        running.end().await;
    }

    /// Deletes the local state of the swarm, credentials first: without them nothing is resumed. Everything here was
    /// made by the membership that ends, since none begins where something lies already.
    pub(super) async fn forget(&self) -> anyhow::Result<()> {
        let dir = self.host.identity_dir();
        let (raft, paths) = (self.host.raft_dir(), [self.host.swarm_file(), self.host.agent_dir()]);
        blocking(move || {
            Credentials::erase(&dir).context("cannot delete this node's credentials")?;
            skep_manager::erase_files(&raft).context("cannot delete this manager's state")?;
            paths.into_iter().try_for_each(delete)
        })
        .await?
    }
}

fn delete(path: PathBuf) -> anyhow::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", path.display()))
        }
        _ => Ok(()),
    }
}
