//! One manager: Raft, the writer, the leader's loops and every service it offers, started in one order and stopped in
//! reverse. Called by the daemon.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use skep_core::change::{Change, Op};
use skep_core::network::make_ingress;
use skep_core::object::{Cluster, ManagerStatus, Meta, Node, NodeStatus};
use skep_core::store::State;
use skep_identity::{DenyList, LiveCredentials, ServerTls};
use skep_proto::id::{ClusterId, NetworkId, NodeId};
use skep_proto::v1::clients_server::ClientsServer;
use skep_proto::v1::clusters_server::ClustersServer;
use skep_proto::v1::configs_server::ConfigsServer;
use skep_proto::v1::image_names_server::ImageNamesServer;
use skep_proto::v1::networks_server::NetworksServer;
use skep_proto::v1::nodes_server::NodesServer;
use skep_proto::v1::secrets_server::SecretsServer;
use skep_proto::v1::services_server::ServicesServer;
use skep_proto::v1::tasks_server::TasksServer;
use skep_proto::v1::watch_server::WatchServer;
use skep_proto::v1::{ClusterSpec, IssueResponse, NodeDescription, NodeRole, NodeSpec};
use skep_raft::{Consensus, RaftId, RaftNode, Role, Start, StartError, Status, StopCause, StoreError};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::service::Routes;
use tracing::{debug, info};

use crate::ca::CertificateAuthority;
use crate::callers;
use crate::clock::Clock;
use crate::control::Control;
use crate::dispatch::Dispatcher;
use crate::figures::FigureSource;
use crate::images::Registries;
use crate::keys::{self, KeysAtStart};
use crate::leader;
use crate::logs::LogBroker;
use crate::machine::{FeedSlot, Machine};
use crate::peers::level::FEATURE_LEVEL;
use crate::peers::service::QuorumService;
use crate::peers::{Peers, Serving, seat, serve};
use crate::sequencer;
use crate::store::{Applied, Store};
use crate::topic::Topic;

/// Writes that wait for the sequencer before their callers wait.
pub(crate) const SUBMISSIONS: usize = 1024;
/// How long the only voter of a new swarm may take to lead.
const ELECTION: Duration = Duration::from_secs(10);
/// How long the hand-over of the lead may hold up an orderly stop.
const HAND_OVER: Duration = Duration::from_secs(2);
/// How long one question to the leader may take while a manager starts.
const CATCH_UP: Duration = Duration::from_secs(5);
/// Pause before it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// How long a removed node may still listen: its session says that it was removed.
const FAREWELL: Duration = Duration::from_millis(300);

/// What a manager is told.
pub struct ManagerConfig {
    /// Raft's files.
    pub dir: PathBuf,
    /// This node.
    pub node: NodeId,
    /// `host:port` of the managers' API, as others reach it.
    pub advertise_addr: String,
    pub credentials: LiveCredentials,
    pub deny: DenyList,
    pub registries: Arc<dyn Registries>,
    /// This manager's id in Raft: [`FIRST_RAFT_ID`] for a new swarm's, else what [`crate::peers::enter`] answered.
    pub raft_id: RaftId,
    pub start: ManagerStart,
    /// What its files are sealed with, and who seals the host's other keys.
    pub keys: KeysAtStart,
}

/// What a manager starts from. Said by the caller, never guessed: an empty directory must not become a new swarm.
pub enum ManagerStart {
    /// Nothing: a new swarm is made.
    Bootstrap(Box<Bootstrap>),
    /// Nothing: the others send their state.
    Join,
    /// What is in the directory.
    Existing,
    /// What is in the directory, without the other managers: their majority is lost for good. They are workers from
    /// then on. What only they knew is lost; cluster, authority and nodes stay.
    Recover,
}

/// A new swarm's first manager's id in Raft.
pub const FIRST_RAFT_ID: RaftId = 1;

/// What a new swarm starts from.
pub struct Bootstrap {
    pub cluster: ClusterId,
    pub spec: ClusterSpec,
    pub root_cert_pem: String,
    pub root_key_pem: String,
    pub worker_token_secret: [u8; 16],
    pub manager_token_secret: [u8; 16],
    /// With autolock: as in [`KeysAtStart::unlock`].
    pub unlock_key: Option<[u8; 32]>,
    /// Of the first manager's node.
    pub node_spec: NodeSpec,
    pub hostname: String,
}

/// Why a manager has ended by itself. Whichever it is, call [`Manager::shutdown`] then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its disk was full. Nothing acknowledged is lost: start it again when there is space.
    DiskFull(String),
    /// It is no member of Raft any more.
    Removed,
    /// The swarm was recovered from a lost quorum without it: it has to enter again, with an empty directory.
    LeftBehind(String),
    /// Its files, or its state, cannot be relied on; the text says what to do. Starting again does not help.
    Damaged(String),
    /// Anything else; starting again may help.
    Failed(String),
}

