//! Nodes' sessions over three managers, through the loss of the leader. The nodes are played: they register, beat, and
//! turn to another manager when theirs is gone, as the worker's session does.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_identity::Role;
use skep_manager::store::Store;
use skep_proto::id::NodeId;
use skep_proto::v1::dispatch_client::DispatchClient;
use skep_proto::v1::session_down::Message as Down;
use skep_proto::v1::session_up::Message as Up;
use skep_proto::v1::{Heartbeat, NodeDescription, NodeRole, NodeState, Register, SessionDown, SessionUp};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::group::{Group, Host, soon, until};

/// How many nodes, unless `SKEP_TEST_NODES` says otherwise.
const NODES: u128 = 60;
const BEAT: Duration = Duration::from_millis(950);
/// As the worker's patience with one of several managers; more, since all nodes share this process.
const ANSWER_WITHIN: Duration = Duration::from_millis(800);
const CONNECT_WITHIN: Duration = Duration::from_millis(1_500);

/// A node, until it is told to stop.
async fn play(host: Arc<Host>, managers: Vec<SocketAddr>, at: watch::Sender<Option<SocketAddr>>) {
    let mut lost = None;
    loop {
        let others: Vec<_> = managers.iter().copied().filter(|manager| Some(*manager) != lost).collect();
        let manager = others[rand::random::<u32>() as usize % others.len()];
        session(&host, manager, &at).await;
        at.send_replace(None);
        lost = Some(manager);
        sleep(Duration::from_millis(u64::from(rand::random::<u8>()) / 4)).await;
    }
}

fn up(message: Up) -> SessionUp {
    SessionUp { message: Some(message) }
}

/// One session, to its end.
async fn session(host: &Host, manager: SocketAddr, at: &watch::Sender<Option<SocketAddr>>) {
    let (say, says) = mpsc::unbounded_channel();
    let hostname = format!("node{}", host.id.value());
    let description = Some(NodeDescription { hostname, ..NodeDescription::default() });
    let _ = say.send(up(Up::Register(Register { description, ..Register::default() })));
    let mut client = DispatchClient::new(host.channel_to(manager));
    let opening = async {
        let mut down = client.session(UnboundedReceiverStream::new(says)).await?.into_inner();
        let first = down.message().await?;
        Ok::<_, tonic::Status>((down, first))
    };
    let Ok(Ok((mut down, Some(SessionDown { message: Some(Down::Registered(_)) })))) =
        timeout(CONNECT_WITHIN * 2, opening).await
    else {
        return;
    };
    at.send_replace(Some(manager));
    loop {
        let _ = say.send(up(Up::Heartbeat(Heartbeat::default())));
        let beaten = Instant::now();
        let acked = async {
            while let Ok(Some(message)) = down.message().await {
                if matches!(message.message, Some(Down::HeartbeatAck(_))) {
                    return true;
                }
            }
            false
        };
        if !timeout(ANSWER_WITHIN, acked).await.unwrap_or(false) {
            return;
        }
        // A broken connection shows at once.
        let rest = BEAT.saturating_sub(beaten.elapsed());
        let quiet = timeout(rest, async { while let Ok(Some(_)) = down.message().await {} }).await;
        if quiet.is_ok() {
            return;
        }
    }
}

struct Nodes {
    ids: Vec<NodeId>,
    at: Vec<watch::Receiver<Option<SocketAddr>>>,
    playing: JoinSet<()>,
}

impl Nodes {
    async fn start(group: &Group, count: u128) -> Self {
        let mut nodes = Self { ids: Vec::new(), at: Vec::new(), playing: JoinSet::new() };
        let managers: Vec<SocketAddr> = group.hosts.iter().map(|host| host.addr).collect();
        for number in 100..100 + count {
            let (host, _) = group.node(number, NodeRole::Worker, Role::Worker).await;
            nodes.ids.push(host.id);
            let (at, seen) = watch::channel(None);
            nodes.at.push(seen);
            nodes.playing.spawn(play(Arc::new(host), managers.clone(), at));
        }
        nodes
    }

    fn connected(&self) -> usize {
        self.at.iter().filter(|at| at.borrow().is_some()).count()
    }

    fn in_state(&self, store: &Store, wanted: NodeState) -> usize {
        let state = store.state();
        self.ids.iter().filter(|id| state.node(**id).is_some_and(|node| node.status.state == wanted)).count()
    }

    fn managers(&self) -> BTreeSet<SocketAddr> {
        self.at.iter().filter_map(|at| *at.borrow()).collect()
    }

    /// Fails if a node is down meanwhile.
    async fn stay_ready(&self, store: &Store, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            assert_eq!(self.in_state(store, NodeState::Down), 0, "after {:?}", start.elapsed());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_stay_ready_through_the_loss_of_the_leader_and_of_a_follower() {
    let count = std::env::var("SKEP_TEST_NODES").ok().and_then(|count| count.parse().ok()).unwrap_or(NODES);
    let mut group = Group::start(3).await;
    let nodes = Nodes::start(&group, count).await;
    let all = nodes.ids.len();
    until("all have sessions", || nodes.connected() == all).await;
    let store = group.leader().await.store();
    until("all are ready", || nodes.in_state(&store, NodeState::Ready) == all).await;
    assert_eq!(nodes.managers().len(), 3, "they spread over all managers");
    nodes.stay_ready(&store, Duration::from_secs(4)).await;

    for what in ["the leader", "a follower"] {
        let victim = match what {
            "the leader" => group.leader_index().await,
            _ => {
                // One that has nodes: the first victim, come back, has none.
                let leader = group.leader_index().await;
                let busy = nodes.managers();
                let has_nodes = |index: &usize| *index != leader && busy.contains(&group.hosts[*index].addr);
                (0..3).find(has_nodes).unwrap()
            }
        };
        let survivor = (0..3).find(|index| *index != victim).unwrap();
        let store = group.hosts[survivor].store();
        let gone = group.hosts[victim].addr;
        let killed = Instant::now();
        group.hosts[victim].kill();
        until("nobody is left there", || !nodes.managers().contains(&gone)).await;
        until("all have sessions again", || nodes.connected() == all).await;
        let back = killed.elapsed();
        nodes.stay_ready(&store, Duration::from_secs(6)).await;
        assert_eq!(nodes.in_state(&store, NodeState::Ready), all);
        eprintln!("{all} nodes: {what} killed, all have sessions again after {back:?}");
        group.hosts[victim].restart().await;
        soon("it is back", group.hosts[victim].manager().ready()).await.unwrap();
    }
    // Those who really go are noticed, wherever they were.
    let store = group.leader().await.store();
    drop(nodes.playing);
    let ids = nodes.ids;
    until("all are down", || {
        let state = store.state();
        ids.iter().all(|id| state.node(*id).unwrap().status.state == NodeState::Down)
    })
    .await;
    group.stop().await;
}
