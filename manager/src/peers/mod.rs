//! The other managers: connections to them, who of them leads, and what they are asked.
//!
//! | file | job |
//! |---|---|
//! | `links.rs` | mutual TLS channels, one set per manager, kept |
//! | `transport.rs` | Raft's messages over them |
//! | `ask.rs` | calls to the leader: submit, read version |
//! | `rounds.rs` | questions at the same time are one |
//! | `enter.rs` | how a node becomes a manager, both sides |
//! | `seat.rs` | whether it still is one, when it hears no leader |
//! | `service.rs` | what this manager answers others (`managers.proto`) |
//! | `serve.rs` | the managers' port, on threads of its own |
//! | `level.rs` | the feature level that all managers have |
//! | `recovery.rs` | what a recovery from a lost quorum means for the state |
//! | `wire.rs` | refusals on the wire |
//!
//! [`Peers`] is the handle that the rest of the manager has. It knows where the leader is; whether this manager may act
//! as one is decided by `leader.rs`, which publishes it here.

pub(crate) mod ask;
mod enter;
#[cfg(test)]
mod lead_test;
pub(crate) mod level;
mod links;
pub(crate) mod recovery;
mod rounds;
pub(crate) mod seat;
pub(crate) mod serve;
pub(crate) mod service;
#[cfg(test)]
pub(crate) mod testing;
mod transport;
pub(crate) mod wire;

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use skep_identity::{DenyList, LiveCredentials};
use skep_proto::id::NodeId;
use skep_raft::{Consensus, RaftId, Transport};
use tokio::sync::watch;
use tonic::transport::Channel;

pub use self::enter::{Entered, enter};
pub use self::serve::Serving;

use self::links::{Lane, Links};
use self::rounds::Rounds;
use crate::clock::Clock;
use crate::dispatch::{LeaderLink, ManagerLinks};
use crate::store::{Applied, WriteError};

/// An election is over sooner, also when it is tried twice; and whoever a removed manager serves is to hear of it within
/// two seconds of its last heartbeat, of which Raft takes three quarters of one to notice.
const LEADER_PATIENCE: Duration = Duration::from_secs(1);

/// Why a manager that [stands still](Peers::stands_still) answers nobody.
pub(crate) const DISK_FULL: &str = "the disk of this manager's data directory is full, so it follows no changes: make \
                                    space, and it goes on by itself; until then ask another manager";

/// The manager that leads, as this one knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    pub raft_id: RaftId,
    /// `None`: this manager's state does not know it yet.
    pub node: Option<NodeId>,
    /// `host:port`
    pub addr: String,
    /// It is this manager, which has applied everything that was ever acknowledged, and may decide.
    pub is_self: bool,
}

/// Where what only the leader does is to be done.
#[derive(Clone, Debug)]
pub enum Route {
    /// By this manager.
    Here,
    /// By another one: ask it over this channel, with a deadline.
    There(Leader, Channel),
    /// No leader is heard, or this one has no quorum: refuse with "unavailable".
    Nowhere,
}

/// The other managers. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Peers(Arc<Shared>);

struct Shared {
    links: Links,
    leader: watch::Sender<Option<Leader>>,
    /// This manager ends: no leader will be heard any more.
    stopped: watch::Sender<bool>,
    applied: Applied,
    clock: Clock,
    rounds: Rounds<Result<u64, WriteError>>,
    /// Empty until Raft runs, and nothing that would keep it running.
    raft: OnceLock<Weak<dyn Consensus<Response = Vec<u64>>>>,
}

/// A leader that a quorum confirmed this recently answers reads without asking again: no other one is elected for
/// another 100 ms at least (the shortest election timeout is 300 ms), however the clocks' rates differ.
const LEASE: Duration = Duration::from_millis(200);
/// How long a round to a quorum may take.
const BARRIER: Duration = Duration::from_secs(2);

