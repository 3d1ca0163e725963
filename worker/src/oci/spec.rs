//! From a task's template and its image to what the runtime is to make. Pure: nothing is looked at on the host.
//!
//! Docker's rules throughout: what the service says goes over what the image says, templates are filled in.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use skep_image::ResolvedImage;
use skep_overlay::USERS;
use skep_proto::template::{Facts, TemplateError, render};
use skep_proto::v1::{ContainerSpec, MountSpec, MountType, NetworkMode, TaskTemplate};
use skep_proto::validate;
use skep_runtime::{
    ContainerSpec as RuntimeSpec, DEFAULT_CAPABILITIES, ImageCommand, LogLimits, Mount, MountKind, NetworkNamespace,
    Propagation, ResourceLimits, Ulimit, UserNamespace, resolve_command,
};

use super::capabilities;
use super::files::Files;
use super::layout::Layout;
use super::payloads::{self, PayloadError, Use};
use super::users;
use crate::executor::{NodeFacts, TaskJob};
use crate::health::{Check, CheckError};
use crate::remap::Remap;

/// Docker's, where an image sets none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Mode of a tmpfs' root where none is given.
const DEFAULT_TMPFS_MODE: u32 = 0o1777;

/// What of a spec cannot be done. Written for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SpecError {
    /// A placeholder.
    #[error("cannot fill in {what}: {error}")]
    Template {
        /// Which field.
        what: String,
        /// What is wrong with it.
        error: TemplateError,
    },
    /// Neither the image nor the service names a program.
    #[error("the image names no command to run, and neither does the service")]
    NoCommand,
    /// A relative working directory.
    #[error("the working directory {0:?} is not an absolute path")]
    Directory(String),
    /// A mount's target.
    #[error("the mount target {0:?} is not an absolute path")]
    Target(String),
    /// A bind's source.
    #[error("the source of the bind mount at {target} is not an absolute path: {path:?}")]
    Source {
        /// Where it would appear.
        target: String,
        /// What it would be.
        path: String,
    },
    /// A bind's propagation.
    #[error("{0:?} is not a propagation: use rprivate, private, rshared, shared, rslave or slave")]
    Propagation(String),
    /// The stop signal.
    #[error("{0:?} is not a signal")]
    Signal(String),
    /// A capability.
    #[error("{0:?} is not a capability")]
    Capability(String),
    /// A kernel parameter that is the whole host's.
    #[error("kernel parameter {0:?} cannot be set: it is not the container's own but the whole host's")]
    Sysctl(String),
    /// A user namespace where the node has none to give.
    #[error("this node does not remap user ids: start its daemon with --userns-remap, or use --userns host")]
    NoRemap,
    /// Remapped ids on the host's network.
    #[error("the host's network cannot be used on a node that remaps user ids, unless with --userns host")]
    HostNetwork,
    /// Containers of one task that differ.
    #[error("all containers of a task have the same user namespace")]
    Users,
    /// An id without one of the host's.
    #[error("{0} has an owner that is none of the ids that this node remaps")]
    Owner(String),
    /// A number that makes no sense.
    #[error("{what} cannot be negative")]
    Negative {
        /// Of what.
        what: &'static str,
    },
    /// Its secrets and configs.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The health check.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// Later.
    #[error("not supported yet: {0}")]
    NotYet(&'static str),
}

/// One container, ready to be made.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub(super) spec: Arc<RuntimeSpec>,
    /// How to tell whether it works. `None`: it has no check.
    pub(super) check: Option<Arc<Check>>,
    /// Paths of the host that must exist.
    pub(super) binds: Vec<PathBuf>,
    /// Its secrets and configs.
    pub(super) uses: Vec<Use>,
}

/// What the plans of all containers of a task share.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) facts: Facts,
    pub(super) hostname: String,
    /// `None`: they have the host's user and group ids.
    pub(super) users: Option<UserNamespace>,
}

impl Shared {
    /// Fills in what belongs to the sandbox.
    pub(super) fn of(
        job: &TaskJob,
        node: &NodeFacts,
        remap: Option<&Remap>,
        layout: &Layout,
    ) -> Result<Self, SpecError> {
        let node_id = node.id.map(|id| id.to_string()).unwrap_or_default();
        let slot = if job.slot == 0 { node_id.clone() } else { job.slot.to_string() };
        let service_name = job.revision.service_name.clone();
        let facts = Facts {
            service_id: job.service_id.to_string(),
            task_name: format!("{service_name}.{slot}.{}", job.id),
            service_name,
            service_labels: None,
            node_id,
            node_hostname: node.hostname.clone(),
            node_os: node.platform.os.clone(),
            node_architecture: node.platform.architecture.clone(),
            task_id: job.id.to_string(),
            task_slot: slot,
        };
        let hostname = match job.template().hostname.as_str() {
            // Docker's rule: who shares the host's network is called as the host is.
            "" if job.template().network_mode() == NetworkMode::Host => node.hostname.clone(),
            "" => job.id.short(),
            text => fill(text, &facts, || "the hostname".to_owned())?,
        };
        let users = users::namespace(job.template(), remap, layout.sandbox(job.id).join(USERS))?;
        Ok(Self { facts, hostname, users })
    }
}

