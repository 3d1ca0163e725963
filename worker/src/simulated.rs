//! An executor without processes: containers are entries in a [`World`] that outlives the agent.
//!
//! Used by tests of scale and faults, with the real agent, record and session around it. What a container does is decided
//! by a script (any function of the spec); by default its `env` says so: `SIM_PREPARE_MS`, `SIM_START_MS`, `SIM_RUN_MS`
//! (then it exits), `SIM_EXIT`, `SIM_STOP_MS`, `SIM_FAIL_PREPARE`, `SIM_FAIL_START` (the sentence). A command run inside one
//! (a health check) exits with what [`World::command`] set for it, with 0 where nothing was set.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use skep_proto::id::TaskId;
use skep_proto::v1::{ContainerSpec, LogLine, LogOptions};
use tokio::sync::{mpsc, watch};

use skep_image::RunConfig;

use crate::executor::{
    ContainerExit, ContainerStats, ExecEnd, ExecError, ExecOutcome, ExecRequest, Executor, Found, FoundTask,
    HeldImages, Prepared, Started, Supplies, TaskJob,
};
use crate::health::Check;

/// What a simulated container does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Script {
    /// How long preparation takes.
    pub prepare: Duration,
    /// Why preparation fails.
    pub fail_prepare: Option<String>,
    /// How long the start takes.
    pub start: Duration,
    /// Why the start fails.
    pub fail_start: Option<String>,
    /// Exits by itself after this. `None`: runs until stopped.
    pub run: Option<Duration>,
    /// Its exit code then.
    pub exit_code: i32,
    /// From the stop signal to the end.
    pub stop: Duration,
}

impl Script {
    /// Reads the `SIM_…` variables of a spec.
    pub fn from_env(spec: &ContainerSpec) -> Self {
        let text = |name: &str| {
            spec.env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
        };
        let time = |name: &str| text(name).and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
        Self {
            prepare: time("SIM_PREPARE_MS").unwrap_or_default(),
            fail_prepare: text("SIM_FAIL_PREPARE"),
            start: time("SIM_START_MS").unwrap_or_default(),
            fail_start: text("SIM_FAIL_START"),
            run: time("SIM_RUN_MS"),
            exit_code: text("SIM_EXIT").and_then(|code| code.parse().ok()).unwrap_or(0),
            stop: time("SIM_STOP_MS").unwrap_or_default(),
        }
    }
}

type Key = (TaskId, String);

#[derive(Debug, Clone)]
struct Running {
    started: Started,
    exit: watch::Sender<Option<ContainerExit>>,
}

#[derive(Debug, Default)]
struct State {
    next_pid: u32,
    containers: BTreeMap<Key, Running>,
    /// Log lines, kept until the task is forgotten.
    logs: BTreeMap<TaskId, Vec<LogLine>>,
    starts: BTreeMap<Key, u32>,
    commands: BTreeMap<Key, (ExecOutcome, Duration)>,
    /// Secrets and configs that a task's containers have.
    files: BTreeMap<TaskId, Vec<Vec<u8>>>,
    /// Tasks whose secrets and configs cannot be replaced.
    fixed: BTreeSet<TaskId>,
}

/// The simulated host: what runs on it whether or not an agent is there. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct World {
    state: Arc<Mutex<State>>,
    images: Arc<watch::Sender<HeldImages>>,
    changed: Arc<watch::Sender<u64>>,
}

impl World {
    /// Containers that run, with their pids.
    pub fn running(&self) -> BTreeMap<(TaskId, String), u32> {
        self.state()
            .containers
            .iter()
            .filter(|(_, container)| container.exit.borrow().is_none())
            .map(|(key, container)| (key.clone(), container.started.pid))
            .collect()
    }

    /// How often each container was started in all.
    pub fn starts(&self) -> BTreeMap<(TaskId, String), u32> {
        self.state().starts.clone()
    }

    /// Tasks that have left anything (containers or logs).
    pub fn leftovers(&self) -> BTreeSet<TaskId> {
        let state = self.state();
        state.containers.keys().map(|(task, _)| *task).chain(state.logs.keys().copied()).collect()
    }

    /// Ends a container as if its process had: with that code, or killed for its memory.
    pub fn end(&self, task: TaskId, container: &str, code: i32, oom_killed: bool) {
        let exit = ContainerExit { code, oom_killed, finished_at_ms: now_ms(), ..ContainerExit::default() };
        let running = self.state().containers.get(&(task, container.to_owned())).cloned();
        if let Some(running) = running {
            running.exit.send_if_modified(|known| {
                known.is_none() && {
                    *known = Some(exit);
                    true
                }
            });
        }
        self.changed.send_modify(|count| *count += 1);
    }

    /// From now on, commands run inside that container take so long and end so.
    pub fn command(&self, task: TaskId, container: &str, took: Duration, outcome: ExecOutcome) {
        self.state().commands.insert((task, container.to_owned()), (outcome, took));
    }

