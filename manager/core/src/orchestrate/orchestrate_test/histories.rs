//! Any history of events: slots stay unique, and all is well in the end.

use super::*;

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
