//! A change of the root certificate: a real manager with its Raft on disk, in this process, and 1,000 nodes with real mutual
//! TLS and real sessions. Their keys, requests and connections are as daemons make them; only their containers are missing.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, stream};
use skep_identity::ca::{DEFAULT_NODE_VALIDITY, NodeGrant, RootCa};
use skep_identity::transport::{ChannelOptions, channel};
use skep_identity::{
    Anonymous, ClientTls, Credentials, DenyList, Expected, JoinToken, LiveCredentials, NodeKey, Role, RootBundle,
    ServerTls, TokenSecret,
};
use skep_manager::images::{Name, Registries, RemoteImage, ResolveError};
use skep_manager::{Bootstrap, FIRST_RAFT_ID, KeysAtStart, Manager, ManagerConfig, ManagerStart};
use skep_proto::id::{ClusterId, NodeId};
use skep_proto::v1::certificate_authority_client::CertificateAuthorityClient;
use skep_proto::v1::clusters_client::ClustersClient;
use skep_proto::v1::dispatch_client::DispatchClient;
use skep_proto::v1::session_down::Message as Down;
use skep_proto::v1::session_up::Message as Up;
use skep_proto::v1::{
    ClusterSpec, GetClusterRequest, Heartbeat, IssueRequest, NodeDescription, NodeRole, NodeSpec, Register,
    RegistryAuth, RenewRequest, RotateRootRequest, SessionUp,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::metric::CA_ROTATE_1000;
use crate::report::Report;

const NODES: usize = 1_000;
/// Nodes that join at the same time.
const JOINING: usize = 32;
const SECRET: [u8; 16] = [7; 16];
const MANAGER: NodeId = NodeId::new(1);
/// Each node has a connection for its session, at both ends, and one to renew by.
const DESCRIPTORS: u64 = 8 * 1024;
const PATIENCE: Duration = Duration::from_secs(300);

/// From the command until the new root alone is trusted.
pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, DESCRIPTORS.min(most), most)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let seconds = runtime.block_on(async {
        match tokio::time::timeout(PATIENCE, rotate()).await {
            Ok(measured) => measured,
            Err(_) => bail!("the root did not change within {} s", PATIENCE.as_secs()),
        }
    });
    report.add(&CA_ROTATE_1000, seconds?, None)
}

