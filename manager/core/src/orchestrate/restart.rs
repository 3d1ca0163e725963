//! The restart policy: whether a task that ended is replaced, and when the replacement starts.

use std::time::Duration;

use skep_proto::time::UnixMs;
use skep_proto::v1::{RestartCondition, TaskState, WantedState};

use super::{make, update};
use crate::change::Plan;
use crate::object::{Service, Task};
use crate::store::State;

/// Wait before a replacement starts, where the policy says nothing. Swarm's number.
const DEFAULT_DELAY: Duration = Duration::from_secs(5);

/// What follows the end of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A replacement that starts then (`None`: at once).
    Replace(Option<UnixMs>),
    /// Nothing before then: the task never ran, so a replacement would be prepared, and end, at once.
    Wait(UnixMs),
    /// The slot stays as it is: the policy wants no further run.
    Hold,
}

/// Judges the end of `task`, which must be in a terminal state.
pub(super) fn judge(state: &State, service: &Service, task: &Task, now: UnixMs) -> Verdict {
    if !counts_as_attempt(task) {
        return Verdict::Replace(None);
    }
    // The policy of the revision that the slot's next task will have.
    let revision = state.revision(service.current());
    let policy = revision.and_then(|revision| revision.template.restart).unwrap_or_default();
    let wants_another = match (policy.condition(), task.state) {
        (RestartCondition::Any, _) => true,
        (RestartCondition::OnFailure, state) => {
            matches!(state, TaskState::Failed | TaskState::Rejected)
        }
        (RestartCondition::None, _) => false,
    };
    if !wants_another || exhausted(state, task, &policy, now) {
        return Verdict::Hold;
    }
    let delay = match policy.delay_ms {
        0 => DEFAULT_DELAY,
        ms => Duration::from_millis(u64::try_from(ms).unwrap_or(0)),
    };
    if delay.is_zero() {
        return Verdict::Replace(None);
    }
    // What the service is to run now has not had its turn where the task is of an older revision.
    if task.revision == service.current() && never_ran(task) {
        // Its end was the last that happened to it.
        let at = task.meta.updated_at.plus(delay);
        return if now < at { Verdict::Wait(at) } else { Verdict::Replace(None) };
    }
    Verdict::Replace(Some(now.plus(delay)))
}

/// Whether a task ended before it could start: its node could not prepare it, or it ended while its start was held back.
fn never_ran(task: &Task) -> bool {
    task.state == TaskState::Rejected || task.wanted == WantedState::Ready
}

/// Whether a task's replacement is an attempt of the restart policy. It is none where the host went away under the task:
/// then it is made at once, as for a task whose node is down.
pub(super) fn counts_as_attempt(ended: &Task) -> bool {
    !ended.status.host_lost && ended.state != TaskState::Orphaned
}

/// Whether the slot had all the attempts that its policy allows. Counted from the slot's kept tasks; the reaper keeps
/// enough of them.
fn exhausted(state: &State, task: &Task, policy: &skep_proto::v1::RestartPolicy, now: UnixMs) -> bool {
    if policy.max_attempts == 0 {
        return false;
    }
    let window = Duration::from_millis(u64::try_from(policy.window_ms).unwrap_or(0));
    let from = if window.is_zero() { UnixMs(i64::MIN) } else { now.minus(window) };
    let attempts = state
        .tasks_in_slot(task.service(), task.slot)
        .filter(|other| other.policy_restart && other.revision == task.revision && other.meta.created_at >= from)
        .count();
    attempts as u64 >= policy.max_attempts
}

/// Starts the replacements whose delay has run out, and says when the next one will.
pub fn due(state: &State, now: UnixMs) -> Plan {
    let mut plan = Plan::default();
    // One that has ended meanwhile is judged.
    for task in state.waiting_tasks().filter(|task| !task.state.is_terminal()) {
        // Without a time it waits for its updater.
        match task.start_at {
            Some(at) if at <= now => {
                // What an update stopped may still run there: then the updater starts it later.
                let waits = update::predecessor_runs(state, task.service(), task.slot);
                plan.push(vec![make::want(task, if waits { WantedState::Ready } else { WantedState::Running })]);
            }
            Some(at) => plan.wake_by(at),
            None => {}
        }
    }
    plan
}
