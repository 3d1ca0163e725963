//! The start of an executor: takes over what earlier agents left, and removes what belongs to nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_image::Digest;
use skep_proto::id::TaskId;
use skep_runtime::{Recovered, State};

use super::files::Files;
use super::layout::Layout;
use super::sandbox::attach_request;
use super::spec::Shared;
use super::{Entry, Host, Inner, blocking, exit_of, failed, open_host, remove_dir, spec, started};
use crate::executor::{ContainerExit, ExecError, Found, FoundTask, TaskJob};
use crate::health::Check;

impl Inner {
    pub(super) async fn recover(
        &self,
        jobs: &[Arc<TaskJob>],
        kept_logs: &[TaskId],
        same_boot: bool,
    ) -> Result<BTreeMap<TaskId, FoundTask>, ExecError> {
        let host = open_host(&self.config, &self.layout).await?;
        let jobs: BTreeMap<TaskId, &Arc<TaskJob>> = jobs.iter().map(|job| (job.id, job)).collect();
        let mut found: BTreeMap<TaskId, FoundTask> = BTreeMap::new();
        let mut keep = BTreeSet::new();
        for recovered in host.runtime.recover().await.map_err(|error| failed("find containers", error))? {
            let id = recovered.container.id().to_owned();
            let owner = Layout::parse_container_id(&id)
                .and_then(|(task, name)| Some((*jobs.get(&task)?, name)))
                .filter(|(job, name)| job.container(name).is_some());
            let Some((job, name)) = owner else {
                tracing::info!(container = %id, "removing a container that belongs to no task");
                recovered.container.remove().await.map_err(|error| failed("remove a container", error))?;
                continue;
            };
            let is = self.adopt(job, name, recovered, same_boot).await?;
            found.entry(job.id).or_default().insert(name.to_owned(), is);
            keep.insert(id);
        }
        host.runtime.sweep(&keep).await.map_err(|error| failed("remove leftovers", error))?;
        let known: BTreeSet<TaskId> = jobs.keys().copied().collect();
        self.remove_strangers(&host, known, kept_logs, same_boot).await?;
        // Called once; a second call would find the same.
        let _ = self.host.set(host);
        Ok(found)
    }

    /// Takes one container over, or what is known of its end.
    async fn adopt(
        &self,
        job: &TaskJob,
        name: &str,
        recovered: Recovered,
        same_boot: bool,
    ) -> Result<Found, ExecError> {
        let Recovered { container, state } = recovered;
        let check = self.remember(job, name);
        let begun = started(container.id(), &state, check);
        let found = match state {
            State::Exited(status) => {
                let ran = status.started_at_ms != 0 || status.lost;
                Found::Exited(ran.then_some(begun), exit_of(&status))
            }
            State::Running { .. } | State::Creating if !same_boot => {
                // The record speaks of another boot: whatever this is, it is not what the managers know.
                container.remove().await.map_err(|error| failed("remove a container", error))?;
                Found::Exited(Some(begun), ContainerExit { lost: true, ..ContainerExit::default() })
            }
            State::Running { .. } | State::Creating => {
                if let Some(request) = attach_request(job) {
                    self.networks.adopt(job.id, request);
                }
                Found::Running(begun)
            }
        };
        self.hold(job.id, name, container);
        Ok(found)
    }

    /// What a later stop or command needs, without preparing again; and the image stays. Returns its health check.
    fn remember(&self, job: &TaskJob, name: &str) -> Option<Arc<Check>> {
        let container = job.container(name)?;
        let store = self.keeper.images().store();
        let digest = container.image_digest.parse::<Digest>().ok()?;
        let lease = store.pin(&digest);
        let image = store.resolve(&digest);
        let mut tasks = self.tasks();
        let entry: &mut Entry = tasks.entry(job.id).or_default();
        entry.leases.push(lease);
        entry.attached = attach_request(job).is_some();
        let image = image.ok()?;
        if let Ok(signal) = spec::stop_signal(container, &image) {
            entry.stop_signals.insert(name.to_owned(), signal);
        }
        let files = Files::in_dir(&self.layout.sandbox(job.id));
        let planned = Shared::of(job, &self.facts, self.config.users.as_ref(), &self.layout)
            .and_then(|shared| spec::plan(job, container, &image, &shared, &files, &self.layout));
        match planned {
            Ok(plan) => {
                let check = plan.check.clone();
                entry.plans.insert(name.to_owned(), plan);
                check
            }
            Err(error) => {
                tracing::warn!(task = %job.id, container = name, %error, "cannot tell how a container was made");
                None
            }
        }
    }

    /// Removes logs and sandboxes of tasks that are not known any more; after a reboot all sandboxes.
    async fn remove_strangers(
        &self,
        host: &Host,
        known: BTreeSet<TaskId>,
        kept_logs: &[TaskId],
        same_boot: bool,
    ) -> Result<(), ExecError> {
        let (sandboxes, layout) = (host.sandboxes.clone(), self.layout.clone());
        let kept: BTreeSet<TaskId> = kept_logs.iter().copied().collect();
        blocking(move || {
            let is_known = |name: &str| name.parse().is_ok_and(|id| known.contains(&id));
            sandboxes.retain(|name| same_boot && is_known(name)).map_err(|error| failed("remove sandboxes", error))?;
            let entries = match std::fs::read_dir(layout.tasks()) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(failed("look at the tasks' folders", error)),
            };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let id = name.to_str().and_then(|name| name.parse::<TaskId>().ok());
                match id {
                    Some(id) if known.contains(&id) || kept.contains(&id) => {}
                    _ => remove_dir(&entry.path())?,
                }
            }
            Ok(())
        })
        .await
    }
}
