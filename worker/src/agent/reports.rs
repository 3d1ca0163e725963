//! Where drivers tell what happens to their tasks: the record, the session, and who asks on this host.
//!
//! Shared by the agent and all drivers; every call is short and never waits.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_image::Digest;
use skep_proto::id::TaskId;
use skep_proto::v1::{ContainerState, TaskStatus};

use crate::executor::TaskJob;
use crate::record::Record;
use crate::session::Session;

/// Newest status of every held task.
type Statuses = BTreeMap<TaskId, TaskStatus>;

/// A clonable way to tell.
#[derive(Clone)]
pub(crate) struct Reports {
    pub(crate) record: Record,
    pub(crate) session: Session,
    statuses: Arc<Mutex<Statuses>>,
    /// Images of tasks that are driven.
    images: Arc<Mutex<BTreeMap<TaskId, Vec<Digest>>>>,
}

impl Reports {
    pub(crate) fn new(record: Record, session: Session) -> Self {
        Self { record, session, statuses: Arc::default(), images: Arc::default() }
    }

    /// A task has a new status.
    pub(crate) fn publish(&self, task: TaskId, status: TaskStatus) {
        self.record.status(task, &status, false);
        self.statuses().insert(task, status.clone());
        self.session.report(task, status);
    }

    /// A status that the managers know already (after a restart of the agent).
    pub(crate) fn note(&self, task: TaskId, status: TaskStatus) {
        self.statuses().insert(task, status);
    }

    /// The managers stored these.
    pub(crate) fn acknowledged(&self, stored: &[(TaskId, TaskStatus)]) {
        let statuses = self.statuses();
        for (task, status) in stored {
            // Not if there is a newer one on its way, or the task is forgotten.
            if statuses.get(task) == Some(status) {
                self.record.status(*task, status, true);
            }
        }
    }

    /// The task is gone.
    pub(crate) fn forget(&self, task: TaskId) {
        self.statuses().remove(&task);
        self.session.forget(task);
        self.record.forget(task);
    }

    /// A driver begins to work on a task.
    pub(crate) fn driven(&self, job: &TaskJob) {
        let digests = job.template().containers.iter();
        let digests = digests.filter_map(|container| container.image_digest.parse().ok()).collect();
        self.images().insert(job.id, digests);
    }

    /// Nothing but logs is left of a task.
    pub(crate) fn ended(&self, task: TaskId) {
        self.images().remove(&task);
    }

    /// Images that tasks need now.
    pub(crate) fn images_in_use(&self) -> HashSet<Digest> {
        self.images().values().flatten().copied().collect()
    }

    /// All held tasks.
    pub(crate) fn snapshot(&self) -> Vec<(TaskId, TaskStatus)> {
        self.statuses().iter().map(|(id, status)| (*id, status.clone())).collect()
    }

    /// Containers that run.
    pub(crate) fn containers_running(&self) -> usize {
        self.statuses()
            .values()
            .flat_map(|status| &status.containers)
            .filter(|container| container.state() == ContainerState::Running)
            .count()
    }

    // Both held for map operations only.
    fn images(&self) -> MutexGuard<'_, BTreeMap<TaskId, Vec<Digest>>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn statuses(&self) -> MutexGuard<'_, Statuses> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
