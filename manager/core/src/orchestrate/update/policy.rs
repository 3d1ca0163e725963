//! How a roll-out goes: the policy of the spec, with defaults filled in.

use std::time::Duration;

use skep_proto::v1::{FailureAction, UpdateOrder, UpdatePolicy, UpdateState};

use crate::object::Service;

/// How long a new task is watched, where the policy says nothing. Swarm's number.
const DEFAULT_MONITOR: Duration = Duration::from_secs(5);

/// A new task that runs counts as serving once it has run this long (or for the monitored time, if that is shorter). What
/// cannot start mostly ends within it: so a broken revision takes one batch away, not several.
const SETTLE: Duration = Duration::from_millis(200);

/// A policy without gaps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Policy {
    /// Places in flight at most.
    pub(super) parallelism: usize,
    /// Between a new task's running and the stop of the one beside it.
    pub(super) settle: Duration,
    /// Between a new task's running and the next place's turn; not less than `settle`.
    pub(super) delay: Duration,
    /// How long a new task is watched for failure.
    pub(super) monitor: Duration,
    pub(super) action: FailureAction,
    pub(super) max_failure_ratio: f64,
    pub(super) order: UpdateOrder,
}

impl Policy {
    /// The policy by which the service's newest roll-out goes.
    pub(super) fn of(service: &Service) -> Self {
        let policy = if service.is_rolled_back() { service.spec.rollback } else { service.spec.update };
        Self::from_wire(&policy.unwrap_or_default())
    }

    fn from_wire(policy: &UpdatePolicy) -> Self {
        let span = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        let monitor = if policy.monitor_ms == 0 { DEFAULT_MONITOR } else { span(policy.monitor_ms) };
        let settle = SETTLE.min(monitor);
        Self {
            parallelism: match policy.parallelism {
                _ if policy.all => usize::MAX,
                0 => 1,
                several => usize::try_from(several).unwrap_or(usize::MAX),
            },
            settle,
            delay: span(policy.delay_ms).max(settle),
            monitor,
            action: policy.failure_action(),
            max_failure_ratio: policy.max_failure_ratio,
            order: policy.order(),
        }
    }

    /// Whether more places failed than is borne. A ratio of 0 bears none, of 1 all.
    pub(super) fn is_exceeded(&self, failed: usize, places: usize) -> bool {
        failed as f64 > self.max_failure_ratio * places as f64
    }
}

impl Service {
    /// State of its newest update or rollback.
    pub fn update_state(&self) -> UpdateState {
        self.update.as_ref().map_or(UpdateState::None, |update| update.state())
    }

    /// Whether its newest roll-out is a rollback.
    pub fn is_rolled_back(&self) -> bool {
        match self.update_state() {
            UpdateState::RollbackStarted | UpdateState::RollbackPaused | UpdateState::RollbackCompleted => true,
            UpdateState::None | UpdateState::Updating | UpdateState::Paused | UpdateState::Completed => false,
        }
    }
}
