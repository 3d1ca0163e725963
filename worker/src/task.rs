//! One task's life: what happened so far, and what is to be done next. Pure.
//!
//! Used by the driver of each task (`agent/driver.rs`): it feeds [`Event`]s in, performs the [`Action`]s that [`Life::step`]
//! returns, and publishes [`Life::status`]. Nothing here waits, spawns or reads a clock.
//!
//! | state | what is true in it | left when |
//! |---|---|---|
//! | ACCEPTED | it is in the local record | at once |
//! | PREPARING | images, sandbox, files are being made | prepared, failed (REJECTED), asked to stop |
//! | READY | can start at any moment; the pause point | the wanted state is RUNNING or DRAINING |
//! | STARTING | containers start in the order of `depends_on` | every essential one runs, is healthy and listens where it is published, or one fails |
//! | RUNNING | every essential container was seen running and healthy | an essential one ends or is unhealthy, or asked to stop |
//! | terminal | no container runs and none will; what is left is removed, logs stay | never |
//!
//! The published state only goes forward. A container is started at most once in a life.

mod adopt;
mod container;
mod order;

use std::sync::Arc;
use std::time::Duration;

use skep_proto::v1::{ContainerState, ContainerStatus, HealthState, TaskState, TaskStatus, TaskTemplate, WantedState};

use crate::executor::{ContainerExit, Prepared, Started};
use crate::health::{Check, CheckResult, Checked, Health};
use container::{Container, Phase, exit_error};

/// What the driver is to do. Each leads to the event of the same name, except `CancelPrepare`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Prepare the task → [`Event::Prepared`].
    Prepare,
    /// Drop the preparation that is under way; no event follows.
    CancelPrepare,
    /// Start that container → [`Event::Started`].
    Start(usize),
    /// Wait until the task listens where it is published → [`Event::Listening`].
    Listen,
    /// Wait for the end of that running container → [`Event::Exited`].
    Watch(usize),
    /// Run the next check of that container, after a wait ([`Life::next_check`]) → [`Event::Checked`].
    Check(usize),
    /// Stop that running container, and its checks; its end comes as [`Event::Exited`].
    Stop(usize),
    /// Remove all but the logs → [`Event::Removed`].
    Remove,
}

/// What happened. Numbers are positions in the template's containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Preparation got on.
    Progress(String),
    /// Preparation ended, well or with a sentence for the user.
    Prepared(Result<Prepared, String>),
    /// A container started, or could not: a sentence and the exit code to show.
    Started(usize, Result<Started, (String, i32)>),
    /// A container ended.
    Exited(usize, ContainerExit),
    /// The task listens where it is published; or a sentence for the user, that it does not.
    Listening(Result<(), String>),
    /// A health check ended.
    Checked(usize, Checked),
    /// The running containers have the secrets and configs of that revision, or cannot: a sentence for the user.
    Replaced(u64, Result<(), String>),
    /// Nothing but logs is left.
    Removed,
}

/// How a task can take over other versions of its secrets and configs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moves {
    /// It is prepared for the others.
    BeforeItStarts,
    /// They are replaced in its containers.
    InPlace,
    /// It ends, or has ended.
    Not,
}

/// What the wanted state asks of a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Hold,
    Run,
    Stop,
}

impl Goal {
    fn of(wanted: WantedState) -> Self {
        match wanted {
            WantedState::Unspecified | WantedState::Ready => Self::Hold,
            WantedState::Running | WantedState::Draining => Self::Run,
            WantedState::Shutdown | WantedState::Remove => Self::Stop,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Not,
    Underway,
    Done,
}

/// What a task in STARTING first says.
const STARTING: &str = "starting";

/// Why the task is ending.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// It was asked to.
    Asked,
    /// A container's end; with an error or without.
    ByItself(Option<String>),
    /// Its host went away under it.
    HostLost,
    /// It cannot start.
    Rejected(String),
}

/// One task's life.
#[derive(Debug, Clone)]
pub struct Life {
    state: TaskState,
    since_ms: i64,
    message: String,
    /// What became of other versions of its secrets and configs, after the message. Empty: nothing to tell.
    files_note: String,
    error: String,
    host_lost: bool,
    preparation: Step,
    removal: Step,
    /// Whether it listens where it is published.
    listening: Step,
    /// What is told when it runs and does not listen.
    unheard: Option<String>,
    end: Option<End>,
    containers: Vec<Container>,
}

impl Life {
    /// A task that was just put into the record.
    pub fn new(template: &TaskTemplate, now_ms: i64) -> Self {
        let mut life = Self {
            state: TaskState::Accepted,
            since_ms: now_ms,
            message: "accepted".to_owned(),
            files_note: String::new(),
            error: String::new(),
            host_lost: false,
            preparation: Step::Not,
            removal: Step::Not,
            // Nothing is to be waited for, unless preparation says so.
            listening: Step::Done,
            unheard: None,
            end: None,
            containers: Vec::with_capacity(template.containers.len()),
        };
        for spec in &template.containers {
            let mut depends_on = Vec::with_capacity(spec.depends_on.len());
            for name in &spec.depends_on {
                match template.containers.iter().position(|other| other.name == *name) {
                    Some(position) => depends_on.push(position),
                    None => {
                        life.end = Some(End::Rejected(format!(
                            "container {} depends on {name}, which the task does not have",
                            spec.name
                        )));
                    }
                }
            }
            life.containers.push(Container {
                essential: !spec.optional,
                depends_on,
                phase: Phase::Waiting,
                status: ContainerStatus { name: spec.name.clone(), ..ContainerStatus::default() },
                health: None,
                checking: false,
            });
        }
        life
    }

