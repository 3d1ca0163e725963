//! The agent: owns the session, the record and one driver per task, and makes the node run what is assigned.
//!
//! Started by the node's daemon. One actor task holds all state; [`AgentHandle`] is its clonable handle. Order of every
//! change: applied to the set, written to the record (one flush a message), only then acted upon.
//!
//! It must never stop a container for want of a manager, and never wait for the network.
//!
//! | task | owner | on cancel | on error |
//! |---|---|---|---|
//! | actor | the handle's `shutdown` or `stop_all` | never cancelled | logs, goes on |
//! | driver of each task | actor's `JoinSet` | leaves its containers running | becomes the task's status |
//! | netd's caller | actor's `JoinSet` | leaves networks as they are | logs, tries again |
//! | log stream | `LogStreams` | ends | a warning in the stream |
//! | check of networks | `Checks` | ends | told in its answer |
//! | session thread | `SessionGuard` | says goodbye | reconnects |
//! | record thread | `RecordGuard` | writes what is queued | answers who waits |

mod driver;
mod handle;
mod reports;
mod supplies;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skep_proto::id::TaskId;
use skep_proto::v1::{Assignments, ManagerAddr, Managers, NodeDescription, TaskState, TaskStatus, WantedState};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::assignments::AssignmentSet;
use crate::checks::Checks;
use crate::description::{DescriptionConfig, describe};
use crate::executor::{ExecError, Executor, TaskJob};
use crate::logs::LogStreams;
use crate::payload::Payloads;
use crate::reconcile::{self, Held};
use crate::record::{Record, RecordGuard, Recorded, SessionMark};
use crate::session::{FromManager, Session, SessionConfig, SessionGuard};
use crate::task::Life;
use driver::{Driver, Told, now_ms};
use handle::{Command, update_description};
use reports::Reports;
use supplies::{Credentials, TaskSupplies};

pub use handle::{AgentConfig, AgentError, AgentEvent, AgentHandle};

/// How often the host is looked at for changes worth telling (plugged memory or processors).
const DESCRIBE_PERIOD: Duration = Duration::from_secs(60);
/// How long a shutdown waits for containers that are being created.
const SHUTDOWN_STARTS: Duration = Duration::from_secs(5);
/// Between two tries to write the record (full disk).
const RECORD_RETRY: Duration = Duration::from_secs(1);

/// Starts agents.
#[derive(Debug)]
pub struct Agent;

/// The actor's state.
struct Inner {
    executor: Arc<dyn Executor>,
    events: mpsc::UnboundedSender<AgentEvent>,
    set: AssignmentSet,
    held: BTreeMap<TaskId, Held>,
    /// Assigned, but without their revision so far.
    waiting: BTreeSet<TaskId>,
    wants: BTreeMap<TaskId, watch::Sender<Told>>,
    drivers: JoinSet<(TaskId, bool)>,
    /// Removals of logs under way.
    forgets: JoinSet<()>,
    /// Speaks with netd; ends with the agent.
    networks: JoinSet<()>,
    reports: Reports,
    credentials: watch::Sender<Credentials>,
    payloads: watch::Sender<Arc<Payloads>>,
    managers: Vec<ManagerAddr>,
    logs: LogStreams,
    checks: Checks,
    /// A message of this session did not fit; the rest of it is of no use.
    refused_session: Option<Arc<[u8]>>,
    quit: watch::Receiver<bool>,
    description: watch::Sender<NodeDescription>,
    description_config: watch::Receiver<DescriptionConfig>,
}

