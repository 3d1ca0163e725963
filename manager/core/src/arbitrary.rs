//! Random changes for property tests. Few ids, so that they meet; versions right most of the time, so that sequences
//! get somewhere; and everything else as it comes: wrong versions, missing references, states that go back.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use skep_proto::id::{ClusterId, CredentialId, NodeId, RequestId, ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    Availability, ClusterSpec, ContainerSpec, ContainerState, ContainerStatus, NodeDescription, NodeRole, NodeSpec,
    NodeState, PortSpec, PublishMode, RegistryAuth, ReplicatedMode, ServiceSpec, TaskState, TaskStatus, TaskTemplate,
    WantedState,
};

use crate::change::{Change, Expect, Group, NodeObserved, Op, TaskObserved, Transaction};
use crate::object::{
    Cluster, Credential, ImageName, ManagerStatus, Meta, Node, NodeStatus, Revision, RevisionKey, Service, Slot, Task,
};
use crate::store::{ObjectKey, State};

/// All task states, in order.
pub(crate) const STATES: [TaskState; 13] = [
    TaskState::New,
    TaskState::Pending,
    TaskState::Assigned,
    TaskState::Accepted,
    TaskState::Preparing,
    TaskState::Ready,
    TaskState::Starting,
    TaskState::Running,
    TaskState::Complete,
    TaskState::Shutdown,
    TaskState::Failed,
    TaskState::Rejected,
    TaskState::Orphaned,
];
const WANTED: [WantedState; 6] = [
    WantedState::Unspecified,
    WantedState::Ready,
    WantedState::Running,
    WantedState::Draining,
    WantedState::Shutdown,
    WantedState::Remove,
];

/// What a change expects, before the state is known.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Guess {
    /// What is true.
    Right,
    As(Expect),
}

/// A change whose expectation is filled in when the state is known.
pub(crate) type Draft = (Guess, Op);

/// A transaction before the state is known: groups of drafts.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) request: Option<RequestId>,
    pub(crate) at: UnixMs,
    pub(crate) groups: Vec<Vec<Draft>>,
}

impl Plan {
    /// The transaction, with right versions where they were asked for.
    pub(crate) fn resolve(&self, state: &State) -> Transaction {
        let change = |(guess, op): &Draft| Change { expect: expect(state, *guess, op), op: aim(state, *guess, op) };
        let group = |group: &Vec<Draft>| Group(group.iter().map(change).collect());
        let object_id = self.request.map(|request| request.to_vec()).unwrap_or_default();
        Transaction { request: self.request, at: self.at, groups: self.groups.iter().map(group).collect(), object_id }
    }
}

fn expect(state: &State, guess: Guess, op: &Op) -> Expect {
    let Guess::As(expect) = guess else {
        let stored = key(op).and_then(|key| state.get(&key));
        return match stored {
            None => Expect::Absent,
            Some(stored) => stored.meta().map_or(Expect::Any, |meta| Expect::Version(meta.version)),
        };
    };
    expect
}

/// With a right guess a report comes from the task's own node.
fn aim(state: &State, guess: Guess, op: &Op) -> Op {
    let mut op = op.clone();
    if let (Guess::Right, Op::ObserveTask(report)) = (guess, &mut op)
        && let Some(node) = state.task(report.task).and_then(|task| task.node)
    {
        report.node = node;
    }
    op
}

fn key(op: &Op) -> Option<ObjectKey> {
    Some(match op {
        Op::PutCluster(_) => ObjectKey::Cluster,
        Op::PutNode(node) => ObjectKey::Node(node.id),
        Op::PutService(service) => ObjectKey::Service(service.id),
        Op::PutRevision(revision) => ObjectKey::Revision(revision.key),
        Op::PutTask(task) => ObjectKey::Task(task.id),
        Op::PutImageName(name) => ObjectKey::ImageName(name.name.clone()),
        Op::PutCredential(credential) => ObjectKey::Credential(credential.id),
        Op::RemoveNode(id) => ObjectKey::Node(*id),
        Op::RemoveService(id) => ObjectKey::Service(*id),
        Op::RemoveRevision(key) => ObjectKey::Revision(*key),
        Op::RemoveTask(id) => ObjectKey::Task(*id),
        Op::RemoveImageName(name) => ObjectKey::ImageName(name.clone()),
        Op::RemoveCredential(id) => ObjectKey::Credential(*id),
        Op::PutNetwork(network) => ObjectKey::Network(network.id),
        Op::RemoveNetwork(id) => ObjectKey::Network(*id),
        Op::ObserveTask(_) | Op::ObserveNode(_) => return None,
    })
}