    /// The published state.
    pub fn state(&self) -> TaskState {
        self.state
    }

    /// Whether the life is over and everything but logs is removed: no action will follow.
    pub fn is_over(&self) -> bool {
        self.state.is_terminal() && self.removal == Step::Done
    }

    /// What the managers are told.
    pub fn status(&self) -> TaskStatus {
        TaskStatus {
            state: self.state.into(),
            since_ms: self.since_ms,
            message: [self.message.as_str(), &self.files_note]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join("; "),
            error: self.error.clone(),
            containers: self.containers.iter().map(|container| container.status.clone()).collect(),
            refusals: Vec::new(),
            host_lost: self.host_lost,
        }
    }

    /// How it can take over other versions of its secrets and configs now.
    pub fn can_move(&self) -> Moves {
        match self.state {
            _ if self.end.is_some() || self.state.is_terminal() => Moves::Not,
            TaskState::Starting | TaskState::Running => Moves::InPlace,
            _ => Moves::BeforeItStarts,
        }
    }

    /// What was prepared, or is being prepared, is not what will run: the driver has dropped it.
    pub fn prepare_again(&mut self) {
        self.preparation = Step::Not;
    }

    /// What a [`Action::Check`] asks for: the wait before it, and the check. `None`: that container has none.
    pub fn next_check(&self, position: usize) -> Option<(Duration, Arc<Check>)> {
        let health = self.containers.get(position)?.health.as_ref()?;
        Some((health.wait(), Arc::clone(health.check())))
    }

    /// Takes in what happened.
    pub fn on(&mut self, event: Event, now_ms: i64) {
        match event {
            Event::Progress(message) => {
                let replaces = self.can_move() == Moves::InPlace && self.preparation != Step::Underway;
                if replaces {
                    self.files_note = message;
                } else if self.preparation == Step::Underway && self.end.is_none() {
                    self.message = message;
                }
            }
            Event::Prepared(outcome) => {
                if self.preparation != Step::Underway {
                    return;
                }
                match outcome {
                    Ok(Prepared { published }) => {
                        self.preparation = Step::Done;
                        self.listening = if published { Step::Not } else { Step::Done };
                    }
                    Err(sentence) => {
                        self.preparation = Step::Not;
                        self.end.get_or_insert(if self.state < TaskState::Starting {
                            End::Rejected(sentence)
                        } else {
                            End::ByItself(Some(sentence))
                        });
                    }
                }
            }
            Event::Started(position, Ok(started)) => self.containers[position].run(&started, Duration::ZERO),
            Event::Started(position, Err((sentence, code))) => {
                self.not_started(position, &sentence, code, now_ms);
            }
            Event::Exited(position, exit) => self.exited(position, exit, true, now_ms),
            Event::Listening(outcome) => {
                self.listening = Step::Done;
                self.unheard = outcome.err();
            }
            Event::Checked(position, checked) => self.checked(position, checked),
            Event::Replaced(_, _) if self.can_move() != Moves::InPlace => {}
            Event::Replaced(revision, Ok(())) => {
                self.files_note = format!("has the secrets and configs of revision {revision}");
            }
            Event::Replaced(revision, Err(sentence)) => {
                self.files_note = format!(
                    "cannot take over the secrets and configs of revision {revision}: {sentence}. An update with --force \
                     starts new tasks with them"
                );
            }
            Event::Removed => self.removal = Step::Done,
        }
    }

