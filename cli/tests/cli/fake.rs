//! A daemon of canned answers. What a test does not set answers UNIMPLEMENTED.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use skep_identity::transport::{bind_unix, unix_incoming};
use skep_proto::id::NetworkId;
use skep_proto::v1::*;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub(crate) type Answer<T> = Result<Response<T>, Status>;
type Stream<T> = ReceiverStream<Result<T, Status>>;

/// What the daemon answers, and what it was asked.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) info: InfoResponse,
    pub(crate) nodes: Vec<Node>,
    pub(crate) services: Vec<ServiceSummary>,
    /// Without any, creating one is refused, as by a manager whose hosts cannot have them.
    pub(crate) networks: Vec<GetNetworkResponse>,
    pub(crate) networks_created: Vec<CreateNetworkRequest>,
    /// So many removals of networks find a task that is stopping.
    pub(crate) stopping_tasks: u32,
    pub(crate) tasks: Vec<TaskSummary>,
    /// Answers of Create, in turn; the last one stays.
    pub(crate) create: VecDeque<Result<CreateServiceResponse, Status>>,
    pub(crate) created: Vec<CreateServiceRequest>,
    pub(crate) scaled: Vec<ScaleServiceRequest>,
    pub(crate) removed: Vec<String>,
    /// Answers of Services.Update, in turn; the last one stays.
    pub(crate) update: VecDeque<Result<UpdateServiceResponse, Status>>,
    pub(crate) updated: Vec<UpdateServiceRequest>,
    pub(crate) rolled_back: Vec<RollbackServiceRequest>,
    pub(crate) history: Vec<RevisionSummary>,
    /// Answers of Nodes.Update, in turn; then all are accepted.
    pub(crate) node_update: VecDeque<Result<UpdateNodeResponse, Status>>,
    pub(crate) nodes_updated: Vec<UpdateNodeRequest>,
    pub(crate) nodes_removed: Vec<RemoveNodeRequest>,
    pub(crate) cluster: Cluster,
    /// Empty: the swarm is not autolocked.
    pub(crate) unlock_key: String,
    pub(crate) unlocked: bool,
    pub(crate) keys: Vec<ManagerKeys>,
    pub(crate) cluster_updated: Option<UpdateClusterRequest>,
    pub(crate) init: Option<SwarmInitRequest>,
    pub(crate) join_role: NodeRole,
    /// Reads of nodes that find no leader, unless they allow stale answers.
    pub(crate) leaderless_reads: u32,
    /// The streams of the next Watches.
    pub(crate) watch: VecDeque<mpsc::Receiver<Result<WatchResponse, Status>>>,
    pub(crate) logs: Option<mpsc::Receiver<Result<LogBatch, Status>>>,
    pub(crate) log_request: Option<ReadLogsRequest>,
    pub(crate) images: Vec<LocalImage>,
    /// Bytes that Load or Import received.
    pub(crate) received: Vec<u8>,
    pub(crate) import: Option<ImportOptions>,
    pub(crate) progress: Vec<ImageProgress>,
    pub(crate) joined: Option<SwarmJoinRequest>,
    pub(crate) doctor: DoctorResponse,
    pub(crate) network_doctor: NetworkDoctorResponse,
    pub(crate) mesh: Vec<NodeMesh>,
    /// People; `clients.rs` answers for them.
    pub(crate) clients: Vec<Client>,
}

/// A running daemon; ends with the test.
pub(crate) struct Fake {
    pub(crate) script: Arc<Mutex<Script>>,
    socket: PathBuf,
    _directory: tempfile::TempDir,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
pub(crate) struct Api(Arc<Mutex<Script>>);

impl Fake {
    /// A manager's daemon.
    pub(crate) fn manager(script: Script) -> Self {
        Self::start(script, true)
    }

    /// A worker's daemon: the managers' API is not there.
    pub(crate) fn worker(script: Script) -> Self {
        Self::start(script, false)
    }

