//! Random lives: whatever happens in whatever order, what a state promises is true.

use proptest::prelude::*;

use super::*;

/// What may happen next in a random run.
#[derive(Debug, Clone)]
enum Chance {
    Want(WantedState),
    /// Finish the pending operation at this position (modulo), well or badly.
    Finish(usize, bool),
    /// A running container ends by itself.
    Die(usize, i32),
    /// The agent is killed and started again.
    Restart(bool),
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        3 => prop_oneof![
            Just(WantedState::Ready),
            Just(WantedState::Running),
            Just(WantedState::Draining),
            Just(WantedState::Shutdown),
            Just(WantedState::Remove),
        ].prop_map(Chance::Want),
        12 => (0usize..8, prop::bool::weighted(0.85)).prop_map(|(which, well)| Chance::Finish(which, well)),
        2 => (0usize..4, -1i32..3).prop_map(|(which, code)| Chance::Die(which, code)),
        1 => prop::bool::weighted(0.8).prop_map(Chance::Restart),
    ]
}

fn templates() -> impl Strategy<Value = TaskTemplate> {
    // Any dependencies, circles too.
    let container = (any::<bool>(), prop::collection::vec(0usize..4, 0..2), any::<bool>());
    prop::collection::vec(container, 1..4).prop_map(|containers| TaskTemplate {
        containers: containers
            .iter()
            .enumerate()
            .map(|(position, (optional, depends_on, has_check))| ContainerSpec {
                health_check: has_check.then(check),
                name: format!("c{position}"),
                optional: *optional,
                depends_on: depends_on.iter().map(|other| format!("c{}", other % containers.len())).collect(),
                ..ContainerSpec::default()
            })
            .collect(),
        ..TaskTemplate::default()
    })
}

/// The world that a driver and its executor make up.
struct World {
    template: TaskTemplate,
    life: Life,
    wanted: WantedState,
    pending: Vec<Action>,
    starts: Vec<u32>,
    real: FoundTask,
    seen: TaskState,
}

impl World {
    fn step(&mut self) {
        // Managers only move the wanted state forward once it asks to stop.
        for action in self.life.step(self.wanted, 1) {
            match action {
                Action::CancelPrepare => self.pending.retain(|pending| *pending != Action::Prepare),
                Action::Start(position) => {
                    assert!(!self.wanted.wants_to_stop(), "nothing starts that is not wanted");
                    assert_ne!(self.wanted, WantedState::Ready, "READY does not start");
                    self.starts[position] += 1;
                    for &other in &self.life.containers[position].depends_on {
                        assert!(self.real.contains_key(&format!("c{other}")), "dependencies run first");
                    }
                    self.pending.push(action);
                }
                Action::Prepare => {
                    assert!(!self.pending.contains(&Action::Prepare), "prepared once at a time");
                    self.pending.push(action);
                }
                Action::Stop(position) => {
                    self.pending.retain(|pending| *pending != Action::Check(position));
                    self.pending.push(action);
                }
                Action::Check(position) => {
                    assert!(!self.pending.contains(&action), "one check at a time");
                    assert!(self.life.next_check(position).is_some(), "there is a check to run");
                    self.pending.push(action);
                }
                _ => self.pending.push(action),
            }
        }
        if self.seen < TaskState::Running && self.life.state() == TaskState::Running {
            for (spec, status) in self.template.containers.iter().zip(self.life.status().containers) {
                let healthy = spec.optional || spec.health_check.is_none() || status.health() == HealthState::Healthy;
                assert!(healthy, "running means healthy");
            }
        }
        assert!(self.life.state() >= self.seen, "states only go forward");
        self.seen = self.life.state();
        if self.seen.is_terminal() {
            let running = self.real.values().any(|found| matches!(found, Found::Running(_)));
            assert!(!running, "nothing runs in a terminal state");
        }
    }

