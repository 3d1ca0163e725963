//! All containers of this host: makes them, finds them again after a restart of the agent, clears what belongs to nobody.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, DirBuilder, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use skep_shim::config::{External, ShimConfig};
use skep_shim::plan::Plan;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::cgroup::{Cgroups, Layout};
use crate::container::{Container, ExitStatus, Place, State};
use crate::error::RuntimeError;
use crate::exec::{self, Exec};
use crate::files::{Files, Memory};
use crate::seccomp::{self, filter::Filter};
use crate::spec::{ContainerSpec, OciRuntime, Seccomp, Ulimit};
use crate::{apparmor, disk, oci, plan, shim};

/// Name of the log file in a container's log directory.
pub(crate) const LOG_FILE: &str = "container.log";

/// Folder where each container, in its own mount namespace, has its root file system.
const MOUNT_POINT: &str = "rootfs";
/// Folder of the layer that is below every image.
const POINTS: &str = "points";
/// Group of all containers in the agent's.
const CONTAINERS: &str = "containers";
/// Docker's code for a container that could not be made.
const FAILED: i32 = 125;

/// Seccomp programs that are kept: one for each set of capabilities and profile that services here have.
const MAX_FILTERS: usize = 256;

fn refused(sentence: String) -> RuntimeError {
    RuntimeError::NotStarted { code: FAILED, sentence }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        said.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    said
}

/// What a runtime is told.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Containers live in `<dir>/<id>`; the monitor's program lies beside them.
    pub dir: PathBuf,
    /// Group under which everything lies, relative to each hierarchy (`skep/<node>`).
    pub cgroup_parent: PathBuf,
    /// Limits of containers that do not ask for others; without one it is that of the process that made the runtime, but for
    /// open files.
    pub ulimits: Vec<Ulimit>,
    pub runtime: OciRuntime,
}

/// A container found at start.
pub struct Recovered {
    pub container: Container,
    /// As it was found.
    pub state: State,
}

/// Makes and finds containers. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

/// Seccomp programs, by profile and capabilities.
type Filters = HashMap<(Seccomp, Vec<String>), Arc<Vec<u8>>>;

struct Inner {
    config: RuntimeConfig,
    /// The monitor's program as a file.
    shim: PathBuf,
    cgroups: Arc<Cgroups>,
    /// Files of cgroups that a monitor joins by them.
    join: Vec<PathBuf>,
    /// The monitor's program in memory, where nobody can write to it.
    program: OwnedFd,
    /// Where secrets and configs are held.
    memory: Memory,
    /// Limits that a container gets where nobody says otherwise.
    ulimits: Vec<Ulimit>,
    /// Each is made once.
    filters: Mutex<Filters>,
    apparmor: apparmor::State,
    /// Commands that are being started: a spawn each, so one for each core.
    entering: Semaphore,
}