/// Plans one container.
pub(super) fn plan(
    job: &TaskJob,
    container: &ContainerSpec,
    image: &ResolvedImage,
    shared: &Shared,
    files: &Files,
    layout: &Layout,
) -> Result<Plan, SpecError> {
    let template = job.template();
    stop_signal(container, image)?;
    let run = &image.config.config;
    let command = ImageCommand { entrypoint: &run.entrypoint, cmd: &run.cmd };
    let args = resolve_command(&command, &container.command, &container.args).ok_or(SpecError::NoCommand)?;
    let mut mounts = file_mounts(files, container.read_only);
    let uses = payloads::uses(container)?;
    mounts.extend(payloads::mounts(&uses));
    let mut binds = Vec::new();
    for mount in &container.mounts {
        let mount = user_mount(mount, &shared.facts)?;
        if let MountKind::Bind { source, .. } = &mount.kind {
            binds.push(source.clone());
        }
        mounts.push(mount);
    }
    // A folder before what lies in it; at the same place, the service's over ours.
    mounts.sort_by_key(|mount| mount.target.split('/').filter(|part| !part.is_empty()).count());
    let defaults = DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect();
    let spec = RuntimeSpec {
        id: Layout::container_id(job.id, &container.name),
        layers: image.layer_paths.clone(),
        args,
        env: environment(&run.env, container, shared)?,
        cwd: directory(&container.dir, &run.working_dir)?,
        user: first_of(&container.user, &run.user),
        groups: container.groups.clone(),
        hostname: shared.hostname.clone(),
        network: network(template, job, layout),
        mounts,
        resources: resources(container)?,
        ulimits: ulimits(container)?,
        capabilities: capabilities::resolve(defaults, &container.cap_add, &container.cap_drop)
            .map_err(SpecError::Capability)?,
        seccomp: users::seccomp(container),
        apparmor: users::apparmor(container),
        users: shared.users.clone(),
        allow_new_privileges: container.allow_new_privileges,
        init: container.init,
        read_only_root: container.read_only,
        sysctls: sysctls(container, template.network_mode())?,
        oom_score_adj: container.oom_score_adj,
        log: log_limits(template),
        log_dir: layout.logs(job.id, &container.name),
    };
    let check = Check::resolve(container.health_check.as_ref(), run)?.map(Arc::new);
    Ok(Plan { spec: Arc::new(spec), check, binds, uses })
}

/// The signal that asks a container to stop: the service's, else the image's, else SIGTERM.
pub(super) fn stop_signal(container: &ContainerSpec, image: &ResolvedImage) -> Result<i32, SpecError> {
    let of_image = image.config.config.stop_signal.as_deref().unwrap_or_default();
    match first_of(&container.stop_signal, of_image).as_str() {
        "" => Ok(libc::SIGTERM),
        text => validate::signal_number(text).ok_or_else(|| SpecError::Signal(text.to_owned())),
    }
}

/// Between the stop signal and SIGKILL. `None`: no signal, kill at once.
pub(super) fn grace(container: &ContainerSpec) -> Option<std::time::Duration> {
    const DEFAULT_MS: u64 = 10_000;
    match container.stop_grace_period_ms {
        0 => Some(std::time::Duration::from_millis(DEFAULT_MS)),
        ms => u64::try_from(ms).ok().map(std::time::Duration::from_millis),
    }
}

fn first_of(service: &str, image: &str) -> String {
    if service.is_empty() { image.to_owned() } else { service.to_owned() }
}

fn fill(text: &str, facts: &Facts, what: impl FnOnce() -> String) -> Result<String, SpecError> {
    render(text, facts).map_err(|error| SpecError::Template { what: what(), error })
}

/// `NAME=value`: a default path and the host name, then the image's, then the service's. A name alone removes.
fn environment(image: &[String], container: &ContainerSpec, shared: &Shared) -> Result<Vec<String>, SpecError> {
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", shared.hostname)];
    let mut set = |entry: String| {
        let name = entry.split('=').next().unwrap_or_default();
        let has_value = entry.contains('=');
        let known = env.iter().position(|known| known.split('=').next() == Some(name));
        match (known, has_value) {
            (Some(at), true) => env[at] = entry,
            (Some(at), false) => drop(env.remove(at)),
            (None, true) => env.push(entry),
            (None, false) => {}
        }
    };
    for entry in image {
        set(entry.clone());
    }
    for entry in &container.env {
        let name = || format!("environment variable {}", entry.split('=').next().unwrap_or_default());
        set(fill(entry, &shared.facts, name)?);
    }
    Ok(env)
}

