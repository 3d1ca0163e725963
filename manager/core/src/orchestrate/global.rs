//! Global services: one task on every node that fits. A node that is down keeps its task for a day: nowhere else could
//! run it, and it may well run on.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_proto::id::NodeId;
use skep_proto::time::UnixMs;
use skep_proto::v1::{NodeState, WantedState};

use super::reap::ORPHAN_AFTER;
use super::restart::{self, Verdict};
use super::update::{self, Currency};
use super::{drain, make, replicated};
use crate::change::Plan;
use crate::ids::Ids;
use crate::object::{Node, Service, Slot, Task};
use crate::schedule::Needs;
use crate::store::State;

/// Makes a task for each fitting node without one, and stops those on nodes that no longer fit.
pub(super) fn plan(state: &State, service: &Service, now: UnixMs, ids: &mut Ids, plan: &mut Plan) {
    let Some(revision) = state.revision(service.current()) else {
        return;
    };
    let needs = Needs::new(revision, &[]);
    let currency = Currency::of(state, service);
    let mut live: BTreeMap<NodeId, Vec<&Arc<Task>>> = BTreeMap::new();
    let mut last: BTreeMap<NodeId, &Arc<Task>> = BTreeMap::new();
    for task in state.tasks_of_service(service.id) {
        let Slot::Node(node) = task.slot else {
            continue;
        };
        match task.wanted {
            WantedState::Draining | WantedState::Remove => {}
            wanted if wanted.wants_to_run() => live.entry(node).or_default().push(task),
            _ => {
                let age = |task: &Task| (task.meta.created_at, task.id);
                let newest = last.entry(node).or_insert(task);
                if age(task) > age(newest) {
                    *newest = task;
                }
            }
        }
    }
    for (node_id, tasks) in &live {
        match state.node(*node_id) {
            None => plan.push(tasks.iter().map(|task| drain::stop(state, task, WantedState::Remove)).collect()),
            Some(node) if node.status.state == NodeState::Down => {
                let until = node.status.since.plus(ORPHAN_AFTER);
                if now >= until {
                    plan.push(tasks.iter().map(|task| drain::stop(state, task, WantedState::Shutdown)).collect());
                } else {
                    plan.wake_by(until);
                }
            }
            Some(_) => replicated::tend(state, service, &currency, (Slot::Node(*node_id), tasks), now, ids, plan),
        }
    }
    for node in state.nodes() {
        let is_held = || last.get(&node.id).is_some_and(|task| is_held_by(state, service, &currency, task));
        if !live.contains_key(&node.id) && takes(node, &needs) && !is_held() {
            plan.push(vec![make::create(make::new_task(service, ids.task(), Slot::Node(node.id), now))]);
        }
    }
}

/// Whether a node's last task keeps its place: it ended, rather than was asked to, and the restart policy wanted no further
/// run when it was judged. Where it wanted one, the replacement went with the node: drained, say, before it started.
fn is_held_by(state: &State, service: &Service, currency: &Currency<'_>, task: &Task) -> bool {
    let is_judged = update::ended_by_itself(task.state) && currency.runs_the_same(task);
    // The last write of an ended task is that of its judgement.
    is_judged && restart::judge(state, service, task, task.meta.updated_at) == Verdict::Hold
}

/// Whether a node is to have a new task of the service.
fn takes(node: &Node, needs: &Needs<'_>) -> bool {
    node.takes_tasks() && needs.check_place(node).is_ok()
}
