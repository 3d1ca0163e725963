//! Updates from beginning to end, over example swarms.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use skep_proto::id::NodeId;
use skep_proto::v1::{
    Availability, FailureAction, NodeState, Placement, PortSpec, Protocol, PublishMode, RestartCondition,
    RestartPolicy, TaskState, UpdateOrder, UpdatePolicy, UpdateState, WantedState,
};

use super::world::World;
use crate::example::{global, node, replicated, set_availability, set_node};
use crate::object::{Cluster, RevisionKey, Service};
use crate::orchestrate;

const MONITOR: Duration = Duration::from_secs(5);
/// Longer than any update here takes.
const DONE: Duration = Duration::from_secs(30);

fn policy() -> UpdatePolicy {
    UpdatePolicy::default()
}

fn start_first() -> UpdatePolicy {
    UpdatePolicy { order: UpdateOrder::StartFirst.into(), ..policy() }
}

fn on_failure(action: FailureAction) -> UpdatePolicy {
    UpdatePolicy { failure_action: action.into(), ..policy() }
}

/// Steps of loops and nodes in turns, with a look at each, until only the watching is left.
fn step_through(world: &mut World, mut look: impl FnMut(&World)) {
    for _ in 0..2_000 {
        let planned = world.pass();
        look(world);
        let stepped = world.step();
        look(world);
        if planned + stepped == 0 {
            match world.wake_at.filter(|at| at.since(world.now) < MONITOR) {
                Some(at) => world.now = at,
                None => return,
            }
        }
    }
    panic!("it goes on for ever");
}

#[test]
fn ten_replicas_are_updated_one_at_a_time_without_waiting_for_the_monitor() {
    let mut world = World::new(replicated(10), policy());
    let started = world.now;
    world.update_image("busybox:2");
    let mut least = 10;
    step_through(&mut world, |world| {
        least = least.min(world.running());
        for task in world.live() {
            let mut others = world.state.tasks_in_slot(world.service, task.slot).filter(|other| other.id != task.id);
            let old_runs = others.any(|other| other.state == TaskState::Running);
            assert!(!(old_runs && task.state == TaskState::Running), "the old one stops before the new one starts");
        }
    });
    assert_eq!(least, 9);
    assert_eq!(world.running_revisions(), [2; 10]);
    assert_eq!(world.update_state(), UpdateState::Updating, "the last one is still watched");
    assert_eq!(world.now.since(started), Duration::from_millis(9 * 200), "each had a moment to fail");
    assert_eq!(world.wake_at, Some(world.now.plus(MONITOR)));
    world.run_for(MONITOR);
    assert_eq!((world.update_state(), world.message().as_str()), (UpdateState::Completed, "update completed"));
    assert_eq!(world.pass(), 0);
}

#[test]
fn new_tasks_are_prepared_while_the_old_ones_stop() {
    let mut world = World::new(replicated(1), policy());
    world.update_image("busybox:2");
    world.pass();
    let new = world.live()[0].clone();
    assert_eq!((new.revision.number, new.wanted, new.state), (2, WantedState::Ready, TaskState::Assigned));
    // A slow stop: the new one gets ready, and waits.
    for state in [TaskState::Preparing, TaskState::Ready] {
        world.report(new.id, state);
        world.settle();
    }
    assert_eq!(world.state.task(new.id).unwrap().wanted, WantedState::Ready);
    world.run();
    assert_eq!(world.running_revisions(), [2]);
}

#[test]
fn parallelism_and_delay_pace_the_update() {
    let delayed = UpdatePolicy { parallelism: 2, delay_ms: 10_000, ..policy() };
    let mut world = World::new(replicated(5), delayed);
    world.update_image("busybox:2");
    for done in [2, 4, 5] {
        world.run();
        let new = world.running_revisions().into_iter().filter(|number| *number == 2).count();
        assert_eq!(new, done);
        world.run_for(Duration::from_secs(10));
    }
    assert_eq!(world.update_state(), UpdateState::Completed);
}

#[test]
fn all_at_once_and_none_at_all() {
    let mut world = World::new(replicated(6), UpdatePolicy { all: true, ..policy() });
    world.update_image("busybox:2");
    world.pass();
    assert!(world.live().iter().all(|task| task.revision.number == 2));
    world.scale(replicated(0));
    world.run_for(DONE);
    assert_eq!(world.update_state(), UpdateState::Completed);
    world.update_image("busybox:3");
    world.pass();
    assert_eq!(world.update_state(), UpdateState::Completed, "nothing to replace, nothing to watch");
}

