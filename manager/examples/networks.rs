//! What network tables cost a manager: one network with 10,000 endpoints, 1,000 nodes with a session here. By hand:
//! `cargo run --example networks -p skep-manager`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use skep_core::change::{Change, Group, Op, TaskObserved, Transaction};
use skep_core::network::table::networks_of_node;
use skep_core::object::{
    Meta, Network, NetworkAddresses, Node, NodeStatus, Revision, RevisionKey, Service, Slot, Subnet, Task,
};
use skep_core::store::State;
use skep_manager::dispatch::{Follower, NetworkTables};
use skep_manager::store::Fed;
use skep_proto::id::{NetworkId, NodeId, ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    FabricEndpoint, NetworkAttachment, NetworkSpec, NodeDescription, NodeRole, NodeSpec, ReplicatedMode, ServiceSpec,
    TaskState, TaskStatus, TaskTemplate, WantedState,
};

const NODES: u32 = 1_000;
const TASKS: u32 = 10_000;
const FRONT: NetworkId = NetworkId::new(1);
const WEB: ServiceId = ServiceId::new(100);

fn main() {
    let mut state = state();
    let tables = NetworkTables::new(state.clone());
    let node = |number: u32| NodeId::new(u128::from(number));
    let mut followers: Vec<(NodeId, Follower)> =
        (1..=NODES).map(|id| (node(id), tables.follow(node(id), &[]))).collect();

    let began = Instant::now();
    let first = fetch(&state, &mut followers[..1]);
    println!("table made and encoded for one node: {:?}, {first} bytes", began.elapsed());
    let began = Instant::now();
    let bytes = fetch(&state, &mut followers[1..]);
    println!("the same for {} others: {:?}, {bytes} bytes shared", NODES - 1, began.elapsed());

    let mut times = Vec::new();
    for round in 0..100 {
        let task = TaskId::new(u128::from(round * 97 % TASKS + 1));
        let status = Arc::new(TaskStatus { state: TaskState::Running.into(), ..TaskStatus::default() });
        let on = state.task(task).unwrap().node.unwrap();
        let events = apply(&mut state, vec![Op::ObserveTask(TaskObserved { task, node: on, status })]);
        let fed = Fed { events: events.into(), state: state.clone(), replaced: false };
        let began = Instant::now();
        tables.feed(&fed);
        tables.flush();
        fetch(&state, &mut followers);
        times.push(began.elapsed());
    }
    times.sort_unstable();
    println!("one change, handed to {NODES} nodes: median {:?}, worst {:?}", times[50], times[99]);
}

/// What they are told, in bytes.
fn fetch(state: &State, followers: &mut [(NodeId, Follower)]) -> usize {
    let mut bytes = 0;
    for (node, follower) in followers {
        let needed = networks_of_node(state, *node);
        bytes += follower.collect(&needed).iter().map(|message| message.len()).sum::<usize>();
        bytes += follower.gone(&needed).len();
    }
    bytes
}

fn apply(state: &mut State, ops: Vec<Op>) -> Vec<skep_core::event::Event> {
    let groups = ops.into_iter().map(|op| Group(vec![Change::any(op)])).collect();
    let applied = state.apply(&Transaction { groups, ..Transaction::default() });
    assert!(applied.refused.is_empty(), "{:?}", applied.refused.first());
    applied.events
}

fn state() -> State {
    let mut state = State::default();
    let cidr = "10.8.0.0/16".parse().unwrap();
    let network = Network {
        id: FRONT,
        meta: Meta::default(),
        spec: Arc::new(NetworkSpec { name: "front".into(), ..NetworkSpec::default() }),
        subnets: vec![Subnet { cidr, gateway: Ipv4Addr::new(10, 8, 0, 1).into(), range: None }],
        vni: Some(4097),
    };
    apply(&mut state, vec![Op::PutNetwork(network)]);
    apply(&mut state, (1..=NODES).map(|id| Op::PutNode(node(id))).collect());
    let mode = Some(Mode::Replicated(ReplicatedMode { replicas: TASKS.into() }));
    let service = Service {
        id: WEB,
        meta: Meta::default(),
        spec: Arc::new(ServiceSpec { name: "web".into(), mode, ..ServiceSpec::default() }),
        revision: 1,
        ports: Vec::new(),
        update: None,
        virtual_addresses: Vec::new(),
    };
    let attachment = NetworkAttachment { network_id: FRONT.to_vec(), name: "front".into(), ..Default::default() };
    let revision = Revision {
        key: service.current(),
        template: Arc::new(TaskTemplate { networks: vec![attachment], ..TaskTemplate::default() }),
        created_at: UnixMs::ZERO,
        copied_from: None,
        service_name: "web".into(),
        live: None,
    };
    let group = Group(vec![Change::any(Op::PutService(service)), Change::any(Op::PutRevision(revision))]);
    assert!(state.apply(&Transaction { groups: vec![group], ..Transaction::default() }).refused.is_empty());
    apply(&mut state, (1..=TASKS).map(|id| Op::PutTask(task(id))).collect());
    state
}

fn node(id: u32) -> Node {
    let fabric = FabricEndpoint {
        public_key: vec![7; 32],
        wireguard_addr: format!("192.0.2.1:{id}"),
        ..FabricEndpoint::default()
    };
    let description =
        NodeDescription { hostname: format!("h{id}"), fabric: Some(fabric), ..NodeDescription::default() };
    Node {
        id: NodeId::new(u128::from(id)),
        meta: Meta::default(),
        spec: Arc::new(NodeSpec::default()),
        description: Some(Arc::new(description)),
        status: NodeStatus::default(),
        role: NodeRole::Worker,
        manager: None,
        fabric_number: Some(id),
        ingress: None,
    }
}

fn task(id: u32) -> Task {
    let address = Ipv4Addr::from_bits(0x0a08_0100 + id);
    Task {
        id: TaskId::new(u128::from(id)),
        meta: Meta::default(),
        revision: RevisionKey { service: WEB, number: 1 },
        slot: Slot::Replica(u64::from(id)),
        node: Some(NodeId::new(u128::from(id % NODES + 1))),
        wanted: WantedState::Running,
        state: TaskState::Assigned,
        status: Arc::new(TaskStatus { state: TaskState::Assigned.into(), ..TaskStatus::default() }),
        ports: Vec::new(),
        start_at: None,
        replaces: None,
        policy_restart: false,
        networks: vec![NetworkAddresses { v4: Some(address), ..NetworkAddresses::none(FRONT) }],
    }
}
