//! Random changes for property tests. Few ids, so that they meet; versions right most of the time, so that sequences
//! get somewhere; and everything else as it comes: wrong versions, missing references, states that go back.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use skep_proto::id::{
    ClientId, ClusterId, ConfigId, CredentialId, NetworkId, NodeId, RequestId, SecretId, ServiceId, TaskId,
};
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    Availability, ClientRole, ClusterSpec, ConfigRef, ContainerSpec, ContainerState, ContainerStatus, FabricEndpoint,
    NetworkAttachment, NetworkDriver, NetworkSpec, NodeCertificate, NodeDescription, NodeRole, NodeSpec, NodeState,
    PortSpec, PublishMode, RegistryAuth, ReplicatedMode, SecretRef, ServiceSpec, TaskState, TaskStatus, TaskTemplate,
    WantedState,
};

use crate::change::{Change, Expect, Group, NodeObserved, Op, TaskObserved, Transaction};
use crate::object::{
    Client, Cluster, Credential, Data, ImageName, LiveChange, ManagerStatus, Meta, Network, NetworkAddresses, Node,
    NodeStatus, Parcel, ParcelId, ParcelSpec, Payload, PayloadKey, PayloadVersion, Revision, RevisionKey, RootRotation,
    Service, Slot, Subnet, Task,
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
        Op::PutParcel(parcel) => ObjectKey::Parcel(parcel.id),
        Op::RemoveParcel(id) => ObjectKey::Parcel(*id),
        Op::PutPayload(payload) => ObjectKey::Payload(payload.key),
        Op::RemovePayload(key) => ObjectKey::Payload(*key),
        Op::PutClient(client) => ObjectKey::Client(client.id),
        Op::RemoveClient(id) => ObjectKey::Client(*id),
        Op::ObserveTask(_) | Op::ObserveNode(_) => return None,
    })
}

