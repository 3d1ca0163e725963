//! Services, node losses and restarts over example states; then any history of events as a property.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::{Availability, NodeState, RestartCondition, RestartPolicy, TaskState, WantedState};

use super::{due, plan, reap, update};
use crate::example::{
    START, carry_out, change_service, global, node, observe, replicated, set_availability, set_mode, set_node, swarm,
    with_service,
};
use crate::ids::Ids;
use crate::network::Cursors;
use crate::object::{Revision, Service, Slot, Task};
use crate::schedule::{self, Ledger};
use crate::store::{ObjectKey, State};

/// A state, a clock and a source of seeds; the loops run until none of them has anything to do.
struct World {
    state: State,
    service: ServiceId,
    now: UnixMs,
    seed: u128,
}

impl World {
    fn new(state: State, service: ServiceId) -> Self {
        let mut world = Self { state, service, now: START, seed: 1 };
        world.settle();
        world
    }

    fn pass(&mut self) -> usize {
        self.seed += 1;
        let mut ids = Ids::new(self.seed);
        let mut changes = 0;
        for round in 0..5 {
            let plan = match round {
                0 => plan(&self.state, self.service, self.now, &mut ids),
                1 => due(&self.state, self.now),
                2 => update(&self.state, self.service, self.now, &mut ids),
                3 => schedule::plan(&self.state, &Ledger::of(&self.state), &mut Cursors::default(), self.now, 1),
                _ => reap(&self.state, self.service, self.now),
            };
            changes += plan.groups.len();
            carry_out(&mut self.state, &plan, self.now);
        }
        changes
    }

    /// Runs the loops until they are done; panics when they do not come to rest.
    fn settle(&mut self) {
        for _ in 0..50 {
            if self.pass() == 0 {
                return;
            }
        }
        panic!("the loops do not come to rest");
    }

    /// Nodes that are up do as they are told.
    fn nodes_obey(&mut self) {
        let tasks: Vec<_> = self.state.tasks().cloned().collect();
        for task in tasks {
            let up = task
                .node
                .and_then(|node| self.state.node(node))
                .is_some_and(|node| node.status.state == NodeState::Ready);
            if !up || task.state < TaskState::Assigned || task.state.is_terminal() {
                continue;
            }
            let state = match task.wanted {
                WantedState::Running | WantedState::Draining => TaskState::Running,
                WantedState::Ready => TaskState::Ready,
                _ => TaskState::Shutdown,
            };
            observe(&mut self.state, task.id, state, self.now);
        }
    }

    fn run(&mut self) {
        for _ in 0..10 {
            self.settle();
            self.nodes_obey();
        }
        self.settle();
    }

    fn live(&self) -> Vec<Task> {
        self.state.tasks().filter(|task| task.wanted.wants_to_run()).map(|task| Task::clone(task)).collect()
    }

    fn running(&self) -> usize {
        self.state.tasks().filter(|task| task.state == TaskState::Running && task.wanted.wants_to_run()).count()
    }

    fn slots(&self) -> BTreeSet<Slot> {
        self.live().iter().map(|task| task.slot).collect()
    }
}

fn web(nodes: u128, replicas: u64) -> World {
    let mut state = swarm(nodes);
    let service = with_service(&mut state, replicated(replicas), |_| {});
    World::new(state, service)
}

#[test]
fn replicas_spread_over_the_nodes() {
    let mut world = web(3, 6);
    world.run();
    assert_eq!(world.running(), 6);
    for number in 1..=3 {
        assert_eq!(world.state.tasks_on_node(NodeId::new(number)).count(), 2);
    }
}

#[test]
fn scaling_follows_and_slots_are_reused() {
    let mut world = web(3, 3);
    world.run();
    set_mode(&mut world.state, world.service, replicated(30));
    world.run();
    assert_eq!(world.running(), 30);
    set_mode(&mut world.state, world.service, replicated(4));
    world.run();
    assert_eq!(world.running(), 4);
    set_mode(&mut world.state, world.service, replicated(0));
    world.run();
    assert_eq!(world.state.task_count(), 0);
    set_mode(&mut world.state, world.service, replicated(2));
    world.run();
    assert_eq!(world.slots(), BTreeSet::from([Slot::Replica(1), Slot::Replica(2)]));
}

