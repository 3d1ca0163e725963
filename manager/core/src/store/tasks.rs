//! Tasks and what is derived from them: by place, by node, the loops' work lists, counts, claimed host ports.
//! All of it is kept by `put` and `remove`; nothing else writes an index.

use std::sync::Arc;

use imbl::OrdMap;
use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::v1::{Protocol, TaskState, WantedState};

use super::State;
use crate::object::{RevisionKey, Slot, Task};

/// A port of a node that one task at most may claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    pub node: NodeId,
    pub protocol: Protocol,
    /// Port on the host, 1 to 65535.
    pub port: u32,
}

/// How many tasks a service has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskCounts {
    /// All stored ones, ended ones too.
    pub stored: u64,
    /// In state `RUNNING` and wanted to run: not what a lost node may still run of what was replaced.
    pub running: u64,
    /// Wanted to run, now or soon.
    pub wanted: u64,
}

/// Tasks and their indexes. The indexes hold the tasks themselves: iterating one costs no look-up each.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TaskTable {
    by_id: OrdMap<TaskId, Arc<Task>>,
    by_place: OrdMap<(ServiceId, Slot, TaskId), Arc<Task>>,
    by_node: OrdMap<(NodeId, TaskId), Arc<Task>>,
    /// For allocator and scheduler: not placed yet and wanted to run.
    pending: OrdMap<TaskId, Arc<Task>>,
    /// Wanted `READY`.
    waiting: OrdMap<TaskId, Arc<Task>>,
    /// Wanted `REMOVE`.
    removing: OrdMap<TaskId, Arc<Task>>,
    of_revision: OrdMap<RevisionKey, u64>,
    /// Of the same those that are to run and have not ended.
    live_of_revision: OrdMap<RevisionKey, u64>,
    of_service: OrdMap<ServiceId, TaskCounts>,
    ports: OrdMap<HostPort, TaskId>,
}

/// Whether allocator and scheduler look at it.
fn is_pending(task: &Task) -> bool {
    task.state <= TaskState::Pending && task.wanted.wants_to_run()
}

/// Whether it is to run and has not ended.
fn is_live(task: &Task) -> bool {
    task.wanted.wants_to_run() && !task.state.is_terminal()
}

/// What one task adds to its service's counts.
fn counts(task: &Task) -> TaskCounts {
    TaskCounts {
        stored: 1,
        running: u64::from(task.state == TaskState::Running && task.wanted.wants_to_run()),
        wanted: u64::from(task.wanted.wants_to_run()),
    }
}

impl Task {
    /// Ports it claims on its node: from its placement until it is known to have ended.
    pub fn claimed_ports(&self) -> impl Iterator<Item = HostPort> {
        self.node
            .filter(|_| self.occupies_node())
            .into_iter()
            .flat_map(|node| {
                self.ports.iter().map(move |spec| HostPort {
                    node,
                    protocol: spec.protocol(),
                    port: spec.published_port,
                })
            })
            .filter(|claim| claim.port != 0)
    }
}

/// Keeps one entry of an index in step with its task.
fn reindex<K: Ord + Clone>(index: &mut OrdMap<K, Arc<Task>>, old: Option<K>, new: Option<K>, task: &Arc<Task>) {
    if let Some(old) = old
        && new.as_ref() != Some(&old)
    {
        index.remove(&old);
    }
    if let Some(new) = new {
        index.insert(new, Arc::clone(task));
    }
}

impl TaskTable {
    pub(super) fn put(&mut self, task: Arc<Task>) -> Option<Arc<Task>> {
        let old = self.by_id.insert(task.id, Arc::clone(&task));
        let before = old.as_deref();
        let id = task.id;
        let place = |task: &Task| (task.service(), task.slot, id);
        let node = |task: &Task| Some((task.node?, id));
        let pending = |task: &Task| is_pending(task).then_some(id);
        let wanted = |task: &Task, state| (task.wanted == state).then_some(id);
        let (ready, remove) = (WantedState::Ready, WantedState::Remove);
        reindex(&mut self.by_place, before.map(place), Some(place(&task)), &task);
        reindex(&mut self.by_node, before.and_then(node), node(&task), &task);
        reindex(&mut self.pending, before.and_then(pending), pending(&task), &task);
        let was = before.and_then(|task| wanted(task, ready));
        reindex(&mut self.waiting, was, wanted(&task, ready), &task);
        let was = before.and_then(|task| wanted(task, remove));
        reindex(&mut self.removing, was, wanted(&task, remove), &task);
        self.recount(before, Some(&task));
        self.recount_live(before, Some(&task));
        self.reclaim(before, Some(&task));
        old
    }

