//! This host's place in a swarm: none, member, manager. The transitions (init, join, leave, start of a member) run one
//! at a time; each either completes or leaves what was before.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use skep_identity::ca::{DEFAULT_NODE_VALIDITY, MIN_NODE_VALIDITY};
use skep_identity::transport::{AcceptLimits, ChannelOptions, Keepalive};
use skep_identity::{
    Anonymous, Credentials, DenyList, JoinToken, LiveCredentials, NodeGrant, NodeKey, PeerIdentity, Role, RootBundle,
    RootCa, ServerTls, join_channel,
};
use skep_manager::{Bootstrap, Manager, ManagerConfig};
use skep_proto::id::{ClusterId, NodeId, RequestId};
use skep_proto::v1::certificate_authority_client::CertificateAuthorityClient;
use skep_proto::v1::{
    ClusterSpec, GetRootRequest, IssueRequest, NodeRole, NodeSpec, SwarmInitRequest, SwarmJoinRequest, SwarmState,
};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::address;
use crate::agent::MemberAgent;
use crate::config::MANAGER_PORT;
use crate::host::Host;
use crate::links::{Links, serve_peers};
use crate::renewal;
use crate::switch::ManagerRoutes;

/// How long a joining node waits for its first session.
const FIRST_SESSION: Duration = Duration::from_secs(20);
/// How long one call to the certificate authority may take.
const CA_DEADLINE: Duration = Duration::from_secs(15);

/// Why the local control API does not answer.
const NOT_IN_SWARM: &str = "this node is not a swarm manager: use `skep swarm init` or `skep swarm join` to connect \
                            this node to a swarm and try again";
const ONLY_WORKER: &str = "this node is a worker: worker nodes can't be used to view or modify the swarm's state; run \
                           this command on a manager";

/// What a member keeps besides its credentials, in `swarm.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    /// Where the managers' API listens here, if this is a manager.
    listen_addr: SocketAddr,
    /// What others are told.
    advertise_addr: SocketAddr,
    /// Managers known when this host joined.
    managers: Vec<String>,
}

/// What `info` tells.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) state: SwarmState,
    pub(crate) error: String,
    pub(crate) node: Option<NodeId>,
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) role: Option<Role>,
    pub(crate) node_addr: String,
    pub(crate) managers: Vec<String>,
}

impl Standing {
    fn outside(state: SwarmState, error: String) -> Self {
        Self { state, error, node: None, cluster: None, role: None, node_addr: String::new(), managers: Vec::new() }
    }
}

/// The place, and what runs because of it.
pub(crate) struct Membership {
    host: Arc<Host>,
    routes: ManagerRoutes,
    /// Held through a whole transition.
    member: Mutex<Option<Member>>,
    standing: StdMutex<Standing>,
    /// What is asked of a member at any time, also during a transition.
    view: StdMutex<Option<View>>,
    /// The daemon stops: no transition begins any more.
    stopping: watch::Sender<bool>,
}

/// The parts of a member that answer questions.
#[derive(Clone)]
struct View {
    agent: MemberAgent,
    credentials: LiveCredentials,
}

/// Everything that runs while this host is in a swarm, in the order of starting.
struct Member {
    manager: Option<Manager>,
    listeners: JoinSet<()>,
    agent: MemberAgent,
    background: JoinSet<()>,
}

impl Membership {
    /// Outside of any swarm; `start` resumes what the data directory says.
    pub(crate) fn new(host: Arc<Host>, routes: ManagerRoutes) -> Self {
        routes.set(Err(NOT_IN_SWARM.to_owned()));
        let standing = StdMutex::new(Standing::outside(SwarmState::Inactive, String::new()));
        let stopping = watch::channel(false).0;
        Self { host, routes, member: Mutex::new(None), standing, view: StdMutex::new(None), stopping }
    }

