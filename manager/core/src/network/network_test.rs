//! Allocation: never doubled, all freed, reusable, rotating; through `apply`, as the leader does it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use skep_proto::id::{NetworkId, NodeId, ServiceId, TaskId};
use skep_proto::v1::{
    ContainerSpec, EndpointMode, EndpointSpec, FabricEndpoint, NetworkAttachment, NetworkDriver, NetworkSpec,
    NodeDescription, PortSpec, Protocol, PublishMode, RestartPolicy, ServiceSpec, Severity, SubnetSpec, TaskState,
    TaskStatus, TaskTemplate,
};

use super::*;
use crate::change::{Change, Group, Op, Plan, TaskObserved, Transaction};
use crate::doctor;
use crate::example::{START, network, replicated, swarm};
use crate::ids::Ids;
use crate::object::{Cluster, ManagerStatus, Meta, Network, Node, Revision, Service};
use crate::orchestrate;
use crate::schedule::{self, Ledger};
use crate::store::{ObjectKey, State};

const FRONT: NetworkId = NetworkId::new(1);
const MESH: NetworkId = NetworkId::new(9);

/// The leader's loops, as far as networks need them.
struct Leader {
    state: State,
    cursors: Cursors,
    ids: Ids,
}

impl Leader {
    /// Two nodes; `front` with `cidr`, and the routing mesh's network.
    fn new(cidr: &str) -> Self {
        let mut state = swarm(2);
        state.put(network(1, "front", cidr, false));
        state.put(network(9, "ingress", "10.255.0.0/28", true));
        state.set_version(1);
        Self { state, cursors: Cursors::default(), ids: Ids::new(5) }
    }

    fn apply(&mut self, groups: Vec<Group>) -> Vec<String> {
        let applied = self.state.apply(&Transaction { at: START, groups, ..Transaction::default() });
        applied.refused.into_iter().map(|(_, reason)| reason.to_string()).collect()
    }

    /// What `service create` writes.
    fn create(&mut self, id: u128, replicas: u64, change: impl FnOnce(&mut ServiceSpec, &mut TaskTemplate)) -> String {
        let (mut spec, mut template) = draft(id, replicas);
        change(&mut spec, &mut template);
        match endpoint::resolve(&self.state, &spec, &template, None, id as u64) {
            Err(error) => error.to_string(),
            Ok(Endpoint { ports, virtual_addresses }) => {
                let service_name = spec.name.as_str().into();
                let (id, meta, spec) = (ServiceId::new(id), Meta::default(), Arc::new(spec));
                let service = Service { id, meta, spec, revision: 1, ports, update: None, virtual_addresses };
                let revision = Revision {
                    key: service.current(),
                    template: Arc::new(template),
                    created_at: START,
                    copied_from: None,
                    service_name,
                    live: None,
                };
                let changes = [Op::PutService(service), Op::PutRevision(revision)].map(Change::create);
                self.apply(vec![Group(changes.into())]).pop().unwrap_or_default()
            }
        }
    }

    fn remove(&mut self, id: u128) -> Vec<String> {
        self.apply(vec![Group(vec![Change::any(Op::RemoveService(ServiceId::new(id)))])])
    }

    fn run(&mut self, plan: Plan) {
        let refused = self.apply(plan.groups);
        assert_eq!(refused, Vec::<String>::new());
    }

    /// Orchestrator, scheduler, reaper.
    fn loops(&mut self) {
        let services = self.state.services().map(|service| service.id).chain(self.state.services_with_tasks());
        for id in services.collect::<BTreeSet<_>>() {
            let plan = orchestrate::plan(&self.state, id, START, &mut self.ids);
            self.run(plan);
        }
        let plan = schedule::plan(&self.state, &Ledger::of(&self.state), &mut self.cursors, START, 3);
        self.run(plan);
        let again = schedule::plan(&self.state, &Ledger::of(&self.state), &mut self.cursors, START, 4);
        assert_eq!(again.groups, [], "stable");
        for id in self.state.services_with_tasks().collect::<Vec<_>>() {
            let plan = orchestrate::reap(&self.state, id, START);
            self.run(plan);
        }
    }