#[test]
fn scaling_down_takes_idle_slots_first_then_from_the_fullest_node() {
    let mut world = web(2, 5);
    world.run();
    let idle = world.live()[0].clone();
    observe(&mut world.state, idle.id, TaskState::Starting, world.now);
    set_mode(&mut world.state, world.service, replicated(4));
    world.settle();
    assert!(!world.slots().contains(&idle.slot), "the slot that does not run goes first");
    set_mode(&mut world.state, world.service, replicated(2));
    world.run();
    for number in 1..=2 {
        let left = world.live().iter().filter(|task| task.node == Some(NodeId::new(number))).count();
        assert_eq!(left, 1, "one stays on each node");
    }
}

#[test]
fn a_failed_task_is_replaced_after_the_delay_in_its_slot() {
    let mut state = swarm(1);
    let policy = RestartPolicy { delay_ms: 5000, ..RestartPolicy::default() };
    let service = with_service(&mut state, replicated(1), |template| template.restart = Some(policy));
    let mut world = World::new(state, service);
    world.run();
    let failed = world.live()[0].clone();
    observe(&mut world.state, failed.id, TaskState::Failed, world.now);
    world.run();
    let next = world.live()[0].clone();
    assert_eq!((next.slot, next.replaces, next.wanted), (failed.slot, Some(failed.id), WantedState::Ready));
    assert_eq!(due(&world.state, world.now).wake_at, Some(world.now.plus(Duration::from_secs(5))));
    world.now = world.now.plus(Duration::from_secs(5));
    world.run();
    assert_eq!(world.running(), 1);
}

#[test]
fn a_task_that_its_node_rejects_is_tried_again_after_the_delay_only() {
    let second = Duration::from_secs(1);
    for mode in [replicated(1), global()] {
        let mut state = swarm(1);
        let service = with_service(&mut state, mode, |template| template.restart = None);
        let mut world = World::new(state, service);
        world.run();
        // It runs, and ends; its replacement is prepared before it is to start.
        let id = world.live()[0].id;
        observe(&mut world.state, id, TaskState::Failed, world.now);
        world.settle();
        let mut rejected: Vec<UnixMs> = Vec::new();
        for _ in 0..40 {
            for task in world.live().into_iter().filter(|task| !task.state.is_terminal() && task.node.is_some()) {
                rejected.push(world.now);
                observe(&mut world.state, task.id, TaskState::Rejected, world.now);
            }
            world.settle();
            world.now = world.now.plus(second);
            world.settle();
        }
        let apart: BTreeSet<i64> = rejected.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        assert_eq!(apart, [5000].into(), "Swarm's delay: {rejected:?}");
        assert!(rejected.len() >= 8);
        // As soon as its node can, it starts without a further delay.
        world.now = world.now.plus(second * 5);
        world.run();
        assert_eq!(world.running(), 1);
        // What is rolled out meanwhile does not wait.
        let id = world.live()[0].id;
        observe(&mut world.state, id, TaskState::Rejected, world.now);
        world.settle();
        assert!(world.live()[0].state.is_terminal());
        let mut changed = Service::clone(world.state.service(service).unwrap());
        let mut revision = Revision::clone(world.state.revision(changed.current()).unwrap());
        (changed.revision, revision.key.number) = (2, 2);
        world.state.put(revision);
        world.state.put(changed);
        world.settle();
        assert!(!world.live()[0].state.is_terminal());
    }
}