#[test]
fn start_first_never_has_less_and_at_most_one_more() {
    let mut world = World::new(replicated(5), start_first());
    world.update_image("busybox:2");
    let (mut least, mut most) = (5, 5);
    step_through(&mut world, |world| {
        least = least.min(world.running());
        most = most.max(world.running());
    });
    assert_eq!((least, most), (5, 6));
    assert_eq!(world.running_revisions(), [2; 5]);
}

#[test]
fn a_broken_image_pauses_the_update_and_the_rest_stays() {
    let mut world = World::new(replicated(10), policy());
    world.broken.insert(2);
    world.update_image("broken");
    for _ in 0..30 {
        world.pass();
        world.step();
    }
    assert_eq!(world.update_state(), UpdateState::Paused);
    assert_eq!(world.running_revisions(), [1; 9]);
    let failed = world.state.tasks().find(|task| task.state == TaskState::Failed).unwrap().id;
    let mut said = Vec::new();
    for task in world.state.tasks().filter(|task| task.state == TaskState::Failed) {
        said.push(format!("update paused due to failure or early termination of task {}", task.id));
    }
    assert!(said.contains(&world.message()), "{} does not name {failed}", world.message());
    // Both halves are kept alive: the old tasks by the policy of what is current.
    let old = world.live().into_iter().find(|task| task.state == TaskState::Running).unwrap();
    world.crash(old.id);
    world.pass();
    assert_eq!(world.live().iter().find(|task| task.slot == old.slot).unwrap().revision.number, 2);
    // A newer update supersedes it.
    world.update_image("busybox:3");
    world.run_for(DONE);
    assert_eq!((world.update_state(), world.running_revisions()), (UpdateState::Completed, vec![3; 10]));
}

#[test]
fn what_ends_right_after_its_start_takes_one_batch_away() {
    for order in [policy(), start_first()] {
        let mut world = World::new(replicated(4), order);
        world.update_image("broken");
        world.run();
        let new = world.live().into_iter().find(|task| task.revision.number == 2).unwrap();
        assert_eq!(new.state, TaskState::Running);
        world.now = world.now.plus(Duration::from_millis(100));
        world.crash(new.id);
        world.pass();
        assert_eq!(world.update_state(), UpdateState::Paused);
        let old = world.running_revisions().into_iter().filter(|number| *number == 1).count();
        assert_eq!(old, if order.order() == UpdateOrder::StartFirst { 4 } else { 3 });
    }
}

#[test]
fn a_task_that_fails_while_it_is_watched_counts_later_it_does_not() {
    for (after, state) in [(4, UpdateState::Paused), (6, UpdateState::Completed)] {
        let mut world = World::new(replicated(2), policy());
        world.update_image("busybox:2");
        world.run_for(Duration::from_secs(after));
        let id = world.live()[1].id;
        world.crash(id);
        world.run();
        assert_eq!(world.update_state(), state, "after {after} s");
    }
}

#[test]
fn failures_are_borne_up_to_the_ratio() {
    for (ratio, state) in [(0.0, UpdateState::Paused), (0.19, UpdateState::Paused), (0.2, UpdateState::Completed)] {
        let mut world = World::new(replicated(10), UpdatePolicy { max_failure_ratio: ratio, all: true, ..policy() });
        world.update_image("busybox:2");
        world.run();
        for index in [0, 1] {
            let id = world.live()[index].id;
            world.crash(id);
            world.run();
        }
        world.run_for(DONE);
        assert_eq!(world.update_state(), state, "two of ten with {ratio}");
    }
}

#[test]
fn a_slot_that_fails_again_and_again_is_one_failure() {
    let mut world = World::new(replicated(10), UpdatePolicy { max_failure_ratio: 0.1, all: true, ..policy() });
    world.update_image("busybox:2");
    world.run();
    let slot = world.live()[3].slot;
    for _ in 0..4 {
        let id = world.live().iter().find(|task| task.slot == slot).unwrap().id;
        world.crash(id);
        world.run();
    }
    assert_eq!(world.update_state(), UpdateState::Updating);
    world.run_for(DONE);
    assert_eq!(world.update_state(), UpdateState::Completed);
}

#[test]
fn continue_goes_through_whatever_fails() {
    let mut world = World::with_template(replicated(4), on_failure(FailureAction::Continue), |template| {
        template.restart = Some(RestartPolicy { condition: RestartCondition::None.into(), ..RestartPolicy::default() });
    });
    world.broken.insert(2);
    world.update_image("broken");
    world.run_for(DONE);
    assert_eq!((world.update_state(), world.running()), (UpdateState::Completed, 0));
}