    fn observe(&mut self, task: TaskId, state: TaskState) {
        let node = self.state.task(task).and_then(|task| task.node).unwrap_or(NodeId::new(1));
        let status = Arc::new(TaskStatus { state: state.into(), ..TaskStatus::default() });
        let report = TaskObserved { task, node, status };
        self.apply(vec![Group(vec![Change::any(Op::ObserveTask(report))])]);
    }

    fn tasks(&self) -> Vec<TaskId> {
        self.state.tasks().map(|task| task.id).collect()
    }

    /// Addresses of tasks on a network, by task.
    fn held(&self, network: NetworkId) -> Vec<IpAddr> {
        let held = self.state.tasks_on_network(network).flat_map(|task| task.held_addresses().to_vec());
        held.filter(|one| one.network == network).flat_map(|one| one.iter()).collect()
    }

    fn errors(&self) -> Vec<String> {
        self.state.pending_tasks().map(|task| task.status.error.clone()).collect()
    }

    fn check(&self) {
        let found = doctor::check(&self.state);
        let errors: Vec<_> = found.into_iter().filter(|finding| finding.severity == Severity::Error).collect();
        assert_eq!(errors, []);
    }
}

fn draft(id: u128, replicas: u64) -> (ServiceSpec, TaskTemplate) {
    let container = ContainerSpec { name: "main".into(), image: "busybox".into(), ..ContainerSpec::default() };
    let networks = vec![attachment(FRONT, &[])];
    let template = TaskTemplate { containers: vec![container], networks, ..TaskTemplate::default() };
    let mode = Some(replicated(replicas));
    (ServiceSpec { name: format!("s{id}"), mode, ..ServiceSpec::default() }, template)
}

fn attachment(network: NetworkId, addresses: &[&str]) -> NetworkAttachment {
    let addresses = addresses.iter().map(|&address| address.to_owned()).collect();
    NetworkAttachment { network_id: network.to_vec(), addresses, ..NetworkAttachment::default() }
}

