//! The real executor: images, sandboxes and containers of this host.
//!
//! Made by the node, driven by the agent. It knows what it was asked to make; whether that is wanted is the agent's.
//! CPU-heavy steps are bounded by cores (creation here, unpacking in the image store), fetches of images by a limit of
//! their own; waits and stops are not bounded.

mod capabilities;
mod connections;
mod files;
mod images;
mod layout;
mod logs;
mod payloads;
mod peers;
mod progress;
mod recover;
mod sandbox;
mod spec;
mod users;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use skep_image::{Images, Pin};
use skep_overlay::Sandboxes;
use skep_proto::id::{NodeId, TaskId};
use skep_proto::v1::{LogLine, LogOptions};
use skep_proto::validate;
use skep_runtime::{
    Container, ContainerSpec as RuntimeSpec, ExecEnd as RuntimeEnd, Files as MemoryFiles, OciRuntime, Runtime,
    RuntimeConfig, RuntimeError, State, Ulimit,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;

use crate::description::platform;
use crate::executor::{
    ContainerExit, ContainerStats, ExecEnd, ExecError, ExecOutcome, ExecRequest, Executor, FoundTask, HeldImages,
    NodeFacts, Prepared, Started, Supplies, TaskJob,
};
use crate::gc::{self, GcPolicy};
use crate::health::Check;
use crate::networks::Networks;
use crate::payload::PayloadId;
use crate::remap::Remap;
use crate::session::Connector;
use files::Files;
use images::ImageKeeper;
use layout::Layout;
use spec::{Plan, Shared};

/// What an executor is made with.
#[derive(Debug, Clone)]
pub struct OciConfig {
    /// The node, for templates. `None`: not in a swarm.
    pub node: Option<NodeId>,
    /// Its host name.
    pub hostname: String,
    /// Everything lies below this folder.
    pub data_dir: PathBuf,
    /// Group of all containers, relative to each cgroup hierarchy (`skep/<node>`).
    pub cgroup_parent: PathBuf,
    /// Soft and hard limit of core dumps (bytes) of containers that do not ask for others: this process has none for itself.
    pub core_limit: (u64, u64),
    /// `skep` (built in), or an OCI runtime: a name in PATH or a path.
    pub runtime: String,
    /// The ids of tasks that have a user namespace of their own. `None`: none has.
    pub users: Option<Remap>,
}

/// How the host's cgroups are mounted: "v1", "v2", "hybrid"; "none" where there are none.
pub fn cgroup_layout() -> String {
    match skep_runtime::cgroup::Cgroups::detect() {
        Ok(Some(cgroups)) => cgroups.layout().name().to_owned(),
        Ok(None) | Err(_) => "none".to_owned(),
    }
}

/// What confines containers on this host besides capabilities, in words.
pub fn confinement(users: Option<&Remap>) -> Vec<String> {
    let mut words = skep_runtime::confinement();
    words.push(users.map_or("userns: off".to_owned(), |remap| format!("userns: {}", remap.words())));
    words
}

/// Files that take the id of a process which is to outlive the daemon: those of the containers' monitors, whose group is
/// made. Empty where there are no cgroups.
pub fn monitors_cgroup(parent: &Path) -> Vec<PathBuf> {
    let Ok(Some(cgroups)) = skep_runtime::cgroup::Cgroups::detect() else { return Vec::new() };
    let joined = cgroups.monitors(&parent.join("shims"));
    // A whole process, where a monitor moves its only thread.
    joined.into_iter().map(|file| file.with_file_name("cgroup.procs")).collect()
}

/// The folder of the tasks' sandboxes of a daemon with this data directory.
pub fn sandboxes_dir(data: &Path) -> PathBuf {
    Layout::new(data).sandboxes()
}

/// Runs tasks as containers of this host.
pub struct OciExecutor {
    inner: Arc<Inner>,
    background: [AbortHandle; 2],
}

impl fmt::Debug for OciExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OciExecutor").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl Drop for OciExecutor {
    fn drop(&mut self) {
        self.background.iter().for_each(AbortHandle::abort);
    }
}