/// Whether an error, or one of its causes, is that Raft found no space on its disk: [`Manager::start`] works when there is
/// some.
pub fn is_disk_full(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(StartError::is_disk_full)
            || cause.downcast_ref().is_some_and(StoreError::is_disk_full)
    })
}

/// Whether a directory holds the state of a manager that was completely made; what was cut short is made anew.
pub fn has_state(dir: &Path) -> bool {
    RaftNode::<Machine>::exists(dir)
}

/// A running manager. Dropped without [`Manager::shutdown`] it stops at once, as if it were killed.
pub struct Manager {
    raft: Arc<RaftNode<Machine>>,
    node: NodeId,
    store: Store,
    routes: Routes,
    authority: CertificateAuthority,
    /// Holds the leadership.
    follower: JoinSet<()>,
    background: JoinSet<()>,
}

impl Manager {
    /// Opens Raft and offers the services. A new swarm is made when this returns; else nothing was heard of other
    /// managers yet ([`Self::ready`] waits for that): without them it answers stale reads, and refuses the rest.
    pub async fn start(config: ManagerConfig) -> anyhow::Result<Self> {
        if matches!(config.start, ManagerStart::Recover) {
            recover(&config).await?;
        }
        let (start, bootstrap) = match config.start {
            ManagerStart::Bootstrap(bootstrap) => {
                (Start::Bootstrap { address: config.advertise_addr.clone() }, Some(bootstrap))
            }
            ManagerStart::Join => (Start::Join, None),
            ManagerStart::Existing | ManagerStart::Recover => (Start::Existing, None),
        };
        let (clock, feed) = (Clock::start(), FeedSlot::default());
        let applied = Applied::new(State::default());
        let peers = Peers::new(&config.credentials, &config.deny, &applied, &clock);
        let machine = Machine::new(applied.clone(), Arc::clone(&feed), clock.clone());
        let mut raft_config = skep_raft::Config::new(&config.dir, config.raft_id, start);
        config.keys.configure(&mut raft_config);
        let raft = RaftNode::start(raft_config, machine, peers.transport()).await.context("cannot start Raft")?;
        let raft = Arc::new(raft);
        let (submit, submissions) = mpsc::channel(SUBMISSIONS);
        let mut background = JoinSet::new();
        let consensus: Arc<dyn Consensus<Response = Vec<u64>>> = Arc::clone(&raft) as _;
        peers.know_raft(&consensus);
        background.spawn(sequencer::run(consensus, applied.clone(), clock.clone(), submissions));
        let store = Store::new(applied, submit, clock, peers);
        background.spawn(follow_denied(store.clone(), config.deny.clone()));
        background.spawn(leader::keep_clock(store.clone()));
        background.spawn(follow_settings(store.clone(), Arc::clone(&raft)));
        let board = keys::Board::default();
        background.spawn(keys::follow(store.clone(), Arc::clone(&raft), config.keys.seals, Arc::clone(&board)));
        let links = Arc::new(store.peers().clone());
        let dispatcher = Dispatcher::new(store.clone(), config.credentials.clone(), links);
        background.spawn(dispatcher.clone().run());
        let control =
            Control::new(store.clone(), config.registries, config.node, raft.status()).with_nodes(dispatcher.clone());
        let authority = CertificateAuthority::new(store.clone(), config.deny);
        let control = control.with_keys(Arc::clone(&board)).with_authority(authority.clone());
        let routes = services(control, &dispatcher, &LogBroker::new(&dispatcher), &authority)
            .add_service(QuorumService::new(Arc::clone(&raft), store.clone(), board).service());
        let routes = callers::guard(routes, &store);
        let addr = config.advertise_addr.clone();
        let work = Some(leader::Work { dispatcher, feed });
        let lead = leader::Parts { raft: Arc::clone(&raft), store: store.clone(), work, node: config.node, addr };
        let mut follower = JoinSet::new();
        follower.spawn(leader::follow(lead));
        let manager = Self { raft, node: config.node, store, routes, authority, follower, background };
        match manager.begin(bootstrap, &config.advertise_addr).await {
            Ok(()) => Ok(manager),
            Err(error) => {
                // Otherwise Raft would run on in files that are given up.
                manager.shutdown().await;
                Err(error)
            }
        }
    }

