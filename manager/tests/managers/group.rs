//! A swarm of several managers in this process, each with a port and a Raft directory of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use skep_core::change::{Change, Op};
use skep_core::object::{ImageName, Meta, Node, NodeStatus};
use skep_identity::ca::RootCa;
use skep_identity::transport::{ChannelOptions, channel};
use skep_identity::{Anonymous, ClientTls, DenyList, Expected, LiveCredentials, Role, ServerTls};
use skep_manager::peers::{self, Serving};
use skep_manager::store::{Store, WriteError, Written};
use skep_manager::{Bootstrap, FIRST_RAFT_ID, Manager, ManagerConfig, ManagerStart};
use skep_proto::id::{ClusterId, NodeId, RequestId};
use skep_proto::v1::{ClusterSpec, NodeRole, NodeSpec};
use tokio::net::TcpListener;
use tonic::transport::Channel;

pub(crate) use crate::common::soon;
use crate::common::{NoRegistries, signed};

/// Waits for a condition that nobody announces.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A host that is a manager, running or not.
pub(crate) struct Host {
    pub(crate) id: NodeId,
    pub(crate) addr: SocketAddr,
    raft_id: u64,
    credentials: LiveCredentials,
    deny: DenyList,
    dir: tempfile::TempDir,
    running: Option<(Manager, Serving)>,
}

pub(crate) struct Group {
    ca: RootCa,
    pub(crate) hosts: Vec<Host>,
}

impl Host {
    async fn new(ca: &RootCa, number: u128, role: Role) -> (Self, TcpListener) {
        let id = NodeId::new(number);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = Self {
            id,
            addr: listener.local_addr().unwrap(),
            raft_id: FIRST_RAFT_ID,
            credentials: LiveCredentials::new(signed(ca, id, role)),
            deny: DenyList::new(),
            dir: tempfile::tempdir().unwrap(),
            running: None,
        };
        (host, listener)
    }

    async fn run(&mut self, listener: TcpListener, start: ManagerStart) {
        let config = ManagerConfig {
            dir: self.dir.path().join("raft"),
            node: self.id,
            advertise_addr: self.addr.to_string(),
            credentials: self.credentials.clone(),
            deny: self.deny.clone(),
            registries: Arc::new(NoRegistries),
            raft_id: self.raft_id,
            start,
            keys: skep_manager::KeysAtStart::default(),
        };
        let manager = Manager::start(config).await.unwrap();
        let tls = ServerTls::new(&self.credentials, &self.deny, Anonymous::Allowed);
        let serving = manager.serve(listener, tls).await.unwrap();
        self.running = Some((manager, serving));
    }

    /// Starts again what was stopped or killed.
    pub(crate) async fn restart(&mut self) {
        self.start_again(ManagerStart::Existing).await;
    }