struct Inner {
    config: OciConfig,
    facts: NodeFacts,
    layout: Layout,
    keeper: Arc<ImageKeeper>,
    networks: Networks,
    creates: Semaphore,
    /// Set by `recover`, which comes before all else.
    host: OnceLock<Host>,
    tasks: Mutex<HashMap<TaskId, Entry>>,
}

/// What of the host is opened once.
struct Host {
    runtime: Runtime,
    sandboxes: Sandboxes,
}

/// What is known of one task.
struct Entry {
    /// Keep its images.
    leases: Vec<Pin>,
    /// What its containers are to be, once prepared.
    plans: HashMap<String, Plan>,
    /// Secrets and configs of those that are prepared and not yet started.
    files: HashMap<String, MemoryFiles>,
    /// Signals that ask its containers to stop.
    stop_signals: HashMap<String, i32>,
    containers: BTreeMap<String, Container>,
    /// Its sandbox is, or may be, attached to networks.
    attached: bool,
    /// TCP ports of its own that it is published at.
    published: BTreeSet<u16>,
    /// Held while its sandbox is made, by a step that goes on when the preparation is cancelled.
    making: Arc<tokio::sync::Mutex<()>>,
    /// Changes with `containers`; gone with the entry, which ends log followers.
    changed: watch::Sender<()>,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            leases: Vec::new(),
            plans: HashMap::new(),
            files: HashMap::new(),
            stop_signals: HashMap::new(),
            containers: BTreeMap::new(),
            attached: false,
            published: BTreeSet::new(),
            making: Arc::default(),
            changed: watch::channel(()).0,
        }
    }
}

impl OciExecutor {
    /// An executor of containers. Call it within a tokio runtime: it looks after images in the background.
    pub fn new(config: OciConfig, images: Images, connector: Arc<dyn Connector>, networks: Networks) -> Self {
        Self::with_policy(config, images, connector, networks, GcPolicy::default())
    }

    /// The same with other rules for unused images.
    pub fn with_policy(
        config: OciConfig,
        images: Images,
        connector: Arc<dyn Connector>,
        networks: Networks,
        policy: GcPolicy,
    ) -> Self {
        let store = images.store().clone();
        let keeper = ImageKeeper::new(images, connector);
        let background = [
            tokio::spawn(ImageKeeper::keep_looking(Arc::downgrade(&keeper))).abort_handle(),
            tokio::spawn(gc::run(store, config.data_dir.clone(), policy)).abort_handle(),
        ];
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let inner = Inner {
            facts: NodeFacts { id: config.node, hostname: config.hostname.clone(), platform: platform() },
            layout: Layout::new(&config.data_dir),
            keeper,
            networks,
            // Two a core: half of a creation is waiting for the kernel.
            creates: Semaphore::new(cores * 2),
            host: OnceLock::new(),
            tasks: Mutex::default(),
            config,
        };
        Self { inner: Arc::new(inner), background }
    }

    /// Removes all that tasks left on this host: outside of a swarm nothing runs.
    pub async fn clear(config: &OciConfig) -> Result<(), ExecError> {
        let layout = Layout::new(&config.data_dir);
        if !layout.runtime().exists() && !layout.tasks().exists() && !layout.sandboxes().exists() {
            return Ok(());
        }
        let host = open_host(config, &layout).await?;
        for found in host.runtime.recover().await.map_err(|error| failed("find containers", error))? {
            found.container.remove().await.map_err(|error| failed("remove a container", error))?;
        }
        host.runtime.sweep(&Default::default()).await.map_err(|error| failed("remove leftovers", error))?;
        blocking(move || {
            host.sandboxes.close().map_err(|error| failed("remove sandboxes", error))?;
            remove_dir(&layout.tasks())?;
            remove_dir(&layout.runtime())
        })
        .await
    }
}

