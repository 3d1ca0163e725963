//! Who drains, and until when.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;

use skep_proto::id::{NodeId, ServiceId};
use skep_proto::v1::NetworkAttachment;
use skep_proto::v1::service_spec::Mode;

use super::*;
use crate::change::{Op, Transaction};
use crate::example::{START, network, node, replicated, set_mode, swarm, with_service};
use crate::ids::Ids;
use crate::object::{NetworkAddresses, Service};
use crate::orchestrate;

const FRONT: NetworkId = NetworkId::new(1);
const LATER: UnixMs = UnixMs(START.0 + 500);

fn apply(state: &mut State, plan: &Plan, at: UnixMs) {
    let applied = state.apply(&Transaction { at, groups: plan.groups.clone(), ..Transaction::default() });
    assert_eq!(applied.refused, vec![]);
}

/// Three nodes; service `web` with tasks that run on the first ones, on `front` if `attached`.
fn running(mode: Mode, attached: bool) -> (State, ServiceId) {
    let mut state = swarm(3);
    state.put(network(1, "front", "10.1.0.0/24", false));
    let id = with_service(&mut state, mode, |template| {
        if attached {
            let front =
                NetworkAttachment { network_id: FRONT.to_vec(), name: "front".to_owned(), ..Default::default() };
            template.networks = vec![front];
        }
    });
    state.set_version(10);
    let plan = orchestrate::plan(&state, id, START, &mut Ids::new(1));
    apply(&mut state, &plan, START);
    let tasks: Vec<TaskId> = state.tasks_of_service(id).map(|task| task.id).collect();
    for (number, task) in (1..).zip(tasks) {
        let mut task = Task::clone(state.task(task).unwrap());
        let node = task.node.unwrap_or(NodeId::new(u128::from(number)));
        task.node = Some(node);
        task.state = TaskState::Running;
        Arc::make_mut(&mut task.status).set_state(TaskState::Running);
        if attached {
            let address = Ipv4Addr::new(10, 1, 0, 10 + number);
            task.networks = vec![NetworkAddresses { v4: Some(address), ..NetworkAddresses::none(FRONT) }];
        }
        state.put(task);
    }
    (state, id)
}

fn plan(state: &mut State, service: ServiceId, at: UnixMs) -> Plan {
    let plan = orchestrate::plan(state, service, at, &mut Ids::new(u128::from(at.0.unsigned_abs())));
    apply(state, &plan, at);
    plan
}

fn wanted(state: &State, service: ServiceId) -> Vec<WantedState> {
    let mut wanted: Vec<_> = state.tasks_of_service(service).map(|task| task.wanted).collect();
    wanted.sort_unstable();
    wanted
}

fn draining(state: &State) -> BTreeSet<TaskId> {
    state.tasks().filter(|task| task.wanted == Draining).map(|task| task.id).collect()
}

/// What the nodes have applied of every network.
#[derive(Clone, Copy)]
enum Nodes {
    None,
    At(u64),
    Unknown,
}

fn step(state: &mut State, nodes: Nodes, at: UnixMs) -> Option<UnixMs> {
    let applied = |_, since| match nodes {
        Nodes::None => Drained::NoNode,
        Nodes::At(version) if version >= since => Drained::All,
        Nodes::At(_) | Nodes::Unknown => Drained::Waiting,
    };
    let plan = drained(state, &draining(state), applied, at);
    apply(state, &plan, at);
    plan.wake_at
}

use WantedState::{Draining, Ready, Remove, Running, Shutdown};

#[test]
fn a_replica_that_is_scaled_away_drains_and_is_removed() {
    let (mut state, web) = running(replicated(2), true);
    set_mode(&mut state, web, replicated(1));
    plan(&mut state, web, LATER);
    assert_eq!(wanted(&state, web), [Running, Draining]);
    assert_eq!(plan(&mut state, web, LATER).groups, vec![], "stable");
    let task = state.task(*draining(&state).first().unwrap()).unwrap().clone();
    // One node has not applied it.
    let until = step(&mut state, Nodes::At(task.meta.version - 1), LATER);
    assert_eq!((until, wanted(&state, web)), (Some(LATER.plus(DRAIN_FOR)), vec![Running, Draining]));
    assert_eq!(step(&mut state, Nodes::Unknown, LATER), until);
    // What was on its way is let in.
    let settled = LATER.plus(SETTLE);
    assert_eq!(step(&mut state, Nodes::At(task.meta.version), LATER), Some(settled));
    assert_eq!(wanted(&state, web), [Running, Draining]);
    assert_eq!(step(&mut state, Nodes::At(task.meta.version), settled), None);
    assert_eq!(wanted(&state, web), [Running, Remove]);
}

#[test]
fn scaled_up_again_while_one_drains_there_are_enough() {
    let (mut state, web) = running(replicated(2), true);
    set_mode(&mut state, web, replicated(1));
    plan(&mut state, web, LATER);
    set_mode(&mut state, web, replicated(2));
    plan(&mut state, web, LATER);
    assert_eq!(wanted(&state, web), [Running, Running, Draining]);
    step(&mut state, Nodes::None, LATER);
    assert!(wanted(&state, web).starts_with(&[Running, Running]) && draining(&state).is_empty());
    assert_eq!(plan(&mut state, web, LATER).groups, vec![]);
}

