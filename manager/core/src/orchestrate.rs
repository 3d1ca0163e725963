//! From what users want to which tasks there are: the loops that create, replace, stop and reap tasks. Each is a plan
//! function of the state, keyed by what changed; drivers in `manager` run them on the leader. Pure.

mod drain;
mod fit;
mod global;
mod make;
mod reap;
mod replicated;
mod restart;
mod update;

pub use drain::{DRAIN_FOR, Drained, drained};
pub use reap::plan as reap;
pub use restart::due;
pub use update::{RollOut, begin as begin_roll_out, plan as update};

use skep_proto::id::ServiceId;
use skep_proto::time::UnixMs;
use skep_proto::v1::{WantedState, service_spec::Mode};

use crate::change::Plan;
use crate::ids::Ids;
use crate::object::Task;
use crate::store::State;

/// Brings one service's tasks to what its spec wants: creates, replaces and stops. A service that is gone has all of
/// its tasks removed. Stable: applied once, the next plan for the same state is empty.
pub fn plan(state: &State, service: ServiceId, now: UnixMs, ids: &mut Ids) -> Plan {
    let mut plan = Plan::default();
    let Some(service) = state.service(service) else {
        let stopping = |task: &Task| matches!(task.wanted, WantedState::Draining | WantedState::Remove);
        for task in state.tasks_of_service(service).filter(|task| !stopping(task)) {
            plan.push(vec![drain::stop(state, task, WantedState::Remove)]);
        }
        return plan;
    };
    match &service.spec.mode {
        Some(Mode::Replicated(mode)) => replicated::plan(state, service, mode.replicas, now, ids, &mut plan),
        Some(Mode::Global(_)) => global::plan(state, service, now, ids, &mut plan),
        // The API refuses a spec without a mode; a newer manager's mode is left to it.
        None => {}
    }
    plan
}

#[cfg(test)]
mod orchestrate_test;
