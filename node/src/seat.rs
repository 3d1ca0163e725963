//! This node's seat among the managers: the manager runs while the node's certificate says `manager`, whatever happens
//! to it. One task keeps it so; the agent and the containers know nothing of it.
//!
//! | the certificate says | the manager | what follows |
//! |---|---|---|
//! | manager | is not there | its port is opened, the managers are asked for a Raft id, it starts |
//! | manager | ended: full disk, taken port, no network | opened again with growing pauses |
//! | manager | ended: damaged files, left behind by a recovery | stays closed and says why |
//! | manager | was taken out of Raft | its files go, the certificate is renewed |
//! | worker | runs | it stops, its port closes, its files go |
//!
//! Every step is written to `swarm.json` first, so that a kill at any point leaves what the next start goes on with.

mod open;
mod run;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use skep_identity::{DenyList, JoinToken, LiveCredentials, PeerIdentity};
use skep_manager::Bootstrap;
use skep_proto::v1::IssueResponse;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::error;

use crate::contacts::Contacts;
use crate::host::Host;
use crate::links::Links;
use crate::membership::{Board, RecordFile};
use crate::sealing::Sealing;

/// How long a stop may take, the hand-over of the lead included; what is acknowledged is on disk anyway.
const CLOSE_PATIENCE: Duration = Duration::from_secs(15);

/// What a seat needs of its node.
#[derive(Clone)]
pub(crate) struct SeatParts {
    pub(crate) host: Arc<Host>,
    pub(crate) identity: PeerIdentity,
    pub(crate) live: LiveCredentials,
    pub(crate) deny: DenyList,
    pub(crate) links: Arc<Links>,
    pub(crate) contacts: Contacts,
    pub(crate) record: RecordFile,
    pub(crate) board: Board,
    pub(crate) sealing: Sealing,
}

/// How the seat stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SeatState {
    /// This node is a worker.
    None,
    /// The manager is starting, or asks to be let in.
    Taking,
    /// It runs. `ready`: it hears a leader.
    Taken { ready: bool },
    /// It does not run, and why. `passing`: it is tried again.
    Empty { reason: String, passing: bool },
}

impl SeatState {
    /// Nothing more is to be expected of the first try.
    pub(crate) fn is_settled(&self) -> bool {
        match self {
            Self::None | Self::Taken { ready: true } | Self::Empty { .. } => true,
            Self::Taking | Self::Taken { ready: false } => false,
        }
    }
}

/// What the seat begins with.
pub(crate) enum First {
    /// Make a swarm; there is one try.
    Found(Box<Bootstrap>),
    /// What certificate and record say.
    Resume,
}

/// What the task is told to do.
enum Order {
    /// Make this manager, whose quorum is lost, the only one.
    Recover { addrs: Option<(SocketAddr, SocketAddr)>, answer: oneshot::Sender<anyhow::Result<JoinToken>> },
    /// Sign this host's own request, where this manager is the only one.
    Renew { csr_pem: String, answer: oneshot::Sender<anyhow::Result<IssueResponse>> },
}

/// This host's manager as an authority for this host itself.
#[derive(Clone)]
pub(crate) struct OwnAuthority(mpsc::Sender<Order>);

impl OwnAuthority {
    /// A certificate for a request (PEM); an error if there is no manager here, or it is not the only one.
    pub(crate) async fn renew(&self, csr_pem: String) -> anyhow::Result<IssueResponse> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Order::Renew { csr_pem, answer }).await.ok().context("this daemon is stopping")?;
        answered.await.context("this daemon is stopping")?
    }
}

/// The seat's task.
pub(crate) struct Seat {
    orders: mpsc::Sender<Order>,
    state: watch::Receiver<SeatState>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Seat {
    /// Starts the task. The second value says what became of the first try to run a manager, if there was one.
    pub(crate) fn start(parts: SeatParts, first: First) -> (Self, oneshot::Receiver<anyhow::Result<()>>) {
        let (orders, received) = mpsc::channel(1);
        let (stop, stopped) = watch::channel(false);
        let (publish, state) = watch::channel(SeatState::Taking);
        let (outcome, first_outcome) = oneshot::channel();
        let runner = run::Runner::new(parts, publish, received, stopped, outcome);
        let task = tokio::spawn(runner.run(first));
        (Self { orders, state, stop, task }, first_outcome)
    }

    /// For a certificate of this host that nobody else renews.
    pub(crate) fn authority(&self) -> OwnAuthority {
        OwnAuthority(self.orders.clone())
    }

    /// How it stands, now and later.
    pub(crate) fn state(&self) -> watch::Receiver<SeatState> {
        self.state.clone()
    }

    /// Waits until there is a ready manager, or none is to be expected soon.
    pub(crate) async fn settled(&self) -> SeatState {
        match self.state.clone().wait_for(SeatState::is_settled).await {
            Ok(state) => state.clone(),
            // The task has ended.
            Err(_) => self.state.borrow().clone(),
        }
    }

    /// Makes this manager the only one of its swarm; the new addresses to listen on and to tell, if they change. Returns
    /// the token for workers.
    pub(crate) async fn recover(&self, addrs: Option<(SocketAddr, SocketAddr)>) -> anyhow::Result<JoinToken> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(Order::Recover { addrs, answer }).await.ok().context("this daemon is stopping")?;
        answered.await.context("this daemon is stopping")?
    }

    /// Stops the manager, which hands the lead over first. Its port and files are free when this returns.
    pub(crate) async fn close(mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(CLOSE_PATIENCE, &mut self.task).await.is_err() {
            error!("the manager did not stop within {} s", CLOSE_PATIENCE.as_secs());
            self.task.abort();
        }
    }
}