/// Opens runtime and sandboxes.
async fn open_host(config: &OciConfig, layout: &Layout) -> Result<Host, ExecError> {
    let (soft, hard) = config.core_limit;
    let runtime = RuntimeConfig {
        dir: layout.runtime(),
        cgroup_parent: config.cgroup_parent.clone(),
        ulimits: vec![Ulimit { name: "core".to_owned(), soft, hard }],
        runtime: oci_runtime(&config.runtime)?,
    };
    let (sandboxes, tasks) = (layout.sandboxes(), layout.tasks());
    blocking(move || {
        skep_runtime::disk::make_private(&tasks)
            .map_err(|error| failed("make the folder of the tasks' logs", error))?;
        // Only a hint.
        let _ = skep_runtime::disk::spread(&tasks);
        let runtime = Runtime::new(runtime).map_err(|error| failed("open the container runtime", error))?;
        let sandboxes = Sandboxes::open(&sandboxes).map_err(|error| failed("open the sandboxes", error))?;
        Ok(Host { runtime, sandboxes })
    })
    .await
}

/// Which runtime a configuration names.
fn oci_runtime(name: &str) -> Result<OciRuntime, ExecError> {
    // The last one is what the built-in runtime was called before.
    if matches!(name, "" | "skep" | "libcontainer") {
        return Ok(OciRuntime::BuiltIn);
    }
    let candidates: Vec<PathBuf> = if name.contains('/') {
        vec![PathBuf::from(name)]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|dir| dir.join(name)).collect()
    };
    candidates
        .into_iter()
        .find(|candidate| candidate.is_file())
        .map(OciRuntime::External)
        .ok_or_else(|| ExecError::new(format!("the container runtime {name:?} is not installed on this host")))
}

fn failed(what: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ExecError {
    ExecError::caused(format!("cannot {what}"), error)
}

/// Runs a step that blocks on the kernel or the disk.
async fn blocking<T: Send + 'static>(
    step: impl FnOnce() -> Result<T, ExecError> + Send + 'static,
) -> Result<T, ExecError> {
    tokio::task::spawn_blocking(step)
        .await
        .unwrap_or_else(|error| Err(ExecError::caused("a step of the executor broke off", error)))
}

/// Removes a folder that may not be there.
fn remove_dir(dir: &Path) -> Result<(), ExecError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ExecError::caused(format!("cannot remove {}", dir.display()), error))
        }
        _ => Ok(()),
    }
}

impl Inner {
    fn host(&self) -> Result<&Host, ExecError> {
        self.host.get().ok_or_else(|| ExecError::new("the executor was not started"))
    }