impl Peers {
    /// Knows of no leader yet. `applied` tells which node a Raft id belongs to; `clock` is kept by the leader's.
    pub(crate) fn new(credentials: &LiveCredentials, deny: &DenyList, applied: &Applied, clock: &Clock) -> Self {
        Self::by(Links::new(credentials, deny, applied), applied, clock)
    }

    /// In a simulated network.
    #[cfg(feature = "sim")]
    pub(crate) fn simulated(connect: crate::sim::Connect, applied: &Applied, clock: &Clock) -> Self {
        Self::by(Links::simulated(connect, applied), applied, clock)
    }

    fn by(links: Links, applied: &Applied, clock: &Clock) -> Self {
        Self(Arc::new(Shared {
            links,
            leader: watch::channel(None).0,
            stopped: watch::channel(false).0,
            applied: applied.clone(),
            clock: clock.clone(),
            rounds: Rounds::default(),
            raft: OnceLock::new(),
        }))
    }

    /// Who leads, and every change of it. `None`: no leader is heard, or it has no quorum (also if it is this one).
    pub fn leader(&self) -> watch::Receiver<Option<Leader>> {
        self.0.leader.subscribe()
    }

    /// Whether this manager leads: loops run here, and writes enter here.
    pub fn leads(&self) -> bool {
        self.0.leader.borrow().as_ref().is_some_and(|leader| leader.is_self)
    }

    /// Whether a leader is heard, this one or another.
    pub fn is_led(&self) -> bool {
        self.0.leader.borrow().is_some()
    }