    /// Makes the swarm, if it is a new one, and refuses a state that is another node's.
    async fn begin(&self, bootstrap: Option<Box<Bootstrap>>, addr: &str) -> anyhow::Result<()> {
        if let Some(bootstrap) = bootstrap {
            if !self.store.peers().led_within(ELECTION).await {
                bail!("this manager does not lead in time: see the log, and restart the daemon");
            }
            make_swarm(&self.store, self.node, addr, *bootstrap).await?;
        }
        match self.store.state() {
            state if state.cluster().is_some() => check(&state, self.node),
            // It comes with the log.
            _ => Ok(()),
        }
    }

    /// Returns when a leader is heard and its state is applied here; an error if that state does not know this node, or
    /// this manager has ended.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let caught_up = async {
            loop {
                match self.store.peers().read_version(CATCH_UP).await {
                    Ok(version) => return self.store.applied(version).await,
                    // A refusal comes at once, and may be of this moment only.
                    Err(error) => debug!(%error, "the leader does not say how far this manager has to catch up"),
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        };
        tokio::select! {
            () = caught_up => check(&self.store.state(), self.node),
            ended = self.ended() => bail!("{ended}"),
        }
    }

    /// Returns when this manager has ended by itself.
    pub async fn ended(&self) -> Ended {
        ended(self.store.clone(), self.raft.status()).await
    }

    /// Opens the managers' port: every call that comes by it finds [`Self::routes`], and Raft's heartbeats have threads
    /// of their own. Close it before this manager.
    pub async fn serve(&self, listener: TcpListener, tls: ServerTls) -> anyhow::Result<Serving> {
        serve::serve(listener, tls, self.routes()).await
    }

    /// Everything it serves, behind the gate.
    pub fn routes(&self) -> Routes {
        self.routes.clone()
    }

    /// The state, for the daemon's own questions.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// A new certificate for this manager's own node from its own state, where it is the only manager: its last one may have
    /// ended, and then nobody is left who would let it in. `csr_pem` is as in a renewal.
    pub fn renew_own(&self, csr_pem: &str) -> anyhow::Result<IssueResponse> {
        if !self.raft.status().borrow().is_sole_voter() {
            bail!("there are other managers to ask");
        }
        self.authority.renew_own(self.node, csr_pem).map_err(|status| anyhow::anyhow!("{}", status.message()))
    }

    /// Where its figures are read.
    pub fn figures(&self) -> FigureSource {
        FigureSource::new(self.store.clone(), self.raft.status())
    }

    /// Raft's status, for the daemon's own questions.
    pub fn raft_status(&self) -> watch::Receiver<Status> {
        self.raft.status()
    }

    /// Hands the lead over, then stops in reverse order; what was acknowledged is on disk. The port should still be
    /// open: a leader that hands over needs it.
    pub async fn shutdown(mut self) {
        let others = self.raft.status().borrow().membership.voters.len() > 1;
        if self.store.peers().leads() && others {
            match self.raft.transfer_leadership(None, HAND_OVER).await {
                Ok(to) => info!(to, "the lead was handed over"),
                Err(error) => info!(%error, "the lead was not handed over: the others elect a leader"),
            }
        }
        // Its end drops the leadership.
        self.follower.shutdown().await;
        self.store.peers().stop();
        self.background.shutdown().await;
        self.raft.shutdown().await;
    }
}

/// What people and nodes ask a manager.
pub(crate) fn services(
    control: Control,
    dispatcher: &Dispatcher,
    logs: &LogBroker,
    authority: &CertificateAuthority,
) -> Routes {
    Routes::new(ClustersServer::new(control.clone()))
        .add_service(NodesServer::new(control.clone()))
        .add_service(ServicesServer::new(control.clone()))
        .add_service(TasksServer::new(control.clone()))
        .add_service(ImageNamesServer::new(control.clone()))
        .add_service(NetworksServer::new(control.clone()))
        .add_service(SecretsServer::new(control.clone()))
        .add_service(ConfigsServer::new(control.clone()))
        .add_service(ClientsServer::new(control.clone()))
        .add_service(WatchServer::new(control))
        .add_service(dispatcher.service())
        .add_service(dispatcher.relay_service())
        .add_service(logs.service())
        .add_service(authority.service())
}

/// Returns when the manager with this status has ended by itself.
pub(crate) async fn ended(store: Store, status: watch::Receiver<Status>) -> Ended {
    tokio::select! {
        biased;
        ended = raft_ended(status.clone()) => ended,
        () = seat::lost(store, status) => Ended::Removed,
    }
}

async fn raft_ended(mut status: watch::Receiver<Status>) -> Ended {
    let mut was_member = false;
    loop {
        let now = status.borrow_and_update().clone();
        if now.role == Role::Stopped {
            return Ended::of(&now);
        }
        let members = &now.membership;
        let is_member = members.voters.contains_key(&now.id) || members.learners.contains_key(&now.id);
        // Before it is added, the log that it gets tells of the others only.
        if was_member && !is_member {
            return Ended::Removed;
        }
        was_member |= is_member;
        if status.changed().await.is_err() {
            return Ended::Failed("Raft has ended: see the log".to_owned());
        }
    }
}

