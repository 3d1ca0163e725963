//! Nodes that follow the messages, at whatever manager and however often they come back, have the table of the state.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;

use prost::Message as _;
use skep_core::change::{Change, Group, NodeObserved, Op, TaskObserved, Transaction};
use skep_core::codec;
use skep_core::network::table::Row;
use skep_core::object::{
    Cluster, Meta, Network, NetworkAddresses, Node, NodeStatus, Revision, RevisionKey, Service, Slot, Subnet, Task,
};
use skep_proto::id::{ClusterId, ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    self, ClusterSpec, FabricEndpoint, NetworkAttachment, NetworkSpec, NetworkTable, NodeDescription, NodeRole,
    NodeSpec, PortSpec, ReplicatedMode, ServiceSpec, TaskState, TaskStatus, TaskTemplate,
};

use super::*;

const WEB: ServiceId = ServiceId::new(100);
const INGRESS: u128 = 9;
const DATA_PATH_PORT: u32 = 4800;

/// The state, and every manager's tables of it.
struct World {
    state: State,
    managers: Vec<NetworkTables>,
    seed: u64,
}

/// A node that does what it is told.
struct FakeNode {
    id: NodeId,
    follower: Follower,
    tables: BTreeMap<NetworkId, FakeTable>,
    /// Messages that came: whole ones, differences.
    heard: (usize, usize),
}

#[derive(Clone, Debug, Default, PartialEq)]
struct FakeTable {
    version: u64,
    network: Option<v1::Network>,
    data_path_port: u32,
    rows: BTreeMap<RowKey, Row>,
    /// Messages of a version that has not ended.
    unfinished: Vec<NetworkTable>,
}

fn network(id: u128, version: u64) -> Network {
    let second = u8::try_from(id).unwrap();
    let cidr = format!("10.{second}.0.0/16").parse().unwrap();
    let labels = [("changed".to_owned(), version.to_string())].into();
    let spec = NetworkSpec { name: format!("n{id}"), ingress: id == INGRESS, labels, ..NetworkSpec::default() };
    Network {
        id: NetworkId::new(id),
        meta: Meta::default(),
        spec: Arc::new(spec),
        subnets: vec![Subnet { cidr, gateway: Ipv4Addr::new(10, second, 0, 1).into(), range: None }],
        vni: Some(4096 + u32::from(second)),
    }
}

fn node(id: u128, port: u64) -> Node {
    let fabric = FabricEndpoint { wireguard_addr: format!("192.0.2.{id}:{port}"), ..FabricEndpoint::default() };
    let description =
        NodeDescription { hostname: format!("h{id}"), fabric: Some(fabric), ..NodeDescription::default() };
    Node {
        id: NodeId::new(id),
        meta: Meta::default(),
        spec: Arc::new(NodeSpec::default()),
        description: Some(Arc::new(description)),
        status: NodeStatus::default(),
        role: NodeRole::Worker,
        manager: None,
        fabric_number: Some(u32::try_from(id).unwrap()),
        ingress: None,
    }
}

/// A node says that it is elsewhere.
fn moved(id: u128, port: u64) -> Op {
    let Node { id, description, .. } = node(id, port);
    Op::ObserveNode(NodeObserved { node: Some(id), description, ..NodeObserved::default() })
}

fn service(published: u32) -> Service {
    let mode = Some(Mode::Replicated(ReplicatedMode { replicas: 1 }));
    let port = PortSpec { published_port: published, target_port: 80, ..PortSpec::default() };
    Service {
        id: WEB,
        meta: Meta::default(),
        spec: Arc::new(ServiceSpec { name: "web".into(), mode, ..ServiceSpec::default() }),
        revision: 1,
        ports: if published == 0 { Vec::new() } else { vec![port] },
        update: None,
        virtual_addresses: Vec::new(),
    }
}

fn task(id: u128, on: u128, networks: &[u128]) -> Task {
    let last = u8::try_from(id).unwrap();
    let on_network = |network: &u128| NetworkAddresses {
        v4: Some(Ipv4Addr::new(10, u8::try_from(*network).unwrap(), 1, last)),
        ..NetworkAddresses::none(NetworkId::new(*network))
    };
    Task {
        id: TaskId::new(id),
        meta: Meta::default(),
        revision: RevisionKey { service: WEB, number: 1 },
        slot: Slot::Replica(u64::from(last)),
        node: Some(NodeId::new(on)),
        wanted: WantedState::Running,
        state: TaskState::Assigned,
        status: Arc::new(TaskStatus { state: TaskState::Assigned.into(), ..TaskStatus::default() }),
        ports: Vec::new(),
        start_at: None,
        replaces: None,
        policy_restart: false,
        networks: networks.iter().map(on_network).collect(),
    }
}