/// Sequences of transactions, with times that mostly rise.
pub(crate) fn history(length: usize) -> impl Strategy<Value = Vec<Plan>> {
    let plan = (option::weighted(0.2, 1..20u128), 0..400_000i64, vec(group(), 1..4));
    // Most histories begin with networks, a secret and a config: else few services come into being.
    let networks = option::weighted(0.8, vec(network(), 3..6));
    (networks, vec(plan, 1..length)).prop_map(|(networks, mut plans)| {
        if let Some(networks) = networks {
            let alone = |network| vec![(Guess::Right, Op::PutNetwork(network))];
            let parcels = PARCELS.into_iter().flat_map(|id| [rotation(id, 1), rotation(id, 2)]);
            plans.insert(0, (None, 0, networks.into_iter().map(alone).chain(parcels).collect()));
        }
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
        12 => draft().prop_map(|draft| vec![draft]),
        6 => new_service(),
        3 => vec(draft(), 0..4),
        1 => (parcel_id(), 1..4u64).prop_map(|(id, newest)| rotation(id, newest)),
        1 => (parcel_id(), 1..4u64).prop_map(|(id, newest)| removal(id, newest)),
    ]
}

const PARCELS: [ParcelId; 3] =
    [ParcelId::Secret(SecretId::new(1)), ParcelId::Secret(SecretId::new(2)), ParcelId::Config(ConfigId::new(1))];

/// What `secret create` and `secret rotate` write, where the versions before are there.
fn rotation(id: ParcelId, newest: u64) -> Vec<Draft> {
    let versions = (1..=newest).map(payload_version).collect();
    let parcel = parcel(id, "db", versions);
    vec![(Guess::Right, Op::PutParcel(parcel)), (Guess::Right, Op::PutPayload(payload(id, newest)))]
}

/// What `secret rm` writes, where these are all versions that there are.
fn removal(id: ParcelId, newest: u64) -> Vec<Draft> {
    let payloads = (1..=newest).map(|version| Op::RemovePayload(PayloadKey { owner: id, version }));
    std::iter::once(Op::RemoveParcel(id)).chain(payloads).map(|op| (Guess::Right, op)).collect()
}

fn parcel_id() -> impl Strategy<Value = ParcelId> {
    select(PARCELS.to_vec())
}

fn parcel(id: ParcelId, name: &str, versions: Vec<PayloadVersion>) -> Parcel {
    let name = if id == PARCELS[1] { format!("{name}2") } else { name.to_owned() };
    let labels = [("a".to_owned(), "b".to_owned())].into();
    Parcel { id, meta: Meta::default(), spec: Arc::new(ParcelSpec { name, labels, templated: false }), versions }
}

fn payload_version(number: u64) -> PayloadVersion {
    PayloadVersion { number, created_at: UnixMs::ZERO, size: number, copied_from: (number == 3).then_some(1) }
}

fn payload(owner: ParcelId, version: u64) -> Payload {
    let data = vec![7; usize::try_from(version).expect("they are few")];
    Payload { key: PayloadKey { owner, version }, data: Data::new(data) }
}

/// Any, also one that does not fit what is stored, or anything.
fn any_parcel() -> impl Strategy<Value = Parcel> {
    let versions = vec(0..4u64, 0..3);
    (parcel_id(), select(vec!["db", "db2", "other", ""]), versions)
        .prop_map(|(id, name, numbers)| parcel(id, name, numbers.into_iter().map(payload_version).collect()))
}

/// What `service create` writes.
fn new_service() -> impl Strategy<Value = Vec<Draft>> {
    (service(), any::<bool>()).prop_map(|(service, revision_first)| {
        let (id, number) = (service.id, service.revision);
        let mut drafts = vec![
            (Guess::Right, Op::PutService(service)),
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
        3 => service().prop_map(Op::PutService),
        4 => network().prop_map(Op::PutNetwork),
        2 => revision_key().prop_map(|key| Op::PutRevision(revision(key))),
        18 => task().prop_map(Op::PutTask),
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
        1 => network_id().prop_map(Op::RemoveNetwork),
        1 => any_parcel().prop_map(Op::PutParcel),
        1 => (parcel_id(), 0..4u64).prop_map(|(id, version)| Op::PutPayload(payload(id, version))),
        1 => parcel_id().prop_map(Op::RemoveParcel),
        1 => (parcel_id(), 1..4u64).prop_map(|(owner, version)| Op::RemovePayload(PayloadKey { owner, version })),
        20 => (task_id(), node_id(), status()).prop_map(|(task, node, status)| {
            Op::ObserveTask(TaskObserved { task, node, status: Arc::new(status) })
        }),
        3 => node_observed().prop_map(Op::ObserveNode),
        1 => client().prop_map(Op::PutClient),
        1 => (1..=2u128).prop_map(|id| Op::RemoveClient(ClientId::new(id))),
    ]
}

fn client() -> impl Strategy<Value = Client> {
    let roles = vec![ClientRole::Viewer, ClientRole::Operator, ClientRole::Admin];
    (1..=2u128, select(vec!["alice", "bob", ""]), select(roles), 0..3i64).prop_map(|(id, name, role, end)| Client {
        id: ClientId::new(id),
        meta: Meta::default(),
        name: name.into(),
        role,
        cert_not_after: UnixMs(end),
    })
}

fn node_id() -> impl Strategy<Value = NodeId> {
    (1..=3u128).prop_map(NodeId::new)
}

fn network_id() -> impl Strategy<Value = NetworkId> {
    (1..=3u128).prop_map(NetworkId::new)
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
        spec: ClusterSpec { task_history_limit: limit, autolock: limit > 0, ..ClusterSpec::default() },
        root_cert_pem: "certificate".into(),
        root_key_pem: "key".into(),
        worker_token_secret: [1; 16],
        manager_token_secret: [2; 16],
        feature_level: 1,
        last_raft_id: 4,
        recovery_epoch: 0,
        unlock_key: (limit > 0).then_some([3; 32]),
        data_key_epoch: u64::try_from(limit).unwrap_or_default(),
        root_rotation: (limit % 2 == 0).then(|| {
            Arc::new(RootRotation {
                root_cert_pem: "new certificate".into(),
                root_key_pem: "new key".into(),
                cross_signed_pem: "cross-signed".into(),
                digest: [4; 32],
                started_at: UnixMs(5),
            })
        }),
    }
}

fn node() -> impl Strategy<Value = Node> {
    let labels = proptest::collection::btree_map("[a-c]", "[a-c]", 0..3);
    let place = (option::weighted(0.4, 0..4u32), option::weighted(0.3, addresses()));
    (node_id(), labels, option::of(description()), option::of(1..5u64), place).prop_map(
        |(id, labels, description, raft_id, (fabric_number, ingress))| Node {
            id,
            meta: Meta::default(),
            spec: Arc::new(NodeSpec { labels, availability: Availability::Pause.into(), ..NodeSpec::default() }),
            description: description.map(Arc::new),
            status: NodeStatus::default(),
            role: NodeRole::Worker,
            manager: raft_id.map(|raft_id| ManagerStatus { raft_id, addr: "10.0.0.1:2377".into() }),
            fabric_number,
            ingress,
        },
    )
}

fn description() -> impl Strategy<Value = NodeDescription> {
    let fabric = select(vec!["", "192.0.2.1", "192.0.2.2"]).prop_map(|address| {
        let fabric = FabricEndpoint { vxlan_addr: address.into(), ..FabricEndpoint::default() };
        (!address.is_empty()).then_some(fabric)
    });
    let certificate = option::of(select(vec![0, 4])).prop_map(|issuer| {
        issuer.map(|issuer| NodeCertificate { issuer: vec![issuer; 32], not_after_ms: 1, ..NodeCertificate::default() })
    });
    (select(vec!["", "host1", "host2"]), fabric, certificate).prop_map(|(hostname, fabric, certificate)| {
        NodeDescription { hostname: hostname.into(), fabric, certificate, ..NodeDescription::default() }
    })
}

fn node_observed() -> impl Strategy<Value = NodeObserved> {
    let state = select(vec![NodeState::Ready, NodeState::Down, NodeState::Unknown]);
    let status = state.prop_map(|state| NodeStatus { state, since: UnixMs(7), ..NodeStatus::default() });
    let role = select(vec![NodeRole::Worker, NodeRole::Manager]);
    (option::weighted(0.9, node_id()), option::of(description()), option::of(status), option::of(role)).prop_map(
        |(node, description, status, role)| NodeObserved { node, description: description.map(Arc::new), status, role },
    )
}

/// Network n usually has the n-th eighth of 10.0.0.0/24; now and then one that overlaps with others.
fn network() -> impl Strategy<Value = Network> {
    let parts = (network_id(), select(vec!["front", "back", "third"]), 0..12u8, any::<bool>());
    parts.prop_map(|(id, name, odd, ingress)| {
        let number = u8::try_from(id.value()).expect("there are three");
        let cidr = if odd == 0 { "10.0.0.0/26".to_owned() } else { format!("10.0.0.{}/29", number * 8) };
        let cidr: skep_proto::cidr::Cidr = cidr.parse().expect("it is well written");
        let driver = if odd == 1 { NetworkDriver::Bridge } else { NetworkDriver::Overlay };
        let mut subnets = vec![Subnet { cidr, gateway: cidr.hosts().0, range: None }];
        let v6 = skep_proto::cidr::Cidr::around(v6(number, 0).into(), 125).expect("it is no longer than an address");
        if odd % 2 == 0 {
            subnets.push(Subnet { cidr: v6, gateway: v6.hosts().0, range: Some(v6) });
        }
        let name = if odd == 2 { String::new() } else { name.to_owned() };
        Network {
            id,
            meta: Meta::default(),
            spec: Arc::new(NetworkSpec { name, driver: driver.into(), ingress, ..NetworkSpec::default() }),
            subnets,
            vni: (odd != 1).then_some(4096 + u32::from(if odd == 3 { 1 } else { number })),
        }
    })
}

fn v6(network: u8, last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(network) * 8 + u16::from(last))
}

/// Mostly within the usual subnet; few, so that they meet.
fn addresses() -> impl Strategy<Value = NetworkAddresses> {
    (network_id(), option::weighted(0.8, 0..7u8), option::weighted(0.2, 0..7u8)).prop_map(|(network, last, last6)| {
        let number = u8::try_from(network.value()).expect("there are three");
        // 0 and 1 (the network's own and the gateway) are rarer than by chance: they are refused.
        let host = |last: u8| if last < 2 { 2 + number } else { last };
        NetworkAddresses {
            network,
            v4: last.map(|last| Ipv4Addr::new(10, 0, 0, number * 8 + if last == 0 { 0 } else { host(last) })),
            v6: last6.map(|last| v6(number, host(last))),
        }
    })
}

fn service() -> impl Strategy<Value = Service> {
    let claims = (vec(addresses(), 0..2), vec(80..82u32, 0..2));
    (service_id(), 1..4u64, name(), option::weighted(0.3, claims)).prop_map(|(id, revision, name, claims)| {
        let mode = Some(Mode::Replicated(ReplicatedMode { replicas: 3 }));
        let (virtual_addresses, ports) = claims.unwrap_or_default();
        let port = |port| PortSpec { published_port: port, target_port: 80, ..PortSpec::default() };
        Service {
            id,
            meta: Meta::default(),
            spec: Arc::new(ServiceSpec { name, mode, ..ServiceSpec::default() }),
            revision,
            ports: ports.into_iter().map(port).collect(),
            update: None,
            virtual_addresses,
        }
    })
}

fn revision(key: RevisionKey) -> Revision {
    let container =
        |name: &str| ContainerSpec { name: name.into(), image: "busybox".into(), ..ContainerSpec::default() };
    let mut main = container("main");
    // Revision 2 uses the first version of a config, 3 the second of a secret.
    if key.number == 2 {
        let config_id = ConfigId::new(1).to_vec();
        main.configs = vec![ConfigRef { config_id, version: 1, pinned: true, ..ConfigRef::default() }];
    } else if key.number == 3 {
        let secret_id = SecretId::new(1).to_vec();
        main.secrets = vec![SecretRef { secret_id, version: 2, pinned: true, ..SecretRef::default() }];
    }
    let template = TaskTemplate {
        containers: vec![main, container("side")],
        credential_id: CredentialId::new(1 + u128::from(key.number) % 2).to_vec(),
        hostname: if key.number == 3 { "{{.Node.Hostname}}".into() } else { String::new() },
        networks: attachments(key),
        ..TaskTemplate::default()
    };
    Revision {
        key,
        template: Arc::new(template),
        created_at: UnixMs::ZERO,
        copied_from: key.number.checked_sub(1),
        service_name: "web".into(),
        live: (key.number == 3).then(|| LiveChange { from_revision: 2, signal: "HUP".into() }),
    }
}

/// Revision 1 attaches to nothing, 2 to one network, 3 to two.
fn attachments(key: RevisionKey) -> Vec<NetworkAttachment> {
    let one = |network: u128| NetworkAttachment {
        network_id: NetworkId::new(network).to_vec(),
        aliases: vec!["alias".into()],
        ..NetworkAttachment::default()
    };
    let first = 1 + key.service.value() % 3;
    match key.number {
        2 => vec![one(first)],
        3 => vec![one(first), one(1 + first % 3)],
        _ => Vec::new(),
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
        option::weighted(0.2, vec(addresses(), 0..3)),
    );
    parts.prop_map(
        |((id, node, number, policy_restart), (wanted, state, odd), (start_at, replaces, ports), networks)| {
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
                networks: networks.unwrap_or_default(),
            }
        },
    )
}