#[test]
fn conditions_and_attempts_are_honoured() {
    let cases = [
        (RestartCondition::Any, TaskState::Complete, true),
        (RestartCondition::OnFailure, TaskState::Complete, false),
        (RestartCondition::OnFailure, TaskState::Failed, true),
        (RestartCondition::OnFailure, TaskState::Rejected, true),
        (RestartCondition::None, TaskState::Failed, false),
    ];
    for (condition, end, replaced) in cases {
        let mut state = swarm(1);
        let policy = RestartPolicy { condition: condition.into(), delay_ms: -1, ..RestartPolicy::default() };
        let service = with_service(&mut state, replicated(1), |template| template.restart = Some(policy));
        let mut world = World::new(state, service);
        world.run();
        let id = world.live()[0].id;
        observe(&mut world.state, id, end, world.now);
        world.run();
        assert_eq!(world.running(), usize::from(replaced), "{condition:?} after {end:?}");
        world.run();
        assert_eq!(world.running(), usize::from(replaced), "and it stays so");
    }
}

#[test]
fn attempts_run_out_within_the_window_only() {
    let mut state = swarm(1);
    let policy = RestartPolicy { max_attempts: 2, window_ms: 60_000, delay_ms: -1, ..RestartPolicy::default() };
    let service = with_service(&mut state, replicated(1), |template| template.restart = Some(policy));
    let mut world = World::new(state, service);
    let fail = |world: &mut World, after: u64| {
        world.now = world.now.plus(Duration::from_secs(after));
        world.run();
        let Some(task) = world.live().first().cloned() else {
            return false;
        };
        observe(&mut world.state, task.id, TaskState::Failed, world.now);
        world.run();
        world.running() == 1
    };
    assert!(fail(&mut world, 1));
    assert!(fail(&mut world, 100), "the first attempt is out of the window");
    assert!(fail(&mut world, 1));
    assert!(!fail(&mut world, 1), "two attempts within a minute are all");
}

#[test]
fn a_lost_node_s_tasks_run_elsewhere_and_stop_when_it_returns() {
    let mut world = web(2, 4);
    world.run();
    set_node(&mut world.state, 1, NodeState::Down, world.now);
    world.run();
    assert_eq!(world.live().len(), 4);
    assert!(world.live().iter().all(|task| task.node == Some(NodeId::new(2))));
    let left = world.state.tasks_on_node(NodeId::new(1)).filter(|task| !task.state.is_terminal()).count();
    assert_eq!(left, 2, "nobody knows yet whether they stopped");
    set_node(&mut world.state, 1, NodeState::Ready, world.now);
    world.run();
    assert!(world.state.tasks_on_node(NodeId::new(1)).all(|task| task.state.is_terminal()));
}

#[test]
fn failover_delay_holds_the_tasks_of_a_lost_node_back() {
    let mut world = web(2, 2);
    change_service(&mut world.state, world.service, |spec| spec.failover_delay_ms = 30_000);
    world.run();
    set_node(&mut world.state, 1, NodeState::Down, world.now);
    let until = world.now.plus(Duration::from_secs(30));
    assert_eq!(plan(&world.state, world.service, world.now, &mut Ids::new(9)).wake_at, Some(until));
    world.now = until;
    world.run();
    assert!(world.live().iter().all(|task| task.node == Some(NodeId::new(2))));
}

#[test]
fn drained_and_relabelled_nodes_lose_their_tasks() {
    let mut world = web(2, 4);
    world.run();
    set_availability(&mut world.state, 1, Availability::Drain);
    world.run();
    assert!(world.live().iter().all(|task| task.node == Some(NodeId::new(2))));
    assert_eq!(world.running(), 4);

    let mut state = swarm(1);
    state.put(node(2).label("disk", "ssd").build());
    let service = with_service(&mut state, replicated(2), |template| {
        let placement = skep_proto::v1::Placement {
            constraints: vec!["node.labels.disk==ssd".into()],
            ..skep_proto::v1::Placement::default()
        };
        template.placement = Some(placement);
    });
    let mut world = World::new(state, service);
    world.run();
    assert!(world.live().iter().all(|task| task.node == Some(NodeId::new(2))));
    world.state.put(node(2).label("disk", "hdd").build());
    world.run();
    assert_eq!(world.running(), 0);
    assert!(world.live().iter().all(|task| { task.status.error.contains("constraint node.labels.disk==ssd") }));
}