/// Sequences of transactions, with times that mostly rise.
pub(crate) fn history(length: usize) -> impl Strategy<Value = Vec<Plan>> {
    let plan = (option::weighted(0.2, 1..20u128), 0..400_000i64, vec(group(), 1..4));
    vec(plan, 1..length).prop_map(|plans| {
        let mut now = 1_000;
        let timed = plans.into_iter().map(|(request, wait, groups)| {
            now += wait;
            Plan { request: request.map(RequestId::new), at: UnixMs(now), groups }
        });
        timed.collect()
    })
}

fn group() -> impl Strategy<Value = Vec<Draft>> {
    prop_oneof![
        4 => draft().prop_map(|draft| vec![draft]),
        2 => new_service(),
        1 => vec(draft(), 0..4),
    ]
}

/// What `service create` writes.
fn new_service() -> impl Strategy<Value = Vec<Draft>> {
    (service_id(), 1..4u64, name(), any::<bool>()).prop_map(|(id, number, name, revision_first)| {
        let mut drafts = vec![
            (Guess::Right, Op::PutService(service(id, number, &name))),
            (Guess::Right, Op::PutRevision(revision(RevisionKey { service: id, number }))),
        ];
        if revision_first {
            drafts.reverse();
        }
        drafts
    })
}

fn draft() -> impl Strategy<Value = Draft> {
    let guess = prop_oneof![
        6 => Just(Guess::Right),
        1 => Just(Guess::As(Expect::Any)),
        1 => Just(Guess::As(Expect::Absent)),
        1 => (0..30u64).prop_map(|version| Guess::As(Expect::Version(version))),
    ];
    (guess, op())
}

/// Any change.
pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => (1..=1u128, any::<i32>()).prop_map(|(id, limit)| Op::PutCluster(cluster(id, limit))),
        4 => node().prop_map(Op::PutNode),
        3 => (service_id(), 1..4u64, name()).prop_map(|(id, number, name)| Op::PutService(service(id, number, &name))),
        2 => revision_key().prop_map(|key| Op::PutRevision(revision(key))),
        14 => task().prop_map(Op::PutTask),
        1 => image_name().prop_map(|name| Op::PutImageName(ImageName {
            name, meta: Meta::default(), digest: "sha256:0".into(), platforms: Vec::new(),
        })),
        2 => (credential_id(), service_id()).prop_map(|(id, service)| Op::PutCredential(credential(id, service))),
        1 => node_id().prop_map(Op::RemoveNode),
        1 => service_id().prop_map(Op::RemoveService),
        2 => revision_key().prop_map(Op::RemoveRevision),
        3 => task_id().prop_map(Op::RemoveTask),
        1 => image_name().prop_map(Op::RemoveImageName),
        1 => credential_id().prop_map(Op::RemoveCredential),
        10 => (task_id(), node_id(), status()).prop_map(|(task, node, status)| {
            Op::ObserveTask(TaskObserved { task, node, status: Arc::new(status) })
        }),
        3 => node_observed().prop_map(Op::ObserveNode),
    ]
}

fn node_id() -> impl Strategy<Value = NodeId> {
    (1..=3u128).prop_map(NodeId::new)
}

fn service_id() -> impl Strategy<Value = ServiceId> {
    (1..=3u128).prop_map(ServiceId::new)
}

fn task_id() -> impl Strategy<Value = TaskId> {
    (1..=6u128).prop_map(TaskId::new)
}

fn credential_id() -> impl Strategy<Value = CredentialId> {
    (1..=2u128).prop_map(CredentialId::new)
}

fn revision_key() -> impl Strategy<Value = RevisionKey> {
    (service_id(), 0..4u64).prop_map(|(service, number)| RevisionKey { service, number })
}

fn name() -> impl Strategy<Value = String> {
    select(vec!["web", "db", "web.1"]).prop_map(str::to_owned)
}

fn image_name() -> impl Strategy<Value = String> {
    select(vec!["", "docker.io/library/web:1", "docker.io/library/web:2"]).prop_map(str::to_owned)
}

fn cluster(id: u128, limit: i32) -> Cluster {
    Cluster {
        id: ClusterId::new(id),
        meta: Meta::default(),
        spec: ClusterSpec { task_history_limit: limit, ..ClusterSpec::default() },
        root_cert_pem: "certificate".into(),
        root_key_pem: "key".into(),
        worker_token_secret: [1; 16],
        manager_token_secret: [2; 16],
        feature_level: 1,
        last_raft_id: 4,
        recovery_epoch: 0,
    }
}

fn node() -> impl Strategy<Value = Node> {
    let labels = proptest::collection::btree_map("[a-c]", "[a-c]", 0..3);
    (node_id(), labels, option::of(description()), option::of(1..5u64)).prop_map(
        |(id, labels, description, raft_id)| Node {
            id,
            meta: Meta::default(),
            spec: Arc::new(NodeSpec { labels, availability: Availability::Pause.into(), ..NodeSpec::default() }),
            description: description.map(Arc::new),
            status: NodeStatus::default(),
            role: NodeRole::Worker,
            manager: raft_id.map(|raft_id| ManagerStatus { raft_id, addr: "10.0.0.1:2377".into() }),
            fabric_number: None,
            ingress: None,
        },
    )
}