    pub(super) fn remove(&mut self, id: TaskId) -> Option<Arc<Task>> {
        let old = self.by_id.remove(&id)?;
        self.by_place.remove(&(old.service(), old.slot, id));
        if let Some(node) = old.node {
            self.by_node.remove(&(node, id));
        }
        self.pending.remove(&id);
        self.waiting.remove(&id);
        self.removing.remove(&id);
        self.recount(Some(&old), None);
        self.recount_live(Some(&old), None);
        self.reclaim(Some(&old), None);
        Some(old)
    }

    /// Brings the counts of service and revision up to date.
    fn recount(&mut self, old: Option<&Task>, new: Option<&Task>) {
        let same_counts = |a: &Task, b: &Task| a.service() == b.service() && counts(a) == counts(b);
        if !matches!((old, new), (Some(a), Some(b)) if same_counts(a, b)) {
            self.count_service(old, |total, one| total.wrapping_sub(one));
            self.count_service(new, |total, one| total.wrapping_add(one));
        }
        if old.map(|task| task.revision) != new.map(|task| task.revision) {
            self.count_revision(old, |total| total.wrapping_sub(1));
            self.count_revision(new, |total| total.wrapping_add(1));
        }
    }

    /// Brings the count of a revision's live tasks up to date.
    fn recount_live(&mut self, old: Option<&Task>, new: Option<&Task>) {
        let revision = |task: &Task| is_live(task).then_some(task.revision);
        let (old, new) = (old.and_then(revision), new.and_then(revision));
        if old == new {
            return;
        }
        if let Some(old) = old {
            match self.live_of_revision.get(&old).copied().unwrap_or(0).saturating_sub(1) {
                0 => self.live_of_revision.remove(&old),
                left => self.live_of_revision.insert(old, left),
            };
        }
        if let Some(new) = new {
            let before = self.live_of_revision.get(&new).copied().unwrap_or(0);
            self.live_of_revision.insert(new, before.saturating_add(1));
        }
    }

    fn count_service(&mut self, task: Option<&Task>, change: impl Fn(u64, u64) -> u64) {
        let Some(task) = task else { return };
        let mut total = self.of_service.get(&task.service()).copied().unwrap_or_default();
        let one = counts(task);
        total.stored = change(total.stored, one.stored);
        total.running = change(total.running, one.running);
        total.wanted = change(total.wanted, one.wanted);
        if total.stored == 0 {
            self.of_service.remove(&task.service());
        } else {
            self.of_service.insert(task.service(), total);
        }
    }

    fn count_revision(&mut self, task: Option<&Task>, change: impl Fn(u64) -> u64) {
        let Some(task) = task else { return };
        let total = change(self.of_revision.get(&task.revision).copied().unwrap_or(0));
        if total == 0 {
            self.of_revision.remove(&task.revision);
        } else {
            self.of_revision.insert(task.revision, total);
        }
    }

    /// Brings the claimed host ports up to date. A claim of another task is never taken away.
    fn reclaim(&mut self, old: Option<&Task>, new: Option<&Task>) {
        for claim in old.into_iter().flat_map(Task::claimed_ports) {
            if self.ports.get(&claim) == old.map(|task| &task.id) {
                self.ports.remove(&claim);
            }
        }
        for (claim, task) in new.into_iter().flat_map(|task| task.claimed_ports().map(move |claim| (claim, task.id))) {
            if !self.ports.contains_key(&claim) {
                self.ports.insert(claim, task);
            }
        }
    }
}