    /// Returns true as soon as a leader is heard, false if none is for so long, or this manager ends.
    pub async fn led_within(&self, patience: Duration) -> bool {
        let (mut leader, mut stopped) = (self.leader(), self.0.stopped.subscribe());
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => false,
            led = tokio::time::timeout(patience, leader.wait_for(Option::is_some)) => matches!(led, Ok(Ok(_))),
        }
    }

    /// Returns when no leader is heard for longer than an election takes, or this manager ends: what is going on
    /// elsewhere does not reach it then, so whoever is served by it should hear that.
    pub(crate) async fn forlorn(&self) {
        let mut leader = self.leader();
        while leader.wait_for(Option::is_none).await.is_ok() && self.led_within(LEADER_PATIENCE).await {}
    }

    /// This manager ends.
    pub(crate) fn stop(&self) {
        self.0.stopped.send_replace(true);
        self.publish(None);
    }

    /// Where to turn with what only the leader does. The answer is of this moment: who is refused there for not leading
    /// asks again.
    pub fn route(&self) -> Route {
        let leader = self.0.leader.borrow().clone();
        match leader {
            None => Route::Nowhere,
            Some(leader) if leader.is_self => Route::Here,
            Some(leader) => {
                let channel = self.channel(leader.raft_id, &leader.addr);
                Route::There(leader, channel)
            }
        }
    }

    /// A channel to any manager (`Node.manager` has both). Connects when it is used, and again when it was cut; closed
    /// at once when that node is removed. Calls over it need deadlines.
    pub fn channel(&self, raft_id: RaftId, addr: &str) -> Channel {
        self.0.links.channel(raft_id, addr, Lane::Calls)
    }

    /// The node of a Raft id. `None`: the state names none.
    pub fn node(&self, raft_id: RaftId) -> Option<NodeId> {
        self.0.links.node(raft_id)
    }

    /// Raft runs, and says from now on whether this manager still leads.
    pub(crate) fn know_raft(&self, raft: &Arc<dyn Consensus<Response = Vec<u64>>>) {
        // Once in a manager's life.
        let _ = self.0.raft.set(Arc::downgrade(raft));
    }

    /// Raft's state and every change of it; `None` until it runs.
    pub(crate) fn raft_status(&self) -> Option<watch::Receiver<skep_raft::Status>> {
        Some(self.0.raft.get()?.upgrade()?.status())
    }

    /// Whether this manager takes no entries because its disk is full: its state stands still while the others' moves on.
    pub(crate) fn stands_still(&self) -> bool {
        !self.leads() && self.raft_status().is_some_and(|status| status.borrow().disk_full)
    }

    /// Makes sure that this manager leads and nobody else does, or did since its state was what it is: a leader that the
    /// others replace learns that later than their first write.
    pub(crate) async fn confirm_lead(&self) -> Result<(), WriteError> {
        if !self.leads() {
            return Err(WriteError::NoLeader);
        }
        #[cfg(feature = "sim")]
        if skep_raft::sim::has_bug(skep_raft::sim::Bug::TrustsLead) {
            return Ok(());
        }
        let Some(raft) = self.0.raft.get() else { return Ok(()) };
        let raft = raft.upgrade().ok_or(WriteError::NoLeader)?;
        let now = tokio::time::Instant::now().into_std();
        let status = raft.status();
        // A hand-over waits for no lease: the next leader may write already.
        let silent = Some(status.borrow()).filter(|status| !status.handing_over);
        let silent = silent.and_then(|status| status.millis_since_quorum_ack(now));
        if silent.is_some_and(|silent| u128::from(silent) <= LEASE.as_millis()) {
            return Ok(());
        }
        match raft.read_barrier(BARRIER).await {
            Ok(_) => Ok(()),
            Err(_) => Err(WriteError::NoLeader),
        }
    }

    /// Raft's way to the other managers.
    pub(crate) fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(transport::RaftTransport { links: self.0.links.clone() })
    }

    /// Tells everyone who leads; `leader.rs` only.
    pub(crate) fn publish(&self, leader: Option<Leader>) {
        self.0.leader.send_if_modified(|known| {
            let changed = *known != leader;
            *known = leader;
            changed
        });
    }

    /// The store version that holds every write acknowledged before this call. Waits for a leader at most `patience`;
    /// callers at the same time share one question.
    pub(crate) async fn read_version(&self, patience: Duration) -> Result<u64, WriteError> {
        let peers = self.clone();
        self.0.rounds.join(move || async move { peers.ask_version(patience).await }).await
    }

    async fn ask_version(&self, patience: Duration) -> Result<u64, WriteError> {
        const PAUSE: Duration = Duration::from_millis(50);
        const DEADLINE: Duration = Duration::from_secs(2);
        let give_up = tokio::time::Instant::now() + patience;
        if self.stands_still() {
            return Err(WriteError::Stopped(DISK_FULL.to_owned()));
        }
        let mut leader = self.leader();
        loop {
            leader.mark_unchanged();
            let answer = match self.route() {
                Route::Here => self.confirm_lead().await.map(|()| self.0.applied.version()),
                Route::There(_, channel) => ask::read_version(channel, DEADLINE).await.map(|answer| {
                    if !self.leads() {
                        self.0.clock.follow(skep_proto::time::UnixMs(answer.now_ms));
                    }
                    answer.version
                }),
                Route::Nowhere => Err(WriteError::NoLeader),
            };
            match answer {
                Ok(version) => return Ok(version),
                Err(WriteError::NoLeader) if tokio::time::Instant::now() + PAUSE < give_up => {}
                Err(error) => return Err(error),
            }
            // Either way it is asked again.
            let _ = tokio::time::timeout(PAUSE, leader.changed()).await;
        }
    }
}

/// What the dispatcher needs of the other managers.
impl ManagerLinks for Peers {
    fn leader(&self) -> LeaderLink {
        match self.route() {
            Route::There(_, channel) => LeaderLink::Other(channel),
            Route::Here | Route::Nowhere => LeaderLink::None,
        }
    }

    fn leader_changed(&self) -> BoxFuture<'static, ()> {
        let mut leader = Self::leader(self);
        Box::pin(async move {
            if leader.changed().await.is_err() {
                // Nobody leads any more; whoever waits here ends with its manager.
                std::future::pending::<()>().await;
            }
        })
    }

    fn manager(&self, node: NodeId) -> Option<Channel> {
        let state = self.0.applied.state();
        let manager = state.node(node)?.manager.as_ref()?;
        Some(self.channel(manager.raft_id, &manager.addr))
    }
}
