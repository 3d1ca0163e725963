//! One container of a task: how far it is, and what its end means. Used by `task.rs` and its other parts only.

use std::time::Duration;

use skep_proto::v1::{ContainerState, ContainerStatus};

use crate::executor::{ContainerExit, Started};
use crate::health::Health;

/// How far a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting,
    Starting,
    /// `watched`: somebody waits for its end.
    Running {
        watched: bool,
    },
    Stopping,
    /// It ran (`started`) or could not be started, and is over.
    Over {
        started: bool,
    },
    /// Never to be started in this life.
    Skipped,
}

impl Phase {
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Over { .. } | Self::Skipped)
    }
}

/// A container and what is known of it.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub(super) essential: bool,
    pub(super) depends_on: Vec<usize>,
    pub(super) phase: Phase,
    pub(super) status: ContainerStatus,
    /// Set while it runs, if it has a check.
    pub(super) health: Option<Health>,
    /// Whether a check of it is under way.
    pub(super) checking: bool,
}

impl Container {
    /// It runs, for `uptime` already.
    pub(super) fn run(&mut self, started: &Started, uptime: Duration) {
        self.phase = Phase::Running { watched: false };
        self.status.set_state(ContainerState::Running);
        self.status.pid = started.pid;
        self.status.container_id.clone_from(&started.container_id);
        self.status.started_at_ms = started.started_at_ms;
        self.health = started.check.clone().map(|check| Health::resume(check, &self.status, uptime));
        if let Some(health) = &self.health {
            health.tell(&mut self.status);
        }
    }
}

/// What an end says to the user. `None`: it is no error.
pub(super) fn exit_error(who: &str, exit: &ContainerExit) -> Option<String> {
    if exit.lost {
        return Some(format!("{who}: its monitor died, how it ended is not known"));
    }
    if exit.code == 0 && exit.reason.is_empty() {
        return None;
    }
    let mut text = format!("{who}: non-zero exit ({})", exit.code);
    if exit.oom_killed {
        text.push_str(": out of memory, the kernel killed it for its memory limit");
    }
    if !exit.reason.is_empty() {
        text.push_str(": ");
        text.push_str(&exit.reason);
    }
    Some(text)
}
