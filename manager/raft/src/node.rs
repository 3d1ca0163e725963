//! A running node: opens the directory, starts the engine on threads of its own, and serves [`Consensus`].
//!
//! The manager starts one and drops it after [`Consensus::shutdown`]. The engine has a runtime of its own, so that load
//! on the daemon's runtime delays neither heartbeats nor elections.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{InitializeError, RaftError};
use openraft::{BasicNode, SnapshotPolicy};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, watch};

use crate::config::{Config, Limits, Start};
use crate::consensus::{RaftId, Role, Status, StopCause};
use crate::digests::{self, Digests};
use crate::election::Elections;
use crate::engine;
use crate::error::StartError;
use crate::handover::HandOver;
use crate::inbound::{HandleError, Inbound};
use crate::members;
use crate::network::{LeftBehind, Network};
use crate::policy::Policy;
use crate::priority;
use crate::reads::{self, Resumed, Waiting};
use crate::shared::Shared;
use crate::space::{self, Space};
use crate::state_machine::StateMachine;
use crate::status::{Publisher, SHUT_DOWN};
use crate::store::log::LogStore;
use crate::store::machine::{Gauge, Machine};
use crate::store::rekey::{self, RekeyError, Rekeyed, Wanted};
use crate::store::snapshots::SnapshotStore;
use crate::store::{self, Closed, Store};
use crate::transport::{MessageKind, Transport};
use crate::types::{LogId, Raft};
use crate::wire::{self, Refusal};

/// Threads of the engine's runtime: one for the core and its timers, one for the state machine.
const THREADS: usize = 2;
/// How long a new group of one may take to elect itself before the start counts as failed.
const BOOTSTRAP_PATIENCE: Duration = Duration::from_secs(10);
/// How long a leader that stops tries to hand over to another manager.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(2);
/// How long the last users of the data directory may take to let go of it at shutdown.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// A running Raft node with state machine `M`. Clones share it.
pub struct RaftNode<M: StateMachine> {
    pub(crate) inner: Arc<Inner>,
    machine: PhantomData<fn() -> M>,
}

impl<M: StateMachine> Clone for RaftNode<M> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), machine: PhantomData }
    }
}

impl<M: StateMachine> std::fmt::Debug for RaftNode<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftNode").field("status", &*self.inner.status.borrow()).finish_non_exhaustive()
    }
}

pub(crate) struct Inner {
    pub(crate) raft: Raft,
    pub(crate) handle: Handle,
    pub(crate) shared: Arc<Shared>,
    pub(crate) hand_over: HandOver,
    pub(crate) status: Arc<watch::Sender<Status>>,
    pub(crate) barriers: mpsc::UnboundedSender<Waiting>,
    pub(crate) entry_limit: usize,
    snapshot_after_bytes: Arc<AtomicU64>,
    /// For replacing keys.
    sealed: (Weak<Store>, Weak<SnapshotStore>),
    database_cache_bytes: u64,
    inbound: Mutex<Option<Arc<Inbound>>>,
    running: Mutex<Option<Running>>,
    /// Whoever shuts down holds it; who comes later waits for it.
    closing: tokio::sync::Mutex<()>,
}

/// What keeps the data directory in use.
struct Running {
    /// None where the node runs on its caller's.
    runtime: Option<Runtime>,
    log: LogStore,
    store: Arc<Store>,
    closed: Closed,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let running = self.running.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Running { runtime: Some(runtime), .. }) = running {
            // A runtime must not be dropped where blocking is not allowed.
            runtime.shutdown_background();
        }
    }
}

/// The parts of an opened directory.
struct Opened<M: StateMachine> {
    store: Arc<Store>,
    closed: Closed,
    log: LogStore,
    snapshots: Arc<SnapshotStore>,
    machine: Machine<M>,
    gauge: Arc<Gauge>,
    digests: Arc<Digests>,
}