    // Held for map operations only.
    fn tasks(&self) -> MutexGuard<'_, HashMap<TaskId, Entry>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, task: TaskId, name: &str) -> Result<Container, ExecError> {
        self.tasks()
            .get(&task)
            .and_then(|entry| entry.containers.get(name).cloned())
            .ok_or_else(|| ExecError::new(format!("container {name} does not exist")))
    }

    /// The lock on making and removing the task's sandbox.
    fn making(&self, task: TaskId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.tasks().entry(task).or_default().making)
    }

    /// Keeps a container's handle.
    fn hold(&self, task: TaskId, name: &str, container: Container) {
        let mut tasks = self.tasks();
        let entry = tasks.entry(task).or_default();
        entry.containers.insert(name.to_owned(), container);
        entry.changed.send_replace(());
    }

    /// Makes images be here, decides what the containers are to be, makes what they share.
    async fn prepare(&self, job: Arc<TaskJob>, supplies: Arc<dyn Supplies>) -> Result<Prepared, ExecError> {
        self.tasks().entry(job.id).or_default();
        let refused = |error: spec::SpecError| ExecError::new(error.to_string());
        let shared = Shared::of(&job, &self.facts, self.config.users.as_ref(), &self.layout).map_err(refused)?;
        let files = Files::in_dir(&self.layout.sandbox(job.id));
        let (mut leases, mut plans, mut stop_signals) = (Vec::new(), HashMap::new(), HashMap::new());
        for container in &job.template().containers {
            let held = self.keeper.ensure(&job, container, &supplies).await?;
            let named = |error: spec::SpecError| match job.template().containers.len() {
                1 => ExecError::new(error.to_string()),
                _ => ExecError::new(format!("container {}: {error}", container.name)),
            };
            let plan = spec::plan(&job, container, &held.image, &shared, &files, &self.layout).map_err(named)?;
            let signal = spec::stop_signal(container, &held.image).map_err(named)?;
            plans.insert(container.name.clone(), plan);
            stop_signals.insert(container.name.clone(), signal);
            leases.push(held.lease);
        }
        let binds: Vec<PathBuf> = plans.values().flat_map(|plan| plan.binds.clone()).collect();
        self.make_shared(&job, &shared, files, binds, &supplies).await?;
        // Last: they are held for as short as can be.
        let files = self.fill_files(&plans, &shared, &supplies).await?;
        let mut tasks = self.tasks();
        let entry = tasks.entry(job.id).or_default();
        (entry.leases, entry.plans, entry.stop_signals) = (leases, plans, stop_signals);
        entry.files = files;
        // What runs already, where an earlier agent was interrupted, has its own.
        entry.files.retain(|name, _| !entry.containers.contains_key(name));
        Ok(Prepared { published: !entry.published.is_empty() })
    }

    /// The secrets and configs of containers that have any.
    async fn fill_files(
        &self,
        plans: &HashMap<String, Plan>,
        shared: &Shared,
        supplies: &Arc<dyn Supplies>,
    ) -> Result<HashMap<String, MemoryFiles>, ExecError> {
        let ids: Vec<PayloadId> = plans.values().flat_map(|plan| &plan.uses).map(|one| one.id).collect();
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let held = supplies.payloads(&ids).await;
        let with_files = plans.iter().filter(|(_, plan)| !plan.uses.is_empty());
        with_files
            .map(|(name, plan)| {
                let filled = payloads::fill(&plan.uses, &held, &shared.facts, &plan.spec.env);
                let mut files = filled.map_err(|error| ExecError::new(error.to_string()))?;
                if let Some(users) = &shared.users {
                    payloads::remap(&mut files, users).map_err(|error| ExecError::new(error.to_string()))?;
                }
                Ok((name.clone(), files))
            })
            .collect()
    }

    /// Replaces secrets and configs of running containers, and of those that are yet to start.
    async fn replace_files(&self, job: &TaskJob, supplies: Arc<dyn Supplies>) -> Result<(), ExecError> {
        let shared = Shared::of(job, &self.facts, self.config.users.as_ref(), &self.layout);
        let shared = shared.map_err(|error| ExecError::new(error.to_string()).for_good())?;
        let mut plans = self.tasks().get(&job.id).map(|entry| entry.plans.clone()).unwrap_or_default();
        for container in &job.template().containers {
            let uses = payloads::uses(container).map_err(|error| ExecError::new(error.to_string()).for_good())?;
            match plans.get_mut(&container.name) {
                Some(plan) => plan.uses = uses,
                None if uses.is_empty() => {}
                // Its image was gone when the agent found it.
                None => return Err(ExecError::new("it is not known how its containers were made").for_good()),
            }
        }
        let signal = match job.revision.live.as_ref().map_or("", |live| live.signal.as_str()) {
            "" => None,
            text => {
                let parsed = validate::signal_number(text);
                Some(parsed.ok_or_else(|| ExecError::new(format!("{text:?} is not a signal")).for_good())?)
            }
        };
        let mut filled = self.fill_files(&plans, &shared, &supplies).await?;
        let running = {
            let mut tasks = self.tasks();
            let Some(entry) = tasks.get_mut(&job.id) else { return Ok(()) };
            entry.plans = plans;
            let containers = entry.containers.clone();
            entry.files = filled.extract_if(|name, _| !containers.contains_key(name)).collect();
            containers
        };
        for (name, files) in filled {
            let Some(container) = running.get(&name) else { continue };
            container.replace_files(&files, signal).await.map_err(|error| match error {
                RuntimeError::Fixed(_) => ExecError::new(error.to_string()).for_good(),
                error => failed(&format!("replace the secrets and configs of container {name}"), error),
            })?;
        }
        Ok(())
    }

    async fn start(&self, job: &TaskJob, name: &str) -> Result<Started, ExecError> {
        let (plan, files) = {
            let mut tasks = self.tasks();
            let entry = tasks.get_mut(&job.id);
            let plan = entry.as_ref().and_then(|entry| entry.plans.get(name).cloned());
            (plan, entry.and_then(|entry| entry.files.remove(name)))
        };
        let plan = plan.ok_or_else(|| ExecError::new(format!("container {name} is not prepared")))?;
        if files.is_none() && !plan.uses.is_empty() {
            return Err(ExecError::new(format!("the secrets and configs of container {name} are not prepared")));
        }
        let runtime = self.host()?.runtime.clone();
        let id = plan.spec.id.clone();
        let permit = self.creates.acquire().await.map_err(|_| ExecError::new("the node is shutting down"))?;
        let created = runtime.create_with(RuntimeSpec::clone(&plan.spec), files).await;
        drop(permit);
        let container = created.map_err(|error| not_started(&error))?;
        let started = started(&id, &container.state(), plan.check);
        self.hold(job.id, name, container);
        Ok(started)
    }

    async fn exec(&self, task: TaskId, name: &str, request: ExecRequest) -> Result<ExecOutcome, ExecError> {
        let container = self.container(task, name)?;
        let spec = self.tasks().get(&task).and_then(|entry| Some(Arc::clone(&entry.plans.get(name)?.spec)));
        // Its image was gone when the agent found it.
        let spec = spec.ok_or_else(|| ExecError::new(format!("it is not known how container {name} was made")))?;
        let cannot = |error| failed(&format!("run a command in container {name}"), error);
        let running = self.host()?.runtime.exec(&container, spec, request.command).await.map_err(cannot)?;
        let finished = running.finish(request.timeout, request.keep_bytes).await;
        let (end, output) = finished.map_err(|error| ExecError::caused("cannot hear from a command", error))?;
        let output = String::from_utf8_lossy(&output).into_owned();
        Ok(match end {
            RuntimeEnd::Exited(code) => ExecOutcome { end: ExecEnd::Exited(code), output },
            RuntimeEnd::NotRun { code, sentence } => {
                ExecOutcome { end: ExecEnd::Exited(code), output: format!("{output}{sentence}") }
            }
            RuntimeEnd::TimedOut => ExecOutcome { end: ExecEnd::TimedOut, output },
        })
    }

    async fn stop(&self, job: &TaskJob, name: &str) -> Result<(), ExecError> {
        let container = self.container(job.id, name)?;
        let signal = self.tasks().get(&job.id).and_then(|entry| entry.stop_signals.get(name).copied());
        let grace = job.container(name).and_then(spec::grace).unwrap_or(Duration::ZERO);
        let stopped = container.stop(signal.unwrap_or(libc::SIGTERM), grace).await;
        stopped.map(drop).map_err(|error| failed(&format!("stop container {name}"), error))
    }

    async fn remove(&self, task: TaskId) -> Result<(), ExecError> {
        let containers: Vec<Container> =
            self.tasks().get(&task).map(|entry| entry.containers.values().cloned().collect()).unwrap_or_default();
        for container in &containers {
            container.end().await.map_err(|error| failed("end a container", error))?;
        }
        // First: managers give its addresses and ports to others already, and a container's files may take long, or stay.
        let shared = self.remove_shared(task).await;
        for container in containers {
            container.remove().await.map_err(|error| failed("remove a container", error))?;
        }
        shared?;
        // Last: its leases keep the images, its sender the log followers.
        let entry = self.tasks().remove(&task);
        // They were used until now.
        for lease in entry.iter().flat_map(|entry| &entry.leases) {
            self.keeper.used(lease.digest());
        }
        Ok(())
    }
}