#[test]
fn global_services_follow_the_nodes() {
    let mut state = swarm(3);
    let service = with_service(&mut state, global(), |_| {});
    let mut world = World::new(state, service);
    world.run();
    assert_eq!(world.running(), 3);
    world.state.put(node(4).build());
    set_availability(&mut world.state, 1, Availability::Drain);
    set_node(&mut world.state, 2, NodeState::Down, world.now);
    world.run();
    let places: BTreeSet<_> = world.live().iter().filter_map(|task| task.node).collect();
    assert_eq!(places, BTreeSet::from([2, 3, 4].map(NodeId::new)), "a drained node is left, a silent one is not");
    world.state.remove(&ObjectKey::Node(NodeId::new(2)));
    world.run();
    assert_eq!(world.live().len(), 2);
}

#[test]
fn a_global_task_that_once_failed_comes_back_to_a_drained_node() {
    for (condition, delay_ms, comes_back) in [
        (RestartCondition::Any, -1, true),
        // Drained while the replacement waits for its time.
        (RestartCondition::Any, 60_000, true),
        (RestartCondition::None, -1, false),
    ] {
        let mut state = swarm(2);
        let policy = RestartPolicy { condition: condition.into(), delay_ms, ..RestartPolicy::default() };
        let service = with_service(&mut state, global(), |template| template.restart = Some(policy));
        let mut world = World::new(state, service);
        world.run();
        let failed = world.live().iter().find(|task| task.node == Some(NodeId::new(1))).unwrap().id;
        observe(&mut world.state, failed, TaskState::Failed, world.now);
        world.now = world.now.plus(Duration::from_secs(1));
        world.run();
        set_availability(&mut world.state, 1, Availability::Drain);
        world.now = world.now.plus(Duration::from_secs(1));
        world.run();
        assert_eq!(world.running(), 1);
        set_availability(&mut world.state, 1, Availability::Active);
        world.now = world.now.plus(Duration::from_secs(1));
        world.run();
        assert_eq!(world.running(), if comes_back { 2 } else { 1 }, "{condition:?} after {delay_ms} ms");
    }
}

#[test]
fn a_removed_service_leaves_nothing() {
    let mut world = web(2, 4);
    world.run();
    world.state.remove(&ObjectKey::Service(world.service));
    world.run();
    assert_eq!(world.state.task_count(), 0);
    assert_eq!(world.state.revisions_of(world.service).count(), 0);
}

#[test]
fn history_is_kept_to_the_limit_and_lost_tasks_are_given_up_after_a_day() {
    let mut world = web(1, 1);
    for _ in 0..9 {
        world.run();
        let id = world.live()[0].id;
        observe(&mut world.state, id, TaskState::Failed, world.now);
    }
    world.run();
    assert_eq!(world.state.task_count(), 6, "one that runs and five of history");

    let mut world = web(2, 1);
    world.run();
    let lost = world.live()[0].clone();
    let number = lost.node.unwrap().value();
    set_node(&mut world.state, number, NodeState::Down, world.now);
    world.run();
    assert_eq!(world.state.task(lost.id).unwrap().state, TaskState::Running);
    world.now = world.now.plus(Duration::from_secs(24 * 3600));
    world.run();
    assert_eq!(world.state.task(lost.id).unwrap().state, TaskState::Orphaned);
}

#[test]
fn a_task_whose_host_went_away_is_replaced_at_once_and_costs_no_attempt() {
    let mut state = swarm(1);
    let policy = RestartPolicy {
        condition: RestartCondition::OnFailure.into(),
        delay_ms: 60_000,
        max_attempts: 1,
        ..RestartPolicy::default()
    };
    let service = with_service(&mut state, replicated(1), |template| template.restart = Some(policy));
    let mut world = World::new(state, service);
    world.run();
    for round in 0..3 {
        let lost = world.live()[0].id;
        observe(&mut world.state, lost, TaskState::Failed, world.now);
        let mut task = Task::clone(world.state.task(lost).unwrap());
        std::sync::Arc::make_mut(&mut task.status).host_lost = true;
        world.state.put(task);
        world.run();
        assert_eq!((world.running(), world.live()[0].replaces), (1, Some(lost)), "round {round}");
        assert!(!world.live()[0].policy_restart);
    }
    let failed = world.live()[0].id;
    observe(&mut world.state, failed, TaskState::Failed, world.now);
    world.run();
    assert_eq!((world.running(), world.live()[0].wanted), (0, WantedState::Ready), "its own end waits, and counts");
    assert!(world.live()[0].policy_restart);
}