impl Runtime {
    /// Looks at the host's cgroups, writes the monitor's program out.
    pub fn new(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        let mount_point = config.dir.join(MOUNT_POINT);
        let run = config.dir.join("run");
        disk::make_private(&config.dir).map_err(RuntimeError::io("make", &config.dir))?;
        for folder in [&mount_point, &run] {
            fs::create_dir_all(folder).map_err(RuntimeError::io("make", folder))?;
        }
        make_points(&config.dir.join(POINTS)).map_err(RuntimeError::io("make", config.dir.join(POINTS)))?;
        // Only a hint: without it starts are slower, on ext4, soon after many removals.
        let _ = disk::spread(&run);
        let detected = Cgroups::detect().map_err(RuntimeError::io("read", "/proc/self/mountinfo"))?;
        let cgroups = Arc::new(detected.ok_or(RuntimeError::NoCgroups)?);
        let bin = config.dir.join("bin");
        let shim = shim::install(&bin)?;
        remove_former_creators(&bin);
        cgroups.prepare(&config.cgroup_parent.join(CONTAINERS));
        let join = cgroups.monitors(&config.cgroup_parent.join("shims"));
        let program = exec::sealed(shim::PROGRAM).map_err(RuntimeError::io("hold in memory", &shim))?;
        let (filters, entering) =
            (Mutex::default(), Semaphore::new(std::thread::available_parallelism().map_or(1, Into::into)));
        let mut ulimits = config.ulimits.clone();
        let open_files = plan::grantable_files();
        ulimits.push(Ulimit { name: "nofile".to_owned(), soft: open_files, hard: open_files });
        let memory = Memory::detect();
        let apparmor = apparmor::load();
        let inner = Inner { config, shim, cgroups, join, program, memory, ulimits, filters, apparmor, entering };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// How this host's cgroups are mounted.
    pub fn layout(&self) -> Layout {
        self.inner.cgroups.layout()
    }

    fn dir_of(&self, id: &str) -> PathBuf {
        self.inner.config.dir.join("run").join(id)
    }

    fn group_of(&self, id: &str) -> PathBuf {
        self.inner.config.cgroup_parent.join(CONTAINERS).join(id)
    }

    fn place(&self, id: &str) -> Place {
        Place {
            id: id.to_owned(),
            dir: self.dir_of(id),
            cgroup: self.group_of(id),
            cgroups: Arc::clone(&self.inner.cgroups),
        }
    }

    /// Makes and starts a container; returns when it runs. A container that cannot be started leaves nothing.
    pub async fn create(&self, spec: ContainerSpec) -> Result<Container, RuntimeError> {
        self.create_with(spec, None).await
    }

    /// The same for one with secrets or configs, which its mounts name ([`MountKind::Memory`](crate::MountKind::Memory)).
    pub async fn create_with(&self, spec: ContainerSpec, files: Option<Files>) -> Result<Container, RuntimeError> {
        let this = self.clone();
        // A dozen small file operations and a spawn: not on a thread that serves others.
        let made = tokio::task::spawn_blocking(move || this.launch(spec, files.as_ref())).await;
        let (place, stream, child) = made.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let container = Container::follow(place, stream, Some(child))?;
        match container.started().await {
            State::Exited(status) if !status.error.is_empty() => {
                container.remove().await?;
                Err(RuntimeError::NotStarted { code: status.code, sentence: status.error })
            }
            State::Creating | State::Running { .. } | State::Exited(_) => Ok(container),
        }
    }

    /// Runs a command inside a running container, as `spec` (what the container was made by) says. One at a time for each
    /// container: a second one ends the first.
    pub async fn exec(
        &self,
        container: &Container,
        spec: Arc<ContainerSpec>,
        args: Vec<String>,
    ) -> Result<Exec, RuntimeError> {
        let State::Running { pid, start_ticks, .. } = container.state() else {
            return Err(RuntimeError::NotRunning(container.id().to_owned()));
        };
        let target = exec::Target { pid, start_ticks };
        let (this, group) = (self.clone(), container.group().to_owned());
        // Never closed.
        let _entering = self.inner.entering.acquire().await.ok();
        let spawned = tokio::task::spawn_blocking(move || {
            let apparmor = this.inner.apparmor.profile_of(&spec).map_err(refused)?;
            let mut entry =
                exec::entry(&spec, apparmor, args, target, &this.inner.cgroups, &group, &this.inner.ulimits)?;
            entry.filter = this.filter(&spec)?.map(|filter| filter.to_vec()).unwrap_or_default();
            exec::spawn(&this.inner.program, &entry).map_err(RuntimeError::io("run", "skep-shim exec"))
        });
        spawned.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// A container's seccomp program; `None`: it is not confined.
    fn filter(&self, spec: &ContainerSpec) -> Result<Option<Arc<Vec<u8>>>, RuntimeError> {
        let filters = || self.inner.filters.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (spec.seccomp.clone(), spec.capabilities.clone());
        if let Some(known) = filters().get(&key) {
            return Ok(Some(Arc::clone(known)));
        }
        let Some(profile) = seccomp::profile_of(spec).map_err(refused)? else { return Ok(None) };
        let filter = match &spec.seccomp {
            // A user's own is not kept on the disk under a name that another could be made to have.
            Seccomp::Profile(_) => Filter::compile(&profile).map_err(|error| refused(chain(&error)))?,
            _ => Filter::cached(&self.inner.config.dir.join("bin"), &profile)
                .map_err(|error| RuntimeError::Confine(error.into()))?,
        };
        let program = Arc::new(filter.program().to_vec());
        let mut filters = filters();
        if filters.len() >= MAX_FILTERS {
            filters.clear();
        }
        filters.insert(key, Arc::clone(&program));
        Ok(Some(program))
    }

    fn launch(
        &self,
        spec: ContainerSpec,
        files: Option<&Files>,
    ) -> Result<(Place, std::os::unix::net::UnixStream, std::process::Child), RuntimeError> {
        let valid = !spec.id.is_empty()
            && !spec.id.starts_with('.')
            && spec.id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if !valid {
            return Err(RuntimeError::Id(spec.id));
        }
        let dir = self.dir_of(&spec.id);
        if dir.exists() {
            return Err(RuntimeError::Exists(spec.id));
        }
        let launched = make_folders(&dir, &spec).and_then(|()| {
            let mut config = self.shim_config(&spec)?;
            let in_memory = RuntimeError::io("hold secrets and configs in memory for", &dir);
            let held = files.map(Files::sealed).transpose().map_err(in_memory)?;
            if let Some(files) = files {
                (config.memory, config.memory_options) = self.inner.memory.told(files);
            }
            let spawned = shim::spawn(&self.inner.program, &dir, &config, held.as_ref());
            spawned.map_err(RuntimeError::io("start the monitor in", &dir))
        });
        match launched {
            Ok((stream, child)) => Ok((self.place(&spec.id), stream, child)),
            Err(error) => {
                // The error that counts is the first.
                let _ = fs::remove_dir_all(&dir);
                Err(error)
            }
        }
    }

    fn shim_config(&self, spec: &ContainerSpec) -> Result<ShimConfig, RuntimeError> {
        let group = &self.group_of(&spec.id);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let optional = |path: Option<PathBuf>| path.map(|path| text(&path)).unwrap_or_default();
        let (cgroups, runtime) = (&self.inner.cgroups, &self.inner.config.runtime);
        let folders = match runtime {
            OciRuntime::BuiltIn => cgroups.folders(group),
            OciRuntime::External(_) => cgroups.all_folders(group),
        };
        Ok(ShimConfig {
            mount_point: text(&self.inner.config.dir.join(MOUNT_POINT)),
            lower: spec.layers.iter().map(|layer| text(layer)).collect(),
            points: text(&self.inner.config.dir.join(POINTS)),
            upper: "upper".to_owned(),
            work: "work".to_owned(),
            log_path: text(&spec.log_dir.join(LOG_FILE)),
            log_max_bytes: spec.log.max_bytes,
            log_max_files: spec.log.max_files,
            join: self.inner.join.iter().map(|procs| text(procs)).collect(),
            cgroups: folders.iter().map(|folder| text(folder)).collect(),
            kill_file: optional(cgroups.kill_file(group)),
            freezer: optional(cgroups.freezer(group)),
            procs_file: optional(cgroups.procs_file(group)),
            oom_file: optional(cgroups.oom_file(group)),
            plan: self.plan(spec, group)?,
            external: match runtime {
                OciRuntime::BuiltIn => External::default(),
                OciRuntime::External(program) => self.external(spec, group, program)?,
            },
            memory: String::new(),
            memory_options: String::new(),
        })
    }

    fn plan(&self, spec: &ContainerSpec, group: &Path) -> Result<Plan, RuntimeError> {
        if spec.args.is_empty() {
            return Err(refused("no command is specified, and the image names none".to_owned()));
        }
        let filter = self.filter(spec)?;
        let place = plan::Place {
            cgroups: &self.inner.cgroups,
            containers: &self.inner.config.cgroup_parent.join(CONTAINERS),
            group,
            shim: &self.inner.shim.to_string_lossy(),
            ulimits: &self.inner.ulimits,
            filter: filter.as_ref().map(|filter| filter.as_slice()),
            apparmor: self.inner.apparmor.profile_of(spec).map_err(refused)?,
        };
        plan::plan(spec, &place).map_err(refused)
    }

    fn external(&self, spec: &ContainerSpec, group: &Path, program: &Path) -> Result<External, RuntimeError> {
        if spec.users.is_some() {
            let sentence = "a user namespace of its own is there with the built-in runtime only";
            return Err(refused(sentence.to_owned()));
        }
        let bundle = self.inner.config.dir.join(MOUNT_POINT);
        let place = oci::Place {
            program: &program.to_string_lossy(),
            bundle: &bundle.to_string_lossy(),
            cgroup: &group.to_string_lossy(),
            unified: self.layout() == Layout::V2,
            v1_mounts: &self.inner.cgroups.v1_mounts(),
            shim: &self.inner.shim.to_string_lossy(),
            ulimits: &self.inner.ulimits,
            apparmor: &self.inner.apparmor.profile_of(spec).map_err(refused)?,
        };
        oci::external(spec, &place).map_err(refused)
    }

    /// Finds the containers that earlier agents left: running ones are followed again, for ended ones their record is
    /// read. One whose monitor died is killed and counts as lost. One that was never begun, since the agent died before
    /// its monitor listened, is left out: a sweep removes what there is of it.
    pub async fn recover(&self) -> Result<Vec<Recovered>, RuntimeError> {
        let mut found = Vec::new();
        for id in self.ids()? {
            let place = self.place(&id);
            // Asked before the record is looked for: a monitor writes its record, then removes its socket.
            let listens = shim::has_socket(&place.dir);
            let container = match ExitStatus::read(&place.dir) {
                Some(status) => Container::over(place, status),
                None if !listens => continue,
                None => match shim::connect(&place.dir) {
                    Ok(stream) => Container::follow(place, stream, None)?,
                    Err(error) => {
                        warn!(id, %error, "the monitor of a container is gone: the container is ended too");
                        place.cgroups.kill_all(&place.cgroup);
                        // It may have written its record just now.
                        let status = ExitStatus::read(&place.dir).unwrap_or_else(ExitStatus::lost);
                        Container::over(place, status)
                    }
                },
            };
            let state = container.started().await;
            found.push(Recovered { container, state });
        }
        Ok(found)
    }

    fn ids(&self) -> Result<Vec<String>, RuntimeError> {
        let dir = self.inner.config.dir.join("run");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(RuntimeError::io("read", &dir)(error)),
        };
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    /// Removes everything that belongs to none of `keep`: groups (their processes are killed) and directories. For the
    /// start of an agent, after [`Runtime::recover`].
    pub async fn sweep(&self, keep: &BTreeSet<String>) -> Result<(), RuntimeError> {
        let (this, keep) = (self.clone(), keep.clone());
        let swept = tokio::task::spawn_blocking(move || this.sweep_now(&keep)).await;
        swept.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    fn sweep_now(&self, keep: &BTreeSet<String>) -> Result<(), RuntimeError> {
        let cgroups = &self.inner.cgroups;
        for id in cgroups.children(&self.inner.config.cgroup_parent.join(CONTAINERS)) {
            if !keep.contains(&id) {
                cgroups.kill_all(&self.group_of(&id));
                cgroups.remove(&self.group_of(&id));
            }
        }
        for id in self.ids()? {
            if !keep.contains(&id) {
                let dir = self.dir_of(&id);
                shim::wait_until_gone(&dir);
                fs::remove_dir_all(&dir).map_err(RuntimeError::io("remove", &dir))?;
            }
        }
        Ok(())
    }
}

/// What images often lack and every container needs as a place to mount on. In a layer of their own these cost a container
/// no inode, and no copy of a folder of the image's.
fn make_points(dir: &Path) -> std::io::Result<()> {
    let mut folders = DirBuilder::new();
    folders.recursive(true).mode(0o755);
    for folder in ["proc", "sys", "dev", "etc"] {
        folders.create(dir.join(folder))?;
    }
    for file in ["etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        File::options().create(true).append(true).mode(0o644).open(dir.join(file))?;
    }
    Ok(())
}

/// Earlier builds kept their own program here under such a name, to make containers by it. As a link it holds a file of
/// tens of megabytes that was replaced long ago.
fn remove_former_creators(bin: &Path) {
    let entries = fs::read_dir(bin).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("skep-creator-")) {
        let _ = fs::remove_file(entry.path());
    }
}

/// What a container has on the disk from the start: its writable layer and its log.
fn make_folders(dir: &Path, spec: &ContainerSpec) -> Result<(), RuntimeError> {
    for folder in [&dir.join("upper"), &dir.join("work"), &spec.log_dir] {
        fs::create_dir_all(folder).map_err(RuntimeError::io("make", folder))?;
    }
    Ok(())
}
