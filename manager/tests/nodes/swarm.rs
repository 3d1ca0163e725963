//! A swarm of one manager in this process, and nodes that join it as hosts do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use skep_core::change::{Change, Op};
use skep_core::object::{Meta, Node, Revision, Service, Task};
use skep_core::store::State;
use skep_identity::ca::RootCa;
use skep_identity::transport::{AcceptLimits, ChannelOptions, Keepalive, channel, incoming, server};
use skep_identity::{
    Anonymous, ClientTls, Credentials, DenyList, Expected, JoinToken, LiveCredentials, NodeKey, Role, ServerTls,
    TokenSecret,
};
use skep_manager::store::Store;
use skep_manager::{Bootstrap, Manager, ManagerConfig, ManagerStart};
use skep_proto::id::{ClusterId, NodeId, ServiceId};
use skep_proto::time::UnixMs;
use skep_proto::v1::certificate_authority_client::CertificateAuthorityClient;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    ClusterSpec, ContainerSpec, IssueRequest, IssueResponse, NodeSpec, ReplicatedMode, RestartPolicy, ServiceSpec,
    TaskTemplate,
};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Channel;

pub(crate) use crate::common::soon;
use crate::common::{NoRegistries, signed};

pub(crate) const MANAGER: NodeId = NodeId::new(1);
pub(crate) const WORKER_SECRET: [u8; 16] = [7; 16];
pub(crate) const MANAGER_SECRET: [u8; 16] = [8; 16];
/// Short enough for tests that wait for silence, long enough for a busy machine.
const HEARTBEAT_MS: i64 = 300;

pub(crate) struct Swarm {
    pub(crate) ca: RootCa,
    pub(crate) addr: SocketAddr,
    pub(crate) deny: DenyList,
    manager: Option<Manager>,
    store: Store,
    pub(crate) credentials: LiveCredentials,
    server: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

/// A host that has joined.
pub(crate) struct Member {
    pub(crate) id: NodeId,
    pub(crate) channel: Channel,
    pub(crate) credentials: LiveCredentials,
}

impl Member {
    /// A channel to another port than the manager's.
    pub(crate) fn channel_to(&self, addr: SocketAddr) -> Channel {
        member_channel(&self.credentials, addr)
    }
}

impl Swarm {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = RootCa::generate(ClusterId::new(9), SystemTime::now()).unwrap();
        let credentials = LiveCredentials::new(signed(&ca, MANAGER, Role::Manager));
        let deny = DenyList::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let bootstrap = Bootstrap {
            cluster: ca.cluster_id(),
            spec: ClusterSpec { heartbeat_period_ms: HEARTBEAT_MS, ..ClusterSpec::default() },
            root_cert_pem: ca.cert().to_pem(),
            root_key_pem: ca.key_pem(),
            worker_token_secret: WORKER_SECRET,
            manager_token_secret: MANAGER_SECRET,
            unlock_key: None,
            node_spec: NodeSpec { role: skep_proto::v1::NodeRole::Manager.into(), ..NodeSpec::default() },
            hostname: "manager".to_owned(),
        };
        let config = ManagerConfig {
            dir: dir.path().join("raft"),
            node: MANAGER,
            advertise_addr: addr.to_string(),
            credentials: credentials.clone(),
            deny: deny.clone(),
            registries: Arc::new(NoRegistries),
            raft_id: skep_manager::FIRST_RAFT_ID,
            start: ManagerStart::Bootstrap(Box::new(bootstrap)),
            keys: skep_manager::KeysAtStart::default(),
        };
        let manager = Manager::start(config).await.unwrap();
        let server = serve(listener, &credentials, &deny, manager.routes());
        let store = manager.store().clone();
        Self { ca, addr, deny, manager: Some(manager), store, credentials, server, _dir: dir }
    }

    pub(crate) async fn stop(mut self) {
        self.server.abort();
        self.manager.take().unwrap().shutdown().await;
    }

    pub(crate) fn manager(&self) -> &Manager {
        self.manager.as_ref().unwrap()
    }

    pub(crate) fn state(&self) -> State {
        self.store.state()
    }

    pub(crate) fn token(&self, secret: [u8; 16]) -> String {
        JoinToken::new(self.ca.cert().digest(), TokenSecret::new(secret)).to_string()
    }

    /// A channel without a certificate.
    pub(crate) fn stranger(&self) -> Channel {
        let tls = ClientTls::joining(self.ca.bundle());
        channel(vec![self.addr.to_string()], tls, ChannelOptions::NODES)
    }

    /// A manager's channel, as the operators' calls come by.
    pub(crate) fn operator(&self) -> Channel {
        member_channel(&self.credentials, self.addr)
    }