    fn start(script: Script, manager: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("skep.sock");
        let listener = bind_unix(&socket).unwrap();
        let script = Arc::new(Mutex::new(script));
        let api = Api(Arc::clone(&script));
        let mut router = tonic::transport::Server::builder()
            .add_service(daemon_server::DaemonServer::new(api.clone()))
            .add_service(images_server::ImagesServer::new(api.clone()));
        if manager {
            router = router
                .add_service(clients_server::ClientsServer::new(api.clone()))
                .add_service(clusters_server::ClustersServer::new(api.clone()))
                .add_service(networks_server::NetworksServer::new(api.clone()))
                .add_service(nodes_server::NodesServer::new(api.clone()))
                .add_service(services_server::ServicesServer::new(api.clone()))
                .add_service(tasks_server::TasksServer::new(api.clone()))
                .add_service(watch_server::WatchServer::new(api.clone()))
                .add_service(logs_server::LogsServer::new(api));
        }
        let server = tokio::spawn(async move {
            router.serve_with_incoming(unix_incoming(listener)).await.unwrap();
        });
        Self { script, socket, _directory: directory, server }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn unset<T>() -> Answer<T> {
    Err(Status::unimplemented("not in this test"))
}

fn stream<T: Send + 'static>(items: Vec<T>) -> Answer<Stream<T>> {
    let (sender, receiver) = mpsc::channel(items.len().max(1));
    for item in items {
        assert!(sender.try_send(Ok(item)).is_ok());
    }
    Ok(Response::new(ReceiverStream::new(receiver)))
}

impl Api {
    pub(crate) fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }

    fn network(&self, reference: &str) -> Result<GetNetworkResponse, Status> {
        let script = self.script();
        let is_it = |answer: &&GetNetworkResponse| {
            let Some(network) = &answer.network else { return false };
            let id = NetworkId::from_wire(&network.id).is_ok_and(|id| id.to_string() == reference);
            id || network.spec.as_ref().is_some_and(|spec| spec.name == reference)
        };
        let found = script.networks.iter().find(is_it);
        found.cloned().ok_or_else(|| Status::not_found(format!("there is no network {reference}")))
    }

    fn service(&self, reference: &str) -> Result<ServiceSummary, Status> {
        let script = self.script();
        let found = script.services.iter().find(|summary| {
            let spec = summary.service.as_ref().and_then(|service| service.spec.as_ref());
            spec.is_some_and(|spec| spec.name == reference)
        });
        found.cloned().ok_or_else(|| Status::not_found(format!("there is no service {reference}")))
    }
}

#[tonic::async_trait]
impl daemon_server::Daemon for Api {
    async fn info(&self, _: Request<InfoRequest>) -> Answer<InfoResponse> {
        Ok(Response::new(self.script().info.clone()))
    }

