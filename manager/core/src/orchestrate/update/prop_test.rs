//! Any interleaving of what tasks, nodes and users do during updates.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use proptest::prelude::*;
use skep_proto::v1::{FailureAction, NodeState, TaskState, UpdateOrder, UpdatePolicy, UpdateState};

use super::world::World;
use crate::example::{global, node, replicated, set_node};
use crate::parcels::Rollout;
use std::collections::BTreeSet;

/// What happens between two looks of the loops.
#[derive(Clone, Debug)]
enum Happening {
    /// The loops look.
    Loops,
    /// Nodes go one step on.
    Nodes,
    /// One task goes one step on: the one in this position.
    One(usize),
    /// The running task in this position fails.
    Crash(usize),
    Node(u128, NodeState),
    Scale(u64),
    Update,
    RotateLive,
    Rotate,
    Rollback,
    Time(u64),
}

/// What healthy swarms see: no crashes, no node losses.
fn peaceful() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => Just(Happening::Loops),
        3 => Just(Happening::Nodes),
        6 => (0..40usize).prop_map(Happening::One),
        1 => Just(Happening::Update),
        1 => Just(Happening::RotateLive),
        1 => Just(Happening::Rotate),
        1 => (0..8_000u64).prop_map(Happening::Time),
    ]
}

fn anything() -> impl Strategy<Value = Happening> {
    let state = prop_oneof![1 => Just(NodeState::Down), 1 => Just(NodeState::Unknown), 2 => Just(NodeState::Ready)];
    prop_oneof![
        8 => peaceful(),
        2 => (0..12usize).prop_map(Happening::Crash),
        2 => (1..=4u128, state).prop_map(|(number, state)| Happening::Node(number, state)),
        1 => (0..10u64).prop_map(Happening::Scale),
        1 => Just(Happening::Rollback),
    ]
}

fn policy() -> impl Strategy<Value = UpdatePolicy> {
    let order = prop_oneof![Just(UpdateOrder::StopFirst), Just(UpdateOrder::StartFirst)];
    let action = prop_oneof![Just(FailureAction::Pause), Just(FailureAction::Continue), Just(FailureAction::Rollback)];
    let ratio = prop_oneof![Just(0.0), Just(0.25), Just(1.0)];
    let pace = (0..4u32, prop::bool::weighted(0.1), prop_oneof![Just(0i64), Just(3_000)]);
    (pace, order, action, ratio).prop_map(|((parallelism, all, delay_ms), order, action, max_failure_ratio)| {
        UpdatePolicy {
            parallelism,
            all,
            delay_ms,
            failure_action: action.into(),
            monitor_ms: 0,
            max_failure_ratio,
            order: order.into(),
        }
    })
}

/// A policy that does not bear that nothing works.
fn strict_policy() -> impl Strategy<Value = UpdatePolicy> {
    policy().prop_map(|mut policy| {
        if policy.failure_action() == FailureAction::Continue {
            policy.set_failure_action(FailureAction::Pause);
        }
        UpdatePolicy { max_failure_ratio: policy.max_failure_ratio.min(0.5), ..policy }
    })
}

fn happen(world: &mut World, happening: &Happening, is_global: bool) {
    match happening {
        Happening::Loops => {
            world.pass();
        }
        Happening::Nodes => {
            world.step();
        }
        Happening::One(position) => world.step_one(*position),
        Happening::Crash(position) => {
            let running: Vec<_> = world.state.tasks().filter(|task| task.state == TaskState::Running).collect();
            if let Some(id) = running.get(*position).map(|task| task.id) {
                world.crash(id);
            }
        }
        Happening::Node(number, state) => set_node(&mut world.state, *number, *state, world.now),
        Happening::Scale(replicas) if !is_global => world.scale(replicated(*replicas)),
        Happening::Scale(_) => {}
        Happening::Update => {
            let next = world.service().revision + 1;
            world.update_image(&format!("busybox:{next}"));
        }
        Happening::RotateLive => world.rotate_live(),
        Happening::Rotate => world.rotate(Rollout::Rolling),
        Happening::Rollback => {
            let from = world.service().update.as_ref().map_or(0, |update| update.from_revision);
            if world.state.revisions_of(world.service).any(|revision| revision.key.number == from) {
                world.roll_back(from);
            }
        }
        Happening::Time(ms) => world.now = world.now.plus(Duration::from_millis(*ms)),
    }
}