    /// The state, for another dispatcher over it.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// What another manager has.
    pub(crate) fn manager_credentials(&self, node: NodeId) -> LiveCredentials {
        LiveCredentials::new(signed(&self.ca, node, Role::Manager))
    }

    pub(crate) async fn issue(&self, key: &NodeKey, request: IssueRequest) -> Result<IssueResponse, Status> {
        let csr_pem = key.signing_request_pem().unwrap();
        let mut client = CertificateAuthorityClient::new(self.stranger());
        let issued = soon("issue", client.issue(IssueRequest { csr_pem, ..request })).await?;
        Ok(issued.into_inner())
    }

    pub(crate) async fn join(&self, hostname: &str) -> Member {
        let key = NodeKey::generate().unwrap();
        let request =
            IssueRequest { token: self.token(WORKER_SECRET), hostname: hostname.to_owned(), ..IssueRequest::default() };
        let issued = self.issue(&key, request).await.unwrap();
        let credentials = Credentials::new(key, &issued.cert_chain_pem, self.ca.bundle()).unwrap();
        let credentials = LiveCredentials::new(credentials);
        let channel = member_channel(&credentials, self.addr);
        Member { id: NodeId::from_wire(&issued.node_id).unwrap(), channel, credentials }
    }

    /// Writes changes as the control API does.
    pub(crate) async fn write(&self, changes: Vec<Change>) {
        let written = self.store.write(None, Vec::new(), changes).await.unwrap();
        self.store.applied(written.version).await;
    }

    /// Makes a service without restart delay; the loops do the rest.
    pub(crate) async fn create_service(&self, name: &str, digest: &str, replicas: u64) -> ServiceId {
        let container = ContainerSpec {
            name: "main".into(),
            image: "web".into(),
            image_digest: digest.into(),
            ..ContainerSpec::default()
        };
        let template = TaskTemplate {
            containers: vec![container],
            restart: Some(RestartPolicy { delay_ms: -1, ..RestartPolicy::default() }),
            ..TaskTemplate::default()
        };
        let id = ServiceId::new(rand::random());
        let mode = Mode::Replicated(ReplicatedMode { replicas });
        let spec = ServiceSpec { name: name.into(), mode: Some(mode), ..ServiceSpec::default() };
        let service = Service {
            id,
            meta: Meta::default(),
            spec: Arc::new(spec),
            revision: 1,
            ports: Vec::new(),
            update: None,
            virtual_addresses: Vec::new(),
        };
        let revision = Revision {
            key: service.current(),
            template: Arc::new(template),
            created_at: UnixMs::ZERO,
            copied_from: None,
            service_name: name.into(),
            live: None,
        };
        let changes = vec![Change::create(Op::PutService(service)), Change::create(Op::PutRevision(revision))];
        self.write(changes).await;
        id
    }

    pub(crate) async fn scale(&self, service: ServiceId, replicas: u64) {
        let mut scaled = Service::clone(self.state().service(service).unwrap());
        let version = scaled.meta.version;
        let mode = Some(Mode::Replicated(ReplicatedMode { replicas }));
        scaled.spec = Arc::new(ServiceSpec { mode, ..ServiceSpec::clone(&scaled.spec) });
        self.write(vec![Change::update(version, Op::PutService(scaled))]).await;
    }

    pub(crate) async fn remove_node(&self, node: NodeId) {
        let version = self.state().node(node).unwrap().meta.version;
        self.write(vec![Change::update(version, Op::RemoveNode(node))]).await;
    }

    /// Waits until the state is as wanted.
    pub(crate) async fn until(&self, what: &str, mut wanted: impl FnMut(&State) -> bool) {
        let mut changes = self.store.watch(skep_manager::topic::Topic::All);
        soon(what, async {
            while !wanted(&self.store.state()) {
                changes.changed().await;
            }
        })
        .await;
    }

    pub(crate) fn node(&self, id: NodeId) -> Arc<Node> {
        Arc::clone(self.state().node(id).unwrap())
    }

    pub(crate) fn tasks(&self, service: ServiceId) -> Vec<Arc<Task>> {
        self.state().tasks_of_service(service).cloned().collect()
    }
}

pub(crate) fn member_channel(credentials: &LiveCredentials, addr: SocketAddr) -> Channel {
    let tls = ClientTls::member(credentials, &DenyList::new(), Expected::manager());
    channel(vec![addr.to_string()], tls, ChannelOptions::NODES)
}

pub(crate) fn serve(
    listener: TcpListener,
    credentials: &LiveCredentials,
    deny: &DenyList,
    routes: Routes,
) -> JoinHandle<()> {
    let tls = ServerTls::new(credentials, deny, Anonymous::Allowed);
    let connections = incoming(listener, tls, AcceptLimits::default());
    tokio::spawn(async move {
        server(Keepalive::NODES).add_routes(routes).serve_with_incoming(connections).await.unwrap();
    })
}
