//! Rows against what was set up, and any history: rows kept by events are those that the state has.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::sync::Arc;

use proptest::prelude::*;
use skep_proto::v1::{FabricEndpoint, NetworkAttachment, NodeDescription, PortSpec, ServiceSpec};

use super::*;
use crate::arbitrary;
use crate::example::{START, network, observe, pending_tasks, replicated, swarm, with_service};

const FRONT: NetworkId = NetworkId::new(1);
const INGRESS: NetworkId = NetworkId::new(9);

fn on(network: NetworkId, last: u8) -> NetworkAddresses {
    let third = if network == INGRESS { 255 } else { 1 };
    NetworkAddresses { v4: Some(Ipv4Addr::new(10, third, 0, last)), ..NetworkAddresses::none(network) }
}

/// Three nodes; service `web` with three tasks on `front`, the first two of them placed on nodes 1 and 2.
fn example() -> (State, ServiceId, Vec<TaskId>) {
    let mut state = swarm(3);
    state.put(network(1, "front", "10.1.0.0/24", false));
    state.put(network(9, "ingress", "10.255.0.0/16", true));
    for number in 1..=3u32 {
        let mut node = Node::clone(state.node(NodeId::new(number.into())).unwrap());
        node.fabric_number = Some(number);
        let fabric = FabricEndpoint { wireguard_addr: format!("192.0.2.{number}:51820"), ..FabricEndpoint::default() };
        let description = NodeDescription { fabric: Some(fabric), ..(**node.description.as_ref().unwrap()).clone() };
        node.description = Some(Arc::new(description));
        state.put(node);
    }
    let id = with_service(&mut state, replicated(3), |template| {
        template.hostname = "web-{{.Task.Slot}}".to_owned();
        template.networks = vec![NetworkAttachment {
            network_id: FRONT.to_vec(),
            name: "front".to_owned(),
            aliases: vec!["www".to_owned(), "web".to_owned()],
            addresses: Vec::new(),
        }];
    });
    let mut service = Service::clone(state.service(id).unwrap());
    service.virtual_addresses = vec![on(FRONT, 2)];
    state.put(service);
    let tasks = pending_tasks(&mut state, id);
    for (index, task) in (1..).zip(&tasks[..2]) {
        let mut task = Task::clone(state.task(*task).unwrap());
        task.node = Some(NodeId::new(index));
        task.networks = vec![on(FRONT, 10 + u8::try_from(index).unwrap())];
        state.put(task);
        observe(&mut state, tasks[usize::try_from(index).unwrap() - 1], TaskState::Assigned, START);
    }
    (state, id, tasks)
}