    pub(crate) async fn start_again(&mut self, start: ManagerStart) {
        let listener = soon("the port is free", async {
            loop {
                match TcpListener::bind(self.addr).await {
                    Ok(listener) => return listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await;
        // A killed manager's threads let go of its files a moment later.
        let dir = self.dir.path().join("raft");
        until("the files are free", || unlocked(&dir)).await;
        self.run(listener, start).await;
    }

    /// As kill -9: no hand-over, connections cut.
    pub(crate) fn kill(&mut self) {
        drop(self.running.take().unwrap());
    }

    pub(crate) async fn stop(&mut self) {
        let (manager, serving) = self.running.take().unwrap();
        manager.shutdown().await;
        serving.close().await;
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub(crate) fn manager(&self) -> &Manager {
        &self.running.as_ref().unwrap().0
    }

    pub(crate) fn store(&self) -> Store {
        self.manager().store().clone()
    }

    pub(crate) fn leads(&self) -> bool {
        self.running.as_ref().is_some_and(|(manager, _)| manager.store().peers().leads())
    }

    /// A channel to its port, as this host itself.
    pub(crate) fn channel(&self) -> Channel {
        self.channel_to(self.addr)
    }

    pub(crate) fn channel_to(&self, addr: SocketAddr) -> Channel {
        let tls = ClientTls::member(&self.credentials, &DenyList::new(), Expected::manager());
        channel(vec![addr.to_string()], tls, ChannelOptions::MANAGERS)
    }
}

/// Whether nobody holds the Raft directory: its lock is flock(2)'s.
fn unlocked(dir: &Path) -> bool {
    let lock = std::fs::File::open(dir.join("lock")).unwrap();
    let free = lock.try_lock().is_ok();
    drop(lock);
    free
}

impl Group {
    /// Managers that all vote.
    pub(crate) async fn start(managers: u128) -> Self {
        let ca = RootCa::generate(ClusterId::new(9), SystemTime::now()).unwrap();
        let (mut first, listener) = Host::new(&ca, 1, Role::Manager).await;
        let bootstrap = Bootstrap {
            cluster: ca.cluster_id(),
            spec: ClusterSpec::default(),
            root_cert_pem: ca.cert().to_pem(),
            root_key_pem: ca.key_pem(),
            worker_token_secret: [7; 16],
            manager_token_secret: [8; 16],
            unlock_key: None,
            node_spec: NodeSpec { role: NodeRole::Manager.into(), ..NodeSpec::default() },
            hostname: "host1".to_owned(),
        };
        first.run(listener, ManagerStart::Bootstrap(Box::new(bootstrap))).await;
        let mut group = Self { ca, hosts: vec![first] };
        for number in 2..=managers {
            group.add(number).await;
        }
        group
    }

    /// A node with a manager's certificate, in the state but not among the managers.
    pub(crate) async fn node(&self, number: u128, wished: NodeRole, certificate: Role) -> (Host, TcpListener) {
        let (host, listener) = Host::new(&self.ca, number, certificate).await;
        let node = Node {
            id: host.id,
            meta: Meta::default(),
            spec: Arc::new(NodeSpec { role: wished.into(), ..NodeSpec::default() }),
            description: None,
            status: NodeStatus::default(),
            role: NodeRole::Manager,
            manager: None,
            fabric_number: None,
            ingress: None,
        };
        let leader = self.leader().await;
        leader.store().write(None, Vec::new(), vec![Change::create(Op::PutNode(node))]).await.unwrap();
        (host, listener)
    }

    async fn add(&mut self, number: u128) {
        let (mut host, listener) = self.node(number, NodeRole::Manager, Role::Manager).await;
        // Any manager takes the question.
        let asked = self.hosts.last().unwrap().addr;
        let addr = host.addr.to_string();
        let enter = || peers::enter(host.channel_to(asked), &addr);
        let raft_id = soon("a Raft id", enter()).await.unwrap().raft_id;
        assert_eq!(soon("the same id again", enter()).await.unwrap().raft_id, raft_id);
        host.raft_id = raft_id;
        host.run(listener, ManagerStart::Join).await;
        soon("the new manager is ready", host.manager().ready()).await.unwrap();
        self.hosts.push(host);
        // At each of them: while the change is under way, the old majority is needed too.
        for host in &self.hosts {
            let status = host.manager().raft_status();
            until("it votes", || {
                let members = Arc::clone(&status.borrow().membership);
                !members.changing && members.voters.contains_key(&raft_id)
            })
            .await;
        }
    }

    /// The manager that leads.
    pub(crate) async fn leader(&self) -> &Host {
        until("someone leads", || self.hosts.iter().any(Host::leads)).await;
        self.hosts.iter().find(|host| host.leads()).unwrap()
    }

    pub(crate) async fn leader_index(&self) -> usize {
        until("someone leads", || self.hosts.iter().any(Host::leads)).await;
        self.hosts.iter().position(Host::leads).unwrap()
    }

    /// A running manager that does not lead.
    pub(crate) async fn follower_index(&self) -> usize {
        let leader = self.leader_index().await;
        (0..self.hosts.len()).find(|index| *index != leader && self.hosts[*index].is_running()).unwrap()
    }

    pub(crate) async fn stop(mut self) {
        for host in self.hosts.iter_mut().filter(|host| host.is_running()) {
            host.stop().await;
        }
    }
}

/// Makes an image name, as the control API would. A second effect of it would be refused.
pub(crate) async fn create(store: &Store, name: &str) -> Result<Written, WriteError> {
    let image = ImageName { name: name.into(), meta: Meta::default(), digest: "d".into(), platforms: Vec::new() };
    let request = RequestId::new(rand::random());
    store.write(Some(request), name.as_bytes().to_vec(), vec![Change::create(Op::PutImageName(image))]).await
}