#[test]
fn nobody_is_waited_for_longer_than_that() {
    let (mut state, web) = running(replicated(2), true);
    set_mode(&mut state, web, replicated(0));
    plan(&mut state, web, LATER);
    assert_eq!(wanted(&state, web), [Draining, Draining]);
    step(&mut state, Nodes::Unknown, LATER.plus(DRAIN_FOR - Duration::from_millis(1)));
    assert_eq!(wanted(&state, web), [Draining, Draining]);
    step(&mut state, Nodes::Unknown, LATER.plus(DRAIN_FOR));
    assert_eq!(wanted(&state, web), [Remove, Remove]);
}

#[test]
fn without_networks_nothing_waits() {
    let (mut state, web) = running(replicated(2), false);
    set_mode(&mut state, web, replicated(1));
    plan(&mut state, web, LATER);
    assert_eq!(wanted(&state, web), [Running, Remove]);
}

#[test]
fn a_task_that_does_not_serve_stops_at_once() {
    for not_serving in [TaskState::Starting, TaskState::Ready] {
        let (mut state, web) = running(replicated(1), true);
        let mut task = Task::clone(state.tasks().next().unwrap());
        task.state = not_serving;
        Arc::make_mut(&mut task.status).set_state(not_serving);
        state.put(task);
        set_mode(&mut state, web, replicated(0));
        plan(&mut state, web, LATER);
        assert_eq!(wanted(&state, web), [Remove]);
    }
}

#[test]
fn a_task_of_a_drained_node_drains_beside_its_replacement() {
    let (mut state, web) = running(replicated(1), true);
    let mut one = node(1).build();
    Arc::make_mut(&mut one.spec).availability = skep_proto::v1::Availability::Drain.into();
    state.put(one);
    plan(&mut state, web, LATER);
    assert_eq!(wanted(&state, web), [Running, Draining]);
    step(&mut state, Nodes::At(u64::MAX), LATER.plus(SETTLE));
    assert_eq!(wanted(&state, web), [Running, Shutdown]);
}

#[test]
fn a_lost_node_is_not_waited_for() {
    let (mut state, web) = running(replicated(1), true);
    set_mode(&mut state, web, replicated(0));
    plan(&mut state, web, LATER);
    let mut one = node(1).build();
    one.status.state = NodeState::Down;
    state.put(one);
    step(&mut state, Nodes::Unknown, LATER);
    assert_eq!(wanted(&state, web), [Remove]);
    let (mut state, web) = running(replicated(1), true);
    let mut one = node(1).build();
    one.status.state = NodeState::Down;
    state.put(one);
    plan(&mut state, web, LATER);
    assert_eq!(wanted(&state, web), [Running, Shutdown], "its replacement is made, and it is not drained");
}

#[test]
fn tasks_of_a_removed_service_drain_and_go() {
    let (mut state, web) = running(replicated(2), true);
    let remove = Change::any(Op::RemoveService(web));
    let mut removal = Plan::default();
    removal.push(vec![remove]);
    apply(&mut state, &removal, LATER);
    plan(&mut state, web, LATER);
    assert_eq!(wanted(&state, web), [Draining, Draining]);
    assert_eq!(plan(&mut state, web, LATER).groups, vec![]);
    step(&mut state, Nodes::None, LATER);
    assert_eq!(wanted(&state, web), [Remove, Remove]);
}

#[test]
fn an_update_waits_for_the_one_that_drains() {
    let (mut state, web) = running(replicated(2), true);
    let service = Service::clone(state.service(web).unwrap());
    let mut revision = crate::object::Revision::clone(state.revision(service.current()).unwrap());
    revision.key.number = 2;
    Arc::make_mut(&mut revision.template).containers[0].image = "new".to_owned();
    state.put(revision);
    state.put(Service { revision: 2, ..service });
    let update = |state: &mut State, at| {
        let plan = orchestrate::update(state, web, at, &mut Ids::new(7));
        apply(state, &plan, at);
        plan
    };
    update(&mut state, LATER);
    assert_eq!(wanted(&state, web), [Ready, Running, Draining], "one at a time, and its successor waits");
    assert_eq!(update(&mut state, LATER).groups, vec![], "it is not done while the old one drains");
    plan(&mut state, web, LATER);
    step(&mut state, Nodes::At(u64::MAX), LATER.plus(SETTLE));
    assert_eq!(wanted(&state, web), [Ready, Running, Shutdown]);
    assert_eq!(update(&mut state, LATER).groups, vec![], "it still runs");
    let old = state.tasks().find(|task| task.wanted == Shutdown).unwrap().id;
    crate::example::observe(&mut state, old, TaskState::Shutdown, LATER);
    update(&mut state, LATER);
    assert_eq!(wanted(&state, web), [Running, Running, Shutdown]);
}