impl World {
    fn new(seed: u64, managers: usize) -> Self {
        let state = State::default();
        let managers = (0..managers).map(|_| NetworkTables::new(state.clone())).collect();
        let mut world = Self { state, managers, seed };
        let attach = |id: u128| NetworkAttachment {
            network_id: NetworkId::new(id).to_vec(),
            name: format!("n{id}"),
            aliases: vec!["www".to_owned()],
            ..NetworkAttachment::default()
        };
        let template = TaskTemplate { networks: vec![attach(1), attach(2)], ..TaskTemplate::default() };
        let revision = Revision {
            key: service(0).current(),
            template: Arc::new(template),
            created_at: UnixMs::ZERO,
            copied_from: None,
            service_name: "web".into(),
            live: None,
        };
        let cluster = Cluster {
            id: ClusterId::new(1),
            meta: Meta::default(),
            spec: ClusterSpec { data_path_port: DATA_PATH_PORT, ..ClusterSpec::default() },
            root_cert_pem: String::new(),
            root_key_pem: String::new(),
            worker_token_secret: [1; 16],
            manager_token_secret: [2; 16],
            feature_level: 1,
            last_raft_id: 1,
            recovery_epoch: 0,
            unlock_key: None,
            data_key_epoch: 0,
            root_rotation: None,
        };
        let mut ops = vec![Op::PutCluster(cluster)];
        ops.extend([1, 2, INGRESS].into_iter().map(|id| Op::PutNetwork(network(id, 0))));
        ops.extend((1..=3).map(|id| Op::PutNode(node(id, 1))));
        ops.extend([Op::PutService(service(0)), Op::PutRevision(revision)]);
        assert!(world.write(vec![ops]));
        world
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    /// Transactions of one entry. Says whether all was taken.
    fn write(&mut self, transactions: Vec<Vec<Op>>) -> bool {
        let mut events = Vec::new();
        let mut taken = true;
        for ops in transactions {
            let group = Group(ops.into_iter().map(Change::any).collect());
            let applied = self.state.apply(&Transaction { groups: vec![group], ..Transaction::default() });
            taken &= applied.refused.is_empty();
            events.extend(applied.events);
        }
        let fed = Fed { events: events.into(), state: self.state.clone(), replaced: false };
        self.managers.iter().for_each(|manager| manager.feed(&fed));
        taken
    }

    fn any_change(&mut self) -> Op {
        let id = u128::from(self.random(6)) + 10;
        let known = self.state.task(TaskId::new(id)).map(|task| Task::clone(task));
        match self.random(12) {
            0 => Op::PutService(service([0, 8080][usize::try_from(self.random(2)).unwrap()])),
            1 => {
                let (id, port) = (u128::from(self.random(3)) + 1, self.random(3));
                moved(id, port)
            }
            2 => Op::PutNetwork(network(u128::from(self.random(2)) + 1, self.random(3))),
            3 => Op::RemoveTask(TaskId::new(id)),
            _ => match known {
                None => {
                    let networks: &[u128] = [&[1, 2][..], &[1], &[2]][usize::try_from(self.random(3)).unwrap()];
                    Op::PutTask(task(id, u128::from(self.random(3)) + 1, networks))
                }
                Some(task) if self.random(4) == 0 => {
                    let wanted =
                        [WantedState::Draining, WantedState::Shutdown][usize::try_from(self.random(2)).unwrap()];
                    Op::PutTask(Task { wanted: wanted.max(task.wanted), ..task })
                }
                Some(task) => {
                    let state = [TaskState::Starting, TaskState::Running, TaskState::Running, TaskState::Failed]
                        [usize::try_from(self.random(4)).unwrap()];
                    let status = Arc::new(TaskStatus { state: state.into(), ..TaskStatus::default() });
                    Op::ObserveTask(TaskObserved { task: task.id, node: task.node.unwrap(), status })
                }
            },
        }
    }

    fn node(&self, id: u128, manager: usize) -> FakeNode {
        let id = NodeId::new(id);
        FakeNode { id, follower: self.managers[manager].follow(id, &[]), tables: BTreeMap::new(), heard: (0, 0) }
    }
}

impl FakeNode {
    /// Hears everything there is to hear.
    fn hear(&mut self, world: &World) {
        let needed = rows::networks_of_node(&world.state, self.id);
        let news = self.follower.collect(&needed);
        news.into_iter().chain(self.follower.gone(&needed)).for_each(|message| self.take(&message));
        let expected: BTreeMap<_, _> =
            needed.iter().map(|network| (*network, rows::rows(&world.state, *network))).collect();
        let has: BTreeMap<_, _> = self.tables.iter().map(|(network, table)| (*network, table.rows.clone())).collect();
        assert_eq!(has, expected);
        for (id, table) in &self.tables {
            assert_eq!(table.network, world.state.network(*id).map(|network| codec::network_to_wire(network)));
            assert_eq!(table.data_path_port, DATA_PATH_PORT);
            // From its own row it knows its number.
            let Some(Row::Peer(own)) = table.rows.get(&RowKey::Peer(self.id)) else { panic!("{table:?}") };
            assert_eq!(u128::from(own.fabric_number), self.id.value());
            assert!(table.unfinished.is_empty());
        }
    }

