//! Placement over example states, then as a property against a plain count.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::v1::{NodeState, Placement, PortSpec, Protocol, PublishMode, TaskState};

use super::{Ledger, plan};
use crate::example::{START, carry_out, node, replicated, reserve_memory, set_node, swarm, with_service};
use crate::network::Cursors;
use crate::object::{Service, Task};
use crate::store::State;
use crate::{ids::Ids, orchestrate};

fn place(state: &mut State, service: ServiceId) {
    let made = orchestrate::plan(state, service, START, &mut Ids::new(1));
    carry_out(state, &made, START);
    let placed = plan(state, &Ledger::of(state), &mut Cursors::default(), START, 1);
    carry_out(state, &placed, START);
    assert_eq!(plan(state, &Ledger::of(state), &mut Cursors::default(), START, 2).groups, [], "stable");
}

fn on(state: &State, number: u128) -> usize {
    state.tasks_on_node(NodeId::new(number)).count()
}

fn errors(state: &State) -> Vec<String> {
    state.pending_tasks().map(|task| task.status.error.clone()).collect()
}

#[test]
fn reservations_are_never_exceeded_and_refusals_count_nodes() {
    let mut state = swarm(2);
    let service = with_service(&mut state, replicated(6), |template| reserve_memory(template, 3 << 30));
    place(&mut state, service);
    assert_eq!((on(&state, 1), on(&state, 2)), (2, 2));
    assert_eq!(errors(&state), vec!["no suitable node: not enough memory left to reserve on 2 nodes"; 2]);
}

#[test]
fn every_filter_has_its_reason() {
    let mut state = swarm(3);
    set_node(&mut state, 1, NodeState::Down, START);
    let service = with_service(&mut state, replicated(1), |template| {
        let constraints = vec!["node.labels.gpu==yes".into()];
        template.placement = Some(Placement { constraints, ..Placement::default() });
    });
    place(&mut state, service);
    let expected = "no suitable node: node is down on 1 node; constraint node.labels.gpu==yes is not met on 2 nodes";
    assert_eq!(errors(&state), [expected]);
    state.put(node(4).label("gpu", "yes").build());
    place(&mut state, service);
    assert_eq!(on(&state, 4), 1);
}

#[test]
fn labels_spread_before_nodes() {
    let mut state = swarm(0);
    for (number, zone) in [(1, "a"), (2, "b"), (3, "b"), (4, "b")] {
        state.put(node(number).label("zone", zone).build());
    }
    let service = with_service(&mut state, replicated(6), |template| {
        template.placement = Some(Placement { spread: vec!["node.labels.zone".into()], ..Placement::default() });
    });
    place(&mut state, service);
    assert_eq!((1..=4).map(|number| on(&state, number)).collect::<Vec<_>>(), [3, 1, 1, 1]);
}

#[test]
fn host_ports_and_the_most_per_node_limit_a_node() {
    let mut state = swarm(2);
    let service = with_service(&mut state, replicated(3), |_| {});
    let mut with_port = Service::clone(state.service(service).unwrap());
    let port = PortSpec {
        target_port: 80,
        published_port: 80,
        protocol: Protocol::Tcp.into(),
        mode: PublishMode::Host.into(),
    };
    with_port.ports = vec![port];
    state.put(with_port);
    place(&mut state, service);
    assert_eq!((on(&state, 1), on(&state, 2)), (1, 1));
    assert_eq!(errors(&state), ["no suitable node: host port 80/tcp is taken on 2 nodes"]);

    let mut state = swarm(2);
    let service = with_service(&mut state, replicated(5), |template| {
        template.placement = Some(Placement { max_replicas_per_node: 2, ..Placement::default() });
    });
    place(&mut state, service);
    assert_eq!(errors(&state), ["no suitable node: already has the most replicas per node (2) on 2 nodes"]);
}

#[test]
fn a_node_where_the_revision_keeps_failing_is_asked_last() {
    let mut state = swarm(2);
    let service = with_service(&mut state, replicated(1), |_| {});
    place(&mut state, service);
    let template = Task::clone(state.tasks().next().unwrap());
    state.remove(&crate::store::ObjectKey::Task(template.id));
    for number in 0..5 {
        let mut failed = Task { id: TaskId::new(number + 1), node: Some(NodeId::new(1)), ..template.clone() };
        failed.wanted = skep_proto::v1::WantedState::Shutdown;
        failed.slot = crate::object::Slot::Replica(50 + u64::try_from(number).unwrap());
        state.put(failed);
        crate::example::observe(&mut state, TaskId::new(number + 1), TaskState::Failed, START);
    }
    let service = state.service(service).unwrap().clone();
    let fresh = Task {
        id: TaskId::new(99),
        node: None,
        state: TaskState::Pending,
        status: std::sync::Arc::new(skep_proto::v1::TaskStatus {
            state: TaskState::Pending.into(),
            ..skep_proto::v1::TaskStatus::default()
        }),
        revision: service.current(),
        ..template
    };
    for seed in 0..8 {
        let mut trial = state.clone();
        trial.put(fresh.clone());
        let placed = plan(&trial, &Ledger::of(&trial), &mut Cursors::default(), START, seed);
        carry_out(&mut trial, &placed, START);
        assert_eq!(trial.task(fresh.id).unwrap().node, Some(NodeId::new(2)));
    }
}

proptest! {
    /// Placement is as even as can be, whatever the seed, and nodes are never filled beyond what they have.
    #[test]
    fn placement_is_even_and_within_limits(nodes in 1u128..8, replicas in 0u64..40, gib in 0i64..5) {
        let mut state = swarm(nodes);
        let service = with_service(&mut state, replicated(replicas), |template| reserve_memory(template, gib << 30));
        place(&mut state, service);
        let counts: Vec<usize> = (1..=nodes).map(|number| on(&state, number)).collect();
        let room = if gib == 0 { usize::MAX } else { usize::try_from(8 / gib).unwrap() };
        prop_assert!(counts.iter().all(|count| *count <= room));
        prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
        let placed: usize = counts.iter().sum();
        let capacity = room.saturating_mul(usize::try_from(nodes).unwrap());
        prop_assert_eq!(placed, usize::try_from(replicas).unwrap().min(capacity));
    }

    /// The ledger kept by events is the one counted anew.
    #[test]
    fn the_ledger_follows_the_events(ends in prop::collection::vec(0usize..10, 0..10)) {
        let mut state = swarm(3);
        let service = with_service(&mut state, replicated(10), |template| reserve_memory(template, 1 << 30));
        place(&mut state, service);
        let mut ledger = Ledger::of(&state);
        let ids: Vec<TaskId> = state.tasks().map(|task| task.id).collect();
        for index in ends {
            crate::example::observe(&mut state, ids[index], TaskState::Complete, START);
            let task = state.task(ids[index]).unwrap().clone();
            ledger.update(&state, task.id, Some(&task));
        }
        prop_assert_eq!(ledger, Ledger::of(&state));
    }
}
