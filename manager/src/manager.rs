//! One manager: Raft, the writer, the leader's loops and every service it offers, started in one order and stopped in
//! reverse. Called by the daemon.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use skep_core::change::{Change, Op};
use skep_core::object::{Cluster, ManagerStatus, Meta, Node, NodeStatus};
use skep_core::store::State;
use skep_identity::{DenyList, LiveCredentials};
use skep_proto::id::{ClusterId, NodeId};
use skep_proto::v1::clusters_server::ClustersServer;
use skep_proto::v1::image_names_server::ImageNamesServer;
use skep_proto::v1::nodes_server::NodesServer;
use skep_proto::v1::services_server::ServicesServer;
use skep_proto::v1::tasks_server::TasksServer;
use skep_proto::v1::watch_server::WatchServer;
use skep_proto::v1::{ClusterSpec, NodeDescription, NodeRole, NodeSpec};
use skep_raft::{Consensus, NoPeers, RaftNode, Start};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::service::Routes;

use crate::ca::CertificateAuthority;
use crate::clock::Clock;
use crate::control::Control;
use crate::dispatch::Dispatcher;
use crate::images::Registries;
use crate::leader;
use crate::logs::LogBroker;
use crate::machine::{FeedSlot, Machine};
use crate::sequencer;
use crate::store::{Applied, Store};
use crate::topic::Topic;

/// Feature level of this build.
const FEATURE_LEVEL: u32 = 1;
/// Writes that wait for the sequencer before their callers wait.
const SUBMISSIONS: usize = 1024;
/// How long the only voter may take to lead.
const ELECTION: Duration = Duration::from_secs(10);
/// The first manager's id in Raft.
const FIRST_RAFT_ID: u64 = 1;

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
    /// A new swarm; `None`: the one in `dir`.
    pub bootstrap: Option<Bootstrap>,
}

/// What a new swarm starts from.
pub struct Bootstrap {
    pub cluster: ClusterId,
    pub spec: ClusterSpec,
    pub root_cert_pem: String,
    pub root_key_pem: String,
    pub worker_token_secret: [u8; 16],
    pub manager_token_secret: [u8; 16],
    /// Of the first manager's node.
    pub node_spec: NodeSpec,
    pub hostname: String,
}

/// A running manager.
pub struct Manager {
    raft: Arc<RaftNode<Machine>>,
    store: Store,
    routes: Routes,
    follower: JoinHandle<()>,
    background: Vec<JoinHandle<()>>,
}

impl Manager {
    /// Opens Raft, waits until this manager leads (it is the only voter), makes the swarm if it is a new one, and
    /// offers the services.
    pub async fn start(config: ManagerConfig) -> anyhow::Result<Self> {
        let applied = Applied::new(State::default());
        let feed = FeedSlot::default();
        let machine = Machine::new(applied.clone(), Arc::clone(&feed));
        let start = match config.bootstrap {
            Some(_) => Start::Bootstrap { address: config.advertise_addr.clone() },
            None => Start::Existing,
        };
        let raft_config = skep_raft::Config::new(&config.dir, FIRST_RAFT_ID, start);
        let raft = RaftNode::start(raft_config, machine, Arc::new(NoPeers)).await.context("cannot start Raft")?;
        let raft = Arc::new(raft);
        let (submit, submissions) = mpsc::channel(SUBMISSIONS);
        let consensus: Arc<dyn Consensus<Response = Vec<u64>>> = Arc::clone(&raft) as _;
        let sequencer = tokio::spawn(sequencer::run(Arc::clone(&consensus), applied.clone(), submissions));
        let store = Store::new(applied, submit, Clock::start());
        let dispatcher = Dispatcher::new(store.clone(), config.credentials.clone());
        let (follower, leading) = leader::follow(Arc::clone(&raft), store.clone(), dispatcher.clone(), feed);
        let mut manager = Self { raft, store, routes: Routes::default(), follower, background: vec![sequencer] };
        match manager.open(config, leading, &dispatcher).await {
            Ok(()) => Ok(manager),
            Err(error) => {
                // Otherwise Raft would run on in files that are given up.
                manager.shutdown().await;
                Err(error)
            }
        }
    }

    /// Waits for the lead, makes the swarm if it is a new one, and offers the services.
    async fn open(
        &mut self,
        config: ManagerConfig,
        mut leading: watch::Receiver<bool>,
        dispatcher: &Dispatcher,
    ) -> anyhow::Result<()> {
        let led = tokio::time::timeout(ELECTION, leading.wait_for(|leads| *leads)).await;
        led.context("this manager does not lead in time: see the log, and restart the daemon")?
            .context("Raft has ended: see the log")?;
        let store = &self.store;
        if let Some(bootstrap) = config.bootstrap {
            make_swarm(store, config.node, &config.advertise_addr, bootstrap).await?;
        }
        check(&store.state(), config.node)?;
        let control = Control::new(store.clone(), config.registries, config.node);
        self.routes = Routes::new(ClustersServer::new(control.clone()))
            .add_service(NodesServer::new(control.clone()))
            .add_service(ServicesServer::new(control.clone()))
            .add_service(TasksServer::new(control.clone()))
            .add_service(ImageNamesServer::new(control.clone()))
            .add_service(WatchServer::new(control))
            .add_service(dispatcher.service())
            .add_service(LogBroker::new(dispatcher).service())
            .add_service(CertificateAuthority::new(store.clone(), config.deny.clone()).service());
        self.background.push(tokio::spawn(follow_denied(store.clone(), config.deny)));
        Ok(())
    }

    /// Everything it serves; every handler checks its caller.
    pub fn routes(&self) -> Routes {
        self.routes.clone()
    }

    /// The state, for the daemon's own questions.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Stops in reverse order; what was acknowledged is on disk.
    pub async fn shutdown(self) {
        self.follower.abort();
        // Its end drops the leadership.
        let _ = self.follower.await;
        self.background.iter().for_each(JoinHandle::abort);
        self.raft.shutdown().await;
    }
}

/// The first transaction of a swarm: itself and its first manager.
async fn make_swarm(store: &Store, node: NodeId, addr: &str, bootstrap: Bootstrap) -> anyhow::Result<()> {
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
    };
    let changes = vec![Change::create(Op::PutCluster(cluster)), Change::create(Op::PutNode(first))];
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

/// Keeps the deny list as the state says: a removed node's connections close at once.
async fn follow_denied(store: Store, deny: DenyList) {
    let mut nodes = store.watch(Topic::Nodes);
    loop {
        deny.set(store.state().denied().map(|(node, _)| node));
        nodes.changed().await;
    }
}