fn not_started(error: &RuntimeError) -> ExecError {
    let said = ExecError::new(crate::executor::chain(error));
    match error {
        RuntimeError::NotStarted { code, .. } => said.with_exit_code(*code),
        _ => said,
    }
}

/// How a container stands that was just made or found.
fn started(id: &str, state: &State, check: Option<Arc<Check>>) -> Started {
    let (pid, started_at_ms) = match state {
        State::Running { pid, started_at_ms, .. } => (*pid, *started_at_ms),
        // So short a life that it is over already.
        State::Exited(status) => (0, status.started_at_ms),
        State::Creating => (0, 0),
    };
    Started { pid, container_id: id.to_owned(), started_at_ms: started_at_ms.max(1), check }
}

fn exit_of(status: &skep_runtime::ExitStatus) -> ContainerExit {
    ContainerExit {
        code: status.code,
        oom_killed: status.oom_killed,
        finished_at_ms: status.finished_at_ms,
        lost: status.lost,
        reason: status.error.clone(),
    }
}

#[tonic::async_trait]
impl Executor for OciExecutor {
    async fn recover(
        &self,
        jobs: &[Arc<TaskJob>],
        kept_logs: &[TaskId],
        same_boot: bool,
    ) -> Result<BTreeMap<TaskId, FoundTask>, ExecError> {
        self.inner.recover(jobs, kept_logs, same_boot).await
    }