/// Opens everything and checks that log and snapshot fit together. Blocks.
fn open<M: StateMachine>(config: &Config, machine: M) -> Result<Opened<M>, StartError> {
    let (store, closed) = Store::open_configured(config)?;
    let store = Arc::new(store);
    let snapshots = Arc::new(SnapshotStore::open(Arc::clone(&store))?);
    let gauge = Arc::new(Gauge::default());
    let log = LogStore::open(Arc::clone(&store), &config.limits)?;
    let contained: Option<LogId> = snapshots.current().and_then(|current| current.preface.meta.last_log_id);
    log.check_begins_after(contained)?;
    let digests = Arc::new(Digests::new(config.limits.digest_every));
    let machine = Machine::open(machine, Arc::clone(&snapshots), Arc::clone(&gauge), Arc::clone(&digests))?;
    Ok(Opened { store, closed, log, snapshots, machine, gauge, digests })
}

fn engine_config(config: &Config) -> Result<openraft::Config, StartError> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let engine = openraft::Config {
        cluster_name: "skep".to_owned(),
        heartbeat_interval: millis(config.timing.heartbeat),
        election_timeout_min: millis(config.timing.election_min),
        election_timeout_max: millis(config.timing.election_max),
        install_snapshot_timeout: millis(config.timing.snapshot_chunk),
        snapshot_max_chunk_size: config.limits.snapshot_chunk_bytes as u64,
        // Snapshots and purges are `policy`'s, elections are `election`'s.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_elect: false,
        ..openraft::Config::default()
    };
    engine.validate().map_err(|error| StartError::Config(error.to_string()))
}

impl<M: StateMachine> RaftNode<M> {
    /// Whether a directory holds the state of a node, so that [`Start::Existing`] is right. One left half-made by a
    /// crash counts as empty.
    pub fn exists(dir: &std::path::Path) -> bool {
        store::exists(dir)
    }

