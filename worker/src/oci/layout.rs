//! Where things of a task lie. Everything is below `<data>/tasks/<task id>`, except its network namespace
//! (`<data>/netns/<task id>`, see skep-overlay) and its cgroups (`<parent>/<task id>`).

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

    /// Network namespaces.
    pub(super) fn sandboxes(&self) -> PathBuf {
        self.data.join("netns")
    }

    /// One task; gone when it is forgotten.
    pub(super) fn task(&self, task: TaskId) -> PathBuf {
        self.tasks().join(task.to_string())
    }

    /// Its containers' directories, one each; gone when the task is removed.
    pub(super) fn containers(&self, task: TaskId) -> PathBuf {
        self.task(task).join("containers")
    }

    /// One container's directory.
    pub(super) fn container(&self, task: TaskId, container: &str) -> PathBuf {
        self.containers(task).join(container)
    }

    /// Its hosts, hostname and resolv.conf; gone when the task is removed.
    pub(super) fn files(&self, task: TaskId) -> PathBuf {
        self.task(task).join("files")
    }

    /// One container's log folder; stays until the task is forgotten.
    pub(super) fn logs(&self, task: TaskId, container: &str) -> PathBuf {
        self.task(task).join("logs").join(container)
    }

    /// Id of a container on this node.
    pub(super) fn container_id(task: TaskId, container: &str) -> String {
        format!("{task}.{container}")
    }
}