#[test]
fn a_failed_update_goes_back_and_keeps_what_it_had_not_touched() {
    let mut world = World::new(replicated(5), on_failure(FailureAction::Rollback));
    let before: Vec<_> = world.live().iter().map(|task| task.id).collect();
    world.broken.insert(2);
    world.update_image("broken");
    world.run_for(DONE);
    assert_eq!(
        (world.update_state(), world.message().as_str()),
        (UpdateState::RollbackCompleted, "rollback completed")
    );
    assert_eq!((world.service().revision, world.running()), (3, 5));
    let revision = world.state.revision(world.service().current()).unwrap();
    assert_eq!(revision.copied_from, Some(1));
    let kept = world.live().iter().filter(|task| before.contains(&task.id)).count();
    assert_eq!(kept, 4, "only the slot that was updated is rolled back");
    // The way back again is open.
    assert_eq!(world.service().update.as_ref().unwrap().from_revision, 2);
}

#[test]
fn a_rollback_that_fails_pauses_and_is_not_rolled_back() {
    let mut world = World::new(replicated(3), policy());
    world.update_image("busybox:2");
    world.run_for(DONE);
    world.set_policy(on_failure(FailureAction::Rollback), policy());
    world.broken.insert(3);
    world.roll_back(1);
    for _ in 0..30 {
        world.pass();
        world.step();
    }
    assert_eq!(world.update_state(), UpdateState::RollbackPaused);
    assert!(world.message().starts_with("rollback paused due to failure"), "{}", world.message());
    assert_eq!(world.service().revision, 3);
    assert_eq!(world.running_revisions(), [2, 2]);
}

#[test]
fn a_rollback_goes_by_its_own_policy() {
    let mut world = World::new(replicated(4), UpdatePolicy { all: true, ..policy() });
    world.update_image("busybox:2");
    world.run_for(DONE);
    world.set_policy(UpdatePolicy { all: true, ..policy() }, policy());
    world.roll_back(1);
    world.pass();
    assert_eq!(world.live().iter().filter(|task| task.revision.number == 3).count(), 1);
    world.run_for(DONE);
    assert_eq!((world.update_state(), world.running_revisions()), (UpdateState::RollbackCompleted, vec![3; 4]));
}

#[test]
fn what_serves_nobody_is_replaced_at_once() {
    let mut world = World::new(replicated(0), policy());
    world.scale(replicated(8));
    world.pass();
    world.step();
    assert_eq!(world.running(), 0);
    world.update_image("busybox:2");
    world.pass();
    assert!(world.live().iter().all(|task| task.revision.number == 2));
    world.run_for(DONE);
    assert_eq!((world.update_state(), world.running()), (UpdateState::Completed, 8));
}

#[test]
fn a_change_of_placement_alone_keeps_the_tasks_that_still_match() {
    let mut world = World::new(replicated(8), policy());
    let before: Vec<_> = world.live().iter().map(|task| (task.id, task.node)).collect();
    world.update(|template| {
        let constraints = vec!["node.hostname!=host1".into()];
        template.placement = Some(Placement { constraints, ..Placement::default() });
    });
    world.run_for(DONE);
    assert_eq!((world.update_state(), world.running()), (UpdateState::Completed, 8));
    assert!(world.on_node(1).is_empty());
    for (id, place) in before {
        let kept = world.live().iter().any(|task| task.id == id);
        assert_eq!(kept, place != Some(NodeId::new(1)));
    }
    // The old revision is in use as long as its tasks are.
    assert!(world.state.revision(RevisionKey { service: world.service, number: 1 }).is_some());
}

#[test]
fn force_replaces_all_though_nothing_changed() {
    let mut world = World::new(replicated(3), policy());
    world.update(|template| template.force_update += 1);
    world.run_for(DONE);
    assert_eq!((world.update_state(), world.running_revisions()), (UpdateState::Completed, vec![2; 3]));
}

#[test]
fn scaling_in_the_middle_converges() {
    for replicas in [0, 2, 12] {
        let mut world = World::new(replicated(6), policy());
        world.update_image("busybox:2");
        for _ in 0..6 {
            world.pass();
            world.step();
        }
        world.scale(replicated(replicas));
        world.run_for(DONE);
        assert_eq!(world.update_state(), UpdateState::Completed, "scaled to {replicas}");
        assert_eq!(world.running_revisions(), vec![2; usize::try_from(replicas).unwrap()]);
    }
}

