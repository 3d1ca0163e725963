//! Small builders of states for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_proto::cidr::Cidr;
use skep_proto::id::{ClusterId, NetworkId, NodeId, ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    Availability, ContainerSpec, GlobalMode, NetworkSpec, NodeDescription, NodeRole, NodeSpec, NodeState, Platform,
    ReplicatedMode, ResourceSpec, Resources, RestartPolicy, ServiceSpec, SubnetSpec, TaskState, TaskStatus,
    TaskTemplate,
};

use crate::change::{Op, Plan};
use crate::ids::Ids;
use crate::object::{Cluster, Meta, Network, Node, NodeStatus, Revision, Service, Subnet, Task};
use crate::orchestrate;
use crate::store::{ObjectKey, State};

/// The time at which examples start.
pub(crate) const START: UnixMs = UnixMs(1_000_000);

/// A ready worker with 4 CPUs and 8 GiB.
pub(crate) fn node(number: u128) -> NodeBuilder {
    NodeBuilder { id: NodeId::new(number), labels: BTreeMap::new(), address: String::new(), state: NodeState::Ready }
}

pub(crate) struct NodeBuilder {
    id: NodeId,
    labels: BTreeMap<String, String>,
    address: String,
    state: NodeState,
}

impl NodeBuilder {
    pub(crate) fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn address(mut self, address: &str) -> Self {
        address.clone_into(&mut self.address);
        self
    }

    pub(crate) fn build(self) -> Node {
        let description = NodeDescription {
            hostname: format!("host{}", self.id.value()),
            platform: Some(Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() }),
            resources: Some(Resources { nano_cpus: 4_000_000_000, memory_bytes: 8 << 30 }),
            ..NodeDescription::default()
        };
        Node {
            id: self.id,
            meta: Meta { version: 1, created_at: START, updated_at: START },
            spec: Arc::new(NodeSpec { labels: self.labels, ..NodeSpec::default() }),
            description: Some(Arc::new(description)),
            status: NodeStatus { state: self.state, addr: self.address, since: START, ..NodeStatus::default() },
            role: NodeRole::Worker,
            manager: None,
            fabric_number: None,
            ingress: None,
        }
    }
}

/// An overlay with one subnet, whose gateway is the first address.
pub(crate) fn network(id: u128, name: &str, cidr: &str, ingress: bool) -> Network {
    let cidr: Cidr = cidr.parse().expect("tests write it well");
    let subnet = SubnetSpec { subnet: cidr.to_string(), ..SubnetSpec::default() };
    let spec = NetworkSpec { name: name.into(), ingress, subnets: vec![subnet], ..NetworkSpec::default() };
    Network {
        id: NetworkId::new(id),
        meta: Meta { version: 1, created_at: START, updated_at: START },
        spec: Arc::new(spec),
        subnets: vec![Subnet { cidr, gateway: cidr.hosts().0, range: None }],
        vni: Some(4096 + u32::try_from(id).expect("tests have few")),
    }
}

/// Makes the service's tasks, as the orchestrator does.
pub(crate) fn pending_tasks(state: &mut State, service: ServiceId) -> Vec<TaskId> {
    let plan = orchestrate::plan(state, service, START, &mut Ids::new(1));
    carry_out(state, &plan, START);
    state.tasks_of_service(service).map(|task| task.id).collect()
}

/// A state with a cluster and `nodes` ready workers, numbered from 1.
pub(crate) fn swarm(nodes: u128) -> State {
    let mut state = State::default();
    state.put(Cluster { feature_level: crate::parcels::FEATURE_LEVEL, ..Cluster::bare(ClusterId::new(1)) });
    for number in 1..=nodes {
        state.put(node(number).build());
    }
    state
}

pub(crate) fn replicated(replicas: u64) -> Mode {
    Mode::Replicated(ReplicatedMode { replicas })
}

pub(crate) fn global() -> Mode {
    Mode::Global(GlobalMode {})
}

