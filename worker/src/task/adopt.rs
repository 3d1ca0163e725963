//! The life of a task that an earlier agent drove: what it wrote down and what is there now, put together.

use std::time::Duration;

use skep_proto::v1::{ContainerState, ContainerStatus, TaskState, TaskStatus, TaskTemplate};

use super::Life;
use super::container::Phase;
use crate::executor::{ContainerExit, Found, FoundTask};

impl Life {
    /// A task that an earlier agent drove: `recorded` is what it last wrote down (it may lag), `found` what is there.
    pub fn adopt(
        template: &TaskTemplate,
        recorded: &TaskStatus,
        found: &FoundTask,
        same_boot: bool,
        now_ms: i64,
    ) -> Self {
        let mut life = Self::new(template, now_ms);
        if recorded.state() >= TaskState::Accepted {
            life.state = recorded.state();
            life.since_ms = recorded.since_ms;
            life.message.clone_from(&recorded.message);
            life.error.clone_from(&recorded.error);
            life.host_lost = recorded.host_lost;
        }
        if life.state.is_terminal() {
            life.containers.iter_mut().for_each(|container| container.phase = Phase::Skipped);
            for status in &recorded.containers {
                if let Some(container) = life.containers.iter_mut().find(|known| known.status.name == status.name) {
                    container.status = status.clone();
                }
            }
            return life;
        }
        if !found.is_empty() && life.state < TaskState::Starting {
            life.enter(TaskState::Starting, now_ms);
        }
        for position in 0..life.containers.len() {
            let name = life.containers[position].status.name.clone();
            let known = recorded.containers.iter().find(|status| status.name == name);
            life.adopt_container(position, known, found.get(&name), same_boot, now_ms);
        }
        life
    }

    fn adopt_container(
        &mut self,
        position: usize,
        recorded: Option<&ContainerStatus>,
        found: Option<&Found>,
        same_boot: bool,
        now_ms: i64,
    ) {
        let container = &mut self.containers[position];
        if let Some(status) = recorded {
            container.status = status.clone();
        }
        let had_started = recorded.is_some_and(|status| status.started_at_ms != 0);
        let had_ended = recorded.is_some_and(|status| status.finished_at_ms != 0);
        let must_have_run = container.essential && self.state >= TaskState::Running;
        match found {
            Some(Found::Running(started)) => {
                // Told by two readings of a clock that may have been set in between; it only matters to a start period.
                let age_ms = u64::try_from(now_ms.saturating_sub(started.started_at_ms)).unwrap_or(0);
                container.run(started, Duration::from_millis(age_ms));
            }
            Some(Found::Exited(started, exit)) => {
                if let Some(started) = started {
                    container.run(started, Duration::ZERO);
                }
                self.exited(position, exit.clone(), same_boot, now_ms);
            }
            None if had_ended => {
                let exit = ContainerExit {
                    code: container.status.exit_code,
                    oom_killed: container.status.oom_killed,
                    finished_at_ms: container.status.finished_at_ms,
                    lost: container.status.state() == ContainerState::Lost,
                    reason: String::new(),
                };
                self.exited(position, exit, same_boot, now_ms);
            }
            None if had_started || must_have_run => {
                let exit = ContainerExit { lost: true, ..ContainerExit::default() };
                self.exited(position, exit, same_boot, now_ms);
            }
            None => {}
        }
    }
}