impl Ended {
    fn of(status: &Status) -> Self {
        let why = status.stopped.as_deref().unwrap_or("Raft has ended").to_owned();
        match status.stop_cause {
            Some(StopCause::DiskFull) => Self::DiskFull(why),
            Some(StopCause::LeftBehind) => Self::LeftBehind(why),
            Some(StopCause::Storage | StopCause::StateMachine | StopCause::Diverged) => Self::Damaged(why),
            Some(StopCause::ShutDown | StopCause::Engine) | None => Self::Failed(why),
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed => f.write_str("this node is no manager of the swarm any more"),
            Self::DiskFull(why) | Self::LeftBehind(why) | Self::Damaged(why) | Self::Failed(why) => f.write_str(why),
        }
    }
}

/// Makes Raft's files those of a group of one. The state follows when this manager leads.
async fn recover(config: &ManagerConfig) -> anyhow::Result<()> {
    let mut raft = skep_raft::Config::new(&config.dir, config.raft_id, Start::Existing);
    config.keys.configure(&mut raft);
    let addr = config.advertise_addr.clone();
    let recovering = tokio::task::spawn_blocking(move || skep_raft::recover(&raft, &addr)).await;
    let recovered = recovering.context("the recovery broke off")?.context("cannot recover from the lost quorum")?;
    info!(epoch = recovered.epoch, last_log = recovered.last_log, "the other managers are left behind");
    Ok(())
}

/// The first transaction of a swarm: itself, its first manager and the routing mesh's network.
pub(crate) async fn make_swarm(store: &Store, node: NodeId, addr: &str, bootstrap: Bootstrap) -> anyhow::Result<()> {
    let cluster = Cluster {
        id: bootstrap.cluster,
        meta: Meta::default(),
        spec: bootstrap.spec,
        root_cert_pem: bootstrap.root_cert_pem,
        root_key_pem: bootstrap.root_key_pem,
        worker_token_secret: bootstrap.worker_token_secret,
        manager_token_secret: bootstrap.manager_token_secret,
        feature_level: FEATURE_LEVEL,
        last_raft_id: FIRST_RAFT_ID,
        recovery_epoch: 0,
        unlock_key: bootstrap.unlock_key,
        data_key_epoch: 0,
        root_rotation: None,
    };
    let description = NodeDescription { hostname: bootstrap.hostname, ..NodeDescription::default() };
    let first = Node {
        id: node,
        meta: Meta::default(),
        spec: Arc::new(bootstrap.node_spec),
        description: Some(Arc::new(description)),
        status: NodeStatus::default(),
        role: NodeRole::Manager,
        manager: Some(ManagerStatus { raft_id: FIRST_RAFT_ID, addr: addr.to_owned() }),
        fabric_number: Some(1),
        ingress: None,
    };
    // Its network must not have this host's address.
    let mut state = State::default();
    state.put(cluster.clone());
    state.put(first.clone());
    let ingress = make_ingress(&state, NetworkId::new(rand::random()))
        .context("cannot make the routing mesh's network: choose other address pools")?;
    let changes = [Op::PutCluster(cluster), Op::PutNode(first), Op::PutNetwork(ingress)].map(Change::create).into();
    let written = store.write(None, Vec::new(), changes).await.context("cannot write the new swarm's state")?;
    store.applied(written.version).await;
    Ok(())
}

/// Refuses a state that is not this node's.
fn check(state: &State, node: NodeId) -> anyhow::Result<()> {
    if state.cluster().is_none() {
        bail!("Raft's state holds no swarm: it was never completely made; leave with `skep swarm leave --force`");
    }
    if state.node(node).is_none() {
        bail!("Raft's state does not know this node ({node}): it belongs to another node or swarm");
    }
    Ok(())
}

/// Keeps Raft's own settings as the swarm's say.
async fn follow_settings(store: Store, raft: Arc<RaftNode<Machine>>) {
    let mut cluster = store.watch(Topic::Cluster);
    loop {
        let bytes = store.state().cluster().map_or(0, |cluster| cluster.spec.snapshot_log_bytes);
        raft.set_snapshot_after_bytes(u64::try_from(bytes).unwrap_or(0));
        cluster.changed().await;
    }
}

/// Keeps the deny list as the state says: a removed node's connections close, after a moment in which it is told why.
async fn follow_denied(store: Store, deny: DenyList) {
    let mut nodes = store.watch(Topic::Nodes);
    loop {
        deny.set(store.state().denied().map(|(node, _)| node));
        nodes.changed().await;
        tokio::time::sleep(FAREWELL).await;
    }
}
