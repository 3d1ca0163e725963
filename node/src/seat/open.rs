//! One start of the manager: its port, its Raft id, its files; and its end. What was begun when a later part fails is
//! taken back: port and files are free when [`open`] returns an error.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, bail};
use skep_identity::transport::{AcceptLimits, Keepalive};
use skep_identity::{Anonymous, JoinToken, RootBundle, ServerTls, TokenSecret};
use skep_manager::{Bootstrap, ManagerConfig};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tracing::warn;

use super::SeatParts;
use crate::membership::{SeatPhase, SeatRecord};

/// Raft's id of a swarm's first manager.
const FIRST_RAFT_ID: u64 = 1;

/// Why a start is made.
pub(super) enum How {
    /// A new swarm.
    Found(Box<Bootstrap>),
    /// What the record says: go on, or join.
    Resume,
    /// Alone, after the others are lost.
    Recover,
}

/// Why a manager has ended by itself.
#[derive(Debug)]
#[allow(dead_code, reason = "the manager does not tell its end yet")]
pub(super) enum Ended {
    DiskFull(String),
    /// Raft's members no longer count this manager.
    Removed,
    /// It may run again.
    Failed(String),
    /// It will not.
    Final(String),
}

/// A running manager and its port.
pub(super) struct Manager {
    manager: skep_manager::Manager,
    port: JoinSet<()>,
}

/// What a start begins from.
struct Plan {
    bootstrap: Option<Bootstrap>,
}

/// Starts it. `stop` ends a wait for other managers.
pub(super) async fn open(parts: &SeatParts, how: How, stop: &mut watch::Receiver<bool>) -> anyhow::Result<Manager> {
    let record = parts.record.get();
    // First of all, so that a taken port leaves nothing to undo, and others reach this manager as soon as they know it.
    let listener = listen(record.listen_addr).await?;
    let plan = plan(parts, how, stop).await?;
    let manager = skep_manager::Manager::start(ManagerConfig {
        dir: parts.host.raft_dir(),
        node: parts.identity.node_id,
        advertise_addr: record.advertise_addr.to_string(),
        credentials: parts.live.clone(),
        deny: parts.deny.clone(),
        registries: parts.host.registries(),
        bootstrap: plan.bootstrap,
    })
    .await?;
    let tls = ServerTls::new(&parts.live, &parts.deny, Anonymous::Allowed);
    let incoming = skep_identity::transport::incoming(listener, tls, AcceptLimits::default());
    let server = skep_identity::transport::server(Keepalive::MANAGERS).add_routes(manager.routes());
    let mut port = JoinSet::new();
    port.spawn(async move {
        if let Err(error) = server.serve_with_incoming(incoming).await {
            warn!(%error, "the managers' port is closed");
        }
    });
    let opened = Manager { manager, port };
    match taken(parts).await {
        Ok(()) => Ok(opened),
        Err(error) => {
            opened.close().await;
            Err(error)
        }
    }
}

/// Writes down that Raft's files are there.
async fn taken(parts: &SeatParts) -> anyhow::Result<()> {
    let taken = |seat: SeatRecord| SeatRecord { phase: SeatPhase::Taken, ..seat };
    parts.record.update(|record| record.seat = record.seat.map(taken)).await
}

async fn listen(address: SocketAddr) -> anyhow::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

async fn plan(parts: &SeatParts, how: How, _stop: &mut watch::Receiver<bool>) -> anyhow::Result<Plan> {
    let dir = parts.host.raft_dir();
    match how {
        How::Found(bootstrap) => {
            let seat = SeatRecord { raft_id: FIRST_RAFT_ID, phase: SeatPhase::Founding };
            parts.record.update(|record| record.seat = Some(seat)).await?;
            Ok(Plan { bootstrap: Some(*bootstrap) })
        }
        How::Recover => bail!("not supported yet: --force-new-cluster"),
        How::Resume => match resume(parts.record.get().seat, dir.exists(), &dir)? {
            Resume::Enter | Resume::Join(_) => bail!("not supported yet: a second manager"),
            Resume::Existing(_) => Ok(Plan { bootstrap: None }),
        },
    }
}

