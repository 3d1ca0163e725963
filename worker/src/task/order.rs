//! In which order a task's containers start and stop: by what they depend on. Used by `task.rs` only.

use super::container::{Container, Phase};
use super::{Action, End, Life};

/// Whether a container may start.
enum Dependencies {
    Met,
    Pending,
    /// That one will never run.
    Failed(usize),
}

impl Life {
    /// Starts what may start. True: found a reason to end.
    pub(super) fn start_waiting(&mut self, actions: &mut Vec<Action>) -> bool {
        let waiting = |container: &Container| container.phase == Phase::Waiting;
        if !self.containers.iter().any(waiting) {
            return self.end_if_nothing_runs();
        }
        // After a restart of the agent in the middle of a start, the rest needs preparation again.
        if !self.prepared(actions) {
            return false;
        }
        for position in 0..self.containers.len() {
            if self.containers[position].phase != Phase::Waiting {
                continue;
            }
            match self.dependencies(position) {
                Dependencies::Met => {
                    self.containers[position].phase = Phase::Starting;
                    actions.push(Action::Start(position));
                }
                Dependencies::Pending => {}
                Dependencies::Failed(other) => {
                    self.containers[position].phase = Phase::Skipped;
                    if self.containers[position].essential {
                        let [name, other] = [position, other].map(|at| &self.containers[at].status.name);
                        let sentence =
                            format!("container {name} cannot start: it depends on {other}, which did not start");
                        self.end.get_or_insert(End::ByItself(Some(sentence)));
                        return true;
                    }
                }
            }
        }
        let stuck = self.containers.iter().any(waiting)
            && self.containers.iter().all(|container| container.phase == Phase::Waiting || container.phase.is_over());
        if stuck {
            let sentence = "containers depend on each other in a circle".to_owned();
            self.end.get_or_insert(End::ByItself(Some(sentence)));
        }
        stuck || self.end_if_nothing_runs()
    }

    /// A task without essential containers ends with its last one.
    fn end_if_nothing_runs(&mut self) -> bool {
        let over = self.containers.iter().all(|container| container.phase.is_over());
        if over {
            self.end.get_or_insert(End::ByItself(None));
        }
        over
    }

    fn dependencies(&self, position: usize) -> Dependencies {
        let mut verdict = Dependencies::Met;
        for &other in &self.containers[position].depends_on {
            match self.containers[other].phase {
                Phase::Running { .. } | Phase::Stopping | Phase::Over { started: true } => {}
                Phase::Waiting | Phase::Starting => verdict = Dependencies::Pending,
                Phase::Over { started: false } | Phase::Skipped => return Dependencies::Failed(other),
            }
        }
        verdict
    }

    /// Stops what runs, dependents first. True: nothing runs any more.
    pub(super) fn wind_down(&mut self, actions: &mut Vec<Action>) -> bool {
        for container in &mut self.containers {
            if container.phase == Phase::Waiting {
                container.phase = Phase::Skipped;
            }
        }
        let free = |life: &Self, position: usize| {
            life.containers.iter().all(|other| other.phase.is_over() || !other.depends_on.contains(&position))
        };
        let running = |life: &Self| -> Vec<usize> {
            (0..life.containers.len())
                .filter(|&position| matches!(life.containers[position].phase, Phase::Running { .. }))
                .collect()
        };
        let moving =
            self.containers.iter().any(|container| matches!(container.phase, Phase::Starting | Phase::Stopping));
        let mut stop: Vec<usize> = running(self).into_iter().filter(|&position| free(self, position)).collect();
        if stop.is_empty() && !moving {
            // Only a circle of dependencies can lead here.
            stop = running(self);
        }
        for position in stop {
            self.containers[position].phase = Phase::Stopping;
            actions.push(Action::Stop(position));
        }
        self.containers.iter().all(|container| container.phase.is_over())
    }
}