    async fn swarm_init(&self, request: Request<SwarmInitRequest>) -> Answer<SwarmInitResponse> {
        self.script().init = Some(request.into_inner());
        Ok(Response::new(SwarmInitResponse {
            node_id: vec![7; 16],
            worker_token: "SWMTKN-1-worker".to_owned(),
            manager_addr: "192.0.2.1:2377".to_owned(),
            unlock_key: self.script().unlock_key.clone(),
        }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Answer<UnlockResponse> {
        let mut script = self.script();
        if request.into_inner().unlock_key != script.unlock_key {
            return Err(Status::failed_precondition("invalid key: it does not unlock this manager"));
        }
        script.unlocked = true;
        Ok(Response::new(UnlockResponse {}))
    }

    async fn swarm_join(&self, request: Request<SwarmJoinRequest>) -> Answer<SwarmJoinResponse> {
        let mut script = self.script();
        script.joined = Some(request.into_inner());
        Ok(Response::new(SwarmJoinResponse { node_id: vec![7; 16], role: script.join_role.into(), returned: false }))
    }

    async fn swarm_leave(&self, request: Request<SwarmLeaveRequest>) -> Answer<SwarmLeaveResponse> {
        if request.into_inner().force {
            Ok(Response::new(SwarmLeaveResponse {}))
        } else {
            Err(Status::failed_precondition("this is the last manager: leaving loses the swarm's state"))
        }
    }
}

#[tonic::async_trait]
impl clusters_server::Clusters for Api {
    async fn get(&self, _: Request<GetClusterRequest>) -> Answer<GetClusterResponse> {
        let cluster = Some(self.script().cluster.clone());
        Ok(Response::new(GetClusterResponse { cluster, nodes: 3, managers: 1, version: 1, root_rotation: None }))
    }

    async fn update(&self, request: Request<UpdateClusterRequest>) -> Answer<UpdateClusterResponse> {
        self.script().cluster_updated = Some(request.into_inner());
        Ok(Response::new(UpdateClusterResponse { version: 2, managers: self.script().keys.clone() }))
    }

    async fn unlock_key(&self, _: Request<UnlockKeyRequest>) -> Answer<UnlockKeyResponse> {
        let script = self.script();
        if script.unlock_key.is_empty() {
            return Err(Status::failed_precondition("no unlock key is set: autolock is not turned on"));
        }
        Ok(Response::new(UnlockKeyResponse { unlock_key: script.unlock_key.clone(), managers: script.keys.clone() }))
    }

    async fn data_key(&self, _: Request<DataKeyRequest>) -> Answer<DataKeyResponse> {
        Ok(Response::new(DataKeyResponse { epoch: 1, managers: self.script().keys.clone() }))
    }

    async fn rotate_root(&self, _: Request<RotateRootRequest>) -> Answer<RotateRootResponse> {
        Err(Status::unimplemented("the fake has no authority"))
    }

    async fn join_token(&self, request: Request<JoinTokenRequest>) -> Answer<JoinTokenResponse> {
        let request = request.into_inner();
        assert!(!request.write.unwrap().request_id.is_empty());
        Ok(Response::new(JoinTokenResponse {
            token: format!("SWMTKN-1-{}", if request.rotate { "new" } else { "old" }),
            manager_addr: "192.0.2.1:2377".to_owned(),
        }))
    }

    async fn doctor(&self, _: Request<DoctorRequest>) -> Answer<DoctorResponse> {
        Ok(Response::new(self.script().doctor.clone()))
    }
}

#[tonic::async_trait]
impl nodes_server::Nodes for Api {
    type ListStream = Stream<ListNodesResponse>;

    async fn list(&self, request: Request<ListNodesRequest>) -> Answer<Self::ListStream> {
        let mut script = self.script();
        let allow_stale = request.into_inner().read.is_some_and(|read| read.allow_stale);
        if script.leaderless_reads > 0 && !allow_stale {
            script.leaderless_reads -= 1;
            return Err(Status::unavailable("there is no leader at the moment"));
        }
        let pages =
            script.nodes.chunks(500).map(|nodes| ListNodesResponse { nodes: nodes.to_vec(), version: 1 }).collect();
        stream(pages)
    }

    async fn get(&self, request: Request<GetNodeRequest>) -> Answer<GetNodeResponse> {
        let reference = request.into_inner().reference;
        let script = self.script();
        let hostname =
            |node: &&Node| node.description.as_ref().is_some_and(|description| description.hostname == reference);
        match script.nodes.iter().find(hostname) {
            Some(node) => Ok(Response::new(GetNodeResponse { node: Some(node.clone()), version: 1 })),
            None => Err(Status::not_found("there is no such node")),
        }
    }

    async fn update(&self, request: Request<UpdateNodeRequest>) -> Answer<UpdateNodeResponse> {
        let mut script = self.script();
        script.nodes_updated.push(request.into_inner());
        let answer = script.node_update.pop_front();
        answer.unwrap_or_else(|| Ok(UpdateNodeResponse::default())).map(Response::new)
    }

    async fn remove(&self, request: Request<RemoveNodeRequest>) -> Answer<RemoveNodeResponse> {
        let request = request.into_inner();
        let is_refused = request.reference == "up" && !request.force;
        self.script().nodes_removed.push(request);
        if is_refused {
            return Err(Status::failed_precondition(
                "node up is not down: drain it and stop its daemon, or use --force",
            ));
        }
        Ok(Response::new(RemoveNodeResponse::default()))
    }
}

#[tonic::async_trait]
impl networks_server::Networks for Api {
    async fn list(&self, _: Request<ListNetworksRequest>) -> Answer<ListNetworksResponse> {
        let networks: Vec<Network> = self.script().networks.iter().filter_map(|one| one.network.clone()).collect();
        let unused_ids = networks.iter().filter(|network| network.vni != 0).map(|network| network.id.clone()).collect();
        Ok(Response::new(ListNetworksResponse { networks, version: 1, unused_ids }))
    }

    async fn get(&self, request: Request<GetNetworkRequest>) -> Answer<GetNetworkResponse> {
        self.network(&request.into_inner().reference).map(Response::new)
    }

    async fn create(&self, request: Request<CreateNetworkRequest>) -> Answer<CreateNetworkResponse> {
        let mut script = self.script();
        if script.networks.is_empty() {
            return Err(Status::failed_precondition("driver: not supported yet: overlay networks"));
        }
        script.networks_created.push(request.into_inner());
        Ok(Response::new(CreateNetworkResponse { id: vec![3; 16], version: 2 }))
    }

    async fn remove(&self, request: Request<RemoveNetworkRequest>) -> Answer<RemoveNetworkResponse> {
        let reference = request.into_inner().reference;
        let network = self.network(&reference)?.network.unwrap();
        let tasks = &mut self.script().stopping_tasks;
        if *tasks > 0 {
            *tasks -= 1;
            return Err(Status::unavailable(format!("network {reference} is in use by a task that is stopping")));
        }
        if network.vni == 0 {
            return Err(Status::failed_precondition(format!("network {reference} is in use by service web")));
        }
        Ok(Response::new(RemoveNetworkResponse { id: network.id, version: 2, name: reference }))
    }

    async fn doctor(&self, request: Request<NetworkDoctorRequest>) -> Answer<NetworkDoctorResponse> {
        let reference = request.into_inner().reference;
        if !reference.is_empty() {
            self.network(&reference)?;
        }
        Ok(Response::new(self.script().network_doctor.clone()))
    }

    async fn mesh(&self, request: Request<MeshHealthRequest>) -> Answer<MeshHealthResponse> {
        let asked = request.into_inner().node_ids;
        let nodes = self.script().mesh.iter().filter(|mesh| asked.contains(&mesh.node_id)).cloned().collect();
        Ok(Response::new(MeshHealthResponse { nodes }))
    }
}

#[tonic::async_trait]
impl services_server::Services for Api {
    type ListStream = Stream<ListServicesResponse>;

    async fn list(&self, _: Request<ListServicesRequest>) -> Answer<Self::ListStream> {
        let services = self.script().services.clone();
        stream(vec![ListServicesResponse { services, version: 1 }])
    }

    async fn get(&self, request: Request<GetServiceRequest>) -> Answer<GetServiceResponse> {
        let service = self.service(&request.into_inner().reference)?;
        Ok(Response::new(GetServiceResponse { service: Some(service), version: 1 }))
    }

    async fn create(&self, request: Request<CreateServiceRequest>) -> Answer<CreateServiceResponse> {
        let mut script = self.script();
        script.created.push(request.into_inner());
        let answer = if script.create.len() > 1 { script.create.pop_front() } else { script.create.front().cloned() };
        answer.unwrap_or_else(|| Err(Status::unimplemented("not in this test"))).map(Response::new)
    }

    async fn update(&self, request: Request<UpdateServiceRequest>) -> Answer<UpdateServiceResponse> {
        let mut script = self.script();
        script.updated.push(request.into_inner());
        let answer = if script.update.len() > 1 { script.update.pop_front() } else { script.update.front().cloned() };
        answer.unwrap_or_else(|| Err(Status::unimplemented("not in this test"))).map(Response::new)
    }

    async fn rollback(&self, request: Request<RollbackServiceRequest>) -> Answer<RollbackServiceResponse> {
        let request = request.into_inner();
        let service = self.service(&request.reference)?.service.unwrap();
        if request.to_revision == 99 {
            return Err(Status::not_found("service web has no revision 99"));
        }
        self.script().rolled_back.push(request);
        Ok(Response::new(RollbackServiceResponse { id: service.id, version: 5, revision: service.revision + 1 }))
    }

    async fn history(&self, request: Request<ServiceHistoryRequest>) -> Answer<ServiceHistoryResponse> {
        self.service(&request.into_inner().reference)?;
        Ok(Response::new(ServiceHistoryResponse { revisions: self.script().history.clone(), version: 1 }))
    }

    async fn scale(&self, request: Request<ScaleServiceRequest>) -> Answer<ScaleServiceResponse> {
        let request = request.into_inner();
        let service = self.service(&request.reference)?.service.unwrap();
        self.script().scaled.push(request);
        Ok(Response::new(ScaleServiceResponse { id: service.id, version: 2 }))
    }

    async fn remove(&self, request: Request<RemoveServiceRequest>) -> Answer<RemoveServiceResponse> {
        let reference = request.into_inner().reference;
        let service = self.service(&reference)?.service.unwrap();
        self.script().removed.push(reference.clone());
        Ok(Response::new(RemoveServiceResponse { id: service.id, version: 2, name: reference }))
    }
}

#[tonic::async_trait]
impl tasks_server::Tasks for Api {
    type ListStream = Stream<ListTasksResponse>;

    async fn list(&self, _: Request<ListTasksRequest>) -> Answer<Self::ListStream> {
        let tasks = self.script().tasks.clone();
        stream(vec![ListTasksResponse { tasks, version: 1 }])
    }

    async fn get(&self, request: Request<GetTaskRequest>) -> Answer<GetTaskResponse> {
        let reference = request.into_inner().reference;
        let script = self.script();
        let found = script.tasks.iter().find(|summary| {
            let slot = summary.task.as_ref().map_or(0, |task| task.slot);
            format!("{}.{slot}", summary.service_name) == reference
        });
        match found {
            Some(task) => Ok(Response::new(GetTaskResponse { task: Some(task.clone()), ..GetTaskResponse::default() })),
            None => Err(Status::not_found("there is no such task")),
        }
    }
}

#[tonic::async_trait]
impl watch_server::Watch for Api {
    type WatchStream = Stream<WatchResponse>;

    async fn watch(&self, _: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        match self.script().watch.pop_front() {
            Some(receiver) => Ok(Response::new(ReceiverStream::new(receiver))),
            None => unset(),
        }
    }
}

#[tonic::async_trait]
impl logs_server::Logs for Api {
    type ReadStream = Stream<LogBatch>;

    async fn read(&self, request: Request<ReadLogsRequest>) -> Answer<Self::ReadStream> {
        let mut script = self.script();
        script.log_request = Some(request.into_inner());
        match script.logs.take() {
            Some(receiver) => Ok(Response::new(ReceiverStream::new(receiver))),
            None => unset(),
        }
    }
}

#[tonic::async_trait]
impl images_server::Images for Api {
    type PullStream = Stream<ImageProgress>;
    type LoadStream = Stream<ImageProgress>;
    type ImportStream = Stream<ImageProgress>;

    async fn list(&self, _: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        Ok(Response::new(ListImagesResponse { images: self.script().images.clone() }))
    }

    async fn inspect(&self, _: Request<InspectImageRequest>) -> Answer<InspectImageResponse> {
        unset()
    }

    async fn pull(&self, _: Request<PullImageRequest>) -> Answer<Self::PullStream> {
        stream(self.script().progress.clone())
    }

    async fn load(&self, request: Request<Streaming<LoadImageRequest>>) -> Answer<Self::LoadStream> {
        let mut pieces = request.into_inner();
        while let Some(piece) = pieces.next().await {
            self.script().received.extend(piece?.data);
        }
        stream(self.script().progress.clone())
    }

    async fn import(&self, request: Request<Streaming<ImportImageRequest>>) -> Answer<Self::ImportStream> {
        let mut pieces = request.into_inner();
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            let mut script = self.script();
            script.received.extend(piece.data);
            script.import = script.import.take().or(piece.options);
        }
        stream(self.script().progress.clone())
    }

    async fn tag(&self, _: Request<TagImageRequest>) -> Answer<TagImageResponse> {
        Ok(Response::new(TagImageResponse {}))
    }

    async fn remove(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        match request.into_inner().references.first().map(String::as_str) {
            Some("used") => Err(Status::failed_precondition("image used is in use by task web.1")),
            Some("gone") => Err(Status::not_found("there is no such image")),
            name => Ok(Response::new(RemoveImageResponse {
                untagged: vec![name.unwrap_or_default().to_owned()],
                deleted: vec!["sha256:00".to_owned()],
                freed_bytes: 10,
            })),
        }
    }

    async fn prune(&self, _: Request<PruneImagesRequest>) -> Answer<PruneImagesResponse> {
        Ok(Response::new(PruneImagesResponse { deleted: vec!["sha256:00".to_owned()], freed_bytes: 2_500_000 }))
    }
}

/// A node that is ready.
pub(crate) fn node(id: u8, hostname: &str) -> Node {
    let mut status = NodeStatus { addr: "192.0.2.9".to_owned(), ..NodeStatus::default() };
    status.set_state(NodeState::Ready);
    Node {
        id: vec![id; 16],
        spec: Some(NodeSpec::default()),
        description: Some(NodeDescription {
            hostname: hostname.to_owned(),
            engine_version: "0.1.0".to_owned(),
            ..NodeDescription::default()
        }),
        status: Some(status),
        ..Node::default()
    }
}

/// A replicated service.
pub(crate) fn service(name: &str, replicas: u64) -> ServiceSummary {
    ServiceSummary {
        service: Some(Service {
            id: vec![9; 16],
            // Before every task of `task`: they begin to run because of what the command did.
            meta: Some(Meta { version: 4, created_at_ms: 1, updated_at_ms: 1 }),
            spec: Some(ServiceSpec {
                name: name.to_owned(),
                mode: Some(service_spec::Mode::Replicated(ReplicatedMode { replicas })),
                update: Some(UpdatePolicy { monitor_ms: 100, ..UpdatePolicy::default() }),
                ..ServiceSpec::default()
            }),
            revision: 1,
            ..Service::default()
        }),
        revision: Some(Revision {
            template: Some(TaskTemplate {
                containers: vec![ContainerSpec {
                    name: "main".to_owned(),
                    image: "nginx:1".to_owned(),
                    ..ContainerSpec::default()
                }],
                ..TaskTemplate::default()
            }),
            ..Revision::default()
        }),
        running: 0,
        desired: replicas,
    }
}

/// A task of `web`.
pub(crate) fn task(id: u8, slot: u64, state: TaskState, error: &str) -> TaskSummary {
    let mut status = TaskStatus { error: error.to_owned(), since_ms: 1_000, ..TaskStatus::default() };
    status.set_state(state);
    let mut task = Task {
        id: vec![id; 16],
        service_id: vec![9; 16],
        meta: Some(Meta { created_at_ms: id.into(), ..Meta::default() }),
        slot,
        node_id: vec![1; 16],
        status: Some(status),
        ..Task::default()
    };
    task.set_wanted(if state.is_terminal() { WantedState::Shutdown } else { WantedState::Running });
    TaskSummary {
        task: Some(task),
        service_name: "web".to_owned(),
        node_hostname: "host1".to_owned(),
        image: "nginx:1".to_owned(),
    }
}

/// A message of a watch.
pub(crate) fn change(version: u64, synced: bool, objects: Vec<watch_event::Object>) -> WatchResponse {
    let events = objects.into_iter().map(|object| WatchEvent { removed: false, object: Some(object) }).collect();
    WatchResponse { version, synced, events }
}
