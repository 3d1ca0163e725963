//! Where things of a task lie: files and logs in `<data>/tasks/<task id>`, its network namespace at
//! `<data>/netns/<task id>` (skep-overlay), its containers in `<data>/runtime/run/<task id>.<name>` and the cgroups of the
//! same name (skep-runtime).

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

    /// Network namespaces.
    pub(super) fn sandboxes(&self) -> PathBuf {
        self.data.join("netns")
    }

    /// One task; gone when it is forgotten.
    pub(super) fn task(&self, task: TaskId) -> PathBuf {
        self.tasks().join(task.to_string())
    }

    /// Its hosts, hostname and resolv.conf; gone when the task is removed.
    pub(super) fn files(&self, task: TaskId) -> PathBuf {
        self.task(task).join("files")
    }

    /// One container's log folder; stays until the task is forgotten.
    pub(super) fn logs(&self, task: TaskId, container: &str) -> PathBuf {
        self.task(task).join("logs").join(container)
    }

    /// All log folders of a task.
    pub(super) fn all_logs(&self, task: TaskId) -> PathBuf {
        self.task(task).join("logs")
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
