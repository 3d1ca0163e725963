//! Where things of a task lie: logs in `<data>/tasks/<task id>`, what its containers share in `<data>/sandboxes/<task id>`
//! (in memory, skep-overlay), its containers in `<data>/runtime/run/<task id>.<name>` and the cgroups of the same name
//! (skep-runtime).

use std::path::{Path, PathBuf};

use skep_proto::id::TaskId;

/// Paths of one node's tasks.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    data: PathBuf,
}

impl Layout {
    pub(super) fn new(data: &Path) -> Self {
        Self { data: data.to_owned() }
    }

    /// All tasks.
    pub(super) fn tasks(&self) -> PathBuf {
        self.data.join("tasks")
    }

    /// The runtime's own folder.
    pub(super) fn runtime(&self) -> PathBuf {
        self.data.join("runtime")
    }

    /// Sandboxes; gone with a reboot.
    pub(super) fn sandboxes(&self) -> PathBuf {
        self.data.join("sandboxes")
    }

    /// One task's sandbox; gone when the task is removed.
    pub(super) fn sandbox(&self, task: TaskId) -> PathBuf {
        self.sandboxes().join(task.to_string())
    }

    /// One task's log folders, by container; gone when it is forgotten.
    pub(super) fn task(&self, task: TaskId) -> PathBuf {
        self.tasks().join(task.to_string())
    }

    /// One container's log folder; stays until the task is forgotten.
    pub(super) fn logs(&self, task: TaskId, container: &str) -> PathBuf {
        self.task(task).join(container)
    }

    /// Task and name of a container, from its id.
    pub(super) fn parse_container_id(id: &str) -> Option<(TaskId, &str)> {
        let (task, name) = id.split_once('.')?;
        Some((task.parse().ok()?, name))
    }

    /// Id of a container on this node.
    pub(super) fn container_id(task: TaskId, container: &str) -> String {
        format!("{task}.{container}")
    }
}