impl State {
    /// The task of that id.
    pub fn task(&self, id: TaskId) -> Option<&Arc<Task>> {
        self.tasks.by_id.get(&id)
    }

    /// All tasks, by id.
    pub fn tasks(&self) -> impl DoubleEndedIterator<Item = &Arc<Task>> {
        self.tasks.by_id.values()
    }

    /// How many tasks are stored, ended ones too.
    pub fn task_count(&self) -> usize {
        self.tasks.by_id.len()
    }

    /// Tasks of a service, also of one that is gone, by slot.
    pub fn tasks_of_service(&self, service: ServiceId) -> impl DoubleEndedIterator<Item = &Arc<Task>> {
        let low = (service, Slot::MIN, TaskId::new(0));
        let high = (service, Slot::MAX, TaskId::new(u128::MAX));
        self.tasks.by_place.range(low..=high).map(|(_, task)| task)
    }

    /// Services that have tasks, by id; among them those that are gone.
    pub fn services_with_tasks(&self) -> impl Iterator<Item = ServiceId> {
        self.tasks.of_service.keys().copied()
    }

    /// Tasks whose node this is, ended ones too, by id.
    pub fn tasks_on_node(&self, node: NodeId) -> impl DoubleEndedIterator<Item = &Arc<Task>> {
        let low = (node, TaskId::new(0));
        let high = (node, TaskId::new(u128::MAX));
        self.tasks.by_node.range(low..=high).map(|(_, task)| task)
    }

    /// All tasks of one place, ended ones too, by id.
    pub fn tasks_in_slot(&self, service: ServiceId, slot: Slot) -> impl Iterator<Item = &Arc<Task>> {
        let low = (service, slot, TaskId::new(0));
        let high = (service, slot, TaskId::new(u128::MAX));
        self.tasks.by_place.range(low..=high).map(|(_, task)| task)
    }

    /// Tasks in state `NEW` or `PENDING` that are wanted to run: what allocator and scheduler look at.
    pub fn pending_tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.pending.values()
    }

    /// Tasks wanted `READY`: held back by a delay or an update.
    pub fn waiting_tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.waiting.values()
    }

    /// Tasks wanted `REMOVE`, ended or not.
    pub fn tasks_wanted_removed(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.removing.values()
    }

    /// Tasks wanted `REMOVE` whose record can go: nothing of them runs.
    pub fn ended_unreaped(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_wanted_removed().filter(|task| !task.occupies_node())
    }

    /// How many stored tasks, ended ones too, are of the revision.
    pub fn revision_in_use(&self, key: RevisionKey) -> u64 {
        self.tasks.of_revision.get(&key).copied().unwrap_or(0)
    }

    /// How many tasks of the revision are to run and have not ended.
    pub fn live_tasks_of_revision(&self, key: RevisionKey) -> u64 {
        self.tasks.live_of_revision.get(&key).copied().unwrap_or(0)
    }

    /// How many tasks of the service are in state `RUNNING`, and wanted to be.
    pub fn running_of(&self, service: ServiceId) -> u64 {
        self.task_counts(service).running
    }

    /// How many tasks the service has.
    pub fn task_counts(&self, service: ServiceId) -> TaskCounts {
        self.tasks.of_service.get(&service).copied().unwrap_or_default()
    }

    /// The task that claims a port of a node.
    pub fn port_holder(&self, claim: HostPort) -> Option<TaskId> {
        self.tasks.ports.get(&claim).copied()
    }

    /// Claimed ports of a node and the tasks that hold them, by protocol and port.
    pub fn ports_on_node(&self, node: NodeId) -> impl Iterator<Item = (HostPort, TaskId)> {
        let low = HostPort { node, protocol: Protocol::Tcp, port: 0 };
        let high = HostPort { node, protocol: Protocol::Udp, port: u32::MAX };
        self.tasks.ports.range(low..=high).map(|(claim, task)| (*claim, *task))
    }

    /// Tasks whose ids lie in the range, by id.
    pub(super) fn tasks_between(&self, low: TaskId, high: TaskId) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.by_id.range(low..=high).map(|(_, task)| task)
    }
}
