//! Requests of the control API: decoded, validated, and what is valid stored and acted on as a leader does it.

use std::sync::Arc;

use prost::Message as _;
use skep_core::change::{Change, Group, Op, Plan, Transaction};
use skep_core::ids::Ids;
use skep_core::network::{self, Cursors, Endpoint};
use skep_core::object::{Cluster, Data, Meta, Node, NodeStatus, ParcelId, ParcelSpec, Revision, Service};
use skep_core::parcels;
use skep_core::schedule::{self, Ledger};
use skep_core::store::State;
use skep_core::{codec, doctor, orchestrate};
use skep_proto::cidr::Cidr;
use skep_proto::constraint::{Constraint, parse_spread};
use skep_proto::id::{self, ClusterId, ConfigId, NetworkId, NodeId, SecretId, ServiceId};
use skep_proto::template;
use skep_proto::time::UnixMs;
use skep_proto::v1::{
    self, ClusterSpec, CreateConfigRequest, CreateNetworkRequest, CreateSecretRequest, CreateServiceRequest,
    NodeDescription, NodeRole, NodeSpec, NodeState, ServiceSpec, Severity, UpdateClusterRequest, UpdateNodeRequest,
    UpdateServiceRequest,
};
use skep_proto::validate::{self, files};

use crate::{choose, text};

pub(crate) const NOW: UnixMs = UnixMs(1_700_000_000_000);

/// One of the requests that carry a spec.
pub fn api_requests(data: &[u8]) {
    let (kind, bytes) = choose(data);
    let wanted = match kind % 7 {
        0 => CreateServiceRequest::decode(bytes).map(|request| request.spec.as_ref().map(service)),
        1 => UpdateServiceRequest::decode(bytes).map(|request| request.spec.as_ref().map(service)),
        2 => CreateNetworkRequest::decode(bytes).map(|request| request.spec.as_ref().map(networks)),
        3 => UpdateNodeRequest::decode(bytes).map(|request| request.spec.as_ref().map(node)),
        4 => UpdateClusterRequest::decode(bytes).map(|request| request.spec.as_ref().map(cluster)),
        5 => CreateSecretRequest::decode(bytes).map(|request| request.spec.map(|spec| secret(spec, request.data))),
        _ => CreateConfigRequest::decode(bytes).map(|request| request.spec.map(|spec| config(spec, request.data))),
    };
    let _ = wanted;
}

/// What the store holds after `service create`, and what the loops make of it.
fn service(spec: &ServiceSpec) {
    if validate::service_spec(spec).is_ok() {
        let mut state = swarm();
        service_in(&mut state, spec);
        check(&state);
    }
}

/// Makes a valid service, whose tasks are placed then. False where the networks or ports that it asks for are not to be had.
pub(crate) fn service_in(state: &mut State, spec: &ServiceSpec) -> bool {
    let mut spec = spec.clone();
    // A million slots are made in a moment, but not 10,000 times a second.
    if let Some(v1::service_spec::Mode::Replicated(mode)) = &mut spec.mode {
        mode.replicas = mode.replicas.min(20);
    }
    let mut template = spec.template.take().unwrap_or_default();
    // As the API finds them by their names.
    for container in &mut template.containers {
        for one in &mut container.secrets {
            (one.secret_id, one.version) = (SecretId::new(1).to_vec(), 1);
        }
        for one in &mut container.configs {
            (one.config_id, one.version) = (ConfigId::new(1).to_vec(), 1);
        }
    }
    let Ok(Endpoint { ports, virtual_addresses }) = network::endpoint::resolve(state, &spec, &template, None, 7) else {
        return false;
    };
    let service_name = spec.name.as_str().into();
    let (id, meta) = (ServiceId::new(5), Meta::default());
    let service = Service { id, meta, spec: Arc::new(spec), revision: 1, ports, update: None, virtual_addresses };
    let (key, template) = (service.current(), Arc::new(template));
    let revision = Revision { key, template, created_at: NOW, copied_from: None, service_name, live: None };
    store(state, [Op::PutService(service), Op::PutRevision(revision)].map(Change::create).into());
    let mut ids = Ids::new(1);
    let mut cursors = Cursors::default();
    for _ in 0..2 {
        let plan = orchestrate::plan(state, id, NOW, &mut ids);
        carry_out(state, plan);
        let plan = schedule::plan(state, &Ledger::of(state), &mut cursors, NOW, 3);
        carry_out(state, plan);
    }
    assert_eq!(orchestrate::plan(state, id, NOW, &mut ids).groups, [], "a plan that was carried out is done");
    true
}

