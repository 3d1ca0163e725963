//! A manager's side of the session for tests of the agent: a real gRPC server that keeps a set of assignments, numbers
//! it, resumes sessions, acknowledges, and notes what the node says. It decides nothing by itself.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use skep_proto::id::{CredentialId, NodeId, ServiceId, TaskId};
use skep_proto::v1::assignment_item::Item;
use skep_proto::v1::assignment_key::Key;
use skep_proto::v1::dispatch_server::{Dispatch, DispatchServer};
use skep_proto::v1::session_down::Message as Down;
use skep_proto::v1::session_up::Message as Up;
use skep_proto::v1::*;
use skep_worker::executor::Executor;
use skep_worker::simulated::{Simulated, World};
use skep_worker::{
    Agent, AgentConfig, AgentEvent, AgentHandle, ConnectError, Connector, DescriptionConfig, Networks, SessionTiming,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

pub const NODE: NodeId = NodeId::new(77);
/// Of every wait in these tests; far beyond what anything takes.
pub const DEADLINE: Duration = Duration::from_secs(20);

type ToNode = mpsc::UnboundedSender<Result<SessionDown, Status>>;
type Items = BTreeMap<Vec<u8>, AssignmentItem>;

#[derive(Default)]
pub struct State {
    pub sequence: u64,
    pub items: Items,
    /// Differences since the first sequence, for resuming.
    log: Vec<Assignments>,
    session_id: Vec<u8>,
    pub down: Option<ToNode>,
    pub registers: Vec<Register>,
    pub resumed: usize,
    pub statuses: BTreeMap<TaskId, TaskStatus>,
    /// Every state in the order in which it was told.
    pub told: BTreeMap<TaskId, Vec<TaskState>>,
    pub batches: usize,
    pub heartbeats: usize,
    pub applied: u64,
    /// Whether each goodbye was that of a node that leaves the swarm.
    pub goodbyes: Vec<bool>,
    pub images: Vec<HeldImages>,
    pub descriptions: Vec<NodeDescription>,
    pub log_lines: Vec<LogLine>,
    pub log_warnings: Vec<String>,
    pub log_streams_ended: usize,
    /// The node is not in the swarm any more.
    pub removed: bool,
    pub mute_heartbeats: bool,
    pub mute_statuses: bool,
    /// Registrations wait for `admit`.
    pub hold_registrations: bool,
    pub waiting: Vec<(Register, ToNode)>,
    pub managers: Vec<ManagerAddr>,
    pub period_ms: i64,
}

#[derive(Clone, Default)]
pub struct TestManager {
    pub state: Arc<Mutex<State>>,
}

/// The server of a manager; dropping it cuts every connection.
pub struct Server {
    pub addr: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

fn item_key(item: &AssignmentItem) -> Vec<u8> {
    match item.item.as_ref().unwrap() {
        Item::Task(task) => [b"t", &task.id[..]].concat(),
        Item::Revision(revision) => [b"r", &revision.service_id[..], &revision.number.to_be_bytes()].concat(),
        Item::Credential(credential) => [b"c", &credential.id[..]].concat(),
        Item::Payload(given) => format!("p{:?}", given.payload.as_ref().unwrap().key.as_ref().unwrap()).into_bytes(),
    }
}

fn key_key(key: &AssignmentKey) -> Vec<u8> {
    match key.key.as_ref().unwrap() {
        Key::TaskId(id) => [b"t", &id[..]].concat(),
        Key::Revision(key) => [b"r", &key.service_id[..], &key.number.to_be_bytes()].concat(),
        Key::CredentialId(id) => [b"c", &id[..]].concat(),
        Key::Payload(key) => format!("p{key:?}").into_bytes(),
    }
}

impl TestManager {
    pub fn new() -> Self {
        let manager = Self::default();
        manager.state().period_ms = 200;
        manager
    }

    pub fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Serves on `addr` (port 0: any) on threads of its own.
    pub fn serve(&self, addr: &str) -> Server {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let std_listener = {
            // A port that was just in use may need a moment.
            let mut tries = 0;
            loop {
                match std::net::TcpListener::bind(addr) {
                    Ok(listener) => break listener,
                    Err(_) if tries < 200 => {
                        tries += 1;
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        };
        std_listener.set_nonblocking(true).unwrap();
        let addr = std_listener.local_addr().unwrap();
        let service = DispatchServer::new(self.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(std_listener).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        Server { addr, runtime: Some(runtime) }
    }

    /// Changes the assignments and tells the node.
    pub fn assign(&self, put: Vec<AssignmentItem>, remove: Vec<AssignmentKey>) {
        let mut state = self.state();
        for item in &put {
            let key = item_key(item);
            state.items.insert(key, item.clone());
        }
        for key in &remove {
            let key = key_key(key);
            state.items.remove(&key);
        }
        let applies_to = state.sequence;
        state.sequence += 1;
        let message = Assignments { complete: false, applies_to, sequence: state.sequence, put, remove };
        state.log.push(message.clone());
        if let Some(down) = &state.down {
            let _ = down.send(Ok(SessionDown { message: Some(Down::Assignments(message)) }));
        }
    }

    /// Sends anything down the open session.
    pub fn send(&self, message: Down) {
        let state = self.state();
        state.down.as_ref().unwrap().send(Ok(SessionDown { message: Some(message) })).unwrap();
    }

    /// The told state of a task.
    pub fn task_state(&self, task: TaskId) -> Option<TaskState> {
        self.state().statuses.get(&task).map(TaskStatus::state)
    }

    /// Forgets sessions and what was told, as a manager does that lost its memory.
    pub fn forget_sessions(&self) {
        self.state().session_id = Vec::new();
    }

    /// Answers the registrations that were held back, and all later ones.
    pub fn admit(&self) {
        self.state().hold_registrations = false;
        let waiting = std::mem::take(&mut self.state().waiting);
        for (register, down) in waiting {
            self.take(Up::Register(register), &down);
        }
    }

    fn take(&self, message: Up, down: &ToNode) {
        let send = |message| {
            let _ = down.send(Ok(SessionDown { message: Some(message) }));
        };
        let mut state = self.state();
        match message {
            Up::Register(_) if state.removed => send(Down::Removed(Removed {})),
            Up::Register(register) if state.hold_registrations => state.waiting.push((register, down.clone())),
            Up::Register(register) => {
                let resumed = !state.session_id.is_empty() && register.session_id == state.session_id;
                if !resumed {
                    let number = state.registers.len() as u8 + 1;
                    state.session_id = vec![number; 16];
                }
                state.down = Some(down.clone());
                send(Down::Registered(Registered {
                    session_id: state.session_id.clone(),
                    heartbeat_period_ms: state.period_ms,
                    managers: Some(Managers { managers: state.managers.clone() }),
                    resumed,
                }));
                if resumed {
                    state.resumed += 1;
                    for difference in &state.log {
                        if difference.applies_to >= register.sequence {
                            send(Down::Assignments(difference.clone()));
                        }
                    }
                } else {
                    send(Down::Assignments(Assignments {
                        complete: true,
                        applies_to: 0,
                        sequence: state.sequence,
                        put: state.items.values().cloned().collect(),
                        remove: Vec::new(),
                    }));
                }
                state.registers.push(register);
            }
            Up::Heartbeat(heartbeat) => {
                state.heartbeats += 1;
                state.applied = heartbeat.applied_sequence;
                if !state.mute_heartbeats {
                    send(Down::HeartbeatAck(HeartbeatAck { heartbeat_period_ms: state.period_ms }));
                }
            }
            Up::Statuses(batch) => {
                if state.mute_statuses {
                    return;
                }
                state.batches += 1;
                for observed in batch.statuses {
                    assert_eq!(observed.node_id, NODE.to_vec());
                    let id = TaskId::from_wire(&observed.task_id).unwrap();
                    let status = observed.status.unwrap();
                    let told = state.told.entry(id).or_default();
                    assert!(told.last().is_none_or(|last| *last <= status.state()), "forward only");
                    told.push(status.state());
                    state.statuses.insert(id, status);
                }
                send(Down::StatusAck(StatusAck { batch: batch.batch }));
            }
            Up::Description(description) => state.descriptions.push(description),
            Up::Images(images) => state.images.push(images),
            Up::Goodbye(goodbye) => state.goodbyes.push(goodbye.leaving),
        }
    }
}

#[tonic::async_trait]
impl Dispatch for TestManager {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<SessionDown, Status>> + Send>>;

    async fn session(&self, request: Request<Streaming<SessionUp>>) -> Result<Response<Self::SessionStream>, Status> {
        let mut up = request.into_inner();
        let (down, queue) = mpsc::unbounded_channel();
        let manager = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = up.message().await {
                manager.take(message.message.unwrap(), &down);
            }
            // The node's half has ended: so does ours.
            let mut state = manager.state();
            if state.down.as_ref().is_some_and(|current| current.same_channel(&down)) {
                state.down = None;
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(queue))))
    }

    async fn publish_logs(
        &self,
        request: Request<Streaming<LogChunk>>,
    ) -> Result<Response<PublishLogsResponse>, Status> {
        let mut chunks = request.into_inner();
        while let Some(chunk) = chunks.message().await? {
            let mut state = self.state();
            state.log_lines.extend(chunk.lines);
            state.log_warnings.extend(chunk.warnings);
        }
        self.state().log_streams_ended += 1;
        Ok(Response::new(PublishLogsResponse {}))
    }

    async fn publish_network_check(
        &self,
        _request: Request<NetworkCheckAnswer>,
    ) -> Result<Response<PublishNetworkCheckResponse>, Status> {
        Ok(Response::new(PublishNetworkCheckResponse {}))
    }

    async fn image_sources(
        &self,
        _request: Request<ImageSourcesRequest>,
    ) -> Result<Response<ImageSourcesResponse>, Status> {
        Err(Status::not_found("no node holds it"))
    }
}

/// Connects without TLS, and notes which nodes are out.
#[derive(Clone, Default)]
pub struct Plain {
    denied: Arc<Mutex<BTreeSet<NodeId>>>,
}

impl Plain {
    /// The nodes that are out, as last told.
    pub fn denied(&self) -> BTreeSet<NodeId> {
        self.denied.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl Connector for Plain {
    async fn manager(&self, addr: &str) -> Result<Channel, ConnectError> {
        Ok(Endpoint::from_shared(format!("http://{addr}"))?.connect().await?)
    }
    async fn peer(&self, _node: NodeId, addr: &str) -> Result<Channel, ConnectError> {
        Ok(Endpoint::from_shared(format!("http://{addr}"))?.connect().await?)
    }
    fn denied(&self, nodes: &BTreeSet<NodeId>) {
        self.denied.lock().unwrap().clone_from(nodes);
    }
    fn is_removal(&self, error: &(dyn std::error::Error + 'static)) -> bool {
        error.to_string().contains("removed from the cluster")
    }
}

/// An agent on a simulated host.
pub struct TestNode {
    pub world: World,
    pub data: tempfile::TempDir,
    pub boot_id: String,
    pub connector: Plain,
}

impl TestNode {
    pub fn new() -> Self {
        Self {
            world: World::default(),
            data: tempfile::tempdir().unwrap(),
            boot_id: "boot-1".to_owned(),
            connector: Plain::default(),
        }
    }

    /// What its agent is told of it.
    pub fn description(&self) -> DescriptionConfig {
        DescriptionConfig {
            hostname: "host1".to_owned(),
            boot_id: self.boot_id.clone(),
            ..DescriptionConfig::default()
        }
    }

    pub async fn start(&self, managers: &[SocketAddr]) -> (AgentHandle, mpsc::UnboundedReceiver<AgentEvent>) {
        self.start_with(managers, Arc::new(Simulated::new(self.world.clone()))).await
    }

    pub async fn start_with(
        &self,
        managers: &[SocketAddr],
        executor: Arc<dyn Executor>,
    ) -> (AgentHandle, mpsc::UnboundedReceiver<AgentEvent>) {
        let (events, received) = mpsc::unbounded_channel();
        let handle = Agent::start(AgentConfig {
            node_id: NODE,
            data_dir: self.data.path().to_owned(),
            description: self.description(),
            executor,
            networks: Networks::none(),
            connector: Arc::new(self.connector.clone()),
            managers: managers.iter().map(ToString::to_string).collect(),
            events,
            timing: SessionTiming::default(),
        })
        .await
        .unwrap();
        (handle, received)
    }
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn task_id(number: u128) -> TaskId {
    TaskId::new(number)
}

pub fn task(number: u128, revision: u64, wanted: WantedState) -> AssignmentItem {
    let mut task = Task {
        id: task_id(number).to_vec(),
        service_id: ServiceId::new(1).to_vec(),
        revision,
        slot: number as u64,
        node_id: NODE.to_vec(),
        ..Task::default()
    };
    task.set_wanted(wanted);
    AssignmentItem { item: Some(Item::Task(task)) }
}

/// A revision with one container that has those variables.
pub fn revision(number: u64, env: &[&str]) -> AssignmentItem {
    revision_of(
        number,
        vec![ContainerSpec {
            name: "main".to_owned(),
            env: env.iter().map(|entry| (*entry).to_owned()).collect(),
            ..ContainerSpec::default()
        }],
        None,
    )
}

pub fn revision_of(number: u64, containers: Vec<ContainerSpec>, credential: Option<CredentialId>) -> AssignmentItem {
    AssignmentItem {
        item: Some(Item::Revision(Revision {
            service_id: ServiceId::new(1).to_vec(),
            number,
            template: Some(TaskTemplate {
                containers,
                credential_id: credential.map(CredentialId::to_vec).unwrap_or_default(),
                // These hosts have no netd.
                network_mode: NetworkMode::None.into(),
                ..TaskTemplate::default()
            }),
            service_name: "web".to_owned(),
            ..Revision::default()
        })),
    }
}

pub fn removed(number: u128) -> AssignmentKey {
    AssignmentKey { key: Some(Key::TaskId(task_id(number).to_vec())) }
}
