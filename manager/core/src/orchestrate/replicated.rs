//! Replicated services: as many filled slots as replicas are wanted. A slot is filled while it has a task that is to
//! run, or a last task whose restart policy wants no further run.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use skep_proto::id::NodeId;
use skep_proto::time::UnixMs;
use skep_proto::v1::{TaskState, WantedState};

use super::drain;
use super::fit::{self, Stay};
use super::make;
use super::restart::{self, Verdict};
use super::update::{self, Currency};
use crate::change::{Change, Plan};
use crate::ids::Ids;
use crate::object::{Service, Slot, Task};
use crate::store::State;

/// A slot's tasks: the ones that are to run, and the others.
#[derive(Default)]
struct SlotTasks<'a> {
    live: Vec<&'a Arc<Task>>,
    stopped: Vec<&'a Arc<Task>>,
}

/// Brings the number of filled slots to `replicas`, replaces what ended or cannot stay.
pub(super) fn plan(state: &State, service: &Service, replicas: u64, now: UnixMs, ids: &mut Ids, plan: &mut Plan) {
    let mut slots: BTreeMap<u64, SlotTasks<'_>> = BTreeMap::new();
    for task in state.tasks_of_service(service.id) {
        let Slot::Replica(number) = task.slot else {
            continue;
        };
        match task.wanted {
            // One that drains is replaced already, or its place is given up.
            WantedState::Draining | WantedState::Remove => {}
            wanted if wanted.wants_to_run() => slots.entry(number).or_default().live.push(task),
            _ => slots.entry(number).or_default().stopped.push(task),
        }
    }
    let currency = Currency::of(state, service);
    // A slot whose last task belongs to an older revision and ended is not held by it.
    let holds = |task: &&Arc<Task>| {
        let is_same = update::ended_by_itself(task.state) && currency.runs_the_same(task);
        task.revision == service.current() || is_same
    };
    slots.retain(|_, slot| !slot.live.is_empty() || slot.stopped.iter().any(holds));
    let surplus = slots.len() as u64 - replicas.min(slots.len() as u64);
    let removed = if surplus > 0 { surplus_slots(&slots, surplus) } else { Vec::new() };
    for number in &removed {
        if let Some(slot) = slots.remove(number) {
            let all = slot.live.iter().chain(&slot.stopped);
            plan.push(all.map(|task| drain::stop(state, task, WantedState::Remove)).collect());
        }
    }
    for (number, slot) in &slots {
        tend(state, service, &currency, (Slot::Replica(*number), &slot.live), now, ids, plan);
    }
    let missing = replicas.saturating_sub(slots.len() as u64);
    let free = (1..).filter(|number| !slots.contains_key(number) && !removed.contains(number));
    for number in free.take(usize::try_from(missing).unwrap_or(usize::MAX)) {
        plan.push(vec![make::create(make::new_task(service, ids.task(), Slot::Replica(number), now))]);
    }
}

/// The slots to give up: those without a running task first, then from the nodes with the most of the service's tasks,
/// then the highest numbers. A heap over nodes keeps it O(n log n).
fn surplus_slots(slots: &BTreeMap<u64, SlotTasks<'_>>, surplus: u64) -> Vec<u64> {
    let mut idle = Vec::new();
    let mut by_node: BTreeMap<Option<NodeId>, Vec<u64>> = BTreeMap::new();
    for (number, slot) in slots {
        match slot.live.iter().find(|task| task.state == TaskState::Running) {
            Some(task) => by_node.entry(task.node).or_default().push(*number),
            None => idle.push(*number),
        }
    }
    let surplus = usize::try_from(surplus).unwrap_or(usize::MAX);
    let mut chosen: Vec<u64> = idle.into_iter().rev().take(surplus).collect();
    // (tasks left on the node, its highest slot), largest first.
    let mut heap: std::collections::BinaryHeap<(usize, u64, Reverse<Option<NodeId>>)> =
        by_node.iter().filter_map(|(node, slots)| Some((slots.len(), *slots.last()?, Reverse(*node)))).collect();
    while chosen.len() < surplus {
        let Some((_, number, Reverse(node))) = heap.pop() else {
            break;
        };
        chosen.push(number);
        if let Some(rest) = by_node.get_mut(&node) {
            rest.pop();
            if let Some(highest) = rest.last() {
                heap.push((rest.len(), *highest, Reverse(node)));
            }
        }
    }
    chosen
}

/// Looks after one filled slot: one task that is to run, replaced when it ended or cannot stay. Also used by global
/// services, whose slot is a node. During an update that starts the new task first there may be an older one beside it:
/// that one stays until the updater stops it, and is not replaced.
pub(super) fn tend(
    state: &State,
    service: &Service,
    currency: &Currency<'_>,
    (slot, live): (Slot, &[&Arc<Task>]),
    now: UnixMs,
    ids: &mut Ids,
    plan: &mut Plan,
) {
    let Some(keep) =
        furthest(live.iter().filter(|task| currency.is_current(task))).or_else(|| furthest(live.iter())).copied()
    else {
        return;
    };
    let older = furthest(live.iter().filter(|task| currency.is_current(keep) && !currency.is_current(task)));
    let beside = older.filter(|task| !task.state.is_terminal() && fit::judge(state, service, task, now) != Stay::No);
    // More of a kind are left behind only by a bug or an older build.
    let stays = |task: &Task| task.id == keep.id || beside.is_some_and(|beside| beside.id == task.id);
    let surplus = live.iter().filter(|task| !stays(task));
    let mut changes: Vec<Change> = surplus.map(|task| drain::stop(state, task, WantedState::Shutdown)).collect();
    let replacement = if keep.state.is_terminal() {
        let verdict = restart::judge(state, service, keep, now);
        if !matches!(verdict, Verdict::Wait(_)) {
            changes.push(make::want(keep, WantedState::Shutdown));
        }
        match verdict {
            Verdict::Hold => None,
            Verdict::Wait(at) => {
                plan.wake_by(at);
                None
            }
            Verdict::Replace(start_at) => {
                // The updater starts it when the task that it stopped here is gone.
                let waits = start_at.is_some() || update::predecessor_runs(state, service.id, slot);
                Some(Task {
                    start_at,
                    wanted: if waits { WantedState::Ready } else { WantedState::Running },
                    policy_restart: restart::counts_as_attempt(keep),
                    ..make::new_task(service, ids.task(), slot, now)
                })
            }
        }
    } else {
        match fit::judge(state, service, keep, now) {
            Stay::Yes => None,
            Stay::Until(at) => {
                plan.wake_by(at);
                None
            }
            Stay::No => {
                changes.push(drain::stop(state, keep, WantedState::Shutdown));
                match slot {
                    Slot::Replica(_) => Some(make::new_task(service, ids.task(), slot, now)),
                    // A global service's loop makes a new one when the node fits again.
                    Slot::Node(_) => None,
                }
            }
        }
    };
    if let Some(task) = replacement {
        changes.push(make::create(Task { replaces: Some(keep.id), ..task }));
    }
    plan.push(changes);
}

/// The task that is furthest along.
fn furthest<'a, 'b>(tasks: impl Iterator<Item = &'b &'a Arc<Task>>) -> Option<&'b &'a Arc<Task>>
where
    'a: 'b,
{
    tasks.max_by_key(|task| (!task.state.is_terminal(), task.state, Reverse(task.id)))
}
