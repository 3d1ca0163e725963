//! Deletes records that nobody needs: tasks whose removal is done, history beyond the limit, revisions without tasks,
//! credentials without a service; and gives up on tasks whose node has been down for a day.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use skep_proto::id::{ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::{NodeState, TaskState, TaskStatus, UpdateState, WantedState};

use super::update;
use crate::change::{Change, Op, Plan};
use crate::object::{Service, Slot, Task};
use crate::store::State;

/// After this long on a down node a task counts as gone, and its resources as free. Swarm's number.
pub(super) const ORPHAN_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Ended tasks kept for each slot, where the cluster says nothing. Swarm's number.
const DEFAULT_TASK_HISTORY: i32 = 5;
const DEFAULT_REVISION_HISTORY: i32 = 10;

/// Plans for one service (which may be gone).
pub fn plan(state: &State, service: ServiceId, now: UnixMs) -> Plan {
    let mut plan = Plan::default();
    let mut history: BTreeMap<Slot, Vec<&Arc<Task>>> = BTreeMap::new();
    for task in state.tasks_of_service(service) {
        match fate(state, task, now) {
            Fate::Delete => plan.push(vec![remove(task)]),
            Fate::Orphan(why) => plan.push(vec![orphan(task, why, now)]),
            Fate::Wait(at) => plan.wake_by(at),
            Fate::History => history.entry(task.slot).or_default().push(task),
            Fate::Keep => {}
        }
    }
    let keep = kept_per_slot(state, service);
    let evidence = Evidence::of(state, service);
    for (slot, ended) in history.iter_mut().filter(|(_, ended)| ended.len() > keep) {
        ended.sort_by_key(|task| (task.meta.created_at, task.id));
        let needed = evidence.needed(*slot, ended);
        for task in &ended[..ended.len() - keep] {
            if needed != Some(task.id) {
                plan.push(vec![remove(task)]);
            }
        }
    }
    reap_revisions(state, service, &mut plan);
    plan
}

enum Fate {
    Keep,
    Delete,
    /// Ended, and kept as history for a while.
    History,
    /// Nobody will ever know how it ended, and why not.
    Orphan(&'static str),
    /// Its node is down: to be given up then.
    Wait(UnixMs),
}

fn fate(state: &State, task: &Task, now: UnixMs) -> Fate {
    let stopped = task.state < TaskState::Assigned || task.state.is_terminal();
    if task.wanted == WantedState::Remove && stopped {
        return Fate::Delete;
    }
    if !task.wanted.wants_to_stop() {
        return Fate::Keep;
    }
    if stopped {
        // Shut down before a node was chosen: there is no history to tell.
        return if task.state.is_terminal() { Fate::History } else { Fate::Delete };
    }
    match task.node.and_then(|node| state.node(node)) {
        None => Fate::Orphan("its node was removed from the swarm: nobody knows how it ended"),
        Some(node) if node.status.state == NodeState::Down => {
            let until = node.status.since.plus(ORPHAN_AFTER);
            if now >= until {
                Fate::Orphan("its node was gone for a day: nobody knows how it ended")
            } else {
                Fate::Wait(until)
            }
        }
        Some(_) => Fate::Keep,
    }
}

/// The ended tasks that the updater still reads from: in each place the newest of the current revision that ended by
/// itself, until the roll-out is over, and as long as no other of that revision took its place.
struct Evidence<'a> {
    service: Option<&'a Arc<Service>>,
    is_over: bool,
    /// Places with a task of the current revision that is to run.
    taken: BTreeSet<Slot>,
}

