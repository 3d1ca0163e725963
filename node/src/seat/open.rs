//! One start of the manager: its port, its Raft id, its files; and its end. What was begun when a later part fails is
//! taken back: port and files are free when [`open`] returns an error.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use skep_identity::{Anonymous, JoinToken, RootBundle, ServerTls, TokenSecret};
use skep_manager::peers::{self, Entered, Serving};
use skep_manager::{Bootstrap, Ended, FIRST_RAFT_ID, KeysAtStart, ManagerConfig, ManagerStart, has_state};
use skep_proto::v1::IssueResponse;
use skep_worker::Connector;
use tokio::sync::watch;
use tonic::service::Routes;

use super::SeatParts;
use crate::membership::{SeatPhase, SeatRecord};

/// Why a start is made.
pub(super) enum How {
    /// A new swarm.
    Found(Box<Bootstrap>),
    /// What the record says: go on, or join.
    Resume,
    /// Alone, after the others are lost.
    Recover,
}

/// A running manager and its port.
pub(super) struct Manager {
    manager: skep_manager::Manager,
    port: Serving,
}

/// Starts it. `stop` ends a wait for other managers.
pub(super) async fn open(parts: &SeatParts, how: How, stop: &mut watch::Receiver<bool>) -> anyhow::Result<Manager> {
    let record = parts.record.get();
    // First of all, so that a taken port leaves nothing to undo, and others reach this manager as soon as they know it.
    let listener = listen(record.listen_addr).await?;
    let Plan { raft_id, start, data_key_epoch } = plan(parts, how, stop).await?;
    let (seals, (unlock, other)) = (parts.sealing.for_manager(), parts.sealing.keys());
    let config = ManagerConfig {
        dir: parts.host.raft_dir(),
        node: parts.identity.node_id,
        advertise_addr: record.advertise_addr.to_string(),
        credentials: parts.live.clone(),
        deny: parts.deny.clone(),
        registries: parts.host.registries(),
        raft_id,
        start,
        keys: KeysAtStart { unlock, other, data_key_epoch, seals: Some(Arc::new(seals)) },
    };
    let manager = skep_manager::Manager::start(config).await?;
    let served = async {
        taken(parts).await?;
        manager.serve(listener, ServerTls::new(&parts.live, &parts.deny, Anonymous::Allowed)).await
    };
    match served.await {
        Ok(port) => Ok(Manager { manager, port }),
        Err(error) => {
            manager.shutdown().await;
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

/// The manager's id in Raft, and what its files are to be.
struct Plan {
    raft_id: u64,
    start: ManagerStart,
    /// Of new files.
    data_key_epoch: u64,
}

impl Plan {
    fn new(raft_id: u64, start: ManagerStart) -> Self {
        Self { raft_id, start, data_key_epoch: 0 }
    }
}

async fn plan(parts: &SeatParts, how: How, stop: &mut watch::Receiver<bool>) -> anyhow::Result<Plan> {
    let dir = parts.host.raft_dir();
    match how {
        How::Found(bootstrap) => {
            let seat = SeatRecord { raft_id: FIRST_RAFT_ID, phase: SeatPhase::Founding };
            parts.record.update(|record| record.seat = Some(seat)).await?;
            Ok(Plan::new(FIRST_RAFT_ID, ManagerStart::Bootstrap(bootstrap)))
        }
        How::Recover => match parts.record.get().seat {
            Some(seat) => Ok(Plan::new(seat.raft_id, ManagerStart::Recover)),
            None => bail!("this node holds no manager's state to go on from"),
        },
        How::Resume => match resume(parts.record.get().seat, has_state(&dir), &dir)? {
            Resume::Existing(raft_id) => Ok(Plan::new(raft_id, ManagerStart::Existing)),
            Resume::Enter => {
                let Entered { raft_id, unlock_key, data_key_epoch } = tokio::select! {
                    entered = enter(parts) => entered?,
                    // An error: the seat is gone, and with it who wanted it taken.
                    _ = stop.wait_for(|stop| *stop) => bail!("this daemon is stopping"),
                };
                let seat = SeatRecord { raft_id, phase: SeatPhase::Entered };
                parts.record.update(|record| record.seat = Some(seat)).await?;
                // Before there is anything of the swarm's state on this disk.
                parts.sealing.reseal_alone(unlock_key).await?;
                Ok(Plan { raft_id, start: ManagerStart::Join, data_key_epoch })
            }
        },
    }
}

/// Asks the managers in turn for an id in Raft. One that says no may be behind the others, so all are asked.
async fn enter(parts: &SeatParts) -> anyhow::Result<Entered> {
    let own = parts.record.get().advertise_addr.to_string();
    let mut last = None;
    for addr in parts.contacts.to_ask().into_iter().filter(|addr| *addr != own) {
        let asked = async {
            let channel = match tokio::time::timeout(CONNECT, parts.links.manager(&addr)).await {
                Ok(opened) => opened.map_err(|error| tonic::Status::unavailable(chain(&*error)))?,
                Err(_) => return Err(tonic::Status::unavailable(format!("no connection within {CONNECT:?}"))),
            };
            peers::enter(channel, &own).await
        };
        match asked.await {
            Ok(entered) => return Ok(entered),
            Err(status) => {
                let text = format!("manager {addr} does not let this node in");
                last = Some(anyhow::Error::new(status).context(text));
            }
        }
    }
    // The certificate may be ahead of a manager that is behind, or behind the swarm: another one will tell.
    parts.contacts.renew.notify_one();
    Err(last.unwrap_or_else(|| tonic::Status::unavailable("no other manager is known").into()))
}

/// To one manager of several.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(3);

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// How a seat is taken up again.
#[derive(Debug, PartialEq, Eq)]
enum Resume {
    /// There is no seat, or Raft never started under the id that was given: ask the managers. They give the same id again, and
    /// what the files are to be sealed with, which nothing here remembers.
    Enter,
    Existing(u64),
}

fn resume(seat: Option<SeatRecord>, files: bool, dir: &Path) -> anyhow::Result<Resume> {
    match (seat, files) {
        (Some(SeatRecord { phase: SeatPhase::Founding, .. }), false) => {
            bail!("the swarm was never completely made: leave with `skep swarm leave --force`, then init again")
        }
        (Some(SeatRecord { phase: SeatPhase::Taken, .. }), false) => bail!(
            "{} is missing, which holds this manager's state: is its disk mounted? If it is lost, leave with `skep \
             swarm leave --force` and join again",
            dir.display()
        ),
        (None | Some(SeatRecord { phase: SeatPhase::Entered | SeatPhase::Leaving, .. }), false) => Ok(Resume::Enter),
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

    pub(super) fn figures(&self) -> skep_manager::FigureSource {
        self.manager.figures()
    }

    /// Waits until it hears a leader and has its state; an error if that state does not know this node.
    pub(super) async fn ready(&self) -> anyhow::Result<()> {
        self.manager.ready().await
    }

    /// Waits until it ends by itself.
    pub(super) async fn ended(&self) -> Ended {
        self.manager.ended().await
    }

    /// Whether others lead, or follow, this manager: its quorum is not lost.
    pub(super) fn has_company(&self) -> bool {
        let status = self.manager.raft_status();
        let status = status.borrow();
        status.hears_leader && !status.is_sole_voter()
    }

    /// Waits until its disk is full, if it is not (`known`), or has space again.
    pub(super) async fn disk_full_is_not(&self, known: bool) {
        // An error: Raft has ended, which `ended` tells.
        if self.manager.raft_status().wait_for(|status| status.disk_full != known).await.is_err() {
            std::future::pending().await
        }
    }

    /// Stops it, handing the lead over by its port, then closes that.
    pub(super) async fn close(self) {
        self.manager.shutdown().await;
        self.port.close().await;
    }

    /// A certificate for this host, where this is the only manager.
    pub(super) fn renew_own(&self, csr_pem: &str) -> anyhow::Result<IssueResponse> {
        self.manager.renew_own(csr_pem)
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
        // It may have ended before its keys were sealed: Raft's files would lie there open.
        assert_eq!(after(Some(SeatPhase::Entered), false), Ok(Resume::Enter));
        assert_eq!(after(Some(SeatPhase::Entered), true), Ok(Resume::Existing(7)));
        assert_eq!(after(Some(SeatPhase::Taken), true), Ok(Resume::Existing(7)));
        assert_eq!(after(Some(SeatPhase::Founding), true), Ok(Resume::Existing(7)));
        assert_eq!(after(Some(SeatPhase::Leaving), false), Ok(Resume::Enter));
    }

    /// Raft makes the folder first, and marks it as unfinished next.
    #[test]
    fn a_folder_without_state_is_no_seat() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("lock"), "").unwrap();
        let seat = SeatRecord { raft_id: 7, phase: SeatPhase::Entered };
        assert_eq!(resume(Some(seat), has_state(dir.path()), dir.path()).unwrap(), Resume::Enter);
        std::fs::write(dir.path().join("keys"), "").unwrap();
        assert_eq!(resume(Some(seat), has_state(dir.path()), dir.path()).unwrap(), Resume::Existing(7));
        std::fs::write(dir.path().join("initializing"), "").unwrap();
        assert_eq!(resume(Some(seat), has_state(dir.path()), dir.path()).unwrap(), Resume::Enter);
    }

    #[test]
    fn a_missing_state_is_never_made_up_for() {
        assert!(after(Some(SeatPhase::Taken), false).unwrap_err().contains("/data/raft is missing"));
        assert!(after(Some(SeatPhase::Founding), false).unwrap_err().contains("never completely made"));
    }
}
