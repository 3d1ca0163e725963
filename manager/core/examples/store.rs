//! What the store costs at 100,000 tasks on 1,000 nodes. Run with `cargo run --release -p skep-core --example store`.
#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::Instant;

use skep_core::assign::AssignmentSet;
use skep_core::change::{Change, Group, Op, TaskObserved, Transaction};
use skep_core::codec;
use skep_core::doctor;
use skep_core::head::{Head, Submitted};
use skep_core::ids::mix;
use skep_core::object::{Meta, Node, NodeStatus, Revision, RevisionKey, Service, Slot, Task};
use skep_core::store::State;
use skep_core::watch::topics;
use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    ContainerSpec, NodeRole, NodeSpec, ReplicatedMode, ServiceSpec, TaskState, TaskStatus, TaskTemplate, WantedState,
};

const TASKS: u64 = 100_000;
const NODES: u128 = 1_000;

fn main() {
    let mut head = Head::new(swarm());
    let mut replica = head.state().clone();
    let tasks: Vec<Task> = (0..TASKS).map(task).collect();

    let create = tasks.iter().map(|task| Group(vec![Change::create(Op::PutTask(task.clone()))])).collect();
    let (entries, bytes) = submit("create tasks", &mut head, create);
    let topics = apply("create tasks", &mut replica, &entries);
    println!("  {} entries, {} bytes a task, {topics} topics woken", entries.len(), bytes as u64 / TASKS);

    let running = TaskStatus { state: TaskState::Running.into(), ..TaskStatus::default() };
    let report = |task: &Task| {
        let node = task.node.expect("every task is placed");
        Op::ObserveTask(TaskObserved { task: task.id, node, status: Arc::new(running.clone()) })
    };
    let reports = tasks.iter().map(|task| Group(vec![Change::any(report(task))])).collect();
    let (entries, _) = submit("report tasks", &mut head, reports);
    apply("report tasks", &mut replica, &entries);
    head.settle(&replica);

    let each = measure(100_000, || replica.clone());
    println!("clone: {each:.0} ns");
    let node = NodeId::new(7);
    let each = measure(10_000, || replica.tasks_on_node(node).count());
    println!("list a node's {} tasks: {:.1} us", replica.tasks_on_node(node).count(), each / 1e3);
    let each = measure(1_000, || AssignmentSet::of(&replica, node));
    println!("assignment set of it: {:.1} us", each / 1e3);
    let set = AssignmentSet::of(&replica, node);
    let each = measure(1_000, || set.difference(&AssignmentSet::of(&replica, node)));
    println!("set and difference: {:.1} us", each / 1e3);
    let service = ServiceId::new(1);
    let each = measure(10, || replica.tasks_of_service(service).filter(|task| task.wanted.wants_to_run()).count());
    println!("walk a service's {TASKS} tasks: {:.1} ms", each / 1e6);
    let each = measure(10_000, || replica.find_task("big.50000").map(|task| task.id));
    println!("find big.50000: {:.1} us", each / 1e3);

    let mut snapshot = Vec::new();
    timed("write snapshot", || codec::write_snapshot(&replica, &mut snapshot).expect("memory"));
    println!("  {} MB", snapshot.len() / 1_000_000);
    let restored = timed("read snapshot", || codec::read_snapshot(&mut snapshot.as_slice()).expect("just written"));
    timed("digest", || assert_eq!(restored.digest(), replica.digest()));
    timed("doctor", || assert_eq!(doctor::check(&restored).len(), 1, "the example has no cluster object"));
}

/// Submits the groups as one plan and packs all entries.
fn submit(what: &str, head: &mut Head, groups: Vec<Group>) -> (Vec<Vec<u8>>, usize) {
    let count = groups.len() as f64;
    let start = Instant::now();
    let submitted = head.submit(Transaction { at: UnixMs(1), groups, ..Transaction::default() });
    let Submitted::Queued { refused, .. } = submitted else { panic!("it changes something") };
    assert_eq!(refused, vec![]);
    let entries: Vec<Vec<u8>> = std::iter::from_fn(|| head.pack()).map(|packed| packed.bytes).collect();
    println!("{what}, head: {:.2} us each", start.elapsed().as_secs_f64() * 1e6 / count);
    let bytes = entries.iter().map(Vec::len).sum();
    (entries, bytes)
}

/// Applies entries as a follower does, publishing a snapshot after each.
fn apply(what: &str, replica: &mut State, entries: &[Vec<u8>]) -> usize {
    let start = Instant::now();
    let mut woken = 0;
    let mut published = replica.clone();
    for entry in entries {
        for transaction in codec::decode_entry(entry).expect("the head wrote it") {
            let events = replica.apply(&transaction).events;
            woken += topics(&events, replica).len();
        }
        published = replica.clone();
    }
    println!("{what}, apply: {:.2} us each", start.elapsed().as_secs_f64() * 1e6 / TASKS as f64);
    assert_eq!(published.version(), replica.version());
    woken
}

fn timed<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = act();
    println!("{what}: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    result
}

/// Nanoseconds of one call.
fn measure<T>(rounds: u32, act: impl Fn() -> T) -> f64 {
    let start = Instant::now();
    for _ in 0..rounds {
        std::hint::black_box(act());
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(rounds)
}

/// The nodes, and one service.
fn swarm() -> State {
    let mut state = State::default();
    for id in (1..=NODES).map(NodeId::new) {
        state.put(Node {
            id,
            meta: Meta::default(),
            spec: Arc::new(NodeSpec::default()),
            description: None,
            status: NodeStatus::default(),
            role: NodeRole::Worker,
            manager: None,
            fabric_number: None,
            ingress: None,
        });
    }
    let mode = Some(Mode::Replicated(ReplicatedMode { replicas: TASKS }));
    let spec = ServiceSpec { name: "big".into(), mode, ..ServiceSpec::default() };
    let id = ServiceId::new(1);
    let service = Service {
        id,
        meta: Meta::default(),
        spec: Arc::new(spec),
        revision: 1,
        ports: Vec::new(),
        update: None,
        virtual_addresses: Vec::new(),
    };
    let container = ContainerSpec { name: "main".into(), image: "busybox".into(), ..ContainerSpec::default() };
    let template = TaskTemplate { containers: vec![container], ..TaskTemplate::default() };
    state.put(Revision {
        key: service.current(),
        template: Arc::new(template),
        created_at: UnixMs::ZERO,
        copied_from: None,
        service_name: "big".into(),
        live: None,
    });
    state.put(service);
    state
}

fn task(number: u64) -> Task {
    let id = u128::from(mix(number)) << 64 | u128::from(mix(!number));
    let status = TaskStatus { state: TaskState::Assigned.into(), since_ms: 1, ..TaskStatus::default() };
    Task {
        id: TaskId::new(id),
        meta: Meta::default(),
        revision: RevisionKey { service: ServiceId::new(1), number: 1 },
        slot: Slot::Replica(number + 1),
        node: Some(NodeId::new(1 + u128::from(number) % NODES)),
        wanted: WantedState::Running,
        state: TaskState::Assigned,
        status: Arc::new(status),
        ports: Vec::new(),
        start_at: None,
        replaces: None,
        policy_restart: false,
        networks: Vec::new(),
    }
}
