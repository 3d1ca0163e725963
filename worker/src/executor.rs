//! What the agent asks of whatever runs containers: the [`Executor`] trait and the values that cross it.
//!
//! Called by the task drivers and by the agent at start. Two implementations: `oci` (real containers) and `simulated`
//! (tests of scale and faults). An executor never decides whether something is to run, and never reports to a manager.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use skep_proto::id::{CredentialId, NodeId, ServiceId, TaskId};
use skep_proto::v1::{
    ContainerSpec, Credential, ImageSourcesResponse, LogLine, LogOptions, NetworkAddresses, Platform, PortSpec,
    Revision, Task, TaskTemplate,
};
use tokio::sync::{mpsc, watch};

use crate::health::Check;
use crate::payload::{PayloadId, Payloads};

/// Digests of the images that the node holds.
pub type HeldImages = Arc<std::collections::BTreeSet<String>>;

/// The node as tasks see it (templates, hosts files).
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    /// The node's id. `None`: not in a swarm (tests).
    pub id: Option<NodeId>,
    /// The node's host name.
    pub hostname: String,
    /// What it runs.
    pub platform: Platform,
}

/// One task's run: everything that does not change while it lasts.
#[derive(Debug, Clone)]
pub struct TaskJob {
    /// The task.
    pub id: TaskId,
    /// Its service.
    pub service_id: ServiceId,
    /// Replica number; 0 for a global service's task.
    pub slot: u64,
    /// What it runs.
    pub revision: Arc<Revision>,
    /// Its addresses on its networks, in the order of its devices.
    pub networks: Vec<NetworkAddresses>,
    /// Ports that its node publishes for it, resolved.
    pub ports: Vec<PortSpec>,
}

impl TaskJob {
    /// Reads an assigned task. `None` if an id is not one, or the revision has no containers.
    pub fn new(task: &Task, revision: &Arc<Revision>) -> Option<Self> {
        let has_containers = revision.template.as_ref().is_some_and(|template| !template.containers.is_empty());
        has_containers.then_some(())?;
        Some(Self {
            id: TaskId::from_wire(&task.id).ok()?,
            service_id: ServiceId::from_wire(&task.service_id).ok()?,
            slot: task.slot,
            revision: Arc::clone(revision),
            networks: task.networks.clone(),
            ports: task.ports.clone(),
        })
    }

    /// The template that the task runs.
    pub fn template(&self) -> &TaskTemplate {
        self.revision.template.as_ref().expect("TaskJob::new refuses revisions without a template")
    }

    /// The container of that name.
    pub fn container(&self, name: &str) -> Option<&ContainerSpec> {
        self.template().containers.iter().find(|container| container.name == name)
    }

    /// The stored credential for its images. `None`: anonymous.
    pub fn credential_id(&self) -> Option<CredentialId> {
        CredentialId::from_wire_opt(&self.template().credential_id).ok().flatten()
    }
}

/// Docker's exit code of a container that its runtime could not start.
const RUNTIME_FAILED: i32 = 125;

/// Why a step of a task failed. Its text becomes `TaskStatus.error`, so it is written for the user.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct ExecError {
    what: String,
    exit_code: i32,
    is_final: bool,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ExecError {
    /// An error that says all by itself.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), exit_code: RUNTIME_FAILED, is_final: false, source: None }
    }

    /// An error with what it came from.
    pub fn caused(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { what: what.into(), exit_code: RUNTIME_FAILED, is_final: false, source: Some(source.into()) }
    }

    /// The same with what a container that did not start shows as its exit code: 126 the program cannot be run, 127 it
    /// is not there, 125 (the default) anything else.
    pub fn with_exit_code(self, exit_code: i32) -> Self {
        Self { exit_code, ..self }
    }

    /// The same as one that another try cannot help.
    pub fn for_good(self) -> Self {
        Self { is_final: true, ..self }
    }

    /// Whether another try is of no use.
    pub fn is_final(&self) -> bool {
        self.is_final
    }

    /// See [`with_exit_code`](Self::with_exit_code).
    pub fn exit_code(&self) -> i32 {
        self.exit_code
    }

    /// The whole chain in one line.
    pub fn sentence(&self) -> String {
        chain(self)
    }
}

/// An error and its sources in one line, `a: b: c`.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    with_causes(error.to_string(), error.source())
}

/// A status's message and its causes: of a broken connection the message alone is "transport error".
pub fn status_words(status: &tonic::Status) -> String {
    with_causes(status.message().to_owned(), status.source())
}

fn with_causes(mut text: String, mut next: Option<&(dyn Error + 'static)>) -> String {
    while let Some(cause) = next {
        let said = cause.to_string();
        // Some libraries print their source as well: do not say it twice.
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

/// A task that can start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Connections are led to TCP ports of its own: [`Executor::listening`] may have something to wait for.
    pub published: bool,
}

/// A container that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Started {
    /// Its first process on the node. 0: unknown.
    pub pid: u32,
    /// Its id on the node.
    pub container_id: String,
    /// By the node's clock.
    pub started_at_ms: i64,
    /// The check that tells whether it works. `None`: it has none.
    pub check: Option<Arc<Check>>,
}

/// A command to be run inside a running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// After this it and all that it started is killed.
    pub timeout: Duration,
    /// Bytes of its output that are kept, the first ones.
    pub keep_bytes: usize,
}

/// How a command inside a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEnd {
    /// With that code; 128 + signal; 126 or 127 if it could not be run (the output says why).
    Exited(i32),
    /// It was killed after its timeout.
    TimedOut,
}

