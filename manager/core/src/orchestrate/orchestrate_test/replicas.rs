//! Replicas spread, follow the number that is wanted, and go with their service.

use super::*;

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
fn a_removed_service_leaves_nothing() {
    let mut world = web(2, 4);
    world.run();
    world.state.remove(&ObjectKey::Service(world.service));
    world.run();
    assert_eq!(world.state.task_count(), 0);
    assert_eq!(world.state.revisions_of(world.service).count(), 0);
}