    /// What is to be done now. Call after every event and every change of the wanted state.
    pub fn step(&mut self, wanted: WantedState, now_ms: i64) -> Vec<Action> {
        let mut actions = Vec::new();
        while self.turn(Goal::of(wanted), now_ms, &mut actions) {}
        actions
    }

    /// One turn of [`step`](Self::step). True: the state changed, so there may be more to do.
    fn turn(&mut self, goal: Goal, now_ms: i64, actions: &mut Vec<Action>) -> bool {
        if goal == Goal::Stop && !self.state.is_terminal() {
            self.end.get_or_insert(End::Asked);
        }
        match self.state {
            TaskState::New | TaskState::Pending | TaskState::Assigned => self.enter(TaskState::Accepted, now_ms),
            TaskState::Accepted | TaskState::Preparing | TaskState::Ready if self.end.is_some() => {
                self.cancel_preparation(actions);
                self.settle(now_ms)
            }
            TaskState::Accepted => self.enter(TaskState::Preparing, now_ms),
            TaskState::Preparing => self.prepared(actions) && self.enter(TaskState::Ready, now_ms),
            TaskState::Ready => self.prepared(actions) && goal == Goal::Run && self.enter(TaskState::Starting, now_ms),
            TaskState::Starting | TaskState::Running => {
                self.watch_unwatched(actions);
                self.end_if_unhealthy();
                if self.end.is_some() {
                    self.cancel_preparation(actions);
                    return self.wind_down(actions) && self.settle(now_ms);
                }
                self.check_unchecked(actions);
                self.start_waiting(actions)
                    || (self.state == TaskState::Starting
                        && self.essential_run()
                        && self.essential_healthy()
                        && self.listens(actions)
                        && self.enter(TaskState::Running, now_ms)
                        && self.tell_unheard())
            }
            TaskState::Complete
            | TaskState::Shutdown
            | TaskState::Failed
            | TaskState::Rejected
            | TaskState::Orphaned => {
                if self.removal == Step::Not {
                    self.removal = Step::Underway;
                    actions.push(Action::Remove);
                }
                false
            }
        }
    }

    /// Goes on to `state`. Returns true, for `&&` chains in [`turn`](Self::turn).
    fn enter(&mut self, state: TaskState, now_ms: i64) -> bool {
        debug_assert!(state > self.state, "states only go forward");
        self.state = state;
        self.since_ms = now_ms;
        self.files_note.clear();
        self.message = match state {
            TaskState::Accepted => "accepted",
            TaskState::Preparing => "preparing",
            TaskState::Ready => "ready to start",
            TaskState::Starting => STARTING,
            TaskState::Running => "started",
            TaskState::Complete => "finished",
            TaskState::Shutdown => "shut down",
            TaskState::Failed => "failed",
            TaskState::Rejected => "rejected",
            TaskState::Orphaned | TaskState::New | TaskState::Pending | TaskState::Assigned => "",
        }
        .to_owned();
        true
    }

    /// Whether it is prepared; sees to it that it will be.
    fn prepared(&mut self, actions: &mut Vec<Action>) -> bool {
        if self.preparation == Step::Not {
            self.preparation = Step::Underway;
            actions.push(Action::Prepare);
        }
        self.preparation == Step::Done
    }

    fn cancel_preparation(&mut self, actions: &mut Vec<Action>) {
        if self.preparation == Step::Underway {
            self.preparation = Step::Not;
            actions.push(Action::CancelPrepare);
        }
    }

    fn watch_unwatched(&mut self, actions: &mut Vec<Action>) {
        for (position, container) in self.containers.iter_mut().enumerate() {
            if container.phase == (Phase::Running { watched: false }) {
                container.phase = Phase::Running { watched: true };
                actions.push(Action::Watch(position));
            }
        }
    }

    fn check_unchecked(&mut self, actions: &mut Vec<Action>) {
        for (position, container) in self.containers.iter_mut().enumerate() {
            let runs = matches!(container.phase, Phase::Running { .. });
            if runs && container.health.is_some() && !container.checking {
                container.checking = true;
                actions.push(Action::Check(position));
            }
        }
    }

    fn checked(&mut self, position: usize, checked: Checked) {
        let container = &mut self.containers[position];
        container.checking = false;
        let (Phase::Running { .. }, Some(health)) = (container.phase, &mut container.health) else { return };
        if let CheckResult::NotRun(sentence) = &checked.result {
            self.message = format!("cannot run the health check: {sentence}");
        }
        health.checked(checked);
        health.tell(&mut container.status);
    }