/// Puts service 100 with one container and revision 1, without restart delay, changed by `change`.
pub(crate) fn with_service(state: &mut State, mode: Mode, change: impl FnOnce(&mut TaskTemplate)) -> ServiceId {
    let id = ServiceId::new(100);
    let container = ContainerSpec { name: "main".into(), image: "busybox".into(), ..ContainerSpec::default() };
    let restart = RestartPolicy { delay_ms: -1, ..RestartPolicy::default() };
    let mut template = TaskTemplate { containers: vec![container], restart: Some(restart), ..TaskTemplate::default() };
    change(&mut template);
    let spec = ServiceSpec { name: "web".into(), mode: Some(mode), ..ServiceSpec::default() };
    let meta = Meta { version: 1, created_at: START, updated_at: START };
    let service = Service {
        id,
        meta,
        spec: Arc::new(spec),
        revision: 1,
        ports: Vec::new(),
        update: None,
        virtual_addresses: Vec::new(),
    };
    let revision = Revision {
        key: service.current(),
        template: Arc::new(template),
        created_at: START,
        copied_from: None,
        service_name: "web".into(),
        live: None,
    };
    state.put(service);
    state.put(revision);
    id
}

/// Changes the service's mode in place.
pub(crate) fn set_mode(state: &mut State, service: ServiceId, mode: Mode) {
    change_service(state, service, |spec| spec.mode = Some(mode));
}

pub(crate) fn change_service(state: &mut State, service: ServiceId, change: impl FnOnce(&mut ServiceSpec)) {
    let mut service = Service::clone(state.service(service).expect("the example has it"));
    change(Arc::make_mut(&mut service.spec));
    state.put(service);
}

/// Reserves memory for each task.
pub(crate) fn reserve_memory(template: &mut TaskTemplate, memory_bytes: i64) {
    let reservations = Some(Resources { nano_cpus: 0, memory_bytes });
    template.containers[0].resources = Some(ResourceSpec { reservations, ..ResourceSpec::default() });
}

/// Sets a node's observed state.
pub(crate) fn set_node(state: &mut State, number: u128, node_state: NodeState, since: UnixMs) {
    let mut node = Node::clone(state.node(NodeId::new(number)).expect("the example has it"));
    node.status = NodeStatus { state: node_state, since, ..node.status };
    state.put(node);
}

/// Sets a node's availability.
pub(crate) fn set_availability(state: &mut State, number: u128, availability: Availability) {
    let mut node = Node::clone(state.node(NodeId::new(number)).expect("the example has it"));
    Arc::make_mut(&mut node.spec).availability = availability.into();
    state.put(node);
}

/// Sets what a task's node reports.
pub(crate) fn observe(state: &mut State, id: TaskId, task_state: TaskState, at: UnixMs) {
    let mut task = Task::clone(state.task(id).expect("the example has it"));
    task.state = task_state;
    task.status = Arc::new(TaskStatus { state: task_state.into(), since_ms: at.0, ..TaskStatus::default() });
    task.meta.updated_at = at;
    state.put(task);
}

/// Stores a plan's results without `apply`'s checks: what the loops mean, not what the store accepts.
pub(crate) fn carry_out(state: &mut State, plan: &Plan, now: UnixMs) {
    let version = state.version() + 1;
    state.set_version(version);
    for change in plan.groups.iter().flat_map(|group| &group.0) {
        match &change.op {
            Op::PutTask(task) => {
                let created_at = state.task(task.id).map_or(now, |old| old.meta.created_at);
                state.put(Task { meta: Meta { version, created_at, updated_at: now }, ..task.clone() });
            }
            Op::RemoveTask(id) => {
                state.remove(&ObjectKey::Task(*id));
            }
            Op::RemoveRevision(key) => {
                state.remove(&ObjectKey::Revision(*key));
            }
            other => panic!("a loop made {other:?}"),
        }
    }
}
