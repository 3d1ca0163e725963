//! Sessions at managers that do not lead: dispatchers over the leader's own state, linked to it as other managers are, by
//! real mutual TLS.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use skep_core::store::State;
use skep_identity::LiveCredentials;
use skep_manager::dispatch::{Dispatcher, LeaderLink, ManagerLinks};
use skep_proto::id::NodeId;
use skep_proto::v1::dispatch_client::DispatchClient;
use skep_proto::v1::logs_client::LogsClient;
use skep_proto::v1::session_down::Message as Down;
use skep_proto::v1::session_up::Message as Up;
use skep_proto::v1::{
    HeldImages, ImageSourcesRequest, LogBatch, LogChunk, LogLine, LogOptions, NodeState, ReadLogsRequest, Register,
    TaskState,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::agent::{Agent, description, observed};
use crate::swarm::{Member, Swarm, member_channel, serve, soon};

const DIGEST: &str = "sha256:00";

/// What a follower knows of others. Clones are one.
#[derive(Clone)]
struct Wires {
    leader: watch::Sender<Option<Channel>>,
    managers: Arc<Mutex<Vec<(NodeId, Channel)>>>,
}

impl ManagerLinks for Wires {
    fn leader(&self) -> LeaderLink {
        self.leader.borrow().clone().map_or(LeaderLink::None, LeaderLink::Other)
    }

    fn leader_changed(&self) -> BoxFuture<'static, ()> {
        let mut leader = self.leader.subscribe();
        async move { drop(leader.changed().await) }.boxed()
    }

    fn manager(&self, node: NodeId) -> Option<Channel> {
        let managers = self.managers.lock().unwrap();
        managers.iter().find(|(manager, _)| *manager == node).map(|(_, channel)| channel.clone())
    }
}

/// A manager that does not lead.
struct Follower {
    id: NodeId,
    addr: SocketAddr,
    dispatcher: Dispatcher,
    wires: Wires,
    credentials: LiveCredentials,
    /// To the leader.
    channel: Channel,
    running: JoinHandle<()>,
    server: JoinHandle<()>,
}

impl Follower {
    async fn start(swarm: &Swarm, number: u128) -> Self {
        let id = NodeId::new(number);
        let credentials = swarm.manager_credentials(id);
        let channel = member_channel(&credentials, swarm.addr);
        let wires = Wires { leader: watch::channel(Some(channel.clone())).0, managers: Arc::default() };
        let dispatcher = Dispatcher::new(swarm.store().clone(), credentials.clone(), Arc::new(wires.clone()));
        let running = tokio::spawn(dispatcher.clone().run());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let routes = Routes::new(dispatcher.service())
            .add_service(dispatcher.relay_service())
            .add_service(dispatcher.logs_service());
        let server = serve(listener, &credentials, &swarm.deny, routes);
        let this = Self { id, addr, dispatcher, wires, credentials, channel, running, server };
        this.until("it hears the leader", Dispatcher::takes_sessions).await;
        this
    }

    async fn connect(&self, member: &Member, hostname: &str) -> Agent {
        Agent::connect_by(&member.channel_to(self.addr), hostname).await
    }

    /// A node that has joined and has its session here.
    async fn node(&self, swarm: &Swarm) -> (Member, Agent) {
        let host = swarm.join("host2").await;
        let agent = self.connect(&host, "host2").await;
        (host, agent)
    }