    fn end_if_unhealthy(&mut self) {
        let single = self.containers.len() == 1;
        let ill = self.containers.iter().find_map(|container| {
            let runs = container.essential && matches!(container.phase, Phase::Running { .. });
            let health = container.health.as_ref().filter(|health| runs && health.state() == HealthState::Unhealthy)?;
            Some((container, health))
        });
        if let Some((container, health)) = ill {
            let name = if single { String::new() } else { format!(" {}", container.status.name) };
            let sentence = format!("unhealthy container{name}: {}", health.complaint());
            self.end.get_or_insert(End::ByItself(Some(sentence)));
        }
    }

    /// Whether all essential containers that have a check pass it. Called when all run.
    fn essential_healthy(&mut self) -> bool {
        let ill = |health: &Health| health.state() != HealthState::Healthy;
        let waits = self.containers.iter().any(|one| one.essential && one.health.as_ref().is_some_and(ill));
        if waits && self.message == STARTING {
            self.message = "waiting for the health check to pass".to_owned();
        }
        !waits
    }

    /// Whether connections may be led to it: it listens, or does not within the time that it has, or its health checks have
    /// told. Called when all essential containers run.
    fn listens(&mut self, actions: &mut Vec<Action>) -> bool {
        let checked = self.containers.iter().any(|one| one.essential && one.health.is_some());
        if self.listening == Step::Not && !checked {
            self.listening = Step::Underway;
            actions.push(Action::Listen);
            if self.message == STARTING {
                self.message = "waiting until it listens on its published ports".to_owned();
            }
        }
        self.listening != Step::Underway
    }

    /// Returns true, for `&&` chains in [`turn`](Self::turn).
    fn tell_unheard(&mut self) -> bool {
        if let Some(sentence) = self.unheard.take() {
            self.message = format!("{}; {sentence}", self.message);
        }
        true
    }

    fn essential_run(&self) -> bool {
        self.containers.iter().all(|container| !container.essential || matches!(container.phase, Phase::Running { .. }))
    }

    /// Enters the terminal state that the end calls for.
    fn settle(&mut self, now_ms: i64) -> bool {
        let (state, error) = match self.end.take() {
            Some(End::Asked) | None => (TaskState::Shutdown, None),
            Some(End::ByItself(None)) => (TaskState::Complete, None),
            Some(End::ByItself(error)) => (TaskState::Failed, error),
            Some(End::HostLost) => {
                self.host_lost = true;
                (TaskState::Failed, Some("host rebooted".to_owned()))
            }
            Some(End::Rejected(error)) => (TaskState::Rejected, Some(error)),
        };
        self.enter(state, now_ms);
        if let Some(error) = error {
            self.error = error;
        }
        true
    }

    fn not_started(&mut self, position: usize, sentence: &str, code: i32, now_ms: i64) {
        let single = self.containers.len() == 1;
        let container = &mut self.containers[position];
        container.phase = Phase::Over { started: false };
        container.status.set_state(ContainerState::Exited);
        container.status.exit_code = code;
        container.status.finished_at_ms = now_ms;
        if container.essential {
            let error =
                if single { sentence.to_owned() } else { format!("container {}: {sentence}", container.status.name) };
            self.end.get_or_insert(End::ByItself(Some(error)));
        } else {
            self.message = format!("container {} did not start: {sentence}", container.status.name);
        }
    }

    fn exited(&mut self, position: usize, exit: ContainerExit, same_boot: bool, now_ms: i64) {
        let single = self.containers.len() == 1;
        let container = &mut self.containers[position];
        if container.phase.is_over() {
            return;
        }
        let started = container.status.started_at_ms != 0;
        container.phase = Phase::Over { started };
        container.health = None;
        container.status.set_state(if exit.lost { ContainerState::Lost } else { ContainerState::Exited });
        container.status.exit_code = exit.code;
        container.status.oom_killed = exit.oom_killed;
        container.status.finished_at_ms = if exit.finished_at_ms == 0 { now_ms } else { exit.finished_at_ms };
        let who = if single { "task".to_owned() } else { format!("container {}", container.status.name) };
        if container.essential {
            let lost_with_host = exit.lost && !same_boot;
            self.end.get_or_insert(if lost_with_host { End::HostLost } else { End::ByItself(exit_error(&who, &exit)) });
        }
    }
}

#[cfg(test)]
#[path = "task_test.rs"]
mod task_test;
