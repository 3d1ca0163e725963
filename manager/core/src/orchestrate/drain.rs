//! Stopping without loss: a task that others may have connections to leaves their tables before it is asked to stop. It is
//! wanted `DRAINING` first, by which its rows become quiet, and stops when every connected node that holds its networks has
//! applied that and connections on their way are in, or after [`DRAIN_FOR`]. Every loop that stops tasks asks [`stop`]; the driver of [`drained`] does the
//! second step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use skep_proto::id::{NetworkId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::{NodeState, TaskState, WantedState};

use super::make;
use crate::change::{Change, Plan};
use crate::network::table;
use crate::object::{Slot, Task};
use crate::store::State;

/// The longest that a task drains.
pub const DRAIN_FOR: Duration = Duration::from_secs(2);

/// What it drains at least where nodes have connections to it: one that was begun just before is on its way, and waits for
/// the task to accept it.
const SETTLE: Duration = Duration::from_millis(250);

/// Whether the nodes that hold a network's table have applied a version of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// No connected node holds it: nobody has to be waited for.
    NoNode,
    /// All of them.
    All,
    /// One of them has not, as far as is known.
    Waiting,
}

/// What is wanted of a task that is to stop, and ends as `end` says: for one that serves others, to drain first.
pub(super) fn stop(state: &State, task: &Arc<Task>, end: WantedState) -> Change {
    let serves = task.wanted == WantedState::Running && may_have_connections(state, task);
    make::want(task, if serves { WantedState::Draining } else { end })
}

/// Whether others may have connections to the task: it is in tables as serving, as far as its node is up.
fn may_have_connections(state: &State, task: &Task) -> bool {
    let node = task.node.and_then(|node| state.node(node));
    task.state == TaskState::Running
        && !task.held_addresses().is_empty()
        && node.is_some_and(|node| node.status.state != NodeState::Down)
}

/// The second step for these tasks, those of them that drain: stops the ones that nobody begins a connection to any more.
/// `applied` says whether the nodes of a network have a version; it is asked once for each. Stable.
pub fn drained(
    state: &State,
    tasks: &BTreeSet<TaskId>,
    mut applied: impl FnMut(NetworkId, u64) -> Drained,
    now: UnixMs,
) -> Plan {
    let mut plan = Plan::default();
    let mut known: BTreeMap<(NetworkId, u64), Drained> = BTreeMap::new();
    for task in tasks.iter().filter_map(|id| state.task(*id)).filter(|task| task.wanted == WantedState::Draining) {
        let until = task.meta.updated_at.plus(DRAIN_FOR);
        let since = table::version(state, task.meta.version);
        let settled = task.meta.updated_at.plus(SETTLE);
        let mut ask = |network| *known.entry((network, since)).or_insert_with(|| applied(network, since));
        let mut quiet_at = |network: NetworkId| match ask(network) {
            Drained::NoNode => now,
            Drained::All => settled,
            Drained::Waiting => until,
        };
        let quiet_at = task.held_addresses().iter().map(|one| quiet_at(one.network)).max().unwrap_or(now);
        if now >= quiet_at || !may_have_connections(state, task) {
            plan.push(vec![make::want(task, end(state, task))]);
        } else {
            plan.wake_by(quiet_at);
        }
    }
    plan
}

/// What is wanted of a task after it drained. A replica that no other takes the place of was scaled away: nothing is
/// kept of it. One that ended by itself meanwhile must not look as if its restart policy held it.
fn end(state: &State, task: &Task) -> WantedState {
    let is_gone = state.service(task.service()).is_none();
    let keeps_record = match task.slot {
        Slot::Replica(_) => state.tasks_in_slot(task.service(), task.slot).any(|other| other.wanted.wants_to_run()),
        Slot::Node(_) => !task.state.is_terminal(),
    };
    if is_gone || !keeps_record { WantedState::Remove } else { WantedState::Shutdown }
}

#[cfg(test)]
#[path = "drain_test.rs"]
mod tests;
