//! Where a service stands on its way to what was asked: a pure view over the Watch stream's events.
//!
//! Converged means: as many tasks are wanted as the service asks for, and all of them run. A slot whose task ended and is
//! not replaced (restart condition, attempts used up) has ended: then waiting for it is in vain.

use std::collections::BTreeMap;

use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::watch_event::Object;
use skep_proto::v1::{
    RestartCondition, RestartPolicy, ServiceSummary, Task, TaskState, TaskStatus, TaskSummary, WantedState,
    WatchResponse,
};

use crate::command::task_table::reason;
use crate::output::natural;
use crate::view::{self, service::MONITOR_MS, state, task};

/// What is known so far.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    service: Option<ServiceSummary>,
    tasks: BTreeMap<Vec<u8>, TaskSummary>,
    synced: bool,
    version: u64,
    removed: bool,
    /// Tasks that had ended before this command began to watch.
    old: Vec<Vec<u8>>,
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
    /// A task has failed since the command began.
    pub(crate) has_failed: bool,
    /// By the restart condition alone, no task that ended will be replaced.
    pub(crate) is_final: bool,
}

impl Progress {
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
            self.old = self
                .tasks
                .iter()
                .filter(|(_, summary)| state_of(summary).is_terminal())
                .map(|(id, _)| id.clone())
                .collect();
        }
    }

    /// The service's name.
    pub(crate) fn name(&self) -> &str {
        let service = self.service.as_ref().and_then(|summary| summary.service.as_ref());
        service.and_then(|service| service.spec.as_ref()).map_or("", |spec| &spec.name)
    }

    /// How long a service that had failures must run before it counts as stable.
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
        let running = count(current.iter().filter(|slot| slot.is_running()));
        let desired = self.desired(live);
        let mut rows: Vec<Row> = current.iter().map(|slot| slot.row()).collect();
        rows.sort_by(|a, b| natural::compare(&a.name, &b.name));
        let stand = if self.removed {
            Stand::Removed
        } else if !self.synced || self.version < min_version || self.service.is_none() {
            Stand::Unknown
        } else if live == desired && running == desired {
            Stand::Converged
        } else if live < desired && running == live && count(current.iter()) >= desired {
            Stand::Ended
        } else {
            Stand::Moving
        };
        let is_final = current.iter().filter(|slot| !slot.is_live()).all(|slot| self.is_never_replaced(slot));
        let has_failed = self.tasks.iter().any(|(id, summary)| {
            matches!(state_of(summary), TaskState::Failed | TaskState::Rejected) && !self.old.contains(id)
        });
        Picture { stand, running, desired, rows, has_failed, is_final }
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
            (failed && !status.error.is_empty()).then(|| format!("the task before it: {}", status.error))
        });
        match before {
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
