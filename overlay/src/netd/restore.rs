//! A netd that starts takes up what the one before it kept: who this host is, the tables, the sandboxes. It needs no agent
//! for that, and packets go on meanwhile; names and the mesh are back when it is done.
//!
//! What cannot be restored is said in the log, and is missing ([`super::recover`]).

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use skep_netlink::Namespace;
use skep_proto::id::{NetworkId, TaskId};
use skep_proto::v1;

use super::keep;
use super::service::text;
use super::{Netd, lock};

/// Threads that restore: more would only wait for each other in the kernel.
const THREADS: usize = 4;
/// File with the last request to attach a sandbox, in the sandbox's folder.
pub(super) const REQUEST: &str = "attach";

/// Does some work on each, several at a time.
fn each<T: Sync>(all: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(all.len()) {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(one);
                }
            });
        }
    });
}

impl Netd {
    /// File with the agent's last word about this host.
    pub(super) fn config_file(&self) -> PathBuf {
        self.kept.dir("host").join("config")
    }

    /// Folder of the tables' files.
    pub(super) fn tables_dir(&self) -> PathBuf {
        self.kept.dir("tables")
    }

    /// File of a sandbox's request.
    pub(super) fn request_file(&self, task: TaskId) -> PathBuf {
        self.sandboxes.dir(&task.to_string()).join(REQUEST)
    }

    /// Restores everything. Blocks until it is so, and never fails.
    pub(super) fn restore(&self) {
        self.hold();
        match keep::read::<v1::ConfigureRequest>(&self.config_file()) {
            Ok(Some(request)) => {
                if let Err(error) = self.configure(request) {
                    tracing::warn!("what was kept of this host is not used: {}", text(&error));
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!("what was kept of this host is not used: {}", text(&error)),
        }
        let names = std::fs::read_dir(self.tables_dir()).into_iter().flatten().flatten();
        let networks: Vec<NetworkId> = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        each(&networks, |id| self.restore_network(*id));
        let tasks: Vec<TaskId> = self.found_sandboxes().iter().filter_map(|name| name.parse().ok()).collect();
        each(&tasks, |task| self.restore_sandbox(*task));
        // Only now all of them are known, if none is missing.
        self.end_hold();
        if !networks.is_empty() || !tasks.is_empty() {
            let (networks, sandboxes) = (lock(&self.networks).len(), lock(&self.attached).len());
            tracing::info!(networks, sandboxes, "restored what an earlier netd kept");
        }
    }

    fn restore_network(&self, id: NetworkId) {
        let network = self.network(id);
        let mut state = lock(&network);
        let restored = match state.journal().read() {
            Ok(kept) => {
                let restored = state.restore(self, kept);
                state.note(restored.as_ref().err());
                restored.map_err(|error| text(&error))
            }
            Err(error) => {
                // The next whole table is kept in its place.
                state.journal().remove();
                self.lose_table(id);
                Err(text(&error))
            }
        };
        drop(state);
        if let Err(error) = restored {
            tracing::warn!(network = %id, "its table was not restored as it was kept: {error}");
        }
        self.forget(&network, id);
    }

    fn restore_sandbox(&self, task: TaskId) {
        if !Namespace::is_at(&self.sandboxes.net(&task.to_string())) {
            return;
        }
        let error = match keep::read::<v1::AttachRequest>(&self.request_file(task)) {
            Ok(None) => return,
            Ok(Some(request)) if request.task_id == task.to_vec() => match self.attach_again(request) {
                Ok(_) => return,
                Err(error) => text(&error),
            },
            damaged => {
                let error = damaged.err().map_or("its file is another sandbox's".to_owned(), |error| text(&error));
                self.lose_sandbox(task, None, error.clone());
                error
            }
        };
        tracing::warn!(task = %task, "its sandbox was not restored: {error}");
    }
}
