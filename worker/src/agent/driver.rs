//! Drives one task: performs the actions of its [`Life`] and feeds it what happens.
//!
//! One tokio task each, begun by the agent and owned by its `JoinSet`. On quit it stops acting, waits for starts that are
//! under way (a half-made container would be nobody's) and leaves; containers go on. On errors it never ends early: they
//! become the task's own status, or are tried again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::{AbortHandle, BoxFuture};
use futures::stream::{FuturesUnordered, StreamExt};
use skep_proto::id::TaskId;
use skep_proto::v1::{TaskStatus, WantedState};
use tokio::sync::{mpsc, watch};

use super::reports::Reports;
use super::supplies::TaskSupplies;
use crate::executor::{ContainerExit, ExecEnd, ExecError, ExecOutcome, ExecRequest, Executor, Supplies, TaskJob};
use crate::health::{CheckResult, Checked, OUTPUT_BYTES};
use crate::task::{Action, Event, Life, Moves};

/// Between two tries of something that must succeed.
const RETRY: Duration = Duration::from_secs(1);
/// Tries of a removal before its leftovers are left to the next start's clean-up.
const REMOVE_TRIES: u32 = 5;
/// Tries to replace secrets and configs of running containers before it is given up until the next start of the agent.
const REPLACE_TRIES: u32 = 3;
/// Tries to wait for a container before it counts as lost.
const WAIT_TRIES: u32 = 3;

/// What one driver works with.
pub(super) struct Driver {
    pub(super) job: Arc<TaskJob>,
    /// The revision whose secrets and configs its running containers have.
    pub(super) applied: u64,
    pub(super) life: Life,
    /// What the managers know already. `None`: nothing.
    pub(super) published: Option<TaskStatus>,
    pub(super) executor: Arc<dyn Executor>,
    pub(super) reports: Reports,
    pub(super) supplies: Arc<TaskSupplies>,
    pub(super) progress: mpsc::UnboundedReceiver<String>,
    pub(super) told: watch::Receiver<Told>,
    /// It was asked to drain: nobody begins a connection to it any more.
    pub(super) drained: bool,
    pub(super) quit: watch::Receiver<bool>,
}

/// What the agent tells a driver.
#[derive(Clone)]
pub(super) struct Told {
    pub(super) wanted: WantedState,
    /// The same job, or one of a revision that differs in versions of secrets and configs.
    pub(super) job: Arc<TaskJob>,
}

/// A change of secrets and configs in place, under way or given up.
struct Move {
    revision: u64,
    abort: AbortHandle,
}

/// An operation under way; `None`: its outcome comes another way.
type Operation = BoxFuture<'static, Option<Event>>;

/// What is under way.
#[derive(Default)]
struct Pending {
    preparation: Option<BoxFuture<'static, Event>>,
    operations: FuturesUnordered<Operation>,
    /// Health checks by container, each one of the operations.
    checks: HashMap<usize, AbortHandle>,
    /// Starts among the operations.
    starting: usize,
    moving: Option<Move>,
}

impl Pending {
    fn begin(&mut self, operation: Operation) {
        self.operations.push(operation);
    }

    /// Begins one that can be given up.
    fn begin_abortable(&mut self, operation: Operation) -> AbortHandle {
        let (operation, abort) = futures::future::abortable(operation);
        self.begin(Box::pin(async { operation.await.ok().flatten() }));
        abort
    }

    /// What happens next of it; waits for ever where nothing is under way.
    async fn next(&mut self) -> Option<Event> {
        tokio::select! {
            event = outcome(&mut self.preparation) => {
                self.preparation = None;
                Some(event)
            }
            Some(event) = self.operations.next() => event,
        }
    }
}

impl Driver {
    /// Runs the task to its end, or until the agent quits. Returns whether the life is over.
    pub(super) async fn run(mut self) -> (TaskId, bool) {
        let mut pending = Pending::default();
        loop {
            // Without an agent there is nobody to act for, either.
            let quitting = *self.quit.borrow() || self.quit.has_changed().is_err();
            if !quitting {
                let told = self.told.borrow_and_update().clone();
                self.obey(told, &mut pending);
            }
            self.publish();
            if self.life.is_over() || (quitting && pending.starting == 0) {
                return (self.job.id, self.life.is_over());
            }
            let event = tokio::select! {
                event = pending.next() => event,
                Some(text) = self.progress.recv() => Some(Event::Progress(text)),
                changed = self.told.changed(), if !quitting => {
                    // An agent that is gone leaves its containers as they are.
                    if changed.is_err() {
                        return (self.job.id, false);
                    }
                    None
                }
                _ = self.quit.changed(), if !quitting => None,
            };
            if let Some(event) = event {
                self.note(event, &mut pending);
            }
        }
    }