#[test]
fn a_paused_node_keeps_its_tasks_and_gets_no_more() {
    let mut world = web(2, 2);
    world.run();
    let before: BTreeSet<TaskId> = world.live().iter().map(|task| task.id).collect();
    set_availability(&mut world.state, 1, Availability::Pause);
    set_mode(&mut world.state, world.service, replicated(6));
    world.run();
    let on_paused: Vec<Task> = world.live().into_iter().filter(|task| task.node == Some(NodeId::new(1))).collect();
    assert!(on_paused.len() == 1 && before.contains(&on_paused[0].id));
    assert_eq!(world.running(), 6);

    let mut state = swarm(2);
    let service = with_service(&mut state, global(), |_| {});
    let mut world = World::new(state, service);
    world.run();
    set_availability(&mut world.state, 1, Availability::Pause);
    let failed = world.live().iter().find(|task| task.node == Some(NodeId::new(1))).unwrap().id;
    world.run();
    assert_eq!(world.running(), 2, "a global task stays as well");
    observe(&mut world.state, failed, TaskState::Failed, world.now);
    world.run();
    assert_eq!(world.running(), 1, "and is not started again there");
}

#[test]
fn a_drained_node_is_left_at_once_whatever_the_restart_delay() {
    let mut state = swarm(2);
    let policy = RestartPolicy { delay_ms: 60_000, max_attempts: 1, ..RestartPolicy::default() };
    let service = with_service(&mut state, replicated(4), |template| template.restart = Some(policy));
    let mut world = World::new(state, service);
    world.run();
    for drained in [1, 2, 1] {
        set_availability(&mut world.state, drained, Availability::Drain);
        set_availability(&mut world.state, 3 - drained, Availability::Active);
        world.run();
        assert_eq!(world.running(), 4);
        assert!(world.live().iter().all(|task| task.node == Some(NodeId::new(3 - drained)) && !task.policy_restart));
    }
}

#[test]
fn a_node_that_returns_within_the_failover_delay_keeps_its_tasks() {
    let mut world = web(2, 2);
    change_service(&mut world.state, world.service, |spec| spec.failover_delay_ms = 30_000);
    world.run();
    let before = world.live();
    let down_at = world.now;
    set_node(&mut world.state, 1, NodeState::Down, down_at);
    world.now = down_at.plus(Duration::from_millis(29_999));
    world.run();
    set_node(&mut world.state, 1, NodeState::Ready, world.now);
    world.now = world.now.plus(Duration::from_secs(60));
    world.run();
    let ids = |tasks: &[Task]| tasks.iter().map(|task| (task.id, task.node)).collect::<BTreeSet<_>>();
    assert_eq!(ids(&world.live()), ids(&before));
}

#[test]
fn global_tasks_of_a_node_that_is_gone_end_after_a_day_or_with_the_node() {
    let mut state = swarm(3);
    let service = with_service(&mut state, global(), |_| {});
    let mut world = World::new(state, service);
    world.run();
    for number in [1, 2] {
        set_node(&mut world.state, number, NodeState::Down, world.now);
    }
    let on = |world: &World, number: u128| {
        world.state.tasks_on_node(NodeId::new(number)).map(|task| Task::clone(task)).collect::<Vec<_>>()
    };
    world.run();
    assert_eq!(on(&world, 1)[0].wanted, WantedState::Running);
    world.state.remove(&ObjectKey::Node(NodeId::new(2)));
    world.run();
    assert_eq!(on(&world, 2), []);
    world.now = world.now.plus(Duration::from_secs(24 * 3600));
    world.run();
    assert_eq!((on(&world, 1)[0].wanted, on(&world, 1)[0].state), (WantedState::Shutdown, TaskState::Orphaned));
    set_node(&mut world.state, 1, NodeState::Ready, world.now);
    world.run();
    assert_eq!(world.running(), 2, "a new one runs when it returns");
}