fn secret(spec: v1::SecretSpec, data: Vec<u8>) {
    if validate::secret_spec(&spec).is_ok() && files::secret_size(data.len()).is_ok() {
        let v1::SecretSpec { name, labels, templated } = spec;
        parcel(ParcelId::Secret(SecretId::new(2)), ParcelSpec { name, labels, templated }, data);
    }
}

fn config(spec: v1::ConfigSpec, data: Vec<u8>) {
    if validate::config_spec(&spec).is_ok() && files::config_size(data.len()).is_ok() {
        let v1::ConfigSpec { name, labels, templated } = spec;
        parcel(ParcelId::Config(ConfigId::new(2)), ParcelSpec { name, labels, templated }, data);
    }
}

fn parcel(id: ParcelId, spec: ParcelSpec, data: Vec<u8>) {
    let mut state = swarm();
    if state.parcel_by_name(id.kind(), &spec.name).is_none() {
        store(&mut state, parcels::creation(id, spec, Data::new(data), NOW));
        check(&state);
    }
}

fn networks(spec: &v1::NetworkSpec) {
    if validate::network_spec(spec).is_err() {
        return;
    }
    let mut state = swarm();
    if let Ok(network) = network::make(&state, NetworkId::new(20), spec.clone()) {
        store(&mut state, vec![Change::create(Op::PutNetwork(network))]);
        check(&state);
    }
}

fn node(spec: &NodeSpec) {
    if validate::node_spec(spec).is_err() {
        return;
    }
    let mut state = swarm();
    let mut node = state.nodes().next().map(|node| Node::clone(node)).unwrap_or_else(|| made(1));
    node.spec = Arc::new(spec.clone());
    store(&mut state, vec![Change::any(Op::PutNode(node))]);
    check(&state);
}

fn cluster(spec: &ClusterSpec) {
    if validate::cluster_spec(spec).is_err() {
        return;
    }
    let mut state = swarm();
    if let Some(cluster) = state.cluster().map(|cluster| Cluster::clone(cluster)) {
        store(&mut state, vec![Change::any(Op::PutCluster(Cluster { spec: spec.clone(), ..cluster }))]);
    }
    check(&state);
    // Its pools are what networks are made from.
    for number in 30..33 {
        let spec = v1::NetworkSpec { name: format!("n{number}"), ..v1::NetworkSpec::default() };
        if let Ok(network) = network::make(&state, NetworkId::new(number), spec) {
            store(&mut state, vec![Change::create(Op::PutNetwork(network))]);
        }
    }
    check(&state);
}

/// Two nodes, the routing mesh's network and one named `front`, a secret and a config.
pub(crate) fn swarm() -> State {
    let mut state = State::default();
    state.put(Cluster { feature_level: network::FEATURE_LEVEL, ..Cluster::bare(ClusterId::new(1)) });
    for number in 1..=2 {
        state.put(made(number));
    }
    if let Ok(mesh) = network::make_ingress(&state, NetworkId::new(9)) {
        state.put(mesh);
    }
    let front = v1::NetworkSpec { name: "front".to_owned(), ..v1::NetworkSpec::default() };
    if let Ok(front) = network::make(&state, NetworkId::new(1), front) {
        state.put(front);
    }
    for id in [ParcelId::Secret(SecretId::new(1)), ParcelId::Config(ConfigId::new(1))] {
        let spec = ParcelSpec { name: "key".to_owned(), ..ParcelSpec::default() };
        let groups = vec![Group(parcels::creation(id, spec, Data::new(b"what it is".to_vec()), NOW))];
        let refused = state.apply(&Transaction { at: NOW, groups, ..Transaction::default() }).refused;
        assert!(refused.is_empty(), "{refused:?}");
    }
    state
}

pub(crate) fn made(number: u128) -> Node {
    let description = NodeDescription { hostname: format!("host{number}"), ..NodeDescription::default() };
    Node {
        id: NodeId::new(number),
        meta: Meta::default(),
        spec: Arc::default(),
        description: Some(Arc::new(description)),
        status: NodeStatus { state: NodeState::Ready, since: NOW, ..NodeStatus::default() },
        role: NodeRole::Worker,
        manager: None,
        fabric_number: None,
        ingress: None,
    }
}