    /// Begins what leads to what the agent tells.
    fn obey(&mut self, told: Told, pending: &mut Pending) {
        let Told { wanted, job } = told;
        self.drained |= wanted == WantedState::Draining;
        let known = pending.moving.as_ref().map_or(self.applied, |moving| moving.revision);
        if job.revision.number != known {
            self.follow(job, pending);
        }
        for action in self.life.step(wanted, now_ms()) {
            self.act(action, pending);
        }
    }

    /// Goes over to a revision of other versions of secrets and configs.
    fn follow(&mut self, job: Arc<TaskJob>, pending: &mut Pending) {
        match self.life.can_move() {
            Moves::BeforeItStarts => {
                pending.preparation = None;
                self.moved(job);
                self.life.prepare_again();
            }
            Moves::InPlace if pending.starting == 0 => {
                pending.moving.take().inspect(|before| before.abort.abort());
                let revision = job.revision.number;
                let abort = pending.begin_abortable(self.replace_files(job));
                pending.moving = Some(Move { revision, abort });
            }
            // Started ones are in a moment; ended ones need nothing.
            Moves::InPlace | Moves::Not => {}
        }
    }

    /// Begins an action.
    fn act(&self, action: Action, pending: &mut Pending) {
        match action {
            Action::Prepare => pending.preparation = Some(self.prepare()),
            Action::CancelPrepare => pending.preparation = None,
            Action::Start(position) => {
                pending.starting += 1;
                pending.begin(self.start(position));
            }
            Action::Listen => pending.begin(self.listen()),
            Action::Watch(position) => pending.begin(self.watch(position)),
            Action::Check(position) => {
                let abort = pending.begin_abortable(self.check(position));
                pending.checks.insert(position, abort);
            }
            Action::Stop(position) => {
                pending.checks.remove(&position).inspect(AbortHandle::abort);
                pending.begin(self.stop(position));
            }
            Action::Remove => pending.begin(self.remove()),
        }
    }

    /// Something happened.
    fn note(&mut self, event: Event, pending: &mut Pending) {
        match &event {
            Event::Started(..) => pending.starting -= 1,
            Event::Replaced(revision, Ok(())) => {
                pending.moving = None;
                let job = Arc::clone(&self.told.borrow().job);
                if job.revision.number == *revision {
                    self.moved(job);
                }
            }
            _ => {}
        }
        self.life.on(event, now_ms());
    }

    fn publish(&mut self) {
        let status = self.life.status();
        if self.published.as_ref() != Some(&status) {
            self.reports.publish(self.job.id, status.clone());
            self.published = Some(status);
        }
    }

    fn name(&self, position: usize) -> String {
        self.job.template().containers[position].name.clone()
    }