    /// The data of the secrets and configs that a task's containers have, in the order of their ids.
    pub fn files(&self, task: TaskId) -> Vec<Vec<u8>> {
        self.state().files.get(&task).cloned().unwrap_or_default()
    }

    /// From now on, that task's secrets and configs cannot be replaced.
    pub fn fix_files(&self, task: TaskId) {
        self.state().fixed.insert(task);
    }

    /// Loses everything that runs, as a power cut does; logs stay.
    pub fn power_off(&self) {
        self.state().containers.clear();
    }

    /// Writes a log line.
    pub fn log(&self, task: TaskId, container: &str, text: &str) {
        let line = LogLine {
            task_id: task.to_vec(),
            container: container.to_owned(),
            time_ns: now_ms().saturating_mul(1_000_000),
            data: text.as_bytes().to_vec(),
            ..LogLine::default()
        };
        self.state().logs.entry(task).or_default().push(line);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Sets the digests of held images.
    pub fn hold_images(&self, digests: &[&str]) {
        let held = digests.iter().map(|digest| (*digest).to_owned()).collect();
        self.images.send_replace(Arc::new(held));
    }

    // Held for map operations only.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Chooses what a container does.
pub type Director = Arc<dyn Fn(&TaskJob, &ContainerSpec) -> Script + Send + Sync>;

/// The simulated executor; make a new one on the same world for each agent.
#[derive(Clone)]
pub struct Simulated {
    world: World,
    director: Director,
}

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulated").finish_non_exhaustive()
    }
}

impl Simulated {
    /// Containers do what their `SIM_…` variables say.
    pub fn new(world: World) -> Self {
        Self::directed(world, Arc::new(|_, spec| Script::from_env(spec)))
    }

    /// Containers do what `director` says.
    pub fn directed(world: World, director: Director) -> Self {
        Self { world, director }
    }

    fn script(&self, job: &TaskJob, container: &str) -> Result<Script, ExecError> {
        let spec =
            job.container(container).ok_or_else(|| ExecError::new(format!("the task has no container {container}")))?;
        Ok((self.director)(job, spec))
    }

    async fn take_payloads(&self, job: &TaskJob, supplies: &Arc<dyn Supplies>) {
        let ids: Vec<_> = crate::payload::of_template(job.template()).into_iter().collect();
        if !ids.is_empty() {
            let held = supplies.payloads(&ids).await;
            let data = held.values().map(|payload| payload.data.to_vec()).collect();
            self.world.state().files.insert(job.id, data);
        }
    }

    fn container(&self, task: TaskId, container: &str) -> Result<Running, ExecError> {
        self.world
            .state()
            .containers
            .get(&(task, container.to_owned()))
            .cloned()
            .ok_or_else(|| ExecError::new(format!("container {container} does not exist")))
    }
}

#[tonic::async_trait]
impl Executor for Simulated {
    async fn recover(
        &self,
        jobs: &[Arc<TaskJob>],
        kept_logs: &[TaskId],
        same_boot: bool,
    ) -> Result<BTreeMap<TaskId, FoundTask>, ExecError> {
        let mut state = self.world.state();
        if !same_boot {
            state.containers.clear();
        }
        let known: BTreeSet<_> = jobs.iter().map(|job| job.id).collect();
        state.containers.retain(|(task, _), _| known.contains(task));
        state.logs.retain(|task, _| known.contains(task) || kept_logs.contains(task));
        let mut found: BTreeMap<TaskId, FoundTask> = BTreeMap::new();
        for ((task, name), container) in &state.containers {
            let is = match &*container.exit.borrow() {
                None => Found::Running(container.started.clone()),
                Some(exit) => Found::Exited(Some(container.started.clone()), exit.clone()),
            };
            found.entry(*task).or_default().insert(name.clone(), is);
        }
        Ok(found)
    }

    async fn prepare(&self, job: Arc<TaskJob>, supplies: Arc<dyn Supplies>) -> Result<Prepared, ExecError> {
        for spec in &job.template().containers {
            let script = (self.director)(&job, spec);
            if !script.prepare.is_zero() {
                supplies.progress(format!("preparing {}", spec.name));
                tokio::time::sleep(script.prepare).await;
            }
            if let Some(sentence) = script.fail_prepare {
                return Err(ExecError::new(sentence));
            }
        }
        if let Some(id) = job.credential_id() {
            supplies.credential(id).await;
        }
        self.take_payloads(&job, &supplies).await;
        Ok(Prepared::default())
    }

    async fn replace_files(&self, job: Arc<TaskJob>, supplies: Arc<dyn Supplies>) -> Result<(), ExecError> {
        let refused = self.world.state().fixed.contains(&job.id);
        if refused {
            return Err(ExecError::new("its monitor is of an earlier version").for_good());
        }
        self.take_payloads(&job, &supplies).await;
        Ok(())
    }