    /// As the manual of the message says.
    fn take(&mut self, message: &Bytes) {
        let message = NetworkTable::decode(message.clone()).unwrap();
        let id = NetworkId::from_wire(&message.network_id).unwrap();
        if message.dropped {
            assert!(self.tables.remove(&id).is_some(), "it has it");
            return;
        }
        let table = self.tables.entry(id).or_default();
        let (ends, version) = (message.end, message.version);
        if !message.complete {
            assert_eq!(message.applies_to, table.version, "the difference does not fit");
            assert!(version > message.applies_to);
        }
        table.unfinished.push(message);
        if !ends {
            return;
        }
        let messages = std::mem::take(&mut table.unfinished);
        if messages[0].complete {
            *table = FakeTable::default();
            self.heard.0 += 1;
        } else {
            self.heard.1 += 1;
        }
        table.version = version;
        for message in messages {
            let task = |id: &[u8]| RowKey::Endpoint(TaskId::from_wire(id).unwrap());
            let service = |id: &[u8]| RowKey::Service(ServiceId::from_wire(id).unwrap());
            let peer = |id: &[u8]| RowKey::Peer(NodeId::from_wire(id).unwrap());
            assert_eq!(message.data_path_port != 0, message.network.is_some());
            if message.network.is_some() {
                table.network = message.network;
                table.data_path_port = message.data_path_port;
            }
            message.remove_endpoints.iter().for_each(|id| drop(table.rows.remove(&task(id))));
            message.remove_services.iter().for_each(|id| drop(table.rows.remove(&service(id))));
            message.remove_peers.iter().for_each(|id| drop(table.rows.remove(&peer(id))));
            table.rows.extend(message.put_endpoints.into_iter().map(|row| (task(&row.task_id), Row::Endpoint(row))));
            table
                .rows
                .extend(message.put_services.into_iter().map(|row| (service(&row.service_id), Row::Service(row))));
            table.rows.extend(message.put_peers.into_iter().map(|row| (peer(&row.node_id), Row::Peer(row))));
        }
    }

    fn versions(&self) -> Vec<AppliedVersion> {
        let version =
            |(id, table): (&NetworkId, &FakeTable)| AppliedVersion { object_id: id.to_vec(), version: table.version };
        self.tables.iter().map(version).collect()
    }