fn endpoint_of(state: &State, task: TaskId) -> Option<NetworkEndpoint> {
    match row(state, FRONT, RowKey::Endpoint(task)) {
        Some(Row::Endpoint(row)) => Some(row),
        None => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_task_serves_while_it_runs_and_is_to_run() {
    let (mut state, _, tasks) = example();
    let row = endpoint_of(&state, tasks[0]).unwrap();
    assert_eq!((row.state(), row.addresses), (EndpointState::Quiet, vec![vec![10, 1, 0, 11]]));
    assert_eq!(row.names, ["web-1".to_owned(), format!("web.1.{}", tasks[0])]);
    observe(&mut state, tasks[0], TaskState::Running, START);
    assert_eq!(endpoint_of(&state, tasks[0]).unwrap().state(), EndpointState::Serving);
    let node = |state: &mut State, status| {
        let before = Object::Node(Arc::clone(state.node(NodeId::new(1)).unwrap()));
        let mut node = Node::clone(state.node(NodeId::new(1)).unwrap());
        node.status.state = status;
        state.put(node);
        let after = Object::Node(Arc::clone(state.node(NodeId::new(1)).unwrap()));
        touched(&Event { key: before.key(), version: 2, before: Some(before), after: Some(after) }, state)
    };
    let row = Touched::Row(FRONT, RowKey::Endpoint(tasks[0]));
    assert!(node(&mut state, NodeState::Down).contains(&row));
    let row_of = |state: &State| endpoint_of(state, tasks[0]).unwrap();
    assert_eq!((row_of(&state).state(), row_of(&state).last_resort), (EndpointState::Serving, true));
    assert!(node(&mut state, NodeState::Ready).contains(&row));
    assert_eq!((row_of(&state).state(), row_of(&state).last_resort), (EndpointState::Serving, false));
    assert!(node(&mut state, NodeState::Disconnected).is_empty(), "it says that it is there");
    let draining = Task { wanted: WantedState::Draining, ..Task::clone(state.task(tasks[0]).unwrap()) };
    state.put(draining);
    assert_eq!(row_of(&state).state(), EndpointState::Quiet);
    observe(&mut state, tasks[0], TaskState::Shutdown, START);
    assert_eq!((endpoint_of(&state, tasks[0]), endpoint_of(&state, tasks[2])), (None, None));
    assert_eq!(members(&state, FRONT), [NodeId::new(2)].into());
}

#[test]
fn a_service_has_its_name_aliases_and_virtual_address() {
    let (state, id, _) = example();
    let Some(Row::Service(row)) = row(&state, FRONT, RowKey::Service(id)) else { panic!("no row") };
    assert_eq!(row.names, ["web", "www"]);
    assert_eq!((row.virtual_addresses, row.ports), (vec![vec![10, 1, 0, 2]], vec![]));
    assert_eq!(super::row(&state, INGRESS, RowKey::Service(id)), None);
}

#[test]
fn only_nodes_with_a_task_are_peers() {
    let (state, ..) = example();
    let peers: Vec<_> = rows(&state, FRONT).into_keys().filter(|key| matches!(key, RowKey::Peer(_))).collect();
    assert_eq!(peers, [1, 2].map(|node| RowKey::Peer(NodeId::new(node))));
    assert_eq!(networks_of_node(&state, NodeId::new(1)), [FRONT].into());
    assert_eq!(networks_of_node(&state, NodeId::new(3)), [].into());
}

#[test]
fn a_published_port_brings_the_mesh_to_all_nodes() {
    let (mut state, id, _) = example();
    assert_eq!(rows(&state, INGRESS), BTreeMap::new());
    let before = Service::clone(state.service(id).unwrap());
    let port = PortSpec { published_port: 80, target_port: 8080, ..PortSpec::default() };
    let service = Service { ports: vec![port], ..before.clone() };
    state.put(service.clone());
    assert_eq!(members(&state, INGRESS).len(), 3);
    assert_eq!(networks_of_node(&state, NodeId::new(3)), [INGRESS].into());
    let (before, after) = (Some(before.into()), Some(service.into()));
    let event = Event { version: 1, key: crate::store::ObjectKey::Service(id), before, after };
    let peers = (1..=3).map(|node| Touched::Row(INGRESS, RowKey::Peer(NodeId::new(node))));
    assert!(peers.collect::<BTreeSet<_>>().is_subset(&touched(&event, &state)));
    let Some(Row::Service(row)) = row(&state, INGRESS, RowKey::Service(id)) else { panic!("no row") };
    assert_eq!(row.ports, [port]);
}

#[test]
fn a_heartbeat_touches_nothing() {
    let (state, ..) = example();
    let before = Arc::clone(state.node(NodeId::new(1)).unwrap());
    let mut after = Node::clone(&before);
    after.status.message = "fine".to_owned();
    let (key, before, after) = (crate::store::ObjectKey::Node(before.id), Some(before.into()), Some(after.into()));
    assert_eq!(touched(&Event { version: 1, key, before, after }, &state), BTreeSet::new());
}

#[test]
fn a_service_without_networks_touches_nothing() {
    let mut state = swarm(1);
    let id = with_service(&mut state, replicated(1), |_| {});
    let before = Arc::clone(state.service(id).unwrap());
    let after = Service { spec: Arc::new(ServiceSpec::default()), ..Service::clone(&before) };
    let (key, before, after) = (crate::store::ObjectKey::Service(id), Some(before.into()), Some(after.into()));
    assert_eq!(touched(&Event { version: 1, key, before, after }, &state), BTreeSet::new());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Events of several transactions at once, each row looked at in the state after all of them.
    #[test]
    fn rows_kept_by_events_are_those_of_the_state(plans in arbitrary::history(60), batch in 1..5usize) {
        let mut state = State::default();
        let mut kept: BTreeMap<NetworkId, BTreeMap<RowKey, Row>> = BTreeMap::new();
        for plans in plans.chunks(batch) {
            let mut events = Vec::new();
            for plan in plans {
                events.extend(state.apply(&plan.resolve(&state)).events);
            }
            let all: BTreeSet<Touched> = events.iter().flat_map(|event| touched(event, &state)).collect();
            for one in all {
                match one {
                    Touched::Network(id) => drop(kept.insert(id, rows(&state, id))),
                    Touched::Row(id, key) => {
                        let table = kept.entry(id).or_default();
                        match row(&state, id, key) {
                            Some(row) => table.insert(key, row),
                            None => table.remove(&key),
                        };
                    }
                }
            }
            kept.retain(|_, rows| !rows.is_empty());
            let fresh = state.networks().map(|network| (network.id, rows(&state, network.id)));
            let fresh: BTreeMap<_, _> = fresh.filter(|(_, rows)| !rows.is_empty()).collect();
            prop_assert_eq!(&kept, &fresh, "after {:#?}", events);
            for network in state.networks() {
                for node in state.nodes() {
                    let told = networks_of_node(&state, node.id).contains(&network.id);
                    prop_assert_eq!(told, is_member(&state, network.id, node.id));
                    prop_assert_eq!(told, members(&state, network.id).contains(&node.id));
                }
            }
        }
    }
}