    fn finish(&mut self, which: usize, well: bool) {
        // A container ends by itself or by being stopped.
        let able: Vec<usize> = (0..self.pending.len())
            .filter(|&at| match self.pending[at] {
                Action::Watch(position) => matches!(self.real[&format!("c{position}")], Found::Exited(..)),
                _ => true,
            })
            .collect();
        if able.is_empty() {
            return;
        }
        let action = self.pending.remove(able[which % able.len()]);
        match action {
            Action::Prepare => {
                let prepared = Prepared { published: which % 2 == 1 };
                self.life.on(Event::Prepared(if well { Ok(prepared) } else { Err("bad".into()) }), 2);
            }
            Action::Start(position) if well => {
                let started = started_with(&self.template, position);
                self.real.insert(format!("c{position}"), Found::Running(started.clone()));
                self.life.on(Event::Started(position, Ok(started)), 2);
            }
            Action::Start(position) => self.life.on(Event::Started(position, Err(("bad".into(), 125))), 2),
            Action::Stop(position) => self.die(position, 143),
            Action::Check(position) => {
                let result = if well { CheckResult::Passed } else { CheckResult::Failed("ill".into()) };
                let (waited, took) = (Duration::from_secs(1), Duration::from_secs(1));
                self.life.on(Event::Checked(position, Checked { waited, took, result }), 2);
            }
            Action::Listen => self.life.on(Event::Listening(if well { Ok(()) } else { Err("deaf".into()) }), 2),
            Action::Watch(position) => {
                let Found::Exited(_, exit) = self.real[&format!("c{position}")].clone() else {
                    unreachable!("filtered above")
                };
                self.life.on(Event::Exited(position, exit), 2);
            }
            Action::Remove => {
                self.real.clear();
                self.life.on(Event::Removed, 2);
            }
            Action::CancelPrepare => unreachable!("never pending"),
        }
    }

    fn die(&mut self, position: usize, code: i32) {
        let entry = self.real.get_mut(&format!("c{position}"));
        if let Some(found @ Found::Running(_)) = entry {
            let end = ContainerExit { lost: code < 0, ..exit(code) };
            *found = Found::Exited(Some(started(9)), end);
        }
    }

    fn restart(&mut self, same_boot: bool) {
        // Starts under way are finished by the executor before the agent goes.
        while let Some(at) = self.pending.iter().position(|action| matches!(action, Action::Start(_))) {
            let Action::Start(position) = self.pending.remove(at) else { unreachable!("just found") };
            self.real.insert(format!("c{position}"), Found::Running(started_with(&self.template, position)));
        }
        if !same_boot {
            for position in 0..self.starts.len() {
                self.die(position, -1);
            }
        }
        self.pending.clear();
        self.life = Life::adopt(&self.template, &self.life.status(), &self.real, same_boot, 3);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn any_life_goes_forward_starts_once_and_ends_when_asked(
        template in templates(),
        chances in prop::collection::vec(chance(), 0..60),
    ) {
        let mut world = World {
            life: Life::new(&template, 0),
            starts: vec![0; template.containers.len()],
            template,
            wanted: WantedState::Running,
            pending: Vec::new(),
            real: FoundTask::new(),
            seen: TaskState::Accepted,
        };
        world.step();
        for chance in chances {
            match chance {
                Chance::Want(wanted) if wanted >= world.wanted || !world.wanted.wants_to_stop() => {
                    // A manager never takes RUNNING back to READY.
                    if wanted != WantedState::Ready || world.seen < TaskState::Starting {
                        world.wanted = wanted;
                    }
                }
                Chance::Want(_) => {}
                Chance::Finish(which, well) => world.finish(which, well),
                Chance::Die(which, code) => world.die(which % world.starts.len(), code),
                Chance::Restart(same_boot) => world.restart(same_boot),
            }
            world.step();
            prop_assert!(world.starts.iter().all(|count| *count <= 1), "no container starts twice");
        }
        world.wanted = WantedState::Shutdown;
        world.step();
        for at in 0..200 {
            world.finish(at, true);
            world.step();
        }
        prop_assert!(world.life.is_over(), "asked to stop, it ends: {:?}", world.life);
    }
}