    /// Comes back, with what it has.
    fn resume(&mut self, world: &World, manager: usize) {
        self.follower = world.managers[manager].follow(self.id, &self.versions());
    }
}

#[test]
fn nodes_that_follow_have_the_table_of_the_state() {
    let mut differences = 0;
    for seed in 0..60 {
        let mut world = World::new(seed, 2);
        let mut nodes: Vec<FakeNode> = (1..=3).map(|id| world.node(id, 0)).collect();
        for _ in 0..300 {
            let transactions = (0..=world.random(2)).map(|_| vec![world.any_change()]).collect();
            world.write(transactions);
            for manager in world.managers.clone() {
                if world.random(3) == 0 {
                    manager.flush();
                }
            }
            for node in &mut nodes {
                match world.random(12) {
                    0 => {
                        let manager = usize::try_from(world.random(2)).unwrap();
                        node.resume(&world, manager);
                    }
                    1 => *node = world.node(node.id.value(), 1),
                    2..6 => node.hear(&world),
                    _ => {}
                }
            }
        }
        for node in &mut nodes {
            node.hear(&world);
            differences += node.heard.1;
        }
    }
    assert!(differences > 1_000, "they were mostly told differences: {differences}");
}

/// A world with `count` tasks that run on node 2, on network 1, and one on node 1.
fn crowd(count: u8) -> World {
    let mut world = World::new(1, 2);
    let mut ops = vec![Op::PutTask(task(1, 1, &[1]))];
    ops.extend((2..=count).map(|id| Op::PutTask(task(id.into(), 2, &[1]))));
    assert!(world.write(vec![ops]));
    world
}

fn run(world: &mut World, id: u128, state: TaskState) {
    let status = Arc::new(TaskStatus { state: state.into(), ..TaskStatus::default() });
    let node = world.state.task(TaskId::new(id)).unwrap().node.unwrap();
    assert!(world.write(vec![vec![Op::ObserveTask(TaskObserved { task: TaskId::new(id), node, status })]]));
}

#[test]
fn differences_are_shared_and_a_resumed_node_gets_them_only() {
    let mut world = crowd(5);
    let (mut one, mut two) = (world.node(1, 0), world.node(2, 0));
    one.hear(&world);
    two.hear(&world);
    run(&mut world, 2, TaskState::Running);
    let needed = rows::networks_of_node(&world.state, one.id);
    let (first, second) = (one.follower.collect(&needed), two.follower.collect(&needed));
    assert_eq!((first.len(), first[0].as_ptr()), (1, second[0].as_ptr()), "the same bytes");
    first.iter().for_each(|message| one.take(message));
    one.hear(&world);
    assert_eq!(one.heard, (1, 1));
    // At the other manager, which has another last version of the same table.
    run(&mut world, 3, TaskState::Starting);
    world.node(2, 1).hear(&world);
    run(&mut world, 4, TaskState::Running);
    one.hear(&world);
    one.resume(&world, 1);
    run(&mut world, 3, TaskState::Running);
    one.hear(&world);
    assert_eq!(one.heard.0, 1, "never whole again: {:?}", one.heard);
}

#[test]
fn one_that_lags_too_far_behind_gets_the_whole_table() {
    let mut world = crowd(5);
    let (mut one, mut two) = (world.node(1, 0), world.node(2, 0));
    one.hear(&world);
    for round in 0..200 {
        let port = 8_000 + round;
        assert!(world.write(vec![vec![moved(2, port)]]));
        two.hear(&world);
        assert!(world.write(vec![vec![Op::PutNetwork(network(1, port))]]));
        two.hear(&world);
    }
    one.hear(&world);
    assert_eq!(one.heard, (2, 0));
    assert_eq!(two.heard.0, 1);
}

#[test]
fn what_no_task_needs_is_dropped_and_comes_whole_again() {
    let mut world = crowd(2);
    let mut one = world.node(1, 0);
    one.hear(&world);
    run(&mut world, 1, TaskState::Failed);
    one.hear(&world);
    assert!(one.tables.is_empty());
    assert!(world.write(vec![vec![Op::PutTask(task(7, 1, &[1]))]]));
    one.hear(&world);
    assert_eq!((one.tables.len(), one.heard.0), (1, 2));
    // A node that comes back with a table that it needs no more.
    run(&mut world, 7, TaskState::Failed);
    one.resume(&world, 1);
    one.hear(&world);
    assert!(one.tables.is_empty());
}

#[test]
fn a_drain_has_a_version_though_no_row_differs() {
    let mut world = crowd(2);
    let mut one = world.node(1, 0);
    one.hear(&world);
    let before = one.tables[&NetworkId::new(1)].version;
    let runs = Task::clone(world.state.task(TaskId::new(2)).unwrap());
    let status = Arc::new(TaskStatus { state: TaskState::Running.into(), ..TaskStatus::default() });
    let observed = TaskObserved { task: runs.id, node: runs.node.unwrap(), status };
    let drains = Task { wanted: WantedState::Draining, ..runs };
    assert!(world.write(vec![vec![Op::ObserveTask(observed)], vec![Op::PutTask(drains)]]));
    one.hear(&world);
    let drained = world.state.task(TaskId::new(2)).unwrap().meta.version;
    let version = one.tables[&NetworkId::new(1)].version;
    assert!(version > before && version >= drained, "{before} {version} {drained}");
}

#[test]
fn only_nodes_that_are_concerned_are_woken() {
    let mut world = crowd(5);
    let (mut one, mut three) = (world.node(1, 0), world.node(3, 0));
    let woken = |node: &FakeNode| futures::FutureExt::now_or_never(node.follower.changed()).is_some();
    world.managers[0].flush();
    one.hear(&world);
    three.hear(&world);
    let _ = (woken(&one), woken(&three));
    run(&mut world, 2, TaskState::Running);
    world.managers[0].flush();
    assert!(woken(&one) && !woken(&three));
    // No row differs.
    run(&mut world, 3, TaskState::Starting);
    world.managers[0].flush();
    assert!(!woken(&one) && !woken(&three));
    assert!(world.write(vec![vec![Op::PutTask(task(7, 3, &[1]))]]));
    world.managers[0].flush();
    assert!(woken(&one) && woken(&three));
    drop(three);
    drop(one);
    world.managers[0].sweep();
    assert!(world.managers[0].lock().tables.is_empty());
}