    /// What `info` tells.
    pub(crate) fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_standing(&self, standing: Standing) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    fn view(&self) -> Option<View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_view(&self, view: Option<View>) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }

    /// Why there is no session right now, in words. Empty: there is one, or no swarm.
    pub(crate) fn trouble(&self) -> String {
        self.view().map(|view| view.agent.trouble()).unwrap_or_default()
    }

    /// End of this node's certificate. `None`: it has none.
    pub(crate) fn certificate_end(&self) -> Option<SystemTime> {
        self.view().map(|view| view.credentials.current().not_after())
    }

    /// Containers that run here.
    pub(crate) fn containers_running(&self) -> usize {
        self.view().map_or(0, |view| view.agent.handle.containers_running())
    }

    /// Resumes the membership that the data directory holds, if any. An error leaves the daemon up and says why.
    pub(crate) async fn start(&self) {
        let mut member = self.member.lock().await;
        let dir = self.host.identity_dir();
        let credentials = match Credentials::load(&dir) {
            Ok(credentials) => credentials,
            Err(error) if error.is_absent() => return self.host.clear_leftovers().await,
            Err(error) => return self.failed(&anyhow::Error::new(error)),
        };
        self.set_standing(Standing::outside(SwarmState::Pending, String::new()));
        let started = async {
            let record = Record::load(&self.host.swarm_file())?;
            self.run(credentials, &record, None).await
        };
        match started.await {
            Ok(running) => *member = Some(running),
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&self, error: &anyhow::Error) {
        let message = format!("{error:#}");
        warn!(error = %message, "this host's swarm state cannot be used");
        self.routes.set(Err(format!("this node's swarm state cannot be used: {message}")));
        self.set_standing(Standing::outside(SwarmState::Error, message));
    }

    /// Makes a swarm with this host as its first manager. Returns the node and the worker's token.
    pub(crate) async fn init(&self, request: SwarmInitRequest) -> anyhow::Result<(NodeId, JoinToken, SocketAddr)> {
        let mut member = self.member.lock().await;
        self.refuse_if_member(&member)?;
        let record = self.record(&request.listen_addr, &request.advertise_addr, Vec::new())?;
        let validity = match u64::try_from(request.node_cert_expiry_ms) {
            Ok(0) => DEFAULT_NODE_VALIDITY,
            Ok(ms) => Duration::from_millis(ms),
            Err(_) => Duration::ZERO,
        };
        if validity < MIN_NODE_VALIDITY {
            bail!("the life of node certificates must be at least one hour");
        }
        let (cluster, node) = (ClusterId::new(rand::random()), NodeId::new(rand::random()));
        let now = SystemTime::now();
        let authority = RootCa::generate(cluster, now)?;
        let key = NodeKey::generate()?;
        let grant = NodeGrant { node_id: node, role: Role::Manager, validity };
        let issued = authority.issue(&key.signing_request()?, &grant, now)?;
        let credentials = Credentials::new(key, &issued.chain_pem, RootBundle::from(authority.cert().clone()))?;
        let bootstrap = Bootstrap {
            cluster,
            spec: ClusterSpec {
                task_history_limit: request.task_history_limit,
                heartbeat_period_ms: request.heartbeat_period_ms,
                node_cert_expiry_ms: request.node_cert_expiry_ms,
                ..ClusterSpec::default()
            },
            root_cert_pem: authority.cert().to_pem(),
            root_key_pem: authority.key_pem().to_string(),
            worker_token_secret: rand::random(),
            manager_token_secret: rand::random(),
            node_spec: NodeSpec {
                role: NodeRole::Manager.into(),
                availability: request.availability,
                ..NodeSpec::default()
            },
            hostname: self.host.hostname.clone(),
        };
        let token =
            JoinToken::new(authority.cert().digest(), skep_identity::TokenSecret::new(bootstrap.worker_token_secret));
        self.enter(&mut member, credentials, &record, Some(bootstrap)).await?;
        info!(%node, %cluster, "a swarm was made");
        Ok((node, token, record.advertise_addr))
    }

    /// Joins a swarm; returns when the agent has its session.
    pub(crate) async fn join(&self, request: SwarmJoinRequest) -> anyhow::Result<(NodeId, Role)> {
        let mut member = self.member.lock().await;
        self.refuse_if_member(&member)?;
        let mut stopping = self.stopping.subscribe();
        let (credentials, record) = tokio::select! {
            biased;
            // Nothing was written yet.
            _ = stopping.wait_for(|stopping| *stopping) => bail!("this daemon is stopping: join again when it is back"),
            asked = self.ask_to_join(&request) => asked?,
        };
        let (node, role) = (credentials.node_id(), credentials.role());
        self.enter(&mut member, credentials, &record, None).await?;
        let agent = member.as_ref().map(|joined| joined.agent.clone());
        // From here on it is a member, which may leave or be stopped while it waits for its session.
        drop(member);
        if let Some(agent) = agent
            && tokio::time::timeout(FIRST_SESSION, agent.connected()).await.is_err()
        {
            bail!(
                "this host has its certificate, but no manager accepted its session within {} s; it goes on trying: \
                 see `skep info` and the daemon's log",
                FIRST_SESSION.as_secs()
            );
        }
        if self.standing().node != Some(node) {
            bail!("this host left the swarm again before it had a session");
        }
        info!(%node, ?role, "joined the swarm");
        Ok((node, role))
    }

    /// Asks the managers that `request` names for a certificate. Writes nothing here.
    async fn ask_to_join(&self, request: &SwarmJoinRequest) -> anyhow::Result<(Credentials, Record)> {
        let token: JoinToken = request.token.parse()?;
        let mut managers = Vec::new();
        for text in &request.remote_addrs {
            managers.push(address::parse(text, MANAGER_PORT)?.to_string());
        }
        if managers.is_empty() {
            bail!("the address of a manager is needed: skep swarm join --token TOKEN HOST:PORT");
        }
        let record = self.record(&request.listen_addr, &request.advertise_addr, managers.clone())?;
        let (_, channel) = join_channel(managers, &token, ChannelOptions::NODES, fetch_root).await?;
        let key = NodeKey::generate()?;
        let issue = IssueRequest {
            csr_pem: key.signing_request_pem()?,
            token: token.to_string(),
            hostname: self.host.hostname.clone(),
            availability: request.availability,
            request_id: RequestId::new(rand::random()).to_vec(),
        };
        let issued = call(CertificateAuthorityClient::new(channel).issue(issue)).await?;
        let roots = RootBundle::from_pem(&issued.root_cert_pem)?;
        Ok((Credentials::new(key, &issued.cert_chain_pem, roots)?, record))
    }

    /// Leaves: containers stop, the local state goes.
    pub(crate) async fn leave(&self, force: bool) -> anyhow::Result<()> {
        let mut member = self.member.lock().await;
        let standing = self.standing();
        match (standing.state, standing.role) {
            (SwarmState::Inactive, _) => bail!("this node is not part of a swarm"),
            (SwarmState::Active, Some(Role::Manager)) if !force => bail!(
                "you are attempting to leave the swarm on a node that is participating as a manager. Removing the last \
                 manager erases all current state of the swarm. Use `--force` to ignore this message"
            ),
            // A manager that could not start (a taken port, a full disk) still holds the swarm's only state.
            (SwarmState::Error | SwarmState::Pending, _) if !force && self.host.raft_dir().exists() => bail!(
                "this node holds a manager's state, which leaving erases: solve what `skep info` shows and restart the \
                 daemon, or use `--force` to erase it"
            ),
            _ => {}
        }
        if let Some(running) = member.take() {
            running.agent.handle.stop_all().await;
            running.stop().await;
        }
        self.set_view(None);
        self.host.clear_leftovers().await;
        self.forget()?;
        self.routes.set(Err(NOT_IN_SWARM.to_owned()));
        self.set_standing(Standing::outside(SwarmState::Inactive, String::new()));
        info!("left the swarm");
        Ok(())
    }

    /// Stops what runs here; containers go on.
    pub(crate) async fn shutdown(&self) {
        self.stopping.send_replace(true);
        if let Some(running) = self.member.lock().await.take() {
            running.agent.handle.shutdown().await;
            running.stop().await;
        }
        self.set_view(None);
    }

    fn refuse_if_member(&self, member: &Option<Member>) -> anyhow::Result<()> {
        if *self.stopping.borrow() {
            bail!("this daemon is stopping: try again when it is back");
        }
        if member.is_some() || self.standing().state != SwarmState::Inactive {
            bail!(
                "this node is already part of a swarm: use `skep swarm leave` to leave this swarm and join another one"
            );
        }
        Ok(())
    }

    fn record(&self, listen: &str, advertise: &str, managers: Vec<String>) -> anyhow::Result<Record> {
        let listen_addr = match listen {
            "" => SocketAddr::from(([0, 0, 0, 0], MANAGER_PORT)),
            text => address::parse(text, MANAGER_PORT).context("--listen-addr")?,
        };
        let advertise_addr = match (advertise, self.host.config.advertise_addr) {
            ("", Some(ip)) => SocketAddr::new(ip, listen_addr.port()),
            ("", None) if !listen_addr.ip().is_unspecified() => listen_addr,
            ("", None) => SocketAddr::new(address::only_address()?, listen_addr.port()),
            (text, _) => address::parse(text, listen_addr.port()).context("--advertise-addr")?,
        };
        Ok(Record { listen_addr, advertise_addr, managers })
    }

    /// Writes the new membership down and starts it; takes all back when that fails.
    async fn enter(
        &self,
        member: &mut Option<Member>,
        credentials: Credentials,
        record: &Record,
        bootstrap: Option<Bootstrap>,
    ) -> anyhow::Result<()> {
        let written = record
            .save(&self.host.swarm_file())
            .and_then(|()| credentials.save(&self.host.identity_dir()).context("cannot store this node's credentials"));
        let started = match written {
            Ok(()) => self.run(credentials, record, bootstrap).await,
            Err(error) => Err(error),
        };
        match started {
            Ok(running) => {
                *member = Some(running);
                Ok(())
            }
            Err(error) => {
                let undone = self.forget();
                self.routes.set(Err(NOT_IN_SWARM.to_owned()));
                self.set_standing(Standing::outside(SwarmState::Inactive, String::new()));
                Err(match undone {
                    Ok(()) => error,
                    Err(undo) => error.context(format!("{undo:#}, after this failure")),
                })
            }
        }
    }

    /// Deletes the local state of the swarm, credentials first: without them nothing is resumed.
    fn forget(&self) -> anyhow::Result<()> {
        Credentials::erase(&self.host.identity_dir()).context("cannot delete this node's credentials")?;
        for path in [self.host.swarm_file(), self.host.raft_dir(), self.host.agent_dir()] {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("cannot delete {}", path.display())),
            }
        }
        Ok(())
    }

    /// Starts everything that a member runs. What was started when a later part fails is stopped again: its ports and
    /// files are free when this returns.
    async fn run(
        &self,
        credentials: Credentials,
        record: &Record,
        bootstrap: Option<Bootstrap>,
    ) -> anyhow::Result<Member> {
        let identity = credentials.identity().clone();
        let (live, deny) = (LiveCredentials::new(credentials), DenyList::new());
        let mut listeners = JoinSet::new();
        let mut managers = record.managers.clone();
        let manager = if identity.role == Role::Manager {
            managers.insert(0, record.advertise_addr.to_string());
            Some(self.run_manager(&identity, record, bootstrap, (&live, &deny), &mut listeners).await?)
        } else {
            self.routes.set(Err(ONLY_WORKER.to_owned()));
            None
        };
        let links = Links::new(&live, &deny);
        let address = record.advertise_addr.ip();
        let agent = async {
            serve_peers(&self.host, &live, &deny, &mut listeners).await?;
            MemberAgent::start(&self.host, &identity, Arc::clone(&links), managers.clone(), address).await
        };
        let agent = match agent.await {
            Ok(agent) => agent,
            Err(error) => {
                stop(listeners, manager).await;
                return Err(error);
            }
        };
        let mut background = JoinSet::new();
        let (known, asked) = (agent.managers.clone(), Arc::clone(&agent.renew));
        background.spawn(renewal::run(live.clone(), links, known, self.host.identity_dir(), asked));
        background.spawn(close_expired(deny));
        self.set_view(Some(View { agent: agent.clone(), credentials: live }));
        self.set_standing(Standing {
            state: SwarmState::Active,
            error: String::new(),
            node: Some(identity.node_id),
            cluster: Some(identity.cluster_id),
            role: Some(identity.role),
            node_addr: record.advertise_addr.ip().to_string(),
            managers,
        });
        Ok(Member { manager, listeners, agent, background })
    }

    /// Starts the manager and its port.
    async fn run_manager(
        &self,
        identity: &PeerIdentity,
        record: &Record,
        bootstrap: Option<Bootstrap>,
        (live, deny): (&LiveCredentials, &DenyList),
        listeners: &mut JoinSet<()>,
    ) -> anyhow::Result<Manager> {
        // Before the manager starts, so that a taken port leaves nothing to undo.
        let listener = listen(record.listen_addr).await?;
        let manager = Manager::start(ManagerConfig {
            dir: self.host.raft_dir(),
            node: identity.node_id,
            advertise_addr: record.advertise_addr.to_string(),
            credentials: live.clone(),
            deny: deny.clone(),
            registries: self.host.registries(),
            bootstrap,
        })
        .await?;
        let tls = ServerTls::new(live, deny, Anonymous::Allowed);
        let incoming = skep_identity::transport::incoming(listener, tls, AcceptLimits::default());
        let server = skep_identity::transport::server(Keepalive::MANAGERS).add_routes(manager.routes());
        listeners.spawn(async move {
            if let Err(error) = server.serve_with_incoming(incoming).await {
                warn!(%error, "the managers' port is closed");
            }
        });
        self.routes.set(Ok(manager.routes()));
        Ok(manager)
    }
}

