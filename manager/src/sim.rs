//! A manager for simulations of many on one thread (feature `sim`): Raft, state machine, sequencer, store, forwarding, the
//! service between managers, the role manager and the control API of nodes are the real ones. Left out: TLS, sessions,
//! and the leader's loops, so that it starts no threads.
//!
//! Seed the thread first ([`skep_raft::sim::seed`]) and give it a wall clock ([`set_wall`]). Dropping a manager's runtime
//! is a crash.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::BoxFuture;
use skep_core::apply::Refused;
use skep_core::change::{Change, Op};
use skep_core::codec;
use skep_core::object::{Meta, Node, NodeStatus};
use skep_core::roles;
use skep_core::store::State;
use skep_identity::Caller;
use skep_identity::transport::ConnectionInfo;
use skep_proto::id::{ClusterId, NodeId};
use skep_proto::v1::nodes_server::Nodes as _;
use skep_proto::v1::{ClusterSpec, NodeRole, NodeSpec, RegistryAuth, RemoveNodeRequest, UpdateNodeRequest};
use skep_raft::{Consensus, RaftNode};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::callers;
use crate::clock::Clock;
use crate::control::Control;
use crate::images::{Name, Registries, RemoteImage, ResolveError};
use crate::leader;
use crate::machine::{FeedSlot, Machine};
use crate::manager::{self, Bootstrap, Ended, SUBMISSIONS};
use crate::peers::Peers;
use crate::peers::service::QuorumService;
use crate::roles::RoleManager;
use crate::sequencer;
use crate::store::{Applied, Store, WriteError};

/// Makes a channel to the manager at an address. It connects lazily, and again when it was cut.
pub type Connect = Arc<dyn Fn(&str) -> Channel + Send + Sync>;

/// How long a new swarm's first manager may take to lead.
const ELECTION: Duration = Duration::from_secs(10);

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

/// What a node's certificate would say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// The state does not know the node, and never removed it.
    None,
    Worker,
    Manager,
    /// The node was removed: it gets none any more.
    Denied,
}

/// A running manager. Ends with the runtime that it was started on.
pub struct SimManager {
    raft: Arc<RaftNode<Machine>>,
    store: Store,
    control: Control,
    routes: Routes,
    _tasks: JoinSet<()>,
}

impl SimManager {
    /// Starts `node`'s manager on the calling runtime, reachable by others at `addr`.
    pub async fn start(config: skep_raft::Config, node: NodeId, addr: &str, connect: Connect) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let applied = Applied::new(State::default());
        let peers = Peers::simulated(connect, &applied, &clock);
        let machine = Machine::new(applied.clone(), FeedSlot::default(), clock.clone());
        let raft = RaftNode::start_here(config, machine, peers.transport()).await.context("cannot start Raft")?;
        let raft = Arc::new(raft);
        let (submit, submissions) = mpsc::channel(SUBMISSIONS);
        let consensus: Arc<dyn Consensus<Response = Vec<u64>>> = Arc::clone(&raft) as _;
        peers.know_raft(&consensus);
        let mut tasks = JoinSet::new();
        tasks.spawn(sequencer::run(consensus, applied.clone(), clock.clone(), submissions));
        let store = Store::new(applied, submit, clock, peers);
        tasks.spawn(leader::keep_clock(store.clone()));
        tasks.spawn(keep_roles(Arc::clone(&raft), store.clone()));
        let control = Control::new(store.clone(), Arc::new(NoRegistries), node, raft.status());
        let routes = Routes::new(QuorumService::new(Arc::clone(&raft), store.clone(), Arc::default()).service());
        let routes = callers::guard(routes, &store);
        tasks.spawn(leader::follow(leader::Parts {
            raft: Arc::clone(&raft),
            store: store.clone(),
            work: None,
            node,
            addr: addr.to_owned(),
        }));
        Ok(Self { raft, store, control, routes, _tasks: tasks })
    }

    /// Makes a new swarm with this manager's `node`, after a start with [`skep_raft::Start::Bootstrap`].
    pub async fn make_swarm(&self, node: NodeId, addr: &str) -> anyhow::Result<()> {
        anyhow::ensure!(self.store.peers().led_within(ELECTION).await, "the first manager does not lead");
        let bootstrap = Bootstrap {
            cluster: ClusterId::new(1),
            spec: ClusterSpec::default(),
            root_cert_pem: String::new(),
            root_key_pem: String::new(),
            worker_token_secret: [0; 16],
            manager_token_secret: [1; 16],
            unlock_key: None,
            node_spec: NodeSpec { role: NodeRole::Manager.into(), ..NodeSpec::default() },
            hostname: String::new(),
        };
        manager::make_swarm(&self.store, node, addr, bootstrap).await
    }

    /// Reads and writes, as the control API has them.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Raft itself.
    pub fn raft(&self) -> Arc<dyn Consensus<Response = Vec<u64>>> {
        Arc::clone(&self.raft) as _
    }

    /// What it answers other managers.
    pub fn routes(&self) -> Routes {
        self.routes.clone()
    }

    /// Returns when this manager has ended by itself, as the daemon hears it.
    pub fn ended(&self) -> impl Future<Output = Ended> + use<> {
        manager::ended(self.store.clone(), self.raft.status())
    }

    /// The node API for an operator.
    pub fn nodes(&self) -> NodeApi {
        NodeApi { store: self.store.clone(), control: self.control.clone() }
    }
}