    async fn start(&self, job: Arc<TaskJob>, container: &str) -> Result<Started, ExecError> {
        let script = self.script(&job, container)?;
        tokio::time::sleep(script.start).await;
        if let Some(sentence) = script.fail_start {
            return Err(ExecError::new(sentence));
        }
        let key = (job.id, container.to_owned());
        let spec = job.container(container).and_then(|spec| spec.health_check.as_ref());
        let check = Check::resolve(spec, &RunConfig::default()).map_err(|error| ExecError::new(error.to_string()))?;
        let started = {
            let mut state = self.world.state();
            state.next_pid += 1;
            let started = Started {
                pid: 1000 + state.next_pid,
                container_id: format!("{}.{container}", job.id),
                started_at_ms: now_ms(),
                check: check.map(Arc::new),
            };
            *state.starts.entry(key.clone()).or_default() += 1;
            let running = Running { started: started.clone(), exit: watch::channel(None).0 };
            state.containers.insert(key, running);
            started
        };
        self.world.log(job.id, container, &format!("started {container}\n"));
        if let Some(run) = script.run {
            let (world, name) = (self.world.clone(), container.to_owned());
            // Belongs to the simulated host: it outlives the agent, as a process would.
            tokio::spawn(async move {
                tokio::time::sleep(run).await;
                world.end(job.id, &name, script.exit_code, false);
            });
        }
        Ok(started)
    }

    async fn wait(&self, task: TaskId, container: &str) -> Result<ContainerExit, ExecError> {
        let running = self.container(task, container)?;
        let mut exit = running.exit.subscribe();
        drop(running);
        let ended = exit.wait_for(Option::is_some).await;
        Ok(ended.ok().and_then(|exit| exit.clone()).unwrap_or(ContainerExit { lost: true, ..ContainerExit::default() }))
    }

    async fn signal(&self, task: TaskId, container: &str, signal: i32) -> Result<(), ExecError> {
        self.container(task, container)?;
        if signal == libc::SIGKILL {
            self.world.end(task, container, 128 + signal, false);
        }
        Ok(())
    }

    /// Its containers have no connections, and nothing is prepared as published.
    async fn listening(&self, _task: TaskId) -> Result<(), String> {
        Ok(())
    }

    /// Its containers have no connections.
    async fn settle(&self, _task: TaskId) {}

    async fn stop(&self, job: Arc<TaskJob>, container: &str) -> Result<(), ExecError> {
        let script = self.script(&job, container)?;
        tokio::time::sleep(script.stop).await;
        self.world.end(job.id, container, 128 + libc::SIGTERM, false);
        Ok(())
    }

    async fn exec(&self, task: TaskId, container: &str, request: ExecRequest) -> Result<ExecOutcome, ExecError> {
        self.container(task, container)?;
        let set = self.world.state().commands.get(&(task, container.to_owned())).cloned();
        let passed = ExecOutcome { end: ExecEnd::Exited(0), output: String::new() };
        let (outcome, took) = set.unwrap_or((passed, Duration::ZERO));
        tokio::time::sleep(took.min(request.timeout)).await;
        Ok(if took > request.timeout { ExecOutcome { end: ExecEnd::TimedOut, ..outcome } } else { outcome })
    }

    async fn remove(&self, task: TaskId) -> Result<(), ExecError> {
        self.world.state().containers.retain(|(owner, _), _| *owner != task);
        self.world.state().files.remove(&task);
        self.world.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn forget(&self, task: TaskId) -> Result<(), ExecError> {
        self.world.state().logs.remove(&task);
        Ok(())
    }

    async fn stats(&self, task: TaskId) -> Result<Vec<ContainerStats>, ExecError> {
        let running = self.world.running();
        Ok(running
            .keys()
            .filter(|(owner, _)| *owner == task)
            .map(|(_, name)| ContainerStats { container: name.clone(), pids: 1, ..ContainerStats::default() })
            .collect())
    }

    async fn logs(&self, task: TaskId, options: LogOptions, sink: mpsc::Sender<LogLine>) -> Result<(), ExecError> {
        let mut changed = self.world.changed.subscribe();
        let mut sent: Option<usize> = None;
        loop {
            changed.mark_unchanged();
            let (lines, alive) = {
                let state = self.world.state();
                let all = state.logs.get(&task).map_or(&[][..], Vec::as_slice);
                let tail = options.tail.and_then(|tail| usize::try_from(tail).ok());
                let from = sent.unwrap_or_else(|| tail.map_or(0, |tail| all.len().saturating_sub(tail)));
                sent = Some(all.len());
                let alive = state.containers.keys().any(|(owner, _)| *owner == task);
                (all.get(from..).unwrap_or_default().to_vec(), alive)
            };
            for line in lines {
                let other = !options.container.is_empty() && options.container != line.container;
                if !other && line.time_ns >= options.since_ns && sink.send(line).await.is_err() {
                    return Ok(());
                }
            }
            if !options.follow || !alive {
                return Ok(());
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = sink.closed() => return Ok(()),
            }
        }
    }

    fn held_images(&self) -> watch::Receiver<HeldImages> {
        self.world.images.subscribe()
    }
}

fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}