impl<'a> Evidence<'a> {
    fn of(state: &'a State, service: ServiceId) -> Self {
        let service = state.service(service).filter(|service| service.update.is_some());
        let is_over = service.is_none_or(|service| match service.update_state() {
            UpdateState::None | UpdateState::Completed | UpdateState::RollbackCompleted => true,
            UpdateState::Updating
            | UpdateState::Paused
            | UpdateState::RollbackStarted
            | UpdateState::RollbackPaused => false,
        });
        let current = service.filter(|_| is_over).into_iter().flat_map(|service| {
            let is_current = |task: &&Arc<Task>| task.revision == service.current() && task.wanted.wants_to_run();
            state.tasks_of_service(service.id).filter(is_current)
        });
        Self { service, is_over, taken: current.map(|task| task.slot).collect() }
    }

    /// The one of a place's ended tasks, oldest first, that is needed.
    fn needed(&self, slot: Slot, ended: &[&Arc<Task>]) -> Option<TaskId> {
        let service = self.service.filter(|_| !self.is_over || !self.taken.contains(&slot))?;
        let mut newest_first = ended.iter().rev();
        newest_first.find(|task| update::is_evidence(service, task)).map(|task| task.id)
    }
}

/// Ended tasks that a slot keeps: the cluster's limit, and at least what the restart policy has to count.
fn kept_per_slot(state: &State, service: ServiceId) -> usize {
    let limit = state.cluster().map_or(0, |cluster| cluster.spec.task_history_limit);
    let limit = match limit {
        0 => DEFAULT_TASK_HISTORY,
        limit => limit.max(0),
    };
    let attempts = state
        .service(service)
        .and_then(|service| state.revision(service.current()))
        .and_then(|revision| revision.template.restart)
        .map_or(0, |policy| policy.max_attempts);
    let attempts = if attempts == 0 { 0 } else { usize::try_from(attempts).unwrap_or(usize::MAX).saturating_add(1) };
    usize::try_from(limit).unwrap_or(0).max(attempts)
}

fn reap_revisions(state: &State, service: ServiceId, plan: &mut Plan) {
    let gone = state.service(service).is_none();
    reap_credentials(state, service, plan);
    let limit = state.cluster().map_or(0, |cluster| cluster.spec.revision_history_limit);
    let keep = usize::try_from(if limit == 0 { DEFAULT_REVISION_HISTORY } else { limit }).unwrap_or(0);
    let revisions: Vec<_> = state.revisions_of(service).collect();
    let beyond = if gone { revisions.len() } else { revisions.len().saturating_sub(keep.max(1)) };
    let current = state.service(service).map(|service| service.revision);
    // What a failed update goes back to.
    let way_back = state.service(service).and_then(|service| Some(service.update.as_ref()?.from_revision));
    // Oldest first.
    for revision in &revisions[..beyond] {
        let is_named = [current, way_back].contains(&Some(revision.key.number));
        if state.revision_in_use(revision.key) == 0 && !is_named {
            plan.push(vec![Change::any(Op::RemoveRevision(revision.key))]);
        }
    }
}

/// Credentials that no kept revision names, nor any task of a service that is gone.
fn reap_credentials(state: &State, service: ServiceId, plan: &mut Plan) {
    let gone = state.service(service).is_none() && state.tasks_of_service(service).next().is_none();
    for credential in state.credentials_of(service) {
        let id = credential.id.to_vec();
        let mut revisions = state.revisions_of(service);
        if gone || !revisions.any(|revision| revision.template.credential_id == id) {
            plan.push(vec![Change::any(Op::RemoveCredential(credential.id))]);
        }
    }
}

fn remove(task: &Arc<Task>) -> Change {
    Change::update(task.meta.version, Op::RemoveTask(task.id))
}

/// The one case in which the managers write the observed part past `ACCEPTED`: nobody else will.
fn orphan(task: &Arc<Task>, why: &str, now: UnixMs) -> Change {
    let status = TaskStatus {
        state: TaskState::Orphaned.into(),
        since_ms: now.0,
        error: why.to_owned(),
        ..TaskStatus::clone(&task.status)
    };
    let orphaned = Task { state: TaskState::Orphaned, status: Arc::new(status), ..Task::clone(task) };
    Change::update(task.meta.version, Op::PutTask(orphaned))
}