    async fn until(&self, what: &str, wanted: impl Fn(&Dispatcher) -> bool) {
        soon(what, async {
            while !wanted(&self.dispatcher) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Nothing comes from or goes to the leader any more.
    fn cut(&self) {
        self.wires.leader.send_replace(None);
    }

    fn heal(&self) {
        self.wires.leader.send_replace(Some(self.channel.clone()));
    }

    fn knows(&self, other: &Self) {
        let channel = member_channel(&self.credentials, other.addr);
        self.wires.managers.lock().unwrap().push((other.id, channel));
    }

    /// It is gone, without a word.
    fn die(self) {
        self.running.abort();
        self.server.abort();
    }
}

fn is(id: NodeId, wanted: NodeState) -> impl Fn(&State) -> bool {
    move |state| state.node(id).unwrap().status.state == wanted
}

/// Fails if the node is anything but ready meanwhile.
async fn stays_ready(swarm: &Swarm, id: NodeId, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert!(is(id, NodeState::Ready)(&swarm.state()), "{:?}", swarm.node(id).status);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_session_at_a_follower_is_a_session() {
    let swarm = Swarm::start().await;
    let follower = Follower::start(&swarm, 2).await;
    let (host, mut agent) = follower.node(&swarm).await;
    assert_eq!(swarm.node(host.id).status.state, NodeState::Ready, "registered means written down");
    let web = swarm.create_service("web", DIGEST, 2).await;
    agent.until("two tasks", |tasks| tasks.len() == 2).await;
    let reports = agent.tasks.keys().map(|task| observed(*task, TaskState::Running)).collect();
    agent.report(reports).await;
    let states = || swarm.tasks(web).iter().map(|task| task.state).collect::<Vec<_>>();
    assert_eq!(states(), [TaskState::Running; 2], "acknowledged means stored");

    // Three missed heartbeats are 900 ms: the leader hears of those that are not missed.
    stays_ready(&swarm, host.id, Duration::from_millis(2_000)).await;
    agent.stop_beating();
    swarm.until("down", is(host.id, NodeState::Down)).await;
    agent.say(Up::Heartbeat(Default::default())).await;
    swarm.until("ready again", is(host.id, NodeState::Ready)).await;
    swarm.stop().await;
}

#[tokio::test]
async fn a_session_resumes_at_the_same_manager_only() {
    let swarm = Swarm::start().await;
    let (one, two) = (Follower::start(&swarm, 2).await, Follower::start(&swarm, 3).await);
    let (host, mut agent) = one.node(&swarm).await;
    swarm.create_service("web", DIGEST, 2).await;
    agent.until("two tasks", |tasks| tasks.len() == 2).await;
    let (session, sequence) = (agent.registered.session_id.clone(), agent.sequence);
    let mut agent = agent.resume(session.clone(), sequence, "host2").await;
    assert!(agent.registered.resumed);

    let register = Register {
        description: Some(description("host2")),
        session_id: session,
        sequence: agent.sequence,
        networks: Vec::new(),
    };
    let mut moved = Agent::register(&host.channel_to(two.addr), register).await.unwrap();
    assert!(!moved.registered.resumed);
    moved.until("a complete set", |tasks| tasks.len() == 2).await;
    assert!(moved.received[0].0);
    assert_eq!(agent.end().await.unwrap().code(), Code::Aborted);
    swarm.stop().await;
}

#[tokio::test]
async fn a_node_has_one_session_in_the_swarm() {
    let swarm = Swarm::start().await;
    let (one, two) = (Follower::start(&swarm, 2).await, Follower::start(&swarm, 3).await);
    let host = swarm.join("host2").await;
    let mut first = one.connect(&host, "host2").await;
    let mut second = two.connect(&host, "host2").await;
    assert_eq!(first.end().await.unwrap().code(), Code::Aborted, "follower to follower");
    let mut third = Agent::connect(&host, "host2").await;
    assert_eq!(second.end().await.unwrap().code(), Code::Aborted, "follower to leader");
    let mut fourth = one.connect(&host, "host2").await;
    assert_eq!(third.end().await.unwrap().code(), Code::Aborted, "leader to follower");
    fourth.until("its set", |_| true).await;
    stays_ready(&swarm, host.id, Duration::from_millis(500)).await;
    one.until("everyone knows", |_| two.dispatcher.is_connected(host.id)).await;
    // A manager that comes back with an old session hears of the newer one.
    two.cut();
    let mut old = fourth;
    one.cut();
    let mut new = Agent::connect(&host, "host2").await;
    one.heal();
    assert!(old.end().await.is_some());
    new.until("its set", |_| true).await;
    stays_ready(&swarm, host.id, Duration::from_millis(500)).await;
    swarm.stop().await;
}

#[tokio::test]
async fn a_manager_that_hears_no_leader_ends_its_sessions() {
    let swarm = Swarm::start().await;
    let follower = Follower::start(&swarm, 2).await;
    let (host, mut agent) = follower.node(&swarm).await;
    let cut = Instant::now();
    follower.cut();
    assert_eq!(agent.end().await.unwrap().code(), Code::Unavailable);
    let after = cut.elapsed();
    assert!(after >= Duration::from_millis(700) && after < Duration::from_millis(2_500), "{after:?}");
    let register = || Register { description: Some(description("host2")), ..Register::default() };
    let channel = host.channel_to(follower.addr);
    let Err(Err(status)) = Agent::register(&channel, register()).await else { panic!("it was let in") };
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("no leader"), "{status:?}");
    // Another manager takes it in.
    let _agent = Agent::connect(&host, "host2").await;
    stays_ready(&swarm, host.id, Duration::from_millis(1_000)).await;
    follower.heal();
    follower.until("it hears the leader again", Dispatcher::takes_sessions).await;
    let _back = follower.connect(&host, "host2").await;
    swarm.stop().await;
}

#[tokio::test]
async fn a_short_loss_of_the_relay_loses_no_node() {
    let swarm = Swarm::start().await;
    let follower = Follower::start(&swarm, 2).await;
    let (host, mut agent) = follower.node(&swarm).await;
    for _ in 0..3 {
        follower.cut();
        // Two heartbeats' time; the grace is three.
        stays_ready(&swarm, host.id, Duration::from_millis(600)).await;
        follower.heal();
        stays_ready(&swarm, host.id, Duration::from_millis(600)).await;
    }
    let web = swarm.create_service("web", DIGEST, 1).await;
    agent.until("a task", |tasks| tasks.len() == 1).await;
    assert_eq!(swarm.tasks(web).len(), 1);
    swarm.stop().await;
}

#[tokio::test]
async fn nodes_of_a_dead_manager_are_down_unless_they_come_back() {
    let swarm = Swarm::start().await;
    let follower = Follower::start(&swarm, 2).await;
    let (host, other) = (swarm.join("host2").await, swarm.join("host3").await);
    let agents = (follower.connect(&host, "host2").await, follower.connect(&other, "host3").await);
    follower.die();
    drop(agents);
    let mut back = Agent::connect(&host, "host2").await;
    swarm.until("the other is down", is(other.id, NodeState::Down)).await;
    assert_eq!(swarm.node(host.id).status.state, NodeState::Ready);
    back.until("its set", |_| true).await;
    swarm.stop().await;
}

#[tokio::test]
async fn every_manager_knows_who_holds_an_image() {
    let swarm = Swarm::start().await;
    let (one, two) = (Follower::start(&swarm, 2).await, Follower::start(&swarm, 3).await);
    let (holds, runs) = (swarm.join("host2").await, swarm.join("host3").await);
    let _holder = one.connect(&holds, "host2").await;
    let digest = format!("sha256:{}", "a".repeat(64));
    let held = HeldImages { complete: true, added: vec![digest.clone()], removed: Vec::new() };
    _holder.say(Up::Images(held)).await;
    let mut runner = two.connect(&runs, "host3").await;
    swarm.create_service("web", &digest, 2).await;
    runner.until("a task", |tasks| !tasks.is_empty()).await;
    let ask = || async {
        let mut client = DispatchClient::new(runs.channel_to(two.addr));
        let request = ImageSourcesRequest { digest: digest.clone() };
        client.image_sources(request).await.unwrap().into_inner()
    };
    let answer = soon("the holder is named", async {
        loop {
            let answer = ask().await;
            if !answer.peers.is_empty() {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(answer.peers[0].node_id, holds.id.to_vec());
    assert!(!answer.ticket.is_empty());
    // A leader that comes to it anew is told again.
    one.cut();
    one.heal();
    assert_eq!(ask().await.peers.len(), 1);
    swarm.stop().await;
}

/// A task that runs on a node, and a reader of its service's logs.
struct Logs {
    web: skep_proto::id::ServiceId,
    task: skep_proto::id::TaskId,
}

impl Logs {
    async fn of(swarm: &Swarm, agent: &mut Agent) -> Self {
        let web = swarm.create_service("web", DIGEST, 1).await;
        agent.until("a task", |tasks| tasks.len() == 1).await;
        let task = *agent.tasks.keys().next().unwrap();
        agent.report(vec![observed(task, TaskState::Running)]).await;
        Self { web, task }
    }

    async fn read(&self, at: &Follower, follow: bool) -> Streaming<LogBatch> {
        let options = Some(LogOptions { follow, ..LogOptions::default() });
        let request = ReadLogsRequest { service_id: self.web.to_vec(), options, ..ReadLogsRequest::default() };
        let mut client = LogsClient::new(member_channel(&at.credentials, at.addr));
        soon("read", client.read(request)).await.unwrap().into_inner()
    }

    fn chunk(&self, stream_id: u64, time_ns: i64) -> LogChunk {
        let line = LogLine {
            task_id: self.task.to_vec(),
            container: "main".into(),
            time_ns,
            data: format!("{time_ns}\n").into(),
            ..LogLine::default()
        };
        LogChunk { stream_id, lines: vec![line], warnings: Vec::new() }
    }
}

/// Two followers; the logs' node has its session at the first, and the second knows that.
struct LogsAtOne {
    swarm: Swarm,
    one: Follower,
    two: Follower,
    host: Member,
    agent: Agent,
    logs: Logs,
}

impl LogsAtOne {
    async fn start() -> Self {
        let swarm = Swarm::start().await;
        let (one, two) = (Follower::start(&swarm, 2).await, Follower::start(&swarm, 3).await);
        two.knows(&one);
        let (host, mut agent) = one.node(&swarm).await;
        let logs = Logs::of(&swarm, &mut agent).await;
        two.until("it knows where the node is", |dispatcher| dispatcher.is_connected(host.id)).await;
        Self { swarm, one, two, host, agent, logs }
    }
}

/// The next line, and what was said before it.
async fn next_line(stream: &mut Streaming<LogBatch>) -> (i64, Vec<String>) {
    soon("a line", async {
        let mut warnings = Vec::new();
        loop {
            let batch = stream.message().await.unwrap().expect("the logs ended");
            warnings.extend(batch.warnings);
            if let Some(line) = batch.lines.first() {
                return (line.time_ns, warnings);
            }
        }
    })
    .await
}

#[tokio::test]
async fn logs_are_read_at_any_manager() {
    let LogsAtOne { swarm, one, two, host: _host, mut agent, logs } = LogsAtOne::start().await;
    for at in [&one, &two] {
        let mut stream = logs.read(at, false).await;
        let request = agent.log_request().await;
        let (chunks, answered) = agent.publish();
        chunks.send(logs.chunk(request.stream_id, 1)).await.unwrap();
        chunks.send(logs.chunk(0, 2)).await.unwrap();
        drop(chunks);
        assert_eq!(next_line(&mut stream).await, (1, vec![]));
        soon("the node's end", answered).await.unwrap().unwrap();
        let rest = soon("the end", async {
            let mut rest = Vec::new();
            while let Some(batch) = stream.message().await.unwrap() {
                assert!(batch.warnings.is_empty(), "{:?}", batch.warnings);
                rest.extend(batch.lines);
            }
            rest
        });
        drop(rest.await);
    }
    // Who leaves stops the node, also through another manager.
    let stream = logs.read(&two, true).await;
    let request = agent.log_request().await;
    let (chunks, answered) = agent.publish();
    chunks.send(logs.chunk(request.stream_id, 3)).await.unwrap();
    drop(stream);
    assert_eq!(soon("the node's end", answered).await.unwrap().unwrap_err().code(), Code::Cancelled);
    swarm.stop().await;
}

#[tokio::test]
async fn following_goes_with_the_node_to_another_manager() {
    let LogsAtOne { swarm, one: _one, two, host, mut agent, logs } = LogsAtOne::start().await;
    let mut stream = logs.read(&two, true).await;
    let request = agent.log_request().await;
    let (chunks, answered) = agent.publish();
    chunks.send(logs.chunk(request.stream_id, 10)).await.unwrap();
    assert_eq!(next_line(&mut stream).await.0, 10);

    let mut agent = two.connect(&host, "host2").await;
    // The node ends what its old session asked for.
    answered.abort();
    let again = agent.log_request().await;
    assert_eq!(again.options.as_ref().unwrap().since_ns, 11);
    let (chunks, _answered) = agent.publish();
    chunks.send(logs.chunk(again.stream_id, 20)).await.unwrap();
    assert_eq!(next_line(&mut stream).await.0, 20);
    swarm.stop().await;
}

#[tokio::test]
async fn a_removed_node_is_out_at_every_manager() {
    let swarm = Swarm::start().await;
    let follower = Follower::start(&swarm, 2).await;
    let (host, other) = (swarm.join("host2").await, swarm.join("host3").await);
    let mut agent = follower.connect(&host, "host2").await;
    let mut witness = follower.connect(&other, "host3").await;
    let removed = Instant::now();
    swarm.remove_node(host.id).await;
    let _ = agent.end().await;
    // All other nodes are told whom to refuse.
    let told = witness.wait_for("the list of removed nodes", |message| match message {
        Down::Denied(denied) if !denied.added.is_empty() => Some(denied.added.clone()),
        _ => None,
    });
    assert_eq!(told.await, [host.id.to_vec()]);
    assert!(removed.elapsed() < Duration::from_secs(2), "{:?}", removed.elapsed());
    let register = Register { description: Some(description("host2")), ..Register::default() };
    assert!(Agent::register(&host.channel_to(follower.addr), register).await.is_err());
    swarm.stop().await;
}

#[tokio::test]
async fn only_managers_relay() {
    use skep_proto::v1::relay_client::RelayClient;
    use skep_proto::v1::{HoldersRequest, NodeLogsRequest};
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let mut worker = RelayClient::new(host.channel.clone());
    let link = worker.link(futures::stream::pending()).await;
    assert_eq!(link.unwrap_err().code(), Code::PermissionDenied);
    let holders = worker.holders(HoldersRequest::default()).await;
    assert_eq!(holders.unwrap_err().code(), Code::PermissionDenied);
    let logs = worker.node_logs(NodeLogsRequest::default()).await;
    assert_eq!(logs.unwrap_err().code(), Code::PermissionDenied);
    swarm.stop().await;
}