impl Agent {
    /// Opens the record, takes over what runs, opens the session. Returns when everything found is in hand; does not wait
    /// for a manager.
    pub async fn start(config: AgentConfig) -> Result<AgentHandle, AgentError> {
        let path = config.data_dir.join("agent");
        let record_error = |source| AgentError::Record { path: path.clone(), source };
        let (record, record_guard, recorded) = Record::open(&path, config.node_id).map_err(record_error)?;
        let (description, described) = watch::channel(describe(&config.description));
        let (session, session_guard, from_manager) = Session::start(SessionConfig {
            node_id: config.node_id,
            connector: Arc::clone(&config.connector),
            seeds: config.managers.clone(),
            known: recorded.managers.managers.clone(),
            resume: resume_mark(&recorded),
            description: described,
            images: config.executor.held_images(),
            tables: config.networks.table_port(),
            timing: config.timing,
        });
        let reports = Reports::new(record.clone(), session);
        let (quit, quit_seen) = watch::channel(false);
        let (commands, command_queue) = mpsc::channel(1);
        let description_config = watch::channel(config.description.clone()).0;
        let (payloads, payloads_seen) = watch::channel(Arc::default());
        let handle = AgentHandle {
            commands,
            quit: Arc::new(quit),
            reports: reports.clone(),
            description: description.clone(),
            config: description_config.clone(),
            payloads: payloads_seen,
        };
        let mut inner = Inner {
            checks: Checks::new(config.networks.netd()),
            logs: LogStreams::new(config.node_id, Arc::clone(&config.executor), config.connector),
            executor: config.executor,
            events: config.events,
            set: AssignmentSet::default(),
            held: BTreeMap::new(),
            waiting: BTreeSet::new(),
            wants: BTreeMap::new(),
            drivers: JoinSet::new(),
            forgets: JoinSet::new(),
            networks: JoinSet::new(),
            reports,
            credentials: watch::channel(Credentials::default()).0,
            payloads,
            managers: recorded.managers.managers.clone(),
            refused_session: None,
            quit: quit_seen,
            description,
            description_config: description_config.subscribe(),
        };
        let boot_id = config.description.boot_id.clone();
        inner.adopt(recorded, &boot_id).await.map_err(AgentError::Recover)?;
        // Not before: what was taken over is to stay.
        inner.networks.spawn(config.networks.run());
        record.boot(&boot_id).await.map_err(record_error)?;
        let guards = Guards { session: session_guard, record: record_guard, path };
        tokio::spawn(inner.run(from_manager, command_queue, guards));
        Ok(handle)
    }
}

/// The session that a record lets one resume.
fn resume_mark(recorded: &Recorded) -> SessionMark {
    if recorded.session.session_id.is_empty() { SessionMark::default() } else { recorded.session.clone() }
}

/// What ends with the agent.
struct Guards {
    session: SessionGuard,
    record: RecordGuard,
    path: PathBuf,
}

impl Inner {
    /// Takes over what the record and the executor know from before.
    async fn adopt(&mut self, recorded: Recorded, boot_id: &str) -> Result<(), ExecError> {
        let same_boot = recorded.boot_id.is_empty() || recorded.boot_id == boot_id;
        let statuses = recorded.statuses;
        self.set = AssignmentSet::from_record(recorded.session.sequence, recorded.tasks, recorded.revisions);
        for id in statuses.keys().filter(|id| !self.set.tasks().contains_key(id)) {
            // It was being stopped when the agent ended; `recover` removes what is left of it.
            self.reports.record.forget(*id);
        }
        let (mut jobs, mut ended) = (Vec::new(), Vec::new());
        for (&id, task) in self.set.tasks() {
            let status = statuses.get(&id);
            match status {
                Some((status, acknowledged)) if status.state().is_terminal() => {
                    ended.push(id);
                    let revision = task.revision;
                    self.held.insert(id, Held { wanted: task.wanted(), driven: false, revision });
                    if *acknowledged {
                        self.reports.note(id, status.clone());
                    } else {
                        self.reports.publish(id, status.clone());
                    }
                }
                _ => {
                    if let Some(job) = self.set.revision_of(task).and_then(|revision| TaskJob::new(task, revision)) {
                        jobs.push(Arc::new(job));
                    }
                }
            }
        }
        let found = self.executor.recover(&jobs, &ended, same_boot).await?;
        if !same_boot {
            tracing::info!("the host was rebooted: what ran before is gone");
        }
        for job in jobs {
            let none = (TaskStatus::default(), false);
            let (status, acknowledged) = statuses.get(&job.id).unwrap_or(&none);
            let nothing = BTreeMap::new();
            let life = Life::adopt(job.template(), status, found.get(&job.id).unwrap_or(&nothing), same_boot, now_ms());
            let wanted = self.set.tasks()[&job.id].wanted();
            if *acknowledged {
                self.reports.note(job.id, status.clone());
            }
            let applied = recorded.applied.get(&job.id).copied().unwrap_or(job.revision.number);
            self.drive(job, life, wanted, applied, acknowledged.then(|| status.clone()));
        }
        self.reconcile();
        Ok(())
    }