/// Something that happens to the world.
#[derive(Clone, Debug)]
enum Happening {
    Scale(u64),
    End(usize, TaskState),
    NodeState(u128, NodeState),
    Availability(u128, Availability),
    RemoveNode(u128),
    Time(u64),
    Obey,
    Loop,
}

fn happening() -> impl Strategy<Value = Happening> {
    let end = prop_oneof![Just(TaskState::Failed), Just(TaskState::Complete), Just(TaskState::Rejected)];
    let node_state = prop_oneof![Just(NodeState::Down), Just(NodeState::Ready), Just(NodeState::Unknown)];
    let availability = prop_oneof![Just(Availability::Active), Just(Availability::Pause), Just(Availability::Drain)];
    prop_oneof![
        2 => (0u64..12).prop_map(Happening::Scale),
        4 => (0usize..20, end).prop_map(|(index, state)| Happening::End(index, state)),
        3 => (1u128..5, node_state).prop_map(|(number, state)| Happening::NodeState(number, state)),
        2 => (1u128..5, availability).prop_map(|(number, availability)| Happening::Availability(number, availability)),
        1 => (1u128..5).prop_map(Happening::RemoveNode),
        2 => (0u64..100_000).prop_map(Happening::Time),
        4 => Just(Happening::Obey),
        6 => Just(Happening::Loop),
    ]
}

fn happen(world: &mut World, happening: &Happening) {
    let known = |world: &World, number: u128| world.state.node(NodeId::new(number)).is_some();
    match happening {
        Happening::Scale(replicas) => set_mode(&mut world.state, world.service, replicated(*replicas)),
        Happening::End(index, state) => {
            let running: Vec<TaskId> =
                world.state.tasks().filter(|task| task.occupies_node()).map(|task| task.id).collect();
            if let Some(id) = running.get(*index) {
                observe(&mut world.state, *id, *state, world.now);
            }
        }
        Happening::NodeState(number, state) if known(world, *number) => {
            set_node(&mut world.state, *number, *state, world.now);
        }
        Happening::Availability(number, availability) if known(world, *number) => {
            set_availability(&mut world.state, *number, *availability);
        }
        Happening::RemoveNode(number) => {
            world.state.remove(&ObjectKey::Node(NodeId::new(*number)));
        }
        Happening::Time(ms) => world.now = world.now.plus(Duration::from_millis(*ms)),
        Happening::Obey => world.nodes_obey(),
        Happening::Loop => {
            world.pass();
        }
        Happening::NodeState(..) | Happening::Availability(..) => {}
    }
}

/// At most one task that is to run in each slot, and never more of them than wanted.
fn assert_slots(world: &World, replicas: Option<u64>) -> Result<(), TestCaseError> {
    let live = world.live();
    prop_assert_eq!(world.slots().len(), live.len(), "a slot has two tasks that are to run");
    if let Some(replicas) = replicas {
        prop_assert!(live.len() as u64 <= replicas, "{} tasks for {} replicas", live.len(), replicas);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_history_keeps_slots_unique_and_converges(history in prop::collection::vec(happening(), 1..60)) {
        let mut world = web(4, 5);
        let mut replicas = 5;
        for event in &history {
            happen(&mut world, event);
            if let Happening::Scale(wanted) = event {
                replicas = *wanted;
            }
            assert_slots(&world, matches!(event, Happening::Loop).then_some(replicas))?;
        }
        // Then all is well: one node that is up takes everything.
        world.state.put(node(9).build());
        for number in 1..5 {
            if world.state.node(NodeId::new(number)).is_some() {
                set_node(&mut world.state, number, NodeState::Ready, world.now);
            }
        }
        world.run();
        world.now = world.now.plus(Duration::from_secs(60));
        world.run();
        prop_assert_eq!(world.running() as u64, replicas);
        assert_slots(&world, Some(replicas))?;
        prop_assert_eq!(world.pass(), 0, "stable once converged");
    }
}