    /// Opens the directory and starts the node, on threads of its own. `machine` must be in its initial state; the
    /// newest snapshot and the committed log are applied to it. With [`Start::Bootstrap`] the node leads when this
    /// returns.
    pub async fn start(config: Config, machine: M, transport: Arc<dyn Transport>) -> Result<Self, StartError> {
        config.check()?;
        let engine = engine_config(&config)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("skep-raft")
            .on_thread_start(priority::raise)
            .enable_all()
            .build()
            .map_err(|error| StartError::Engine(format!("cannot start threads: {error}")))?;
        let started = runtime.spawn(start_engine(config, engine, machine, transport, runtime.handle().clone())).await;
        match started.unwrap_or_else(|error| Err(StartError::Engine(error.to_string()))) {
            Ok((inner, log, store, closed)) => {
                *lock(&inner.running) = Some(Running { runtime: Some(runtime), log, store, closed });
                Ok(Self { inner: Arc::new(inner), machine: PhantomData })
            }
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// As [`Self::start`], on the runtime that this is called on: for simulations, whose time and threads are not real.
    #[cfg(feature = "sim")]
    pub async fn start_here(config: Config, machine: M, transport: Arc<dyn Transport>) -> Result<Self, StartError> {
        config.check()?;
        let engine = engine_config(&config)?;
        let (inner, log, store, closed) = start_engine(config, engine, machine, transport, Handle::current()).await?;
        *lock(&inner.running) = Some(Running { runtime: None, log, store, closed });
        Ok(Self { inner: Arc::new(inner), machine: PhantomData })
    }

    /// Raft's own runtime: two threads of raised priority. A transport's receiving side may run there too, so that load
    /// does not delay it; nothing that blocks or computes for long belongs there.
    pub fn runtime(&self) -> Handle {
        self.inner.handle.clone()
    }

    /// Answers a message that came in over the transport. The caller has checked that the sender belongs to the group.
    pub async fn handle(&self, kind: MessageKind, message: Bytes) -> Result<Bytes, HandleError> {
        let inbound = lock(&self.inner.inbound).clone();
        let Some(inbound) = inbound else { return Err(HandleError::Stopped(SHUT_DOWN.to_owned())) };
        let answer = self.inner.handle.spawn(async move { inbound.handle(kind, message).await });
        answer.await.unwrap_or_else(|error| Err(HandleError::Stopped(error.to_string())))
    }

    /// Makes snapshots after this many bytes of log from now on, whatever [`Limits`] say; 0: as they say.
    pub fn set_snapshot_after_bytes(&self, bytes: u64) {
        // The policy looks with the next entry, or in a few seconds.
        self.inner.snapshot_after_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Makes the keys of the data directory what is wanted, while Raft goes on: a new data key with a new database, or
    /// another key around the data key. What they replace is gone from the disk when this returns. In a simulation there
    /// are none.
    pub async fn rekey(&self, wanted: Wanted) -> Result<Rekeyed, RekeyError> {
        let (store, snapshots) = &self.inner.sealed;
        let (store, snapshots) = (Weak::clone(store), Weak::clone(snapshots));
        let cache_bytes = self.inner.database_cache_bytes;
        let work = engine::blocking(move || {
            // The store goes last: it holds the directory's lock.
            let store = store.upgrade().ok_or(RekeyError::Stopped)?;
            let snapshots = snapshots.upgrade().ok_or(RekeyError::Stopped)?;
            priority::lowered(|| rekey::rekey(&store, &snapshots, &wanted, cache_bytes)).map_err(RekeyError::Store)
        });
        work.await.unwrap_or(Err(RekeyError::Stopped))
    }

    /// Number of the data key in use ([`Wanted::epoch`]), and whether its caller keeps what wraps it. None: the node has
    /// stopped.
    pub fn keys(&self) -> Option<(u64, bool)> {
        self.inner.sealed.0.upgrade().map(|store| store.shown_keys())
    }

    /// The answer to a message of one who was left behind by a recovery, and is to learn that. None: it was not.
    pub fn answer_left_behind(&self, message: Bytes) -> Option<Bytes> {
        let (head, _) = wire::open(message).ok()?;
        let epoch = self.inner.shared.epoch();
        (head.epoch < epoch).then(|| wire::refuse(Refusal::OldEpoch { epoch }))
    }
}

/// Opens the directory and brings the engine up. Runs on the engine's runtime.
async fn start_engine<M: StateMachine>(
    config: Config,
    engine: openraft::Config,
    machine: M,
    transport: Arc<dyn Transport>,
    handle: Handle,
) -> Result<(Inner, LogStore, Arc<Store>, Closed), StartError> {
    let opening = engine::blocking(move || open(&config, machine).map(|opened| (config, opened))).await;
    let panicked = || StartError::Engine("opening the data directory panicked".to_owned());
    let (config, opened) = opening.ok_or_else(panicked)??;
    let Opened { store, closed, log, snapshots, machine, gauge, digests } = opened;
    let space = Space::new(store.place(), config.limits.free_bytes);
    let shared = Arc::new(Shared::new(config.node_id, transport, config.timing.clone(), space, &store));
    let left_behind: LeftBehind = Arc::new(watch::channel(None).0);
    let network = Network {
        shared: Arc::clone(&shared),
        left_behind: Arc::clone(&left_behind),
        chunk_bytes: config.limits.snapshot_chunk_bytes,
    };
    let (last, vote) = log.ends();
    let resumed = Resumed::new(config.node_id, last, vote);
    let raft = Raft::new(config.node_id, Arc::new(engine), network, log.clone(), machine).await;
    let raft = raft.map_err(|error| failed(&store, &error))?;
    let status = Arc::new(watch::channel(Status::initial(config.node_id)).0);
    let (barriers, requests) = mpsc::unbounded_channel();
    let hand_over = HandOver { raft: raft.clone(), shared: Arc::clone(&shared), left_behind: Arc::clone(&left_behind) };
    let publisher =
        Publisher { snapshots: Arc::clone(&snapshots), shared: Arc::clone(&shared), status: Arc::clone(&status) };
    tokio::spawn(publisher.run(raft.metrics()));
    let elections =
        Elections { raft: raft.clone(), shared: Arc::clone(&shared), left_behind: Arc::clone(&left_behind) };
    tokio::spawn(elections.run());
    tokio::spawn(reads::run(raft.clone(), requests, config.timing.election_max, resumed));
    tokio::spawn(leave_behind(raft.clone(), Arc::clone(&shared), left_behind.subscribe()));
    tokio::spawn(digests::compare(raft.clone(), Arc::clone(&shared), left_behind, Arc::clone(&digests)));
    tokio::spawn(members::finish_abandoned(raft.clone(), Arc::clone(&shared)));
    tokio::spawn(watch_space(hand_over.clone(), status.subscribe()));
    let limits: Limits = config.limits.clone();
    let snapshot_after_bytes = Arc::new(AtomicU64::new(0));
    let policy = Policy {
        raft: raft.clone(),
        log: log.clone(),
        gauge,
        limits,
        snapshot_after_bytes: Arc::clone(&snapshot_after_bytes),
        shared: Arc::clone(&shared),
    };
    tokio::spawn(policy.run(status.subscribe()));
    match &config.start {
        Start::Bootstrap { address } => {
            initialize(&raft, &store, config.node_id, address, status.subscribe()).await?;
            store.finish_creation()?;
        }
        Start::Join => store.finish_creation()?,
        Start::Existing => {}
    }
    let sealed = (Arc::downgrade(&store), Arc::downgrade(&snapshots));
    let inbound = Inbound::new(raft.clone(), Arc::clone(&shared), snapshots, digests);
    let inner = Inner {
        raft,
        handle,
        shared,
        hand_over,
        status,
        barriers,
        entry_limit: config.limits.entry_bytes,
        snapshot_after_bytes,
        sealed,
        database_cache_bytes: config.limits.database_cache_bytes,
        inbound: Mutex::new(Some(Arc::new(inbound))),
        running: Mutex::new(None),
        closing: tokio::sync::Mutex::new(()),
    };
    Ok((inner, log, store, closed))
}

/// Stops the node when another one answers that the group was recovered without it.
async fn leave_behind(raft: Raft, shared: Arc<Shared>, mut epoch: watch::Receiver<Option<u64>>) {
    let mut metrics = raft.metrics();
    tokio::select! {
        biased;
        // Only to see the end.
        _ = metrics.wait_for(|now| now.running_state.is_err()) => {}
        found = epoch.wait_for(Option::is_some) => {
            if let Some(epoch) = found.ok().and_then(|epoch| *epoch) {
                shared.left_behind(&raft, epoch);
            }
        }
    }
}

/// Looks at the free space; a leader without any hands over to a manager that has some. Ends with the node.
async fn watch_space(hand_over: HandOver, status: watch::Receiver<Status>) {
    const AGAIN: Duration = Duration::from_secs(5);
    let shared = Arc::clone(&hand_over.shared);
    let mut next_try = engine::now();
    while status.borrow().role != Role::Stopped {
        if shared.space.look() {
            let (free_bytes, needed_bytes) = shared.space.figures();
            if shared.space.is_full() {
                tracing::error!(
                    free_bytes,
                    needed_bytes,
                    "the disk is full: this manager takes no changes until there is space"
                );
            } else {
                tracing::info!(free_bytes, "there is space on the disk again: this manager goes on");
            }
            shared.news.notify_one();
        }
        let now = engine::now();
        let leads = || {
            let status = status.borrow();
            status.is_leader() && !status.is_sole_voter()
        };
        if shared.space.is_full() && now >= next_try && leads() {
            next_try = now + AGAIN;
            if let Err(failure) = hand_over.run(None, HAND_OVER_PATIENCE).await {
                tracing::warn!(?failure, "no other manager takes the lead over while the disk here is full");
            }
        }
        tokio::time::sleep(space::PERIOD).await;
    }
}

/// Makes this node the only voter of a new group and waits until it leads.
async fn initialize(
    raft: &Raft,
    store: &Store,
    id: RaftId,
    address: &str,
    mut status: watch::Receiver<Status>,
) -> Result<(), StartError> {
    let members = BTreeMap::from([(id, BasicNode { addr: address.to_owned() })]);
    raft.initialize(members).await.map_err(|error| match error {
        RaftError::Fatal(fatal) => failed(store, &fatal),
        RaftError::APIError(InitializeError::NotAllowed(_) | InitializeError::NotInMembers(_)) => {
            StartError::Engine("the directory just made is not empty".to_owned())
        }
    })?;
    let leads = status.wait_for(|status| status.is_leader() || status.role == Role::Stopped);
    match tokio::time::timeout(BOOTSTRAP_PATIENCE, leads).await {
        Ok(Ok(status)) if status.is_leader() => Ok(()),
        Ok(_) => Err(StartError::Engine(failure_or(store, || SHUT_DOWN.to_owned()))),
        Err(_) => Err(StartError::Engine(format!("no leader after {BOOTSTRAP_PATIENCE:?}"))),
    }
}

/// The engine's failure in the store's words, if it has any.
fn failed(store: &Store, error: &dyn std::fmt::Display) -> StartError {
    StartError::Engine(failure_or(store, || error.to_string()))
}

fn failure_or(store: &Store, other: impl FnOnce() -> String) -> String {
    store.failure().map_or_else(other, |(_, why)| why.to_string())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// Why the node does not serve any more.
    pub(crate) fn stop_reason(&self) -> Arc<str> {
        self.status.borrow().stopped.clone().unwrap_or_else(|| SHUT_DOWN.into())
    }

    /// Hands the lead over if there is somebody to take it, stops the engine, syncs the disk and waits until the
    /// directory is free.
    pub(crate) async fn shutdown(&self) {
        let _closing = self.closing.lock().await;
        let Some(Running { runtime, log, store, closed }) = lock(&self.running).take() else { return };
        let leads = {
            let status = self.status.borrow();
            status.leads() && !status.is_sole_voter()
        };
        let (raft, hand_over) = (self.raft.clone(), self.hand_over.clone());
        let stopping = self.handle.spawn(async move {
            if leads && let Err(failure) = hand_over.run(None, HAND_OVER_PATIENCE).await {
                tracing::info!(?failure, "stopping without a hand-over");
            }
            // The engine ends here or has ended before; there is nothing to do about how.
            let _ = raft.shutdown().await;
        });
        let _ = stopping.await;
        lock(&self.inbound).take();
        self.status.send_modify(|status| {
            status.role = Role::Stopped;
            let (cause, why) = store.failure().unwrap_or_else(|| (StopCause::ShutDown, SHUT_DOWN.into()));
            status.stopped.get_or_insert(why);
            status.stop_cause.get_or_insert(cause);
        });
        let has_runtime = runtime.is_some();
        let closing = engine::blocking(move || {
            if let Some(runtime) = runtime {
                runtime.shutdown_timeout(CLOSE_PATIENCE);
            }
            if store.failure().is_none()
                && let Err(error) = log.settle()
            {
                tracing::warn!(
                    error = error.text(),
                    "the last marks were not written; the next start does without them"
                );
            }
            drop((log, store));
            // On the caller's runtime the last tasks end after this.
            if has_runtime && !closed.wait(CLOSE_PATIENCE) {
                tracing::error!("the data directory is still in use after the shutdown");
            }
        });
        if closing.await.is_none() {
            tracing::error!("the shutdown of consensus panicked");
        }
    }
}