/// How a seat is taken up again.
#[derive(Debug, PartialEq, Eq)]
enum Resume {
    /// There is no seat: ask the managers for one.
    Enter,
    /// The id was given, but Raft never started under it.
    Join(u64),
    Existing(u64),
}

fn resume(seat: Option<SeatRecord>, files: bool, dir: &Path) -> anyhow::Result<Resume> {
    match (seat, files) {
        (Some(SeatRecord { phase: SeatPhase::Founding, .. }), false) => {
            bail!("the swarm was never completely made: leave with `skep swarm leave --force`, then init again")
        }
        (Some(SeatRecord { phase: SeatPhase::Entered, raft_id }), false) => Ok(Resume::Join(raft_id)),
        (Some(SeatRecord { phase: SeatPhase::Taken, .. }), false) => bail!(
            "{} is missing, which holds this manager's state: is its disk mounted? If it is lost, leave with `skep \
             swarm leave --force` and join again",
            dir.display()
        ),
        (None | Some(SeatRecord { phase: SeatPhase::Leaving, .. }), false) => Ok(Resume::Enter),
        (Some(SeatRecord { phase: SeatPhase::Leaving, .. }), true) => {
            bail!("{} holds what is left of an earlier seat among the managers", dir.display())
        }
        (Some(SeatRecord { raft_id, .. }), true) => Ok(Resume::Existing(raft_id)),
        // Of the first version, which knew no other id and wrote none down.
        (None, true) => Ok(Resume::Existing(FIRST_RAFT_ID)),
    }
}

impl Manager {
    /// What it serves on the local socket.
    pub(super) fn routes(&self) -> Routes {
        self.manager.routes()
    }

    /// Waits until it hears a leader.
    pub(super) async fn ready(&self) {}

    /// Waits until it ends by itself.
    pub(super) async fn ended(&self) -> Ended {
        std::future::pending().await
    }

    /// Closes the port, then stops the manager behind it.
    pub(super) async fn close(mut self) {
        self.port.shutdown().await;
        self.manager.shutdown().await;
    }

    /// What a worker joins with.
    pub(super) fn worker_token(&self) -> anyhow::Result<JoinToken> {
        let state = self.manager.store().state();
        let cluster = state.cluster().context("the swarm's state is not there")?;
        let roots = RootBundle::from_pem(&cluster.root_cert_pem)?;
        Ok(JoinToken::new(roots.certs()[0].digest(), TokenSecret::new(cluster.worker_token_secret)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn after(phase: Option<SeatPhase>, files: bool) -> Result<Resume, String> {
        let seat = phase.map(|phase| SeatRecord { raft_id: 7, phase });
        resume(seat, files, Path::new("/data/raft")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_kill_at_any_point_leaves_what_to_go_on_with() {
        assert_eq!(after(None, false), Ok(Resume::Enter));
        assert_eq!(after(Some(SeatPhase::Entered), false), Ok(Resume::Join(7)));
        assert_eq!(after(Some(SeatPhase::Entered), true), Ok(Resume::Existing(7)));
        assert_eq!(after(Some(SeatPhase::Taken), true), Ok(Resume::Existing(7)));
        assert_eq!(after(Some(SeatPhase::Founding), true), Ok(Resume::Existing(7)));
        assert_eq!(after(Some(SeatPhase::Leaving), false), Ok(Resume::Enter));
    }

    #[test]
    fn a_missing_state_is_never_made_up_for() {
        assert!(after(Some(SeatPhase::Taken), false).unwrap_err().contains("/data/raft is missing"));
        assert!(after(Some(SeatPhase::Founding), false).unwrap_err().contains("never completely made"));
    }
}
