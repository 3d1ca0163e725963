//! What the containers of a task share: its files, and its network namespace with what that is attached to.
//!
//! Called by the executor's preparation and removal. Namespaces of tasks on networks are netd's to make; those with loopback
//! only are made here.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use skep_proto::cidr::address_from_wire;
use skep_proto::id::TaskId;
use skep_proto::v1::{AttachRequest, AttachResponse, NetworkMode, SandboxEndpoint};

use super::files::{Files, Sandbox};
use super::spec::Shared;
use super::{Inner, blocking, connections, failed};
use crate::executor::{ExecError, Supplies, TaskJob};
use crate::remap::Remap;

/// What netd is to attach. `None`: the task has no networks of its own.
pub(super) fn attach_request(job: &TaskJob) -> Option<AttachRequest> {
    let template = job.template();
    (template.network_mode() == NetworkMode::Default).then(|| AttachRequest {
        task_id: job.id.to_vec(),
        endpoints: job
            .networks
            .iter()
            .map(|on| SandboxEndpoint { network_id: on.network_id.clone(), addresses: on.addresses.clone() })
            .collect(),
        local_bridge: template.networks.is_empty(),
        dns: template.dns.clone(),
        host_ports: job.ports.clone(),
        service_id: job.service_id.to_vec(),
    })
}

impl Inner {
    /// Files and network namespace of the sandbox.
    pub(super) async fn make_shared(
        &self,
        job: &Arc<TaskJob>,
        shared: &Shared,
        files: Files,
        binds: Vec<PathBuf>,
        supplies: &Arc<dyn Supplies>,
    ) -> Result<(), ExecError> {
        let sandboxes = self.host()?.sandboxes.clone();
        let making = self.making(job.id).lock_owned().await;
        let (name, alone) = (job.id.to_string(), job.template().network_mode() == NetworkMode::None);
        let maps = shared.users.as_ref().and(self.config.users.as_ref()).map(Remap::maps);
        // The owner of the files is the container's root, who may change them as elsewhere.
        let owner = shared.users.as_ref().and_then(|users| users.outside(0, 0));
        let hostname = shared.hostname.clone();
        let making = blocking(move || {
            if let Some(missing) = binds.iter().find(|path| !path.exists()) {
                return Err(ExecError::new(format!("bind source path does not exist: {}", missing.display())));
            }
            sandboxes.make(&name).map_err(|error| failed("make the task's sandbox", error))?;
            if let Some((uids, gids)) = maps {
                let made = sandboxes.make_users(&name, &uids, &gids);
                made.map_err(|error| failed("make the task's user namespace", error))?;
            }
            if alone {
                let made = sandboxes.make_net(&name);
                made.map_err(|error| failed("make the task's network namespace", error))?;
            }
            // Kept by the step, which goes on when the preparation is cancelled.
            Ok(making)
        })
        .await?;
        let attached = self.attach(job, supplies).await?;
        self.tasks().entry(job.id).or_default().published = connections::published(job, &attached);
        let (job, with_users, sandboxes) = (Arc::clone(job), shared.users.is_some(), self.host()?.sandboxes.clone());
        blocking(move || {
            let _making = making;
            if with_users {
                let own = sandboxes.users_own_net(&job.id.to_string());
                if !own.map_err(|error| failed("look at the task's network namespace", error))? {
                    let problem =
                        "the host's netd is of a version that cannot remap ids: end it, and the daemon starts another";
                    return Err(ExecError::new(problem));
                }
            }
            let template = job.template();
            let addresses: Vec<IpAddr> = attached.addresses.iter().filter_map(|wire| address_from_wire(wire)).collect();
            let sandbox = Sandbox {
                network: template.network_mode(),
                hostname: &hostname,
                addresses: &addresses,
                name_server: attached.name_server,
                extra_hosts: &template.hosts,
                dns: template.dns.as_ref(),
            };
            files.write(&sandbox, owner).map_err(|error| ExecError::new(crate::executor::chain(&error)))
        })
        .await
    }

    async fn attach(&self, job: &TaskJob, supplies: &Arc<dyn Supplies>) -> Result<AttachResponse, ExecError> {
        let Some(request) = attach_request(job) else { return Ok(AttachResponse::default()) };
        self.tasks().entry(job.id).or_default().attached = true;
        self.networks.attach(job.id, request, |text| supplies.progress(text)).await
    }

    /// Removes the namespace with what it was attached to, and the files.
    pub(super) async fn remove_shared(&self, task: TaskId) -> Result<(), ExecError> {
        let sandboxes = self.host()?.sandboxes.clone();
        // What a cancelled preparation still makes is there to be removed afterwards.
        let made = self.making(task).lock_owned().await;
        let attached = self.tasks().get(&task).is_some_and(|entry| entry.attached);
        if attached {
            self.networks.detach(task).await;
        }
        blocking(move || {
            let _made = made;
            let removed = sandboxes.remove(&task.to_string());
            removed.map_err(|error| failed("remove the task's sandbox", error))
        })
        .await
    }
}
