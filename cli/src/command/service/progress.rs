//! Where a service stands on its way to what was asked: a pure view over the Watch stream's events.
//!
//! Converged means: as many tasks are wanted as the service asks for, and all of them run. A slot whose task ended and is
//! not replaced (restart condition, attempts used up) has ended: then waiting for it is in vain. A roll-out has ended when
//! the managers say so; until then only tasks of the new revision count.

use std::collections::{BTreeMap, BTreeSet};

use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::watch_event::Object;
use skep_proto::v1::{
    RestartCondition, RestartPolicy, ServiceSummary, Task, TaskState, TaskStatus, TaskSummary, UpdateState,
    UpdateStatus, WantedState, WatchResponse,
};

use crate::command::task_table::{failing_check, reason};
use crate::output::natural;
use crate::view::{self, service::MONITOR_MS, state, task};

/// What the command waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// All tasks run, of whatever revision.
    Running,
    /// The roll-out of a revision is over.
    Rollout {
        /// The new revision.
        revision: u64,
        /// The user asked for a rollback, so that one is no failure.
        is_rollback: bool,
    },
}

/// What is known so far.
#[derive(Debug)]
pub(crate) struct Progress {
    goal: Goal,
    service: Option<ServiceSummary>,
    tasks: BTreeMap<Vec<u8>, TaskSummary>,
    synced: bool,
    version: u64,
    removed: bool,
    /// Tasks that ran, or had ended, before this command began to watch. `None`: it has seen nothing yet.
    old: Option<BTreeSet<Vec<u8>>>,
}

/// Where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stand {
    /// Nothing can be said yet: the stream has not reached the version of the write.
    Unknown,
    /// On its way.
    Moving,
    /// All tasks run.
    Converged,
    /// What is left to wait for has ended and is not replaced.
    Ended,
    /// The roll-out did not do what was asked: why.
    Failed(String),
    /// Somebody removed the service.
    Removed,
}

/// One slot's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// `web.3`, or the node's name for a global service.
    pub(crate) name: String,
    /// "preparing"
    pub(crate) state: &'static str,
    /// Where it runs; empty while it has no place.
    pub(crate) node: String,
    /// Why it does not run, or what it is doing. May be empty.
    pub(crate) detail: String,
    /// Whether `detail` is something wrong.
    pub(crate) is_stuck: bool,
}

/// A snapshot for printing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) stand: Stand,
    pub(crate) running: u64,
    pub(crate) desired: u64,
    pub(crate) rows: Vec<Row>,
    /// The tasks are being rolled back.
    pub(crate) is_rolling_back: bool,
    /// Something that is worth a line of its own, once.
    pub(crate) note: Option<String>,
    /// Tasks that run and did not before: whether they are stable is not known yet.
    pub(crate) new_running: BTreeSet<Vec<u8>>,
    /// By the restart condition alone, no task that ended will be replaced.
    pub(crate) is_final: bool,
}

impl Progress {
    /// Nothing is known yet.
    pub(crate) fn new(goal: Goal) -> Self {
        Self { goal, service: None, tasks: BTreeMap::new(), synced: false, version: 0, removed: false, old: None }
    }

    /// The stream broke off; a new one will tell everything from the beginning.
    pub(crate) fn restart(&mut self) {
        *self = Self { old: self.old.take(), ..Self::new(self.goal) };
    }

    /// What it waits for.
    pub(crate) fn goal(&self) -> Goal {
        self.goal
    }

    /// Takes one message of the stream.
    pub(crate) fn apply(&mut self, message: WatchResponse) {
        for event in message.events {
            match event.object {
                Some(Object::Service(_)) if event.removed => self.removed = true,
                Some(Object::Service(summary)) => self.service = Some(summary),
                Some(Object::Task(summary)) => {
                    let id = summary.task.as_ref().map(|task| task.id.clone()).unwrap_or_default();
                    if event.removed {
                        self.tasks.remove(&id);
                    } else {
                        self.tasks.insert(id, summary);
                    }
                }
                Some(Object::Node(_)) | None => {}
            }
        }
        self.version = self.version.max(message.version);
        if message.synced && !self.synced {
            self.synced = true;
            if self.old.is_none() {
                self.old =
                    Some(self.tasks.iter().filter(|(_, task)| self.is_old(task)).map(|(id, _)| id.clone()).collect());
            }
        }
    }

    /// The service's name.
    pub(crate) fn name(&self) -> &str {
        let service = self.service.as_ref().and_then(|summary| summary.service.as_ref());
        service.and_then(|service| service.spec.as_ref()).map_or("", |spec| &spec.name)
    }

    /// How long a service must run before it counts as stable.
    pub(crate) fn monitor_ms(&self) -> u64 {
        let service = self.service.as_ref().and_then(|summary| summary.service.as_ref());
        let update = service.and_then(|service| service.spec.as_ref()).and_then(|spec| spec.update);
        let ms = match update.map_or(0, |update| update.monitor_ms) {
            0 => MONITOR_MS,
            ms => ms,
        };
        u64::try_from(ms).unwrap_or(0)
    }

