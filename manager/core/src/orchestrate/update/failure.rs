//! Which ends of new tasks speak against the update. Docker's rule: a task that fails, or ends though it is to run on,
//! before it ran for the monitored time.

use std::time::Duration;

use skep_proto::v1::{ContainerSpec, ContainerStatus, HealthState, RestartCondition, TaskState, TaskTemplate};

use crate::object::Task;

/// Between two checks, for one check, and checks until the verdict, where the template does not say: it may be the image
/// that does.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_RETRIES: u32 = 3;

/// Whether the task ended, and nobody had asked it to.
pub(in crate::orchestrate) fn ended_by_itself(state: TaskState) -> bool {
    matches!(state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}

/// Whether a task of the new revision counts as failed.
pub(super) fn is_failure(task: &Task, template: &TaskTemplate, monitor: Duration) -> bool {
    let is_early_end = match task.state {
        TaskState::Failed | TaskState::Rejected => true,
        // A service that may complete does no wrong by completing.
        TaskState::Complete => template.restart.unwrap_or_default().condition() == RestartCondition::Any,
        _ => false,
    };
    // A host that goes away says nothing about what ran on it.
    is_early_end && !task.status.host_lost && ended_within(task, template, monitor)
}

/// Whether the task ended before it had run for `monitor`. Both ends of the span are by the node's clock. With a health
/// check a task runs once it is healthy, which is not recorded: the longest time that this may take is added then.
fn ended_within(task: &Task, template: &TaskTemplate, monitor: Duration) -> bool {
    let mut started_ms = 0;
    let mut longest_check = Duration::ZERO;
    for container in template.containers.iter().filter(|container| !container.optional) {
        let status = task.status.containers.iter().find(|status| status.name == container.name);
        match status.map(|status| (status, status.health())) {
            // It never ran, or was unhealthy: the one is early whenever it is, the other no health to go on with.
            None | Some((_, HealthState::Starting | HealthState::Unhealthy)) => return true,
            Some((ContainerStatus { started_at_ms: 0, .. }, _)) => return true,
            Some((status, health)) => {
                started_ms = started_ms.max(status.started_at_ms);
                if health == HealthState::Healthy {
                    longest_check = longest_check.max(time_to_health(container));
                }
            }
        }
    }
    let ran = Duration::from_millis(u64::try_from(task.since().0.saturating_sub(started_ms)).unwrap_or(0));
    ran <= monitor.saturating_add(longest_check)
}

/// The longest that a container may take from its start to a verdict on its health.
fn time_to_health(container: &ContainerSpec) -> Duration {
    let span = |ms: i64, default| match u64::try_from(ms) {
        Ok(0) | Err(_) => default,
        Ok(ms) => Duration::from_millis(ms),
    };
    let check = container.health_check.clone().unwrap_or_default();
    let one = span(check.interval_ms, DEFAULT_INTERVAL).saturating_add(span(check.timeout_ms, DEFAULT_TIMEOUT));
    let retries = if check.retries == 0 { DEFAULT_RETRIES } else { check.retries };
    span(check.start_period_ms, Duration::ZERO).saturating_add(one.saturating_mul(retries))
}
