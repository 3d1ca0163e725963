//! What a plan of the updater costs for one service of 10,000 replicas. Run with
//! `cargo run --release -p skep-core --example updater`.
#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::Instant;

use skep_core::change::{Group, Transaction};
use skep_core::ids::Ids;
use skep_core::object::{Meta, Node, NodeStatus, Revision, Service, Slot, Task};
use skep_core::orchestrate::{self, RollOut};
use skep_core::store::State;
use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    ContainerSpec, NodeRole, NodeSpec, NodeState, ReplicatedMode, ServiceSpec, TaskState, TaskStatus, TaskTemplate,
    UpdatePolicy, WantedState,
};

const REPLICAS: u64 = 10_000;
const NODES: u128 = 1_000;
const SERVICE: ServiceId = ServiceId::new(1);
const NOW: UnixMs = UnixMs(1_000_000);

fn main() {
    let mut state = swarm(UpdatePolicy::default());
    measure("never updated", &state);
    let mut template = TaskTemplate::clone(&state.revision(service(&state).current()).expect("it is there").template);
    template.containers[0].image = "busybox:2".into();
    roll_out(&mut state, template.clone());
    measure("at the start, one at a time", &state);
    let plan = orchestrate::update(&state, SERVICE, NOW, &mut Ids::new(1));
    apply(&mut state, plan.groups);
    measure("in flight", &state);

    let mut state = swarm(UpdatePolicy { all: true, ..UpdatePolicy::default() });
    roll_out(&mut state, template);
    measure("at the start, all at once", &state);
}

fn measure(what: &str, state: &State) {
    const ROUNDS: u32 = 20;
    let start = Instant::now();
    let mut groups = 0;
    for round in 0..ROUNDS {
        groups = orchestrate::update(state, SERVICE, NOW, &mut Ids::new(round.into())).groups.len();
    }
    let each = start.elapsed() / ROUNDS;
    let start = Instant::now();
    for round in 0..ROUNDS {
        orchestrate::plan(state, SERVICE, NOW, &mut Ids::new(round.into()));
    }
    let beside = start.elapsed() / ROUNDS;
    println!("{what}: {each:?} for {groups} groups (the orchestrator's plan of the same: {beside:?})");
}

fn apply(state: &mut State, groups: Vec<Group>) {
    let applied = state.apply(&Transaction { at: NOW, groups, ..Transaction::default() });
    assert_eq!(applied.refused, vec![], "one writer has no races");
}

fn service(state: &State) -> &Arc<Service> {
    state.service(SERVICE).expect("it is there")
}

fn roll_out(state: &mut State, template: TaskTemplate) {
    let revised = Service::clone(service(state));
    let changes = orchestrate::begin_roll_out(state, revised, Arc::new(template), RollOut::Update, NOW);
    apply(state, vec![Group(changes)]);
}

/// A service whose tasks all run.
fn swarm(policy: UpdatePolicy) -> State {
    let mut state = State::default();
    for id in 1..=NODES {
        state.put(Node {
            id: NodeId::new(id),
            meta: Meta::default(),
            spec: Arc::new(NodeSpec::default()),
            description: None,
            status: NodeStatus { state: NodeState::Ready, ..NodeStatus::default() },
            role: NodeRole::Worker,
            manager: None,
            fabric_number: None,
            ingress: None,
        });
    }
    let mode = Some(Mode::Replicated(ReplicatedMode { replicas: REPLICAS }));
    let spec = ServiceSpec { name: "web".into(), mode, update: Some(policy), ..ServiceSpec::default() };
    let service = Service {
        id: SERVICE,
        meta: Meta::default(),
        spec: Arc::new(spec),
        revision: 1,
        ports: Vec::new(),
        update: None,
        virtual_addresses: Vec::new(),
    };
    let container = ContainerSpec { name: "main".into(), image: "busybox".into(), ..ContainerSpec::default() };
    let template = TaskTemplate { containers: vec![container], ..TaskTemplate::default() };
    let revision = service.current();
    state.put(Revision {
        key: revision,
        template: Arc::new(template),
        created_at: NOW,
        copied_from: None,
        service_name: "web".into(),
        live: None,
    });
    state.put(service);
    for slot in 1..=REPLICAS {
        let status = TaskStatus { state: TaskState::Running.into(), since_ms: NOW.0, ..TaskStatus::default() };
        state.put(Task {
            id: TaskId::new(u128::from(slot) << 64 | 7),
            meta: Meta::default(),
            revision,
            slot: Slot::Replica(slot),
            node: Some(NodeId::new(u128::from(slot) % NODES + 1)),
            wanted: WantedState::Running,
            state: TaskState::Running,
            status: Arc::new(status),
            ports: Vec::new(),
            start_at: None,
            replaces: None,
            policy_restart: false,
            networks: Vec::new(),
        });
    }
    state
}