fn publish(spec: &mut ServiceSpec, published: &[u32]) {
    let port = |published: &u32| PortSpec { published_port: *published, target_port: 80, ..PortSpec::default() };
    spec.endpoint = Some(EndpointSpec { ports: published.iter().map(port).collect(), ..EndpointSpec::default() });
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn tasks_and_services_get_addresses_until_there_is_none() {
    // 14 hosts: the gateway, one virtual address, twelve tasks.
    let mut leader = Leader::new("10.1.0.0/28");
    assert_eq!(leader.create(1, 14, |_, _| {}), "");
    leader.loops();
    assert_eq!(leader.held(FRONT).len(), 12);
    assert_eq!(leader.errors(), vec!["no free address in network front"; 2]);
    let task = leader.state.pending_tasks().next().unwrap();
    assert_eq!(
        (&*task.status.refusals[0].reason, task.status.refusals[0].nodes),
        ("no free address in network front", 2)
    );
    leader.check();
    let refused = leader.create(2, 1, |_, _| {});
    assert_eq!(refused, "no free address in network front for the service's virtual address");
    // One that ends makes room.
    let ended = leader.state.tasks_on_network(FRONT).next().unwrap().id;
    leader.observe(ended, TaskState::Failed);
    assert_eq!(leader.held(FRONT).len(), 11);
    leader.loops();
    assert_eq!(leader.held(FRONT).len(), 12);
    leader.check();
}

#[test]
fn a_freed_address_rests_until_all_others_were_given() {
    let mut leader = Leader::new("10.1.0.0/28");
    leader.create(1, 1, |spec, template| {
        spec.endpoint = Some(EndpointSpec { mode: EndpointMode::Dnsrr.into(), ..EndpointSpec::default() });
        template.restart = Some(RestartPolicy { delay_ms: -1, ..RestartPolicy::default() });
    });
    let mut given = Vec::new();
    for _ in 0..26 {
        leader.loops();
        given.extend(leader.held(FRONT));
        let task = leader.state.tasks_on_network(FRONT).next().unwrap().id;
        leader.observe(task, TaskState::Failed);
        leader.check();
    }
    assert_eq!(given[..13].iter().collect::<BTreeSet<_>>().len(), 13, "{given:?}");
    assert_eq!(given[..13], given[13..]);
    assert_eq!(given[0], ip("10.1.0.2"));
}

#[test]
fn a_new_leader_goes_on_behind_the_newest_task() {
    let mut leader = Leader::new("10.1.0.0/24");
    leader.create(1, 5, |_, _| {});
    leader.loops();
    let mut before = leader.held(FRONT);
    before.sort();
    leader.cursors = Cursors::default();
    leader.observe(leader.tasks()[0], TaskState::Failed);
    let freed: Vec<_> = before.iter().filter(|address| !leader.held(FRONT).contains(address)).copied().collect();
    leader.loops();
    assert_eq!(freed.len(), 1);
    assert!(!leader.held(FRONT).contains(&freed[0]));
}

#[test]
fn fixed_addresses_wait_for_their_holder() {
    let mut leader = Leader::new("10.1.0.0/24");
    let fixed = |template: &mut TaskTemplate| template.networks = vec![attachment(FRONT, &["10.1.0.77"])];
    assert_eq!(leader.create(1, 1, |_, template| fixed(template)), "");
    leader.loops();
    assert_eq!(leader.held(FRONT), [ip("10.1.0.77")]);
    assert_eq!(leader.create(2, 1, |_, template| fixed(template)), "");
    leader.loops();
    let holder = leader.tasks().into_iter().find(|id| leader.state.task(*id).unwrap().node.is_some()).unwrap();
    assert_eq!(leader.errors(), [format!("address 10.1.0.77 of network front is taken by task {holder}")]);
    leader.observe(holder, TaskState::Failed);
    leader.remove(1);
    leader.loops();
    assert_eq!((leader.held(FRONT), leader.errors()), (vec![ip("10.1.0.77")], vec![]));
    let outside = leader.create(3, 1, |_, template| template.networks = vec![attachment(FRONT, &["10.9.0.1"])]);
    assert_eq!(outside, "address 10.9.0.1 is outside network front");
    let gateway = leader.create(4, 1, |_, template| template.networks = vec![attachment(FRONT, &["10.1.0.1"])]);
    assert_eq!(gateway, "address 10.1.0.1 of network front is its gateway: choose another");
    leader.check();
}

#[test]
fn ports_that_nodes_listen_on_are_not_published() {
    let mut leader = Leader::new("10.1.0.0/24");
    let mut node = Node::clone(leader.state.nodes().next().unwrap());
    node.manager = Some(ManagerStatus { raft_id: 1, addr: "192.0.2.1:2377".into() });
    let fabric = Some(FabricEndpoint {
        wireguard_addr: "[2001:db8::1]:51820".into(),
        vxlan_addr: "192.0.2.1".into(),
        ..FabricEndpoint::default()
    });
    let description =
        NodeDescription { hostname: "n1".into(), peer_addr: "192.0.2.1:30001".into(), fabric, ..Default::default() };
    node.description = Some(Arc::new(description));
    leader.state.put(node);
    for (number, udp, mode, what) in [
        (2377, false, PublishMode::Ingress, "the managers' API"),
        (2377, false, PublishMode::Host, "the managers' API"),
        (30001, false, PublishMode::Ingress, "where nodes serve images"),
        (51820, true, PublishMode::Ingress, "the encrypted mesh's"),
        (4789, true, PublishMode::Host, "the overlays' data path"),
    ] {
        let refused = leader.create(1, 1, |spec, _| {
            publish(spec, &[number]);
            let port = &mut spec.endpoint.as_mut().unwrap().ports[0];
            port.set_mode(mode);
            port.set_protocol(if udp { Protocol::Udp } else { Protocol::Tcp });
        });
        assert!(refused.contains(&format!("is {what}, of node n1")), "{refused}");
    }
    // The other protocol is another port, and a service that has one since before keeps it.
    assert_eq!(leader.create(1, 1, |spec, _| publish(spec, &[4789])), "");
    let mut present = Service::clone(leader.state.services().next().unwrap());
    present.ports[0].published_port = 2377;
    let (mut spec, template) = draft(1, 1);
    publish(&mut spec, &[2377]);
    assert!(endpoint::resolve(&leader.state, &spec, &template, Some(&present), 1).is_ok());
}

#[test]
fn ranges_gateways_and_reservations_are_respected() {
    let mut leader = Leader::new("10.1.0.0/24");
    let subnet = SubnetSpec {
        subnet: "10.2.0.0/24".into(),
        gateway: "10.2.0.66".into(),
        ip_range: "10.2.0.64/29".into(),
        reserved_addresses: [("router".to_owned(), "10.2.0.67".to_owned())].into(),
    };
    let spec = NetworkSpec { name: "back".into(), subnets: vec![subnet], ..NetworkSpec::default() };
    let network = make(&leader.state, NetworkId::new(2), spec).unwrap();
    leader.state.put(network);
    leader.create(1, 9, |spec, template| {
        template.networks = vec![attachment(NetworkId::new(2), &[])];
        spec.endpoint = Some(EndpointSpec { mode: EndpointMode::Dnsrr.into(), ..EndpointSpec::default() });
    });
    leader.loops();
    let mut held = leader.held(NetworkId::new(2));
    held.sort();
    assert_eq!(held, [64, 65, 68, 69, 70, 71].map(|last| IpAddr::from([10, 2, 0, last])));
    leader.check();
}

#[test]
fn a_network_in_use_stays_and_names_its_users() {
    let mut leader = Leader::new("10.1.0.0/24");
    leader.create(1, 1, |spec, _| publish(spec, &[8080]));
    leader.loops();
    let remove = |leader: &mut Leader, id| leader.apply(vec![Group(vec![Change::any(Op::RemoveNetwork(id))])]);
    assert_eq!(remove(&mut leader, FRONT), ["network front is in use by service s1"]);
    assert_eq!(remove(&mut leader, MESH), ["network ingress is in use by service s1"]);
    leader.remove(1);
    let task = leader.tasks()[0];
    let stopping = "network front is in use by 1 task of the removed service s1, which is stopping";
    assert_eq!(remove(&mut leader, FRONT), [stopping]);
    let users = |leader: &Leader| crate::apply::network_users(&leader.state, leader.state.network(FRONT).unwrap());
    assert!(users(&leader).unwrap().are_leaving(), "waiting helps");
    leader.observe(task, TaskState::Shutdown);
    assert_eq!((remove(&mut leader, FRONT), remove(&mut leader, MESH)), (vec![], vec![]));
    leader.check();
    let refused = leader.create(2, 1, |spec, template| {
        template.networks.clear();
        publish(spec, &[80]);
    });
    assert!(refused.starts_with("there is no network for the routing mesh"), "{refused}");
    let id = FRONT;
    assert_eq!(leader.create(3, 1, |_, _| {}), format!("network {id} is not there (any more)"));
}

#[test]
fn ports_are_unique_and_chosen_ones_stay() {
    let mut leader = Leader::new("10.1.0.0/24");
    assert_eq!(leader.create(1, 1, |spec, _| publish(spec, &[8080, 0])), "");
    let first = Service::clone(leader.state.service(ServiceId::new(1)).unwrap());
    let chosen = first.ports[1].published_port;
    assert!(endpoint::CHOSEN_PORTS.contains(&chosen));
    let taken = leader.create(2, 1, |spec, _| publish(spec, &[8080]));
    assert_eq!(taken, "port 8080/tcp is taken by service s1: choose another, or remove it there");
    let taken = leader.create(2, 1, |spec, _| publish(spec, &[chosen]));
    assert_eq!(taken, format!("port {chosen}/tcp is taken by service s1: choose another, or remove it there"));
    // An update keeps the address and the chosen port, and gives the mesh's address back with the last port.
    let (mut spec, template) = draft(1, 1);
    publish(&mut spec, &[0]);
    let update = |spec: &ServiceSpec| endpoint::resolve(&leader.state, spec, &template, Some(&first), 77).unwrap();
    let kept = update(&spec);
    assert_eq!((kept.ports[0].published_port, &kept.virtual_addresses), (chosen, &first.virtual_addresses));
    assert_eq!(kept.virtual_addresses.len(), 2);
    publish(&mut spec, &[]);
    assert_eq!(update(&spec).virtual_addresses, first.virtual_addresses[..1]);
    spec.endpoint = Some(EndpointSpec { mode: EndpointMode::Dnsrr.into(), ..EndpointSpec::default() });
    assert_eq!(update(&spec), Endpoint::default());
    leader.remove(1);
    assert_eq!(leader.create(2, 1, |spec, _| publish(spec, &[8080])), "");
    leader.check();
}

#[test]
fn the_store_refuses_a_doubled_port_and_address() {
    let mut leader = Leader::new("10.1.0.0/24");
    leader.create(1, 1, |spec, _| publish(spec, &[8080]));
    let first = Service::clone(leader.state.service(ServiceId::new(1)).unwrap());
    let mut second = Service { id: ServiceId::new(2), spec: Arc::new(draft(2, 1).0), ..first };
    let put = |leader: &mut Leader, service: &Service| {
        leader.apply(vec![Group(vec![Change::create(Op::PutService(service.clone()))])])
    };
    let address = second.virtual_addresses[0].iter().next().unwrap();
    assert_eq!(put(&mut leader, &second), [format!("address {address} of network front is taken by service s1")]);
    second.virtual_addresses.clear();
    assert_eq!(put(&mut leader, &second), ["port 8080/tcp is taken by service s1"]);
}

/// Two creates at once: each was resolved from a state without the other one.
#[test]
fn the_store_refuses_one_port_in_both_modes() {
    let mut leader = Leader::new("10.1.0.0/24");
    let port = |mode: PublishMode, published_port| PortSpec {
        mode: mode.into(),
        target_port: 80,
        published_port,
        ..PortSpec::default()
    };
    let service = |id: u128, ports: &[PortSpec]| {
        let (mut spec, template) = draft(id, 1);
        spec.endpoint = Some(EndpointSpec { mode: EndpointMode::Dnsrr.into(), ..EndpointSpec::default() });
        let service_name = spec.name.as_str().into();
        let (id, meta, spec, ports) = (ServiceId::new(id), Meta::default(), Arc::new(spec), ports.to_vec());
        let service = Service { id, meta, spec, revision: 1, ports, update: None, virtual_addresses: Vec::new() };
        let (key, template) = (service.current(), Arc::new(template));
        let revision = Revision { key, template, created_at: START, copied_from: None, service_name, live: None };
        vec![Group([Op::PutService(service), Op::PutRevision(revision)].map(Change::any).into())]
    };
    let (host, mesh) = (PublishMode::Host, PublishMode::Ingress);
    assert_eq!(leader.apply(service(1, &[port(host, 80)])), [""; 0]);
    assert_eq!(leader.apply(service(2, &[port(mesh, 80)])), ["port 80/tcp is taken by service s1"]);
    assert_eq!(leader.apply(service(2, &[port(mesh, 81)])), [""; 0]);
    assert_eq!(leader.apply(service(3, &[port(host, 81)])), ["port 81/tcp is taken by service s2"]);
    // Of different hosts it may be claimed twice, and another protocol is another port.
    assert_eq!(leader.apply(service(3, &[port(host, 80)])), [""; 0]);
    let udp = PortSpec { protocol: Protocol::Udp.into(), ..port(mesh, 80) };
    assert_eq!(leader.apply(service(4, &[udp])), [""; 0]);
    leader.remove(1);
    assert_eq!(leader.apply(service(5, &[port(mesh, 80)])), ["port 80/tcp is taken by service s3"]);
    leader.remove(3);
    assert_eq!(leader.apply(service(5, &[port(mesh, 80)])), [""; 0]);
}

#[test]
fn numbers_in_the_fabric_rest_and_are_given_again_when_all_were() {
    let mut leader = Leader::new("10.1.0.0/24");
    let last = (1 << 22) - 1;
    for (number, fabric_number) in [(1, Some(last)), (2, Some(2)), (3, None), (4, None)] {
        let mut node = crate::example::node(number).build();
        node.fabric_number = fabric_number;
        Arc::make_mut(node.description.as_mut().unwrap()).fabric = Some(FabricEndpoint::default());
        leader.state.put(node);
    }
    let plan = plan_nodes(&leader.state, &mut leader.cursors);
    leader.run(plan);
    let numbers: Vec<_> = leader.state.nodes().map(|node| node.fabric_number.unwrap()).collect();
    assert_eq!(numbers, [last, 2, 1, 3]);
    assert_eq!(plan_nodes(&leader.state, &mut leader.cursors), Plan::default(), "stable");
}

#[test]
fn pools_give_what_overlaps_with_nothing() {
    let mut leader = Leader::new("10.0.0.0/23");
    let mut node = Node::clone(leader.state.node(NodeId::new(1)).unwrap());
    node.status.addr = "10.0.3.7".to_owned();
    leader.state.put(node);
    let named = |name: &str| NetworkSpec { name: name.into(), ipv6: true, ..NetworkSpec::default() };
    let mut made: Vec<Network> = Vec::new();
    for number in 20..24 {
        let network = make(&leader.state, NetworkId::new(number), named(&format!("n{number}"))).unwrap();
        assert_eq!(leader.apply(vec![Group(vec![Change::create(Op::PutNetwork(network.clone()))])]), [""; 0]);
        made.push(network);
    }
    let v4: Vec<_> = made.iter().map(|network| network.subnets[0].cidr.to_string()).collect();
    assert_eq!(v4, ["10.0.2.0/24", "10.0.4.0/24", "10.0.5.0/24", "10.0.6.0/24"]);
    assert!(made.iter().all(|network| network.subnets[1].cidr.length() == 64));
    assert_eq!(made[0].vni, Some(4096 + 9 + 1), "after the highest");
    leader.check();
    let asked = |cidr: &str| {
        let subnet = SubnetSpec { subnet: cidr.into(), ..SubnetSpec::default() };
        make(&leader.state, NetworkId::new(30), NetworkSpec { subnets: vec![subnet], ..named("asked") })
    };
    let overlaps = "subnet 10.0.0.0/8 overlaps with 10.255.0.0/28 of network ingress: choose another, or leave it out";
    assert_eq!(asked("10.0.0.0/8").unwrap_err().to_string(), overlaps);
    let within = "subnet 10.0.3.0/24 contains 10.0.3.7, an address of a host: choose another, or leave it out";
    assert_eq!(asked("10.0.3.0/24").unwrap_err().to_string(), within);
    assert!(asked("192.168.7.0/24").is_ok());
    let twice = make(&leader.state, NetworkId::new(30), named("front")).unwrap_err().to_string();
    assert!(twice.starts_with("network front is there already"), "{twice}");
}

#[test]
fn managers_without_networks_are_waited_for() {
    let mut leader = Leader::new("10.1.0.0/24");
    let mut cluster = Cluster::clone(leader.state.cluster().unwrap());
    cluster.feature_level = FEATURE_LEVEL - 1;
    leader.state.put(cluster);
    let mut node = Node::clone(leader.state.node(NodeId::new(1)).unwrap());
    Arc::make_mut(node.description.as_mut().unwrap()).fabric = Some(FabricEndpoint::default());
    leader.state.put(node);
    let spec = NetworkSpec { name: "back".into(), ..NetworkSpec::default() };
    assert_eq!(make(&leader.state, NetworkId::new(2), spec), Err(NetworkError::OldManagers));
    assert_eq!(plan_nodes(&leader.state, &mut leader.cursors), Plan::default());
}

#[test]
fn small_pools_run_out() {
    let mut state = swarm(1);
    let mut cluster = Cluster::clone(state.cluster().unwrap());
    cluster.spec.address_pools = vec!["172.20.0.0/30".into(), "172.21.0.0/29".into()];
    cluster.spec.subnet_length = 30;
    state.put(cluster);
    let mut cidrs = Vec::new();
    let error = (1..).find_map(|number| {
        let spec = NetworkSpec { name: format!("n{number}"), ..NetworkSpec::default() };
        match make(&state, NetworkId::new(number), spec) {
            Ok(network) => {
                cidrs.push(network.subnets[0].cidr.to_string());
                state.put(network);
                None
            }
            Err(error) => Some(error),
        }
    });
    assert_eq!(cidrs, ["172.20.0.0/30", "172.21.0.0/30", "172.21.0.4/30"]);
    assert_eq!(error, Some(NetworkError::PoolsExhausted));
    state.remove(&ObjectKey::Network(NetworkId::new(2)));
    let spec = NetworkSpec { name: "again".into(), ..NetworkSpec::default() };
    assert_eq!(make(&state, NetworkId::new(9), spec).unwrap().subnets[0].cidr.to_string(), "172.21.0.0/30");
}

#[test]
fn the_mesh_gets_its_usual_subnet_or_another() {
    let state = swarm(1);
    let usual = make_ingress(&state, MESH).unwrap();
    assert_eq!(usual.subnets[0].cidr.to_string(), "10.255.0.0/16");
    assert!(usual.spec.ingress && usual.spec.driver() == NetworkDriver::Overlay && usual.vni == Some(4096));
    let mut state = swarm(1);
    state.put(network(3, "other", "10.255.3.0/24", false));
    assert_eq!(make_ingress(&state, MESH).unwrap().subnets[0].cidr.to_string(), "10.0.0.0/16");
    // Of pools that are small it takes a quarter at most, but a usual subnet at least.
    for (pool, length, wanted) in [
        ("10.20.0.0/14", 24, "10.20.0.0/16"),
        ("10.20.0.0/16", 24, "10.20.0.0/18"),
        ("10.20.0.0/20", 24, "10.20.0.0/22"),
        ("10.20.0.0/23", 24, "10.20.0.0/24"),
        ("10.20.0.0/24", 24, "10.20.0.0/24"),
    ] {
        let mut state = swarm(1);
        let mut cluster = Cluster::clone(state.cluster().unwrap());
        (cluster.spec.address_pools, cluster.spec.subnet_length) = (vec![pool.into()], length);
        state.put(cluster);
        assert_eq!(make_ingress(&state, MESH).unwrap().subnets[0].cidr.to_string(), wanted, "{pool}");
    }
}

#[test]
fn nodes_with_overlays_get_numbers_and_addresses() {
    let mut leader = Leader::new("10.1.0.0/24");
    assert_eq!(plan_nodes(&leader.state, &mut leader.cursors), Plan::default());
    for number in 1..=2 {
        let mut node = Node::clone(leader.state.node(NodeId::new(number)).unwrap());
        Arc::make_mut(node.description.as_mut().unwrap()).fabric = Some(FabricEndpoint::default());
        leader.state.put(node);
    }
    let plan = plan_nodes(&leader.state, &mut leader.cursors);
    leader.run(plan);
    assert_eq!(plan_nodes(&leader.state, &mut leader.cursors), Plan::default(), "stable");
    let nodes: Vec<_> = leader.state.nodes().map(|node| (node.fabric_number, node.ingress.unwrap().v4)).collect();
    assert_eq!(nodes.iter().collect::<BTreeSet<_>>().len(), 2);
    assert_eq!(leader.state.node(NodeId::new(2)).unwrap().fabric_address().unwrap().to_string(), "100.64.0.2");
    // Another mesh, other addresses.
    leader.apply(vec![Group(vec![Change::any(Op::RemoveNetwork(MESH))])]);
    let plan = plan_nodes(&leader.state, &mut leader.cursors);
    leader.run(plan);
    assert!(leader.state.nodes().all(|node| node.ingress.is_none() && node.fabric_number.is_some()));
    leader.check();
}

/// Ten thousand tasks, and then a subnet that is nearly full: no step looks at all others.
#[test]
fn a_large_network_is_fast() {
    let mut state = State::default();
    state.put(network(1, "front", "10.0.0.0/16", false));
    let mut cursors = Cursors::default();
    let began = Instant::now();
    let mut addresses = Addresses::new(&state, &mut cursors);
    let mut given = BTreeSet::new();
    for _ in 0..65_533 {
        let found = addresses.find(FRONT, &[]).unwrap();
        addresses.take(&found);
        given.extend(found.iter());
    }
    assert_eq!(given.len(), 65_533);
    for _ in 0..10_000 {
        assert_eq!(addresses.find(FRONT, &[]), Err(NoAddress::Full("front".into())));
    }
    // 2.5 µs each on an idle machine; a scan would take minutes.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[derive(Clone, Debug)]
enum Step {
    Create(u128, u64, bool),
    Remove(u128),
    Loops,
    Observe(usize, TaskState),
    NewLeader,
}

fn step() -> impl Strategy<Value = Step> {
    let state = prop_oneof![Just(TaskState::Running), Just(TaskState::Failed), Just(TaskState::Shutdown)];
    prop_oneof![
        2 => (1..4u128, 0..5u64, any::<bool>()).prop_map(|(id, replicas, vip)| Step::Create(id, replicas, vip)),
        1 => (1..4u128).prop_map(Step::Remove),
        4 => Just(Step::Loops),
        4 => (any::<usize>(), state).prop_map(|(task, state)| Step::Observe(task, state)),
        1 => Just(Step::NewLeader),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn addresses_are_never_doubled_and_all_come_back(steps in vec(step(), 1..50)) {
        let mut leader = Leader::new("10.1.0.0/29");
        for step in steps {
            match step {
                Step::Create(id, replicas, vip) if leader.state.service(ServiceId::new(id)).is_none() => {
                    leader.create(id, replicas, |spec, _| {
                        publish(spec, if vip { &[0] } else { &[] });
                        if !vip {
                            spec.endpoint.as_mut().unwrap().mode = EndpointMode::Dnsrr.into();
                        }
                    });
                }
                Step::Create(..) => {}
                Step::Remove(id) => drop(leader.remove(id)),
                Step::Loops => leader.loops(),
                Step::Observe(index, state) => {
                    let tasks = leader.tasks();
                    if let Some(task) = tasks.get(index % tasks.len().max(1)) {
                        leader.observe(*task, state);
                    }
                }
                Step::NewLeader => leader.cursors = Cursors::default(),
            }
            leader.check();
        }
        for id in 1..4 {
            leader.remove(id);
        }
        for task in leader.tasks() {
            leader.observe(task, TaskState::Shutdown);
        }
        leader.loops();
        // The gateways alone are left; all else can be given again.
        prop_assert_eq!(leader.state.addresses_of(FRONT).count(), 1);
        prop_assert_eq!(leader.state.addresses_of(MESH).count(), 1);
        prop_assert_eq!(leader.create(50, 5, |_, _| {}), "");
        leader.loops();
        let failed = leader.tasks().into_iter().filter(|id| leader.state.task(*id).unwrap().node.is_none()).count();
        prop_assert_eq!((leader.held(FRONT).len(), failed), (4, 1));
    }
}