impl Member {
    /// In reverse order; the agent was ended by the caller.
    async fn stop(mut self) {
        self.background.shutdown().await;
        stop(self.listeners, self.manager).await;
    }
}

/// Closes the ports, then stops the manager behind them. The ports are free when this returns.
async fn stop(mut listeners: JoinSet<()>, manager: Option<Manager>) {
    listeners.shutdown().await;
    if let Some(manager) = manager {
        manager.shutdown().await;
    }
}

impl Record {
    fn load(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| {
            format!("{} is damaged: leave with `skep swarm leave --force` and join again", path.display())
        })
    }

    /// Written whole: temporary file, fsync, rename, fsync of the folder.
    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let temporary: PathBuf = path.with_extension("tmp");
        let write = || -> std::io::Result<()> {
            let mut file = fs::File::create(&temporary)?;
            serde_json::to_writer(&mut file, self)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

async fn fetch_root(channel: Channel) -> Result<String, tonic::Status> {
    let mut authority = CertificateAuthorityClient::new(channel);
    match tokio::time::timeout(CA_DEADLINE, authority.get_root(GetRootRequest {})).await {
        Ok(answer) => Ok(answer?.into_inner().root_cert_pem),
        Err(_) => Err(tonic::Status::deadline_exceeded("the manager did not answer in time")),
    }
}

async fn call<T>(answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> anyhow::Result<T> {
    match tokio::time::timeout(CA_DEADLINE, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(anyhow::anyhow!("{}", status.message())),
        Err(_) => bail!("the manager did not answer within {} s", CA_DEADLINE.as_secs()),
    }
}

/// Connections whose certificate ran out are closed within a minute.
async fn close_expired(deny: DenyList) {
    let mut minute = tokio::time::interval(Duration::from_secs(60));
    loop {
        minute.tick().await;
        deny.close_expired(SystemTime::now());
    }
}

#[cfg(test)]
mod membership_test;