fn description() -> impl Strategy<Value = NodeDescription> {
    select(vec!["", "host1", "host2"])
        .prop_map(|hostname| NodeDescription { hostname: hostname.into(), ..NodeDescription::default() })
}

fn node_observed() -> impl Strategy<Value = NodeObserved> {
    let state = select(vec![NodeState::Ready, NodeState::Down, NodeState::Unknown]);
    let status = state.prop_map(|state| NodeStatus { state, since: UnixMs(7), ..NodeStatus::default() });
    let role = select(vec![NodeRole::Worker, NodeRole::Manager]);
    (option::weighted(0.9, node_id()), option::of(description()), option::of(status), option::of(role)).prop_map(
        |(node, description, status, role)| NodeObserved { node, description: description.map(Arc::new), status, role },
    )
}

fn service(id: ServiceId, revision: u64, name: &str) -> Service {
    let mode = Some(Mode::Replicated(ReplicatedMode { replicas: 3 }));
    let spec = ServiceSpec { name: name.to_owned(), mode, ..ServiceSpec::default() };
    Service {
        id,
        meta: Meta::default(),
        spec: Arc::new(spec),
        revision,
        ports: Vec::new(),
        update: None,
        virtual_addresses: Vec::new(),
    }
}

fn revision(key: RevisionKey) -> Revision {
    let container =
        |name: &str| ContainerSpec { name: name.into(), image: "busybox".into(), ..ContainerSpec::default() };
    let template = TaskTemplate {
        containers: vec![container("main"), container("side")],
        credential_id: CredentialId::new(1 + u128::from(key.number) % 2).to_vec(),
        ..TaskTemplate::default()
    };
    Revision {
        key,
        template: Arc::new(template),
        created_at: UnixMs::ZERO,
        copied_from: key.number.checked_sub(1),
        service_name: "web".into(),
    }
}

fn credential(id: CredentialId, service: ServiceId) -> Credential {
    let auth = RegistryAuth { username: "user".into(), password: "secret".into(), ..RegistryAuth::default() };
    Credential { id, meta: Meta::default(), service, registry: "registry.example".into(), auth }
}

fn status() -> impl Strategy<Value = TaskStatus> {
    let container = (
        select(vec!["main", "side", "other"]),
        select(vec![ContainerState::Created, ContainerState::Running, ContainerState::Exited, ContainerState::Lost]),
        any::<u32>(),
    );
    let container = container.prop_map(|(name, state, pid)| ContainerStatus {
        name: name.into(),
        state: state.into(),
        pid,
        ..ContainerStatus::default()
    });
    let state = prop_oneof![30 => select(STATES.to_vec()).prop_map(i32::from), 1 => Just(17)];
    (state, any::<i64>(), "[a-b]", vec(container, 0..3)).prop_map(|(state, since_ms, message, containers)| TaskStatus {
        state,
        since_ms,
        message,
        containers,
        ..TaskStatus::default()
    })
}

/// Ids of tasks give service and place, so that puts of one task mostly fit each other.
fn task() -> impl Strategy<Value = Task> {
    let port = PortSpec { published_port: 80, target_port: 80, mode: PublishMode::Host.into(), ..PortSpec::default() };
    let parts = (
        (task_id(), option::weighted(0.7, node_id()), 1..3u64, any::<bool>()),
        (select(WANTED.to_vec()), select(STATES[..8].to_vec()), 0..30u8),
        (option::of(0..3i64), option::of(task_id()), vec(Just(port), 0..2)),
    );
    parts.prop_map(|((id, node, number, policy_restart), (wanted, state, odd), (start_at, replaces, ports))| {
        let value = id.value();
        // Now and then something that does not fit.
        let slot = match odd {
            0 => Slot::Replica(0),
            1 => Slot::Node(NodeId::new(9)),
            _ if value % 3 == 0 => Slot::Node(NodeId::new(1 + value % 2)),
            _ => Slot::Replica(1 + u64::from(value > 3)),
        };
        let told = if odd == 2 { TaskState::Rejected } else { state };
        Task {
            id,
            meta: Meta::default(),
            revision: RevisionKey { service: ServiceId::new(1 + value % 2), number },
            slot,
            node: match slot {
                Slot::Node(place) if odd != 3 => Some(place),
                _ => node,
            },
            wanted,
            state,
            status: Arc::new(TaskStatus { state: told.into(), since_ms: 3, ..TaskStatus::default() }),
            ports,
            start_at: start_at.map(UnixMs),
            replaces,
            policy_restart,
            networks: Vec::new(),
        }
    })
}