    /// How things stand; nothing is said before the stream has reached `min_version`.
    pub(crate) fn picture(&self, min_version: u64) -> Picture {
        let slots = self.slots();
        let current: Vec<&Slot<'_>> = slots.values().filter(|slot| slot.is_live() || slot.has_ended()).collect();
        let live = count(current.iter().filter(|slot| slot.is_live()));
        let only_revision = self.rolled_out_revision();
        let running = count(current.iter().filter(|slot| slot.is_running() && slot.is_of(only_revision)));
        let desired = self.desired(live);
        let mut rows: Vec<Row> = current.iter().map(|slot| slot.row()).collect();
        rows.sort_by(|a, b| natural::compare(&a.name, &b.name));
        let has_seen_it = self.synced && self.version >= min_version;
        let stand = if self.removed || (has_seen_it && self.service.is_none()) {
            Stand::Removed
        } else if !has_seen_it {
            Stand::Unknown
        } else if let Some(stand) = self.rollout_stand() {
            stand
        } else if live == desired && running == desired {
            Stand::Converged
        } else if live < desired && running == live && count(current.iter()) >= desired {
            Stand::Ended
        } else {
            Stand::Moving
        };
        let is_final = current.iter().filter(|slot| !slot.is_live()).all(|slot| self.is_never_replaced(slot));
        let is_new = |id: &Vec<u8>| self.old.as_ref().is_some_and(|old| !old.contains(id));
        let new = self.tasks.iter().filter(|(id, _)| is_new(id));
        let new_running = new.filter(|(_, summary)| state_of(summary) == TaskState::Running);
        let new_running = new_running.map(|(id, _)| id.clone()).collect();
        let is_rolling_back = self.update_state() == UpdateState::RollbackStarted;
        Picture { stand, running, desired, rows, is_rolling_back, note: self.note(min_version), new_running, is_final }
    }

    /// Whether a task ended before, or runs since before the service was last changed.
    fn is_old(&self, summary: &TaskSummary) -> bool {
        let service = self.service.as_ref().and_then(|summary| summary.service.as_ref());
        let changed_ms = service.and_then(|service| service.meta).map_or(0, |meta| meta.updated_at_ms);
        let created_ms = summary.task.as_ref().and_then(|task| task.meta).map_or(0, |meta| meta.created_at_ms);
        let state = state_of(summary);
        state.is_terminal() || (state == TaskState::Running && created_ms < changed_ms)
    }

    fn update(&self) -> Option<&UpdateStatus> {
        self.service.as_ref()?.service.as_ref()?.update.as_ref()
    }

    fn update_state(&self) -> UpdateState {
        self.update().map_or(UpdateState::None, UpdateStatus::state)
    }

    fn revision(&self) -> u64 {
        let service = self.service.as_ref().and_then(|summary| summary.service.as_ref());
        service.map_or(0, |service| service.revision)
    }

    /// The revision whose tasks alone count, while it is rolled out. A finished roll-out may have left tasks alone that
    /// fitted the new revision as they were.
    fn rolled_out_revision(&self) -> Option<u64> {
        let is_rollout = matches!(self.goal, Goal::Rollout { .. });
        let is_over = matches!(self.update_state(), UpdateState::Completed | UpdateState::RollbackCompleted);
        (is_rollout && !is_over).then(|| self.revision())
    }

    /// What the managers say of the roll-out. `None`: it is over, or none is waited for; then the tasks decide.
    fn rollout_stand(&self) -> Option<Stand> {
        let Goal::Rollout { is_rollback, .. } = self.goal else {
            return None;
        };
        let message = self.update().map_or("", |update| &update.message);
        match self.update_state() {
            UpdateState::None | UpdateState::Completed => None,
            UpdateState::Updating | UpdateState::RollbackStarted => Some(Stand::Moving),
            UpdateState::Paused => Some(Stand::Failed(format!("service update paused: {message}"))),
            UpdateState::RollbackPaused => Some(Stand::Failed(format!("service rollback paused: {message}"))),
            UpdateState::RollbackCompleted if is_rollback => None,
            UpdateState::RollbackCompleted => Some(Stand::Failed(format!("service rolled back: {message}"))),
        }
    }

    /// A rollback that nobody asked for, or a newer change of somebody else's.
    fn note(&self, min_version: u64) -> Option<String> {
        let Goal::Rollout { revision, is_rollback } = self.goal else {
            return None;
        };
        if !self.synced || self.version < min_version {
            return None;
        }
        match self.update_state() {
            UpdateState::RollbackStarted if !is_rollback => {
                Some(format!("rollback: {}", self.update().map_or("", |update| &update.message)))
            }
            UpdateState::Updating if self.revision() > revision => {
                Some(format!("a newer update (revision {}) has taken the place of this one", self.revision()))
            }
            _ => None,
        }
    }