async fn rotate() -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let ca = RootCa::generate(ClusterId::new(9), SystemTime::now())?;
    let own = LiveCredentials::new(founder(&ca)?);
    let deny = DenyList::new();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?.to_string();
    let config = ManagerConfig {
        dir: dir.path().join("raft"),
        node: MANAGER,
        advertise_addr: addr.clone(),
        credentials: own.clone(),
        deny: deny.clone(),
        registries: Arc::new(NoRegistries),
        raft_id: FIRST_RAFT_ID,
        start: ManagerStart::Bootstrap(Box::new(bootstrap(&ca))),
        keys: KeysAtStart::default(),
    };
    let manager = Manager::start(config).await?;
    let port = manager.serve(listener, ServerTls::new(&own, &deny, Anonymous::Allowed)).await?;
    let mut nodes = JoinSet::new();
    nodes.spawn(node(own.clone(), addr.clone(), "manager".to_owned()));
    let mut joining = stream::iter(0..NODES).map(|number| join(&ca, &addr, number)).buffer_unordered(JOINING);
    while let Some(joined) = joining.next().await {
        let (live, hostname) = joined?;
        nodes.spawn(node(live, addr.clone(), hostname));
    }
    drop(joining);
    let store = manager.store();
    while store.state().nodes().filter(|node| skep_core::ca::certificate(node).is_some()).count() <= NODES {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eprintln!("rotation: {NODES} nodes have their sessions");
    let mut clusters = ClustersClient::new(open(&own, &addr));
    let started = Instant::now();
    let digest = clusters.rotate_root(RotateRootRequest::default()).await?.into_inner().digest;
    while clusters.get(GetClusterRequest::default()).await?.into_inner().root_rotation.is_some() {
        if let Some(ended) = nodes.try_join_next() {
            bail!("a node has ended: {:?}", ended?);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let seconds = started.elapsed().as_secs_f64();
    let state = store.state();
    let new = state.nodes().filter_map(|node| skep_core::ca::certificate(node)).filter(|known| known.issuer == digest);
    let new = new.count();
    if new != NODES + 1 {
        bail!("{new} of {} nodes have a certificate of the new root", NODES + 1);
    }
    nodes.shutdown().await;
    manager.shutdown().await;
    port.close().await;
    Ok(seconds)
}

fn founder(ca: &RootCa) -> Result<Credentials> {
    let key = NodeKey::generate()?;
    let grant = NodeGrant { node_id: MANAGER, role: Role::Manager, validity: DEFAULT_NODE_VALIDITY };
    let issued = ca.issue(&key.signing_request()?, &grant, SystemTime::now())?;
    Ok(Credentials::new(key, &issued.chain_pem, ca.bundle())?)
}

fn bootstrap(ca: &RootCa) -> Bootstrap {
    Bootstrap {
        cluster: ca.cluster_id(),
        spec: ClusterSpec::default(),
        root_cert_pem: ca.cert().to_pem(),
        root_key_pem: ca.key_pem().to_string(),
        worker_token_secret: SECRET,
        manager_token_secret: [8; 16],
        unlock_key: None,
        node_spec: NodeSpec { role: NodeRole::Manager.into(), ..NodeSpec::default() },
        hostname: "manager".to_owned(),
    }
}

fn open(live: &LiveCredentials, addr: &str) -> Channel {
    let tls = ClientTls::member(live, &DenyList::new(), Expected::manager());
    channel(vec![addr.to_owned()], tls, ChannelOptions::NODES)
}

/// As `swarm join` does.
async fn join(ca: &RootCa, addr: &str, number: usize) -> Result<(LiveCredentials, String)> {
    let (key, hostname) = (NodeKey::generate()?, format!("host{number}"));
    let request = IssueRequest {
        csr_pem: key.signing_request_pem()?,
        token: JoinToken::new(ca.cert().digest(), TokenSecret::new(SECRET)).to_string(),
        hostname: hostname.clone(),
        ..IssueRequest::default()
    };
    let stranger = channel(vec![addr.to_owned()], ClientTls::joining(ca.bundle()), ChannelOptions::NODES);
    let issued = CertificateAuthorityClient::new(stranger).issue(request).await.context("joining")?.into_inner();
    let roots = RootBundle::from_pem(&issued.root_cert_pem)?;
    Ok((LiveCredentials::new(Credentials::new(key, &issued.cert_chain_pem, roots)?), hostname))
}

/// A daemon's part in it: session, heartbeats, trust, renewal by a connection of its own. Ends only with an error.
async fn node(live: LiveCredentials, addr: String, hostname: String) -> Result<()> {
    let describe = || NodeDescription {
        hostname: hostname.clone(),
        certificate: Some(live.current().facts()),
        ..NodeDescription::default()
    };
    let (up, said) = mpsc::channel(8);
    let say = async |message| up.send(SessionUp { message: Some(message) }).await.context("the session has ended");
    say(Up::Register(Register { description: Some(describe()), ..Register::default() })).await?;
    let session = DispatchClient::new(open(&live, &addr)).session(ReceiverStream::new(said)).await;
    let mut down = session.with_context(|| format!("session of {hostname}"))?.into_inner();
    let mut beat = tokio::time::interval(Duration::from_secs(1));
    loop {
        let message = tokio::select! {
            _ = beat.tick() => {
                say(Up::Heartbeat(Heartbeat::default())).await?;
                continue;
            }
            message = down.message() => message?.context("the manager has ended the session")?,
        };
        match message.message {
            // Empty: the manager has not heard of them yet.
            Some(Down::Roots(roots)) if !roots.root_certs_pem.is_empty() => {
                let roots = RootBundle::from_pem(&roots.root_certs_pem)?;
                live.replace(live.current().with_roots(roots)?);
                say(Up::Description(describe())).await?;
            }
            Some(Down::RenewCertificate(_)) => {
                let key = NodeKey::generate()?;
                let request = RenewRequest { csr_pem: key.signing_request_pem()? };
                let issued = CertificateAuthorityClient::new(open(&live, &addr)).renew(request).await?.into_inner();
                let roots = RootBundle::from_pem(&issued.root_cert_pem)?;
                let trusted = live.current().roots().clone();
                live.replace(Credentials::new(key, &issued.cert_chain_pem, roots)?.with_roots(trusted)?);
                say(Up::Description(describe())).await?;
            }
            _ => {}
        }
    }
}

/// Nobody creates services here.
struct NoRegistries;

impl Registries for NoRegistries {
    fn parse(&self, reference: &str) -> Result<Name, ResolveError> {
        Err(ResolveError::Invalid(reference.to_owned()))
    }

    fn resolve(&self, image: String, _: Option<RegistryAuth>) -> BoxFuture<'static, Result<RemoteImage, ResolveError>> {
        async move { Err(ResolveError::Unavailable(image)) }.boxed()
    }
}