    fn prepare(&self) -> BoxFuture<'static, Event> {
        let (executor, job) = (Arc::clone(&self.executor), Arc::clone(&self.job));
        let supplies = Arc::clone(&self.supplies);
        Box::pin(async move {
            let outcome = executor.prepare(job, supplies).await;
            Event::Prepared(outcome.map_err(|error| error.sentence()))
        })
    }

    /// Its containers have, or will have, what that job names.
    fn moved(&mut self, job: Arc<TaskJob>) {
        self.applied = job.revision.number;
        self.reports.record.applied(job.id, self.applied);
        self.job = job;
    }

    /// Replaces secrets and configs of running containers.
    fn replace_files(&self, job: Arc<TaskJob>) -> Operation {
        let (executor, supplies) = (Arc::clone(&self.executor), Arc::clone(&self.supplies));
        Box::pin(async move {
            let revision = job.revision.number;
            if job.revision.live.is_none() {
                let sentence = format!("revision {revision} is not one that running tasks can take over");
                return Some(Event::Replaced(revision, Err(sentence)));
            }
            let mut tries = 1;
            loop {
                match executor.replace_files(Arc::clone(&job), Arc::clone(&supplies) as Arc<dyn Supplies>).await {
                    Ok(()) => return Some(Event::Replaced(revision, Ok(()))),
                    Err(error) if error.is_final() || tries == REPLACE_TRIES => {
                        return Some(Event::Replaced(revision, Err(error.sentence())));
                    }
                    Err(error) => {
                        tracing::warn!(task = %job.id, error = %error.sentence(), "cannot replace secrets and configs");
                    }
                }
                tries += 1;
                tokio::time::sleep(RETRY).await;
            }
        })
    }

    fn start(&self, position: usize) -> Operation {
        let (executor, job, name) = (Arc::clone(&self.executor), Arc::clone(&self.job), self.name(position));
        Box::pin(async move {
            let outcome = executor.start(job, &name).await;
            Some(Event::Started(position, outcome.map_err(|error| (error.sentence(), error.exit_code()))))
        })
    }

    fn listen(&self) -> Operation {
        let (executor, task) = (Arc::clone(&self.executor), self.job.id);
        Box::pin(async move { Some(Event::Listening(executor.listening(task).await)) })
    }

    fn watch(&self, position: usize) -> Operation {
        let (executor, task, name) = (Arc::clone(&self.executor), self.job.id, self.name(position));
        Box::pin(async move {
            let mut tries = 1;
            let exit = loop {
                match executor.wait(task, &name).await {
                    Ok(exit) => break exit,
                    Err(error) if tries == WAIT_TRIES => {
                        tracing::error!(%task, container = %name, error = %error.sentence(), "container lost");
                        break ContainerExit { lost: true, ..ContainerExit::default() };
                    }
                    Err(error) => {
                        tracing::warn!(%task, container = %name, error = %error.sentence(), "cannot wait");
                    }
                }
                tries += 1;
                tokio::time::sleep(RETRY).await;
            };
            Some(Event::Exited(position, exit))
        })
    }

    /// Waits, then runs one health check.
    fn check(&self, position: usize) -> Operation {
        let (executor, task, name) = (Arc::clone(&self.executor), self.job.id, self.name(position));
        let Some((wait, check)) = self.life.next_check(position) else { return Box::pin(async { None }) };
        Box::pin(async move {
            let asked = tokio::time::Instant::now();
            tokio::time::sleep(wait).await;
            let waited = asked.elapsed();
            let (command, timeout) = (check.command.clone(), check.timeout);
            let outcome = executor.exec(task, &name, ExecRequest { command, timeout, keep_bytes: OUTPUT_BYTES }).await;
            if let Err(error) = &outcome {
                tracing::warn!(%task, container = %name, error = %error.sentence(), "cannot run the health check");
            }
            let result = check_result(outcome, timeout);
            Some(Event::Checked(position, Checked { waited, took: asked.elapsed().saturating_sub(waited), result }))
        })
    }

    fn stop(&self, position: usize) -> Operation {
        let (executor, job, name) = (Arc::clone(&self.executor), Arc::clone(&self.job), self.name(position));
        let drained = self.drained;
        Box::pin(async move {
            if drained {
                executor.settle(job.id).await;
            }
            while let Err(error) = executor.stop(Arc::clone(&job), &name).await {
                tracing::warn!(task = %job.id, container = %name, error = %error.sentence(), "cannot stop");
                tokio::time::sleep(RETRY).await;
            }
            None
        })
    }

    fn remove(&self) -> Operation {
        let (executor, task, record) = (Arc::clone(&self.executor), self.job.id, self.reports.record.clone());
        Box::pin(async move {
            // How it ended is only known from what is removed now.
            if let Err(error) = record.durable().await {
                tracing::warn!(%task, %error, "the end of the task is not on disk");
            }
            for _ in 0..REMOVE_TRIES {
                match executor.remove(task).await {
                    Ok(()) => return Some(Event::Removed),
                    Err(error) => {
                        tracing::warn!(%task, error = %error.sentence(), "cannot remove the task's leftovers");
                    }
                }
                tokio::time::sleep(RETRY).await;
            }
            Some(Event::Removed)
        })
    }
}

fn check_result(outcome: Result<ExecOutcome, ExecError>, timeout: Duration) -> CheckResult {
    match outcome {
        Ok(ExecOutcome { end: ExecEnd::Exited(0), .. }) => CheckResult::Passed,
        Ok(ExecOutcome { end: ExecEnd::Exited(code), output }) if output.trim().is_empty() => {
            CheckResult::Failed(format!("exit code {code}"))
        }
        Ok(ExecOutcome { end: ExecEnd::Exited(_), output }) => CheckResult::Failed(output),
        Ok(ExecOutcome { end: ExecEnd::TimedOut, output }) => CheckResult::Failed(
            format!("health check exceeded its timeout of {timeout:?} {output}").trim_end().to_owned(),
        ),
        Err(error) => CheckResult::NotRun(error.sentence()),
    }
}

/// The end of the preparation; waits for ever where there is none.
async fn outcome(preparation: &mut Option<BoxFuture<'static, Event>>) -> Event {
    match preparation {
        Some(preparation) => preparation.await,
        None => std::future::pending().await,
    }
}

/// Milliseconds since the epoch by this node's clock.
pub(super) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}
