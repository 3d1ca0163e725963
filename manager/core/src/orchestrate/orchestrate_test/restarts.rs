//! What ended is replaced: when, how often, under which condition.

use super::*;

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
