//! The scheduler alone, in this process: one pass over 1,000 nodes and 100,000 pending tasks of one service.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use skep_core::change::{Op, Plan};
use skep_core::network::Cursors;
use skep_core::object::{Meta, Node, NodeStatus, Revision, Service, Slot, Task};
use skep_core::schedule::{Ledger, plan};
use skep_core::store::State;
use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    ContainerSpec, NodeDescription, NodeRole, NodeSpec, NodeState, Placement, Platform, ReplicatedMode, ResourceSpec,
    Resources, ServiceSpec, TaskState, TaskStatus, TaskTemplate, WantedState,
};

use crate::metric::SCHEDULER_100K;
use crate::report::Report;
use crate::samples::median;

const NODES: u64 = 1_000;
const TASKS: u64 = 100_000;
const ROUNDS: u64 = 3;
const NOW: UnixMs = UnixMs(1_000_000);
const SERVICE: ServiceId = ServiceId::new(1);

/// Times the pass, as the scheduler's loop makes it: the ledger of loads is kept from pass to pass.
pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let state = state();
    let ledger = Ledger::of(&state);
    let mut seconds = Vec::new();
    for seed in 0..ROUNDS {
        let started = Instant::now();
        let plan = plan(&state, &ledger, &mut Cursors::default(), NOW, seed);
        seconds.push(started.elapsed().as_secs_f64());
        check(&plan)?;
    }
    eprintln!("scheduler: swarmkit's own benchmark takes 25 CPU seconds at best (published figure, not measured here)");
    report.add(&SCHEDULER_100K, median(&seconds).expect("there were rounds"), None)
}

/// Every task has a node, and the nodes share them evenly: a pass that did less would be fast for nothing.
fn check(plan: &Plan) -> Result<()> {
    let mut by_node = BTreeMap::<NodeId, u64>::new();
    for change in plan.groups.iter().flat_map(|group| &group.0) {
        if let Op::PutTask(Task { node: Some(node), state: TaskState::Assigned, .. }) = &change.op {
            *by_node.entry(*node).or_default() += 1;
        }
    }
    let even = by_node.len() as u64 == NODES && by_node.values().all(|tasks| *tasks == TASKS / NODES);
    ensure!(even, "the scheduler placed {} tasks on {} nodes", by_node.values().sum::<u64>(), by_node.len());
    Ok(())
}

fn state() -> State {
    let mut state = State::default();
    for number in 1..=NODES {
        state.put(node(number));
    }
    let spec = ServiceSpec {
        name: "web".into(),
        mode: Some(Mode::Replicated(ReplicatedMode { replicas: TASKS })),
        ..ServiceSpec::default()
    };
    let service = Service {
        id: SERVICE,
        meta: meta(),
        spec: Arc::new(spec),
        revision: 1,
        ports: Vec::new(),
        update: None,
        virtual_addresses: Vec::new(),
    };
    let key = service.current();
    state.put(service);
    state.put(Revision {
        key,
        template: Arc::new(template()),
        created_at: NOW,
        copied_from: None,
        service_name: "web".into(),
        live: None,
    });
    let status = Arc::new(TaskStatus { state: TaskState::Pending.into(), since_ms: NOW.0, ..TaskStatus::default() });
    for slot in 1..=TASKS {
        state.put(Task {
            id: TaskId::new(scattered(slot)),
            meta: meta(),
            revision: key,
            slot: Slot::Replica(slot),
            node: None,
            wanted: WantedState::Running,
            state: TaskState::Pending,
            status: status.clone(),
            ports: Vec::new(),
            start_at: None,
            replaces: None,
            policy_restart: false,
            networks: Vec::new(),
        });
    }
    state
}

/// A worker with room for its share and more, in one of four zones.
fn node(number: u64) -> Node {
    let description = NodeDescription {
        hostname: format!("host{number}"),
        platform: Some(Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() }),
        resources: Some(Resources { nano_cpus: 64_000_000_000, memory_bytes: 256 << 30 }),
        ..NodeDescription::default()
    };
    let labels = BTreeMap::from([("zone".to_owned(), format!("z{}", number % 4))]);
    Node {
        id: NodeId::new(scattered(number)),
        meta: meta(),
        spec: Arc::new(NodeSpec { labels, ..NodeSpec::default() }),
        description: Some(Arc::new(description)),
        status: NodeStatus { state: NodeState::Ready, since: NOW, ..NodeStatus::default() },
        role: NodeRole::Worker,
        manager: None,
        fabric_number: None,
        ingress: None,
    }
}

/// With reservations and a constraint, so that every filter has something to do.
fn template() -> TaskTemplate {
    let reservations = Resources { nano_cpus: 100_000_000, memory_bytes: 64 << 20 };
    let container = ContainerSpec {
        name: "main".into(),
        image: "busybox".into(),
        resources: Some(ResourceSpec { reservations: Some(reservations), ..ResourceSpec::default() }),
        ..ContainerSpec::default()
    };
    let placement = Placement { constraints: vec!["node.labels.zone!=z9".into()], ..Placement::default() };
    TaskTemplate { containers: vec![container], placement: Some(placement), ..TaskTemplate::default() }
}

fn meta() -> Meta {
    Meta { version: 1, created_at: NOW, updated_at: NOW }
}

/// Ids are random in a real swarm: neighbours by number must not be neighbours in the tables.
fn scattered(number: u64) -> u128 {
    u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
}