#[test]
fn tasks_of_lost_and_drained_nodes_come_back_as_new_ones() {
    let mut world = World::new(replicated(8), policy());
    world.update_image("busybox:2");
    world.pass();
    set_node(&mut world.state, 1, NodeState::Down, world.now);
    set_availability(&mut world.state, 2, Availability::Drain);
    world.run_for(DONE);
    assert_eq!(world.update_state(), UpdateState::Completed);
    assert!(world.live().iter().all(|task| task.revision.number == 2 && task.state == TaskState::Running));
    assert!(world.on_node(1).is_empty() && world.on_node(2).is_empty());
}

#[test]
fn global_services_are_updated_node_by_node() {
    for order in [policy(), start_first()] {
        let mut world = World::new(global(), order);
        set_node(&mut world.state, 4, NodeState::Down, world.now);
        set_availability(&mut world.state, 3, Availability::Pause);
        world.update_image("busybox:2");
        world.run_for(DONE);
        assert_eq!(world.update_state(), UpdateState::Completed, "nobody waits for a silent or paused node");
        let mut revisions = world.running_revisions();
        revisions.sort_unstable();
        assert_eq!(revisions, [1, 1, 2, 2]);
        set_node(&mut world.state, 4, NodeState::Ready, world.now);
        set_availability(&mut world.state, 3, Availability::Active);
        world.run_for(DONE);
        assert_eq!(world.running_revisions(), [2; 4], "it is updated when it comes back");
    }
}

/// A global service in the middle of an update: on one node, whose number is returned, the old task was told to stop and
/// the new one waits for it.
fn handing_over() -> (World, u128) {
    let mut world = World::new(global(), policy());
    world.update_image("busybox:2");
    world.pass();
    let held = world.live().into_iter().find(|task| task.wanted == WantedState::Ready).unwrap();
    let number = held.node.unwrap().value();
    (world, number)
}

/// Tasks that the node runs, or was told to run.
fn at_work(world: &World, number: u128) -> usize {
    let tasks = world.state.tasks_on_node(NodeId::new(number)).filter(|task| task.occupies_node());
    tasks.filter(|task| task.state == TaskState::Running || task.wanted == WantedState::Running).count()
}

#[test]
fn a_node_silent_in_its_turn_still_stops_the_old_task_first() {
    for updated_again in [false, true] {
        let (mut world, number) = handing_over();
        set_node(&mut world.state, number, NodeState::Down, world.now);
        if updated_again {
            world.update_image("busybox:3");
        }
        world.run_for(DONE);
        assert_eq!(world.update_state(), UpdateState::Completed, "nobody waits for it");
        assert_eq!(world.pass(), 0, "all is still");
        set_node(&mut world.state, number, NodeState::Ready, world.now);
        for _ in 0..20 {
            world.pass();
            assert_eq!(at_work(&world, number), 1, "the old task stops before the new one starts");
            if world.step() == 0 {
                break;
            }
            world.now = world.now.plus(Duration::from_secs(1));
        }
        world.run_for(DONE);
        assert_eq!(world.running_revisions(), vec![if updated_again { 3 } else { 2 }; 4]);
    }
}

#[test]
fn what_a_paused_node_was_to_start_it_starts_though_a_newer_update_passes_it_by() {
    let (mut world, number) = handing_over();
    set_availability(&mut world.state, number, Availability::Pause);
    world.update_image("busybox:3");
    world.run_for(DONE);
    assert_eq!(world.update_state(), UpdateState::Completed);
    let there: Vec<_> =
        world.on_node(number).iter().map(|task| (task.revision.number, task.wanted, task.state)).collect();
    assert_eq!(there, [(2, WantedState::Running, TaskState::Running)]);
    set_availability(&mut world.state, number, Availability::Active);
    world.run_for(DONE);
    assert_eq!(world.running_revisions(), [3; 4]);
}

#[test]
fn global_tasks_leave_nodes_that_no_longer_match() {
    let mut world = World::new(global(), policy());
    world.update(|template| {
        let constraints = vec!["node.hostname!=host1".into()];
        template.placement = Some(Placement { constraints, ..Placement::default() });
    });
    world.run_for(DONE);
    assert_eq!((world.update_state(), world.running()), (UpdateState::Completed, 3));
    assert!(world.on_node(1).is_empty());
}

fn with_port(world: &mut World) {
    let port = PortSpec {
        target_port: 80,
        published_port: 80,
        protocol: Protocol::Tcp.into(),
        mode: PublishMode::Host.into(),
    };
    let mut service = Service::clone(world.service());
    service.ports = vec![port];
    world.state.put(service);
    world.update(|_| {});
    world.run_for(DONE);
}