fn directory(service: &str, image: &str) -> Result<String, SpecError> {
    match first_of(service, image) {
        dir if dir.is_empty() => Ok("/".to_owned()),
        dir if dir.starts_with('/') => Ok(dir),
        dir => Err(SpecError::Directory(dir)),
    }
}

fn network(template: &TaskTemplate, job: &TaskJob, layout: &Layout) -> NetworkNamespace {
    match template.network_mode() {
        NetworkMode::Host => NetworkNamespace::Host,
        NetworkMode::Default | NetworkMode::None => NetworkNamespace::Path(layout.sandbox(job.id).join("net")),
    }
}

/// `/etc/hosts` and its kind; a user's mount at the same place goes over them.
fn file_mounts(files: &Files, read_only: bool) -> Vec<Mount> {
    let bind = |target: &str, source: &PathBuf| Mount {
        target: target.to_owned(),
        read_only,
        kind: MountKind::Bind { source: source.clone(), propagation: Propagation::Private, recursive: false },
    };
    vec![
        bind("/etc/hosts", &files.hosts),
        bind("/etc/hostname", &files.hostname),
        bind("/etc/resolv.conf", &files.resolv_conf),
    ]
}

fn user_mount(mount: &MountSpec, facts: &Facts) -> Result<Mount, SpecError> {
    let target = fill(&mount.target, facts, || format!("mount target {}", mount.target))?;
    if !target.starts_with('/') {
        return Err(SpecError::Target(target));
    }
    let kind = match mount.r#type() {
        MountType::Bind => {
            let source = fill(&mount.source, facts, || format!("mount source {}", mount.source))?;
            if !source.starts_with('/') {
                return Err(SpecError::Source { target, path: source });
            }
            let propagation = match mount.propagation.as_str() {
                "" | "rprivate" | "private" => Propagation::Private,
                "rshared" | "shared" => Propagation::Shared,
                "rslave" | "slave" => Propagation::Slave,
                other => return Err(SpecError::Propagation(other.to_owned())),
            };
            MountKind::Bind { source: source.into(), propagation, recursive: !mount.non_recursive }
        }
        MountType::Tmpfs => MountKind::Tmpfs {
            size_bytes: positive(mount.tmpfs_size_bytes, "the size of a tmpfs")?,
            mode: if mount.tmpfs_mode == 0 { DEFAULT_TMPFS_MODE } else { mount.tmpfs_mode },
        },
        MountType::Volume => return Err(SpecError::NotYet("volumes")),
    };
    Ok(Mount { target, read_only: mount.read_only, kind })
}

/// Only parameters that belong to a namespace of the container (namespaces(7)): any other would change the host.
fn sysctls(container: &ContainerSpec, network: NetworkMode) -> Result<BTreeMap<String, String>, SpecError> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    for key in container.sysctls.keys() {
        let own = IPC.contains(&key.as_str())
            || key.starts_with("fs.mqueue.")
            || (key.starts_with("net.") && network != NetworkMode::Host);
        // A slash is another way to write the dot, and a way out of the folder.
        if !own || key.contains('/') {
            return Err(SpecError::Sysctl(key.clone()));
        }
    }
    Ok(container.sysctls.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
}

fn positive(value: i64, what: &'static str) -> Result<u64, SpecError> {
    u64::try_from(value).map_err(|_| SpecError::Negative { what })
}

fn resources(container: &ContainerSpec) -> Result<ResourceLimits, SpecError> {
    let spec = container.resources.unwrap_or_default();
    let (limits, reservations) = (spec.limits.unwrap_or_default(), spec.reservations.unwrap_or_default());
    Ok(ResourceLimits {
        memory_bytes: positive(limits.memory_bytes, "the memory limit")?,
        memory_reservation_bytes: positive(reservations.memory_bytes, "the memory reservation")?,
        nano_cpus: positive(limits.nano_cpus, "the CPU limit")?,
        pids: positive(spec.pids_limit, "the limit of processes")?,
    })
}

fn ulimits(container: &ContainerSpec) -> Result<Vec<Ulimit>, SpecError> {
    let value = |value: i64| if value == -1 { Ok(u64::MAX) } else { positive(value, "a ulimit") };
    let mut out = Vec::with_capacity(container.ulimits.len());
    for limit in &container.ulimits {
        out.push(Ulimit { name: limit.name.clone(), soft: value(limit.soft)?, hard: value(limit.hard)? });
    }
    Ok(out)
}

fn log_limits(template: &TaskTemplate) -> LogLimits {
    let mut limits = LogLimits::default();
    if let Some(log) = &template.log {
        if let Some(bytes) = u64::try_from(log.max_file_bytes).ok().filter(|bytes| *bytes > 0) {
            limits.max_bytes = bytes;
        }
        if log.max_files > 0 {
            limits.max_files = log.max_files;
        }
    }
    limits
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod spec_test;