/// What operators do to nodes, and what nodes ask for themselves. Cheap to clone.
#[derive(Clone)]
pub struct NodeApi {
    store: Store,
    control: Control,
}

impl NodeApi {
    /// `node promote` and `node demote`.
    pub async fn set_role(&self, node: NodeId, role: NodeRole) -> Result<(), Status> {
        let state = self.store.fresh().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let known = state.node(node).ok_or_else(|| Status::not_found("there is no such node"))?;
        let spec = NodeSpec { role: role.into(), ..NodeSpec::clone(&known.spec) };
        let request =
            UpdateNodeRequest { reference: node.to_string(), spec: Some(spec), ..UpdateNodeRequest::default() };
        self.control.update(local(request)).await.map(|_| ())
    }

    /// `node rm --force`.
    pub async fn remove(&self, node: NodeId) -> Result<(), Status> {
        let request = RemoveNodeRequest { reference: node.to_string(), force: true, ..RemoveNodeRequest::default() };
        self.control.remove(local(request)).await.map(|_| ())
    }

    /// `swarm join` with a manager's token: what the certificate authority writes down.
    pub async fn join(&self, node: NodeId) -> Result<(), WriteError> {
        if self.store.fresh().await?.node(node).is_some() {
            return Ok(());
        }
        let new = Node {
            id: node,
            meta: Meta::default(),
            spec: Arc::new(NodeSpec { role: NodeRole::Manager.into(), ..NodeSpec::default() }),
            description: None,
            status: NodeStatus::default(),
            role: NodeRole::Manager,
            manager: None,
            fabric_number: None,
            ingress: None,
        };
        match self.store.write(None, node.to_vec(), vec![Change::create(Op::PutNode(new))]).await {
            Ok(_) | Err(WriteError::Refused(Refused::Exists { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What a node's certificate says when it is renewed now.
    pub async fn certificate(&self, node: NodeId) -> Result<Certificate, WriteError> {
        let state = self.store.fresh().await?;
        Ok(match state.node(node) {
            Some(node) if roles::certificate_role(node) == NodeRole::Manager => Certificate::Manager,
            Some(_) => Certificate::Worker,
            None if state.is_denied(node) => Certificate::Denied,
            None => Certificate::None,
        })
    }
}

/// What a disk holds whose manager does not run: the state after its snapshot and every proposal in its log, committed or
/// not.
pub fn replay(config: &skep_raft::Config) -> anyhow::Result<State> {
    let stored = skep_raft::sim::content(config)?;
    let (mut contained, mut state) = (None, State::default());
    if let Some((index, bytes)) = stored.snapshot {
        state = codec::read_snapshot(&mut bytes.as_slice()).context("the snapshot cannot be read")?;
        contained = Some(index);
    }
    for (index, entry) in stored.entries {
        if Some(index) > contained {
            for transaction in codec::decode_entry(&entry).context("an entry cannot be read")? {
                state.apply(&transaction);
            }
        }
    }
    Ok(state)
}

/// The role manager runs while this manager leads, as `leader.rs` has it.
async fn keep_roles(raft: Arc<RaftNode<Machine>>, store: Store) {
    let mut leader = store.peers().leader();
    let mut held: Option<RoleManager> = None;
    loop {
        let leads = leader.borrow_and_update().as_ref().is_some_and(|leader| leader.is_self);
        held = match held {
            held if !leads => {
                drop(held);
                None
            }
            None => Some(RoleManager::simulated(Arc::clone(&raft), store.clone())),
            held => held,
        };
        if leader.changed().await.is_err() {
            return;
        }
    }
}

/// A request of an operator on this host.
fn local<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(ConnectionInfo { caller: Caller::Local { uid: 0 }, remote: None });
    request
}

/// Nothing is pulled in a simulation.
struct NoRegistries;

impl Registries for NoRegistries {
    fn parse(&self, reference: &str) -> Result<Name, ResolveError> {
        Err(ResolveError::Invalid(format!("there are no registries here: {reference}")))
    }

    fn resolve(
        &self,
        reference: String,
        _auth: Option<RegistryAuth>,
    ) -> BoxFuture<'static, Result<RemoteImage, ResolveError>> {
        Box::pin(async move { Err(ResolveError::Unavailable(format!("there are no registries here: {reference}"))) })
    }
}