    async fn run(
        mut self,
        mut from_manager: mpsc::UnboundedReceiver<FromManager>,
        mut commands: mpsc::Receiver<Command>,
        guards: Guards,
    ) {
        let mut describe_timer = tokio::time::interval(DESCRIBE_PERIOD);
        let done = loop {
            tokio::select! {
                command = commands.recv() => match command {
                    None => break None,
                    Some(Command::Shutdown(done)) => break Some(done),
                    Some(Command::StopAll(done)) => {
                        self.stop_all(guards).await;
                        let _ = done.send(());
                        return;
                    }
                },
                Some(message) = from_manager.recv() => self.take(message).await,
                Some(ended) = self.drivers.join_next() => self.driver_ended(ended),
                Some(_) = self.forgets.join_next() => {}
                _ = describe_timer.tick() => {
                    update_description(&self.description, &self.description_config.borrow());
                }
            }
        };
        self.leave(guards).await;
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    async fn take(&mut self, message: FromManager) {
        match message {
            FromManager::Assignments { session_id, message } => {
                self.assign(&session_id, message).await;
            }
            FromManager::Acknowledged(stored) => self.reports.acknowledged(&stored),
            FromManager::Managers(managers) => {
                if managers != self.managers && !managers.is_empty() {
                    self.managers.clone_from(&managers);
                    self.reports.record.managers(&Managers { managers: managers.clone() });
                    let _ = self.events.send(AgentEvent::Managers(managers));
                }
            }
            FromManager::LogRequest(request) => {
                let link = self.reports.session.link().borrow().clone();
                if let Some(link) = link {
                    let held = &self.held;
                    self.logs.begin(request, link.addr, |task| held.contains_key(&task));
                }
            }
            FromManager::LogCancel(stream_id) => self.logs.cancel(stream_id),
            FromManager::NetworkCheck(request) => {
                let link = self.reports.session.link().borrow().clone();
                if let Some(link) = link {
                    self.checks.begin(request, link.channel);
                }
            }
            FromManager::Disconnected => {
                self.drop_payloads();
                self.logs.cancel_all();
                self.checks.cancel_all();
            }
            FromManager::RenewCertificate => {
                let _ = self.events.send(AgentEvent::RenewCertificate);
            }
            FromManager::Removed => {
                // A node outside the swarm runs nothing for it, also after a restart.
                let nothing = Assignments { complete: true, ..Assignments::default() };
                self.assign(&Arc::from([]), nothing).await;
                let _ = self.events.send(AgentEvent::Removed);
            }
        }
    }

    async fn assign(&mut self, session_id: &Arc<[u8]>, message: Assignments) {
        if self.refused_session.as_ref() == Some(session_id) {
            return;
        }
        self.refused_session = None;
        let sequence = message.sequence;
        let changes = match self.set.apply(message) {
            Ok(changes) => changes,
            Err(error) => {
                tracing::warn!(%error, "refused assignments; asking for a complete set");
                self.refused_session = Some(Arc::clone(session_id));
                self.reports.session.resync();
                return;
            }
        };
        while let Err(error) = self.reports.record.assign(&changes, &self.set, session_id).await {
            tracing::error!(error = %crate::executor::chain(&error), "cannot record the assignments; nothing is acted upon");
            tokio::select! {
                () = tokio::time::sleep(RECORD_RETRY) => {}
                _ = self.quit.wait_for(|quit| *quit) => return,
            }
        }
        self.reports.session.applied(session_id, sequence);
        if **self.credentials.borrow() != *self.set.credentials() {
            self.credentials.send_replace(Arc::new(self.set.credentials().clone()));
        }
        self.lend_payloads();
        self.reconcile();
    }

    /// Shows tasks the payloads that are here. They never change, so names tell all.
    fn lend_payloads(&self) {
        if !self.payloads.borrow().keys().eq(self.set.payloads().keys()) {
            self.payloads.send_replace(Arc::new(self.set.payloads().clone()));
        }
    }

    /// Lets go of secrets and configs that no task needs any more, where no manager is there to say so.
    fn drop_payloads(&mut self) {
        let ended = |id: &TaskId| self.held.get(id).is_some_and(|held| !held.driven);
        if self.set.drop_payloads(|id| !ended(id)) {
            self.lend_payloads();
        }
    }

    /// Carries out the plan.
    fn reconcile(&mut self) {
        let mut waiting = BTreeSet::new();
        let mut lacks = false;
        for action in reconcile::plan(&self.held, &self.set) {
            match action {
                reconcile::Action::Begin(id, wanted) => {
                    let task = &self.set.tasks()[&id];
                    let job = self.set.revision_of(task).and_then(|revision| TaskJob::new(task, revision));
                    let Some(job) = job else { continue };
                    lacks |= self.set.lacks_dropped(task);
                    let life = Life::new(job.template(), now_ms());
                    let applied = job.revision.number;
                    self.drive(Arc::new(job), life, wanted, applied, None);
                }
                reconcile::Action::Want(id, wanted) => {
                    if let Some(held) = self.held.get_mut(&id) {
                        held.wanted = wanted;
                    }
                    if let Some(sender) = self.wants.get(&id) {
                        sender.send_modify(|told| told.wanted = wanted);
                    }
                }
                reconcile::Action::Move(id, revision) => {
                    if let Some(held) = self.held.get_mut(&id) {
                        held.revision = revision;
                    }
                    let task = &self.set.tasks()[&id];
                    lacks |= self.set.lacks_dropped(task);
                    let job = self.set.revision_of(task).and_then(|revision| TaskJob::new(task, revision));
                    if let (Some(sender), Some(job)) = (self.wants.get(&id), job) {
                        sender.send_modify(|told| told.job = Arc::new(job));
                    }
                }
                reconcile::Action::Await(id, revision) => {
                    waiting.insert(id);
                    let message = format!("waiting for the manager to send revision {revision} of the service");
                    if !self.waiting.contains(&id) {
                        let mut status = TaskStatus { since_ms: now_ms(), message, ..TaskStatus::default() };
                        status.set_state(TaskState::Accepted);
                        self.reports.publish(id, status);
                    }
                }
                reconcile::Action::Forget(id) => self.forget(id),
            }
        }
        for id in std::mem::replace(&mut self.waiting, waiting) {
            if !self.waiting.contains(&id) && !self.held.contains_key(&id) {
                self.reports.forget(id);
            }
        }
        if lacks {
            tracing::info!("a task needs a secret or config that was let go; asking for a complete set");
            self.reports.session.resync();
        }
    }

    /// Begins a driver; `applied` is the revision whose secrets and configs its running containers have.
    fn drive(
        &mut self,
        job: Arc<TaskJob>,
        life: Life,
        wanted: WantedState,
        applied: u64,
        published: Option<TaskStatus>,
    ) {
        let (id, revision) = (job.id, job.revision.number);
        self.reports.driven(&job);
        let (sender, receiver) = watch::channel(Told { wanted, job: Arc::clone(&job) });
        let (progress, progress_queue) = mpsc::unbounded_channel();
        let driver = Driver {
            job,
            applied,
            life,
            published,
            executor: Arc::clone(&self.executor),
            reports: self.reports.clone(),
            supplies: Arc::new(TaskSupplies {
                progress,
                credentials: self.credentials.subscribe(),
                payloads: self.payloads.subscribe(),
                link: self.reports.session.link(),
            }),
            progress: progress_queue,
            told: receiver,
            drained: false,
            quit: self.quit.clone(),
        };
        self.held.insert(id, Held { wanted, driven: true, revision });
        self.wants.insert(id, sender);
        self.drivers.spawn(driver.run());
    }

    fn driver_ended(&mut self, ended: Result<(TaskId, bool), tokio::task::JoinError>) {
        match ended {
            Ok((id, true)) => {
                self.wants.remove(&id);
                self.reports.ended(id);
                if let Some(held) = self.held.get_mut(&id) {
                    held.driven = false;
                }
                self.reconcile();
                // With a manager there, it takes back what nobody needs.
                if !self.reports.session.is_connected() {
                    self.drop_payloads();
                }
            }
            Ok((_, false)) => {}
            Err(error) => tracing::error!(%error, "a task's driver panicked; its containers are left as they are"),
        }
    }

    fn forget(&mut self, id: TaskId) {
        self.held.remove(&id);
        self.reports.forget(id);
        let executor = Arc::clone(&self.executor);
        self.forgets.spawn(async move {
            if let Err(error) = executor.forget(id).await {
                tracing::warn!(task = %id, error = %error.sentence(), "cannot remove a task's logs");
            }
        });
    }

    /// The agent ends, containers go on.
    async fn leave(mut self, guards: Guards) {
        self.logs.cancel_all();
        let starts = async { while self.drivers.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_STARTS, starts).await.is_err() {
            tracing::warn!("containers were still being created at the shutdown");
        }
        self.drivers.shutdown().await;
        while self.forgets.join_next().await.is_some() {}
        guards.session.close().await;
        drop_blocking(guards.record).await;
    }

    /// The node leaves its swarm: everything stops, and no assignment is left.
    async fn stop_all(&mut self, guards: Guards) {
        self.logs.cancel_all();
        self.set = AssignmentSet::default();
        self.lend_payloads();
        self.reconcile();
        while let Some(ended) = self.drivers.join_next().await {
            self.driver_ended(ended);
        }
        while self.forgets.join_next().await.is_some() {}
        guards.session.leave().await;
        drop_blocking(guards.record).await;
        if let Err(error) = tokio::fs::remove_dir_all(&guards.path).await {
            tracing::warn!(path = %guards.path.display(), %error, "cannot remove the local record");
        }
    }
}

/// Closes the record without blocking a runtime thread on its last flush.
async fn drop_blocking(guard: RecordGuard) {
    let _ = tokio::task::spawn_blocking(move || drop(guard)).await;
}