/// What the API has checked, the store takes.
pub(crate) fn store(state: &mut State, changes: Vec<Change>) {
    let transaction = Transaction { at: NOW, groups: vec![Group(changes)], ..Transaction::default() };
    // As it travels in the log.
    let entry = codec::encode_entry(std::slice::from_ref(&transaction));
    match codec::decode_entry(&entry) {
        Ok(again) => assert_eq!(codec::encode_entry(&again), entry),
        Err(error) => panic!("an entry is not read again: {error}"),
    }
    let refused = state.apply(&transaction).refused;
    assert!(refused.is_empty(), "{refused:?}");
}

fn carry_out(state: &mut State, plan: Plan) {
    let refused = state.apply(&Transaction { at: NOW, groups: plan.groups, ..Transaction::default() }).refused;
    assert!(refused.is_empty(), "{refused:?}");
}

pub(crate) fn check(state: &State) {
    let found = doctor::check(state);
    let wrong: Vec<_> = found.into_iter().filter(|finding| finding.severity == Severity::Error).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    let mut snapshot = Vec::new();
    assert!(codec::write_snapshot(state, &mut snapshot).is_ok());
    match codec::read_snapshot(&mut &*snapshot) {
        Ok(again) => assert!(again.digest() == state.digest(), "a snapshot is the state"),
        Err(error) => panic!("a state that was applied is not read again: {error}"),
    }
}

/// `--constraint` and `--placement-pref`.
pub fn constraint(data: &[u8]) {
    let text = text(data);
    if let Ok(constraint) = Constraint::parse(text) {
        assert_eq!(Constraint::parse(&constraint.to_string()).ok(), Some(constraint));
    }
    if let Ok(key) = parse_spread(text) {
        assert_eq!(parse_spread(&key.to_string()).ok(), Some(key));
    }
}

/// Placeholders in specs, and in the data of secrets and configs.
pub fn placeholders(data: &[u8]) {
    let text = text(data);
    let filled = template::render(text, &template::Facts::default());
    if template::check(text).is_ok() {
        assert!(filled.is_ok(), "what was checked can be filled in");
    }
    const LIMIT: usize = 1000;
    match template::render_data(data, &template::Facts::default(), &Container, LIMIT) {
        Ok(out) => assert!(out.len() <= LIMIT && (out == data || data.windows(2).any(|two| two == b"{{"))),
        Err(error) => drop(error.to_string()),
    }
}

/// With a variable, a secret and a config.
struct Container;

impl template::Inside for Container {
    fn env(&self, name: &str) -> Option<&str> {
        (name == "A").then_some("fast")
    }

    fn secret(&self, target: &str) -> Option<&[u8]> {
        (target == "db").then_some(b"{{ \xff")
    }

    fn config(&self, target: &str) -> Option<&[u8]> {
        (target == "/etc/web.conf").then_some(b"}}")
    }
}

/// Subnets and addresses, and the arithmetic on them.
pub fn addresses(data: &[u8]) {
    let (one, other) = text(data).split_once(' ').unwrap_or_default();
    let (Ok(one), Ok(other)) = (one.parse::<Cidr>(), other.parse::<Cidr>()) else { return };
    assert_eq!(one.to_string().parse().ok(), Some(one));
    assert_eq!(one.overlaps(&other), other.overlaps(&one));
    if one.covers(&other) {
        assert!(one.overlaps(&other) && one.contains(other.first()) && one.contains(other.last()));
    }
    let (first, last) = one.hosts();
    assert!(one.contains(first) && one.contains(last) && first <= last);
    let offset = one.offset(last).and_then(|offset| one.nth(offset));
    assert_eq!(offset, Some(last));
    if let Some(next) = one.next() {
        assert!(!next.overlaps(&one) && next.first() > one.last());
    }
}

/// Ids of everything, as text and on the wire, and the names of signals.
pub fn identifiers(data: &[u8]) {
    macro_rules! same {
        ($($id:ident),+) => {$(
            if let Ok(id) = text(data).parse::<id::$id>() {
                assert_eq!(id.to_string().parse(), Ok(id));
            }
            if let Ok(id) = id::$id::from_wire(data) {
                assert_eq!(id.to_vec(), data);
            }
        )+};
    }
    same!(ClusterId, NodeId, ServiceId, TaskId, NetworkId, SecretId, ConfigId, RequestId);
    let signal = validate::signal_number(text(data));
    assert!(signal.is_none_or(|number| (1..=64).contains(&number)));
    let _ = validate::capability(text(data));
}