/// A command inside a container that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    /// How it ended.
    pub end: ExecEnd,
    /// What it wrote to stdout and stderr, in the order of writing; bytes that are no text are replaced.
    pub output: String,
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerExit {
    /// Exit code, or 128 + signal. Meaningless when `lost`.
    pub code: i32,
    /// The kernel killed a process of it for its memory limit.
    pub oom_killed: bool,
    /// When, by the node's clock. 0: unknown.
    pub finished_at_ms: i64,
    /// Its monitor died too: nobody knows how it ended.
    pub lost: bool,
    /// Why, where the code does not say it. Empty: nothing to add.
    pub reason: String,
}

/// A container found at the start of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It runs; `wait` and `stop` work on it from now on.
    Running(Started),
    /// It ended while no agent looked. The start is `None` where it never ran.
    Exited(Option<Started>, ContainerExit),
}

/// Containers of one task, by name. A container that is not there was not created, or nothing is left of it.
pub type FoundTask = BTreeMap<String, Found>;

/// Use of resources by one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerStats {
    /// Its name in the template.
    pub container: String,
    /// CPU time used since its start.
    pub cpu: Duration,
    /// Memory charged to it now, in bytes.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// What an executor may ask for while it prepares one task.
#[tonic::async_trait]
pub trait Supplies: Send + Sync {
    /// Tells how far preparation is; appears in `TaskStatus.message`.
    fn progress(&self, message: String);
    /// The credential of that id; waits until a manager has sent it (credentials are never on disk).
    async fn credential(&self, id: CredentialId) -> Credential;
    /// The data of these secrets and configs; waits until the managers have sent all of them (they are never on disk).
    async fn payloads(&self, ids: &[PayloadId]) -> Payloads;
    /// Asks the manager for nodes that hold an image. Errors when no manager answers.
    async fn image_sources(&self, digest: &str) -> Result<ImageSourcesResponse, ExecError>;
}

/// Runs tasks. Each call is about one task or container; calls for the same container never overlap, except that
/// `wait`, `stop`, `exec`, `logs` and `stats` run side by side.
#[tonic::async_trait]
pub trait Executor: Send + Sync + 'static {
    /// Called once, before anything else: finds what earlier agents left of `jobs`, takes it over, and removes all that
    /// belongs to no job. With `same_boot` false nothing can run any more: leftovers (mounts, cgroups, network
    /// namespaces) are removed, only records of ends are read. `kept_logs` are ended tasks whose logs stay.
    async fn recover(
        &self,
        jobs: &[Arc<TaskJob>],
        kept_logs: &[TaskId],
        same_boot: bool,
    ) -> Result<BTreeMap<TaskId, FoundTask>, ExecError>;

    /// Makes all that containers need: images, sandbox, files. Idempotent. Dropping the future is a cancel: what was
    /// made is left for `remove`.
    async fn prepare(&self, job: Arc<TaskJob>, supplies: Arc<dyn Supplies>) -> Result<Prepared, ExecError>;

    /// Creates and starts one container of a prepared task. Not cancelled once begun.
    async fn start(&self, job: Arc<TaskJob>, container: &str) -> Result<Started, ExecError>;

    /// Gives the running containers of a task the versions of secrets and configs that `job` names, all files of a container
    /// at once, and then the first process of each that has others the signal that the job's revision asks for. Idempotent.
    /// Dropping the future is a cancel: some containers may have them. `Err`: see [`ExecError::is_final`].
    async fn replace_files(&self, job: Arc<TaskJob>, supplies: Arc<dyn Supplies>) -> Result<(), ExecError>;

    /// Waits for the end of a started (or found running) container. May be dropped and called again.
    async fn wait(&self, task: TaskId, container: &str) -> Result<ContainerExit, ExecError>;

    /// Sends a signal to the container's first process. No error if it has ended.
    async fn signal(&self, task: TaskId, container: &str, signal: i32) -> Result<(), ExecError>;

    /// Waits, for some seconds at most, until the programs of a started task listen on the TCP ports that it is published at,
    /// or one of them has ended. `Err`: a sentence for the user, it does not listen.
    async fn listening(&self, task: TaskId) -> Result<(), String>;

    /// Waits, for a moment at most, until the task's programs have accepted the connections that wait for them: a program
    /// that stops refuses those. For a task that gets no new ones. Does nothing where none can wait.
    async fn settle(&self, task: TaskId);

    /// Asks the container to stop by its stop signal, and kills it after its grace period. Returns when it has ended.
    async fn stop(&self, job: Arc<TaskJob>, container: &str) -> Result<(), ExecError>;

    /// Runs a command inside a running container, with its user, environment, rights and limits. One at a time for each
    /// container. Dropping the future kills it. An error lies with the node and says nothing of the container.
    async fn exec(&self, task: TaskId, container: &str, request: ExecRequest) -> Result<ExecOutcome, ExecError>;

    /// Removes all of an ended task but its logs. Idempotent.
    async fn remove(&self, task: TaskId) -> Result<(), ExecError>;

    /// Removes what is left of a removed task: its logs. Idempotent.
    async fn forget(&self, task: TaskId) -> Result<(), ExecError>;

    /// What the task's running containers use now.
    async fn stats(&self, task: TaskId) -> Result<Vec<ContainerStats>, ExecError>;

    /// Sends log lines of one task, in order for each container, until they end or, with `follow`, until the task was
    /// removed. Ends early when `sink` closes. `node_id` and `task_name` of the lines stay empty.
    async fn logs(&self, task: TaskId, options: LogOptions, sink: mpsc::Sender<LogLine>) -> Result<(), ExecError>;

    /// Digests of held images, now and when they change.
    fn held_images(&self) -> watch::Receiver<HeldImages>;
}