#[test]
fn a_changed_port_replaces_the_tasks() {
    let mut world = World::new(replicated(4), policy());
    with_port(&mut world);
    assert_eq!((world.update_state(), world.running_revisions()), (UpdateState::Completed, vec![2; 4]));
    assert!(world.live().iter().all(|task| task.ports.len() == 1));
    world.update_image("busybox:2");
    world.run_for(DONE);
    assert_eq!(world.running_revisions(), [3; 4], "the port is free once the old task has stopped");
}

#[test]
fn start_first_says_that_the_old_task_holds_the_port() {
    let mut world = World::new(replicated(4), policy());
    with_port(&mut world);
    world.set_policy(start_first(), policy());
    world.update_image("busybox:2");
    world.run();
    let message = world.message();
    assert!(message.starts_with("waiting: task ") && message.contains("host port 80/tcp is taken"), "{message}");
    assert!(message.contains("use stop-first"), "{message}");
    assert_eq!(world.running_revisions(), [2; 4], "what runs goes on");
    world.state.put(node(9).build());
    world.run_for(DONE);
    assert_eq!((world.update_state(), world.message().as_str()), (UpdateState::Completed, "update completed"));
    assert_eq!(world.running_revisions(), [3; 4]);
}

#[test]
fn wrong_clocks_of_nodes_neither_hasten_nor_hold_an_update() {
    for skew_ms in [-3_600_000, 3_600_000] {
        let mut world = World::new(replicated(3), UpdatePolicy { delay_ms: 10_000, ..policy() });
        world.skew_ms = skew_ms;
        world.update_image("busybox:2");
        world.run();
        assert_eq!(world.running_revisions().iter().filter(|number| **number == 2).count(), 1);
        world.run_for(Duration::from_secs(9));
        assert_eq!(world.running_revisions().iter().filter(|number| **number == 2).count(), 1);
        world.run_for(Duration::from_secs(30));
        assert_eq!(world.update_state(), UpdateState::Completed, "{skew_ms}");
    }
}

#[test]
fn failures_that_count_outlive_a_history_of_nothing() {
    let mut world = World::new(replicated(10), UpdatePolicy { max_failure_ratio: 0.2, ..policy() });
    let mut cluster = Cluster::clone(world.state.cluster().unwrap());
    cluster.spec.task_history_limit = -1;
    world.state.put(cluster);
    world.broken.insert(2);
    world.update_image("broken");
    for _ in 0..100 {
        world.pass();
        world.step();
    }
    assert_eq!(world.update_state(), UpdateState::Paused, "the third failure is one too many");
    assert_eq!(world.running_revisions(), [1; 7]);
}

#[test]
fn start_first_leaves_what_runs_when_the_new_task_gives_up() {
    let mut world = World::with_template(
        replicated(2),
        UpdatePolicy { failure_action: FailureAction::Continue.into(), ..start_first() },
        |template| {
            template.restart =
                Some(RestartPolicy { condition: RestartCondition::None.into(), ..RestartPolicy::default() });
        },
    );
    world.broken.insert(2);
    world.update_image("broken");
    world.run_for(DONE);
    assert_eq!((world.update_state(), world.running_revisions()), (UpdateState::Completed, vec![1, 1]));
    assert_eq!(world.pass(), 0, "it is not tried again and again");
}

#[test]
fn revisions_are_kept_to_the_limit_and_as_long_as_they_are_needed() {
    let mut world = World::new(replicated(1), policy());
    let mut cluster = Cluster::clone(world.state.cluster().unwrap());
    (cluster.spec.revision_history_limit, cluster.spec.task_history_limit) = (3, -1);
    world.state.put(cluster);
    for round in 0..8 {
        world.update_image(&format!("busybox:{round}"));
        world.run_for(DONE);
    }
    let kept: Vec<u64> = world.state.revisions_of(world.service).map(|revision| revision.key.number).collect();
    assert_eq!(kept, [7, 8, 9]);
    world.roll_back(7);
    world.run_for(DONE);
    let kept: Vec<u64> = world.state.revisions_of(world.service).map(|revision| revision.key.number).collect();
    assert_eq!(kept, [8, 9, 10]);
}

#[test]
fn the_plan_of_a_service_that_is_gone_or_never_updated_is_empty() {
    let world = World::new(replicated(3), policy());
    let mut ids = crate::ids::Ids::new(1);
    assert_eq!(orchestrate::update(&world.state, world.service, world.now, &mut ids).groups, vec![]);
    let other = skep_proto::id::ServiceId::new(77);
    assert_eq!(orchestrate::update(&world.state, other, world.now, &mut ids).groups, vec![]);
}