    async fn prepare(&self, job: Arc<TaskJob>, supplies: Arc<dyn Supplies>) -> Result<Prepared, ExecError> {
        self.inner.prepare(job, supplies).await
    }

    async fn start(&self, job: Arc<TaskJob>, container: &str) -> Result<Started, ExecError> {
        self.inner.start(&job, container).await
    }

    async fn replace_files(&self, job: Arc<TaskJob>, supplies: Arc<dyn Supplies>) -> Result<(), ExecError> {
        self.inner.replace_files(&job, supplies).await
    }

    async fn wait(&self, task: TaskId, container: &str) -> Result<ContainerExit, ExecError> {
        let container = self.inner.container(task, container)?;
        Ok(exit_of(&container.wait().await))
    }

    async fn signal(&self, task: TaskId, container: &str, signal: i32) -> Result<(), ExecError> {
        let handle = self.inner.container(task, container)?;
        handle.kill(signal).await.map_err(|error| failed(&format!("signal container {container}"), error))
    }

    async fn listening(&self, task: TaskId) -> Result<(), String> {
        self.inner.listening(task).await
    }

    async fn settle(&self, task: TaskId) {
        self.inner.settle(task).await;
    }

    async fn stop(&self, job: Arc<TaskJob>, container: &str) -> Result<(), ExecError> {
        self.inner.stop(&job, container).await
    }

    async fn exec(&self, task: TaskId, container: &str, request: ExecRequest) -> Result<ExecOutcome, ExecError> {
        self.inner.exec(task, container, request).await
    }

    async fn remove(&self, task: TaskId) -> Result<(), ExecError> {
        self.inner.remove(task).await
    }

    async fn forget(&self, task: TaskId) -> Result<(), ExecError> {
        let dir = self.inner.layout.task(task);
        blocking(move || remove_dir(&dir)).await
    }

    async fn stats(&self, task: TaskId) -> Result<Vec<ContainerStats>, ExecError> {
        let containers = self.inner.tasks().get(&task).map(|entry| entry.containers.clone()).unwrap_or_default();
        blocking(move || {
            let running = containers.iter().filter(|(_, container)| !matches!(container.state(), State::Exited(_)));
            Ok(running
                .map(|(name, container)| {
                    let usage = container.stats();
                    ContainerStats {
                        container: name.clone(),
                        cpu: Duration::from_nanos(usage.cpu_ns),
                        memory_bytes: usage.memory_bytes,
                        pids: usage.pids,
                    }
                })
                .collect())
        })
        .await
    }

    async fn logs(&self, task: TaskId, options: LogOptions, sink: mpsc::Sender<LogLine>) -> Result<(), ExecError> {
        self.inner.logs(task, options, sink).await
    }

    fn held_images(&self) -> watch::Receiver<HeldImages> {
        self.inner.keeper.held()
    }
}