/// All well again, and the operator asks once more.
fn recover(world: &mut World) {
    world.state.put(node(9).build());
    for number in 1..=4 {
        set_node(&mut world.state, number, NodeState::Ready, world.now);
    }
    let next = world.service().revision + 1;
    world.update_image(&format!("busybox:{next}"));
    world.run_for(Duration::from_secs(600));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happened: the next update of a healthy swarm reaches every task, completes, and then all is still.
    #[test]
    fn healthy_tasks_become_all_new(
        policy in policy(),
        is_global in prop::bool::weighted(0.3),
        history in prop::collection::vec(anything(), 0..60),
    ) {
        let mode = if is_global { global() } else { replicated(5) };
        let mut world = World::new(mode, policy);
        for happening in &history {
            happen(&mut world, happening, is_global);
        }
        recover(&mut world);
        prop_assert_eq!(world.update_state(), UpdateState::Completed, "{}", world.message());
        let newest = world.service().revision;
        let live = world.live();
        prop_assert!(live.iter().all(|task| task.revision.number == newest && task.state == TaskState::Running));
        if is_global {
            prop_assert_eq!(live.len(), 5);
        }
        prop_assert_eq!(world.running(), live.len(), "what was replaced has stopped");
        prop_assert_eq!(world.pass(), 0, "stable once it is done");
    }

    /// Of healthy tasks never more than `parallelism` are missing (stop-first), nor more than that too many (start-first).
    #[test]
    fn no_more_places_are_in_flight_than_allowed(
        policy in policy(),
        history in prop::collection::vec(peaceful(), 0..150),
    ) {
        const REPLICAS: usize = 6;
        let mut world = World::new(replicated(REPLICAS as u64), policy);
        prop_assert_eq!(world.running(), REPLICAS);
        let at_once = if policy.all { REPLICAS } else { policy.parallelism.max(1) as usize };
        for happening in &history {
            happen(&mut world, happening, false);
            let running = world.running();
            prop_assert!(running + at_once >= REPLICAS, "{running} run");
            match policy.order() {
                UpdateOrder::StopFirst => prop_assert!(running <= REPLICAS, "{running} run"),
                UpdateOrder::StartFirst => {
                    prop_assert!(running <= REPLICAS + at_once, "{running} run");
                    prop_assert!(running >= REPLICAS, "{running} run");
                }
            }
        }
    }

    /// Live rotations restart nothing, however many there are and whatever else grows meanwhile; and each task comes to have
    /// the newest version.
    #[test]
    fn live_rotations_stop_nothing(
        policy in policy(),
        is_global in prop::bool::weighted(0.3),
        history in prop::collection::vec(
            prop_oneof![
                4 => Just(Happening::Loops),
                2 => Just(Happening::Nodes),
                4 => (0..40usize).prop_map(Happening::One),
                3 => Just(Happening::RotateLive),
                1 => (5..9u64).prop_map(Happening::Scale),
                1 => (0..8_000u64).prop_map(Happening::Time),
            ],
            0..60,
        ),
    ) {
        let mut world = World::new(if is_global { global() } else { replicated(5) }, policy);
        let first: BTreeSet<_> = world.live().iter().map(|task| task.id).collect();
        let mut most = 5;
        for happening in &history {
            match happening {
                // Only up: what is scaled away stops.
                Happening::Scale(replicas) if *replicas <= most => {}
                Happening::Scale(replicas) => {
                    most = *replicas;
                    happen(&mut world, happening, is_global);
                }
                _ => happen(&mut world, happening, is_global),
            }
            let running = world.state.tasks().filter(|task| task.state == TaskState::Running && task.wanted.wants_to_run());
            let running: BTreeSet<_> = running.map(|task| task.id).collect();
            prop_assert!(first.is_subset(&running), "after {happening:?}");
        }
        world.run_for(Duration::from_secs(60));
        let live = world.live();
        prop_assert_eq!(live.len(), world.state.task_count(), "nothing was replaced");
        let newest = world.service().revision;
        prop_assert!(live.iter().all(|task| task.revision.number == newest && task.state == TaskState::Running));
        prop_assert!(matches!(world.update_state(), UpdateState::None | UpdateState::Completed));
        prop_assert_eq!(world.pass(), 0, "stable once it is done");
    }

    /// A revision of which nothing works stops the update as soon as the ratio is exceeded, and what it did not reach
    /// runs on.
    #[test]
    fn what_never_works_stops_the_update(policy in strict_policy(), replicas in 1..12u64, order in prop::collection::vec(0..40usize, 0..80)) {
        let mut world = World::new(replicated(replicas), policy);
        world.broken.insert(2);
        world.update_image("broken");
        for position in order {
            world.step_one(position);
            world.pass();
        }
        for _ in 0..400 {
            world.pass();
            world.step();
            world.now = world.now.plus(Duration::from_millis(500));
        }
        let update = world.service().update.clone().unwrap();
        match policy.failure_action() {
            FailureAction::Pause => prop_assert_eq!(update.state(), UpdateState::Paused),
            _ => {
                prop_assert_eq!(update.state(), UpdateState::RollbackCompleted, "{}", update.message);
                prop_assert_eq!(world.running() as u64, replicas);
                return Ok(());
            }
        }
        let at_once = if policy.all { replicas } else { u64::from(policy.parallelism.max(1)) };
        let borne = (policy.max_failure_ratio * replicas as f64) as u64;
        let left = if policy.order() == UpdateOrder::StartFirst { replicas } else { replicas.saturating_sub(borne + at_once) };
        let old = world.running_revisions().iter().filter(|number| **number == 1).count() as u64;
        prop_assert!(old >= left, "{old} of {replicas} are left");
    }
}
