//! A manager for simulations of many on one thread (feature `sim`): Raft, state machine, sequencer, store, forwarding and
//! the service between managers are the real ones. Left out: TLS, and what a leader does by itself (loops, sessions,
//! roles), so that it starts no threads.
//!
//! Seed the thread first ([`skep_raft::sim::seed`]) and give it a wall clock ([`set_wall`]). Dropping a manager's runtime
//! is a crash.

use std::cell::Cell;
use std::sync::Arc;

use anyhow::Context as _;
use skep_core::store::State;
use skep_proto::id::NodeId;
use skep_raft::{Consensus, RaftNode};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::Channel;

use crate::clock::Clock;
use crate::leader;
use crate::machine::{FeedSlot, Machine};
use crate::manager::SUBMISSIONS;
use crate::peers::Peers;
use crate::peers::service::QuorumService;
use crate::sequencer;
use crate::store::{Applied, Store};

/// Makes a channel to the manager at an address. It connects lazily, and again when it was cut.
pub type Connect = Arc<dyn Fn(&str) -> Channel + Send + Sync>;

thread_local! {
    static WALL: Cell<Option<fn() -> i64>> = const { Cell::new(None) };
}

/// This thread's managers read the wall clock here: microseconds since the Unix epoch.
pub fn set_wall(now_us: fn() -> i64) {
    WALL.set(Some(now_us));
}

pub(crate) fn wall_us() -> Option<i64> {
    WALL.get().map(|now_us| now_us())
}

/// A running manager. Ends with the runtime that it was started on.
pub struct SimManager {
    raft: Arc<dyn Consensus<Response = Vec<u64>>>,
    store: Store,
    routes: Routes,
    _tasks: JoinSet<()>,
}

impl SimManager {
    /// Starts on the calling runtime, reachable by others at `addr`.
    pub async fn start(config: skep_raft::Config, addr: &str, connect: Connect) -> anyhow::Result<Self> {
        let (node, clock) = (NodeId::new(config.node_id.into()), Clock::start());
        let applied = Applied::new(State::default());
        let peers = Peers::simulated(connect, &applied, &clock);
        let machine = Machine::new(applied.clone(), FeedSlot::default(), clock.clone());
        let raft = RaftNode::start_here(config, machine, peers.transport()).await.context("cannot start Raft")?;
        let raft = Arc::new(raft);
        let (submit, submissions) = mpsc::channel(SUBMISSIONS);
        let consensus: Arc<dyn Consensus<Response = Vec<u64>>> = Arc::clone(&raft) as _;
        peers.know_raft(&consensus);
        let mut tasks = JoinSet::new();
        tasks.spawn(sequencer::run(Arc::clone(&consensus), applied.clone(), clock.clone(), submissions));
        let store = Store::new(applied, submit, clock, peers);
        tasks.spawn(leader::keep_clock(store.clone()));
        let routes = Routes::new(QuorumService::new(Arc::clone(&raft), store.clone()).service());
        tasks.spawn(leader::follow(leader::Parts {
            raft,
            store: store.clone(),
            work: None,
            node,
            addr: addr.to_owned(),
        }));
        Ok(Self { raft: consensus, store, routes, _tasks: tasks })
    }

    /// Reads and writes, as the control API has them.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Raft itself.
    pub fn raft(&self) -> &Arc<dyn Consensus<Response = Vec<u64>>> {
        &self.raft
    }

    /// What it answers other managers.
    pub fn routes(&self) -> Routes {
        self.routes.clone()
    }
}