    /// Whether the restart condition rules out that a slot's ended task is replaced.
    fn is_never_replaced(&self, slot: &Slot<'_>) -> bool {
        let revision = self.service.as_ref().and_then(|summary| summary.revision.as_ref());
        let template = revision.and_then(|revision| revision.template.as_ref());
        let restart = template.and_then(|template| template.restart.as_ref());
        let completed = slot.tasks.first().is_some_and(|(summary, _)| state_of(summary) == TaskState::Complete);
        match restart.map_or(RestartCondition::Any, RestartPolicy::condition) {
            RestartCondition::Any => false,
            RestartCondition::OnFailure => completed,
            RestartCondition::None => true,
        }
    }

    /// Tasks asked for: a number, or for a global service the nodes that fit.
    fn desired(&self, live: u64) -> u64 {
        let Some(summary) = &self.service else {
            return 0;
        };
        let spec = summary.service.as_ref().and_then(|service| service.spec.as_ref());
        match spec.and_then(|spec| spec.mode.as_ref()) {
            Some(Mode::Replicated(mode)) => mode.replicas,
            Some(Mode::Global(_)) | None => summary.desired.max(live),
        }
    }

    fn slots(&self) -> BTreeMap<(u64, &[u8]), Slot<'_>> {
        let mut slots: BTreeMap<(u64, &[u8]), Slot<'_>> = BTreeMap::new();
        for summary in self.tasks.values() {
            let Some(task) = &summary.task else { continue };
            let node: &[u8] = if task.slot == 0 { &task.node_id } else { &[] };
            let slot = slots.entry((task.slot, node)).or_default();
            slot.tasks.push((summary, task));
        }
        for slot in slots.values_mut() {
            // The live task first, then the newest.
            slot.tasks.sort_by_key(|(_, task)| {
                let created = task.meta.map_or(0, |meta| meta.created_at_ms);
                (std::cmp::Reverse(is_live(task)), std::cmp::Reverse(created))
            });
        }
        slots
    }
}

/// All tasks of a slot, or of a node for a global service; the one that matters is first.
#[derive(Debug, Default)]
struct Slot<'a> {
    tasks: Vec<(&'a TaskSummary, &'a Task)>,
}

impl Slot<'_> {
    fn is_live(&self) -> bool {
        self.tasks.first().is_some_and(|(_, task)| is_live(task))
    }

    fn is_running(&self) -> bool {
        self.tasks.first().is_some_and(|(summary, task)| {
            task.wanted() == WantedState::Running && state_of(summary) == TaskState::Running
        })
    }

    /// Whether its task is of this revision; any will do where none is named.
    fn is_of(&self, revision: Option<u64>) -> bool {
        revision.is_none_or(|revision| self.tasks.first().is_some_and(|(_, task)| task.revision == revision))
    }

    /// Its last task ended by itself, and none follows it.
    fn has_ended(&self) -> bool {
        self.tasks.first().is_some_and(|(summary, task)| {
            task.wanted() != WantedState::Remove
                && matches!(
                    state_of(summary),
                    TaskState::Complete | TaskState::Failed | TaskState::Rejected | TaskState::Orphaned
                )
        })
    }

    fn row(&self) -> Row {
        let Some((summary, task)) = self.tasks.first() else {
            return Row { name: String::new(), state: "", node: String::new(), detail: String::new(), is_stuck: false };
        };
        let status = task.status.clone().unwrap_or_default();
        let place = if summary.node_hostname.is_empty() {
            view::short_id(&task.node_id)
        } else {
            summary.node_hostname.clone()
        };
        let (detail, is_stuck) = self.detail(&status);
        Row {
            name: task::name(&summary.service_name, task.slot, &place),
            state: state::task(status.state()),
            node: summary.node_hostname.clone(),
            detail,
            is_stuck,
        }
    }

    /// Why it does not run; else why the one before it ended; else what it is doing.
    fn detail(&self, status: &TaskStatus) -> (String, bool) {
        let why = reason(status);
        if !why.is_empty() {
            return (why, true);
        }
        if status.state() == TaskState::Running {
            return (String::new(), false);
        }
        let before = self.tasks.iter().skip(1).find_map(|(summary, task)| {
            let status = task.status.as_ref()?;
            let failed = matches!(state_of(summary), TaskState::Failed | TaskState::Rejected);
            // The only container's name says nothing that the row does not say.
            let error = status.error.strip_prefix("task: ").unwrap_or(&status.error);
            (failed && !error.is_empty()).then(|| format!("the one before it failed: {error}"))
        });
        let check = failing_check(status);
        match before {
            _ if !check.is_empty() => (check, true),
            Some(before) => (before, true),
            None => (status.message.clone(), false),
        }
    }
}

/// Wanted to run, and still able to.
fn is_live(task: &Task) -> bool {
    let state = task.status.as_ref().map_or(TaskState::New, TaskStatus::state);
    task.wanted().wants_to_run() && !state.is_terminal()
}

fn state_of(summary: &TaskSummary) -> TaskState {
    let status = summary.task.as_ref().and_then(|task| task.status.as_ref());
    status.map_or(TaskState::New, TaskStatus::state)
}

fn count<T>(items: impl Iterator<Item = T>) -> u64 {
    u64::try_from(items.count()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "progress_test.rs"]
mod progress_test;
