//! Nodes that are lost, come back, are drained or paused.

use super::*;

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
