//! Services with a task on every node.

use super::*;

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
