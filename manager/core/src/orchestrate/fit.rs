//! Whether a task may stay on its node: the constraint enforcer and the answer to lost nodes. The loops replace at once
//! what may not stay.

use std::time::Duration;

use skep_proto::time::UnixMs;
use skep_proto::v1::{Availability, NodeState};

use crate::object::{Service, Task};
use crate::schedule::Needs;
use crate::store::State;

/// Whether a task may stay where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    Yes,
    /// Its node is down; if that lasts until then, the task goes.
    Until(UnixMs),
    /// Its node is gone, drained, down for too long, or no longer meets the constraints.
    No,
}

/// Judges a task that is to run and has not ended.
pub(super) fn judge(state: &State, service: &Service, task: &Task, now: UnixMs) -> Stay {
    let Some(node) = task.node else {
        return Stay::Yes;
    };
    let Some(node) = state.node(node) else {
        return Stay::No;
    };
    match node.spec.availability() {
        Availability::Drain => return Stay::No,
        Availability::Active | Availability::Pause => {}
    }
    let fits = state.revision(task.revision).is_none_or(|revision| Needs::new(revision, &[]).check_place(node).is_ok());
    if !fits {
        return Stay::No;
    }
    match node.status.state {
        NodeState::Down => {
            let delay = Duration::from_millis(service.spec.failover_delay_ms.try_into().unwrap_or(0));
            let until = node.status.since.plus(delay);
            if now >= until { Stay::No } else { Stay::Until(until) }
        }
        // Unknown: a new leader has not heard it yet, and must not act on silence it did not observe itself.
        NodeState::Ready | NodeState::Disconnected | NodeState::Unknown => Stay::Yes,
    }
}
