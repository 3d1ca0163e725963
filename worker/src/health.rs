//! Whether a container works, as its health check tells: what the check is, and what its outcomes mean. Pure.
//!
//! The executor makes a [`Check`] of what the service and the image say; a task's [`Life`](crate::task::Life) holds a
//! [`Health`] for each container that has one, and its driver runs the command. Docker's semantics (moby
//! `daemon/health.go`) throughout. Time is only ever a span since the container's start, so no clock can disturb it.
//!
//! | state | left when |
//! |---|---|
//! | STARTING | a check passes (HEALTHY), or `retries` in a row fail after the start period (UNHEALTHY) |
//! | HEALTHY | `retries` in a row fail (UNHEALTHY) |
//! | UNHEALTHY | a check passes (HEALTHY); an essential container's task ends before |

use std::sync::Arc;
use std::time::Duration;

use skep_image::RunConfig;
use skep_proto::v1::{ContainerStatus, HealthCheck, HealthState};

/// Kept of a check's output, in bytes. Docker's figure.
pub const OUTPUT_BYTES: usize = 4096;

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// What `CMD-SHELL` is given to where the image names no shell.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// Bytes of the output that a task's error repeats.
const QUOTED_BYTES: usize = 256;

/// A container's check, with all defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Between the end of a check and the next.
    pub interval: Duration,
    /// A check that takes longer has failed.
    pub timeout: Duration,
    /// Failures in a row that make it unhealthy; at least 1.
    pub retries: u32,
    /// After the start, failures do not count until the first success.
    pub start_period: Duration,
    /// Takes the place of `interval` during the start period, until the first success.
    pub start_interval: Duration,
}

/// Why there is no check to be made of what was said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// Neither NONE nor CMD nor CMD-SHELL.
    #[error("{0:?} is not a kind of health check: use CMD, CMD-SHELL or NONE")]
    Kind(String),
    /// CMD without a program, CMD-SHELL without a line.
    #[error("the health check {0} names no command")]
    NoCommand(String),
}

impl Check {
    /// What the service says over what the image says, field by field. `None`: there is no check.
    pub fn resolve(service: Option<&HealthCheck>, image: &RunConfig) -> Result<Option<Self>, CheckError> {
        let unsaid = HealthCheck::default();
        let service = service.unwrap_or(&unsaid);
        let fallback = image.healthcheck.clone().unwrap_or_default();
        let test = if service.test.is_empty() { &fallback.test } else { &service.test };
        let command = match test.split_first().map(|(kind, rest)| (kind.as_str(), rest)) {
            None | Some(("NONE", _)) => return Ok(None),
            Some((kind @ ("CMD" | "CMD-SHELL"), [])) => return Err(CheckError::NoCommand(kind.to_owned())),
            Some(("CMD", command)) => command.to_vec(),
            Some(("CMD-SHELL", line)) if image.shell.is_empty() => {
                SHELL.iter().map(|word| (*word).to_owned()).chain(line.iter().cloned()).collect()
            }
            Some(("CMD-SHELL", line)) => image.shell.iter().chain(line).cloned().collect(),
            Some((other, _)) => return Err(CheckError::Kind(other.to_owned())),
        };
        let first = |ms: i64, of_image: Duration, default: Duration| match u64::try_from(ms) {
            Ok(0) | Err(_) if of_image.is_zero() => default,
            Ok(0) | Err(_) => of_image,
            Ok(ms) => Duration::from_millis(ms),
        };
        Ok(Some(Self {
            command,
            interval: first(service.interval_ms, fallback.interval, INTERVAL),
            timeout: first(service.timeout_ms, fallback.timeout, TIMEOUT),
            retries: [service.retries, fallback.retries].into_iter().find(|retries| *retries > 0).unwrap_or(RETRIES),
            start_period: first(service.start_period_ms, fallback.start_period, Duration::ZERO),
            start_interval: first(service.start_interval_ms, fallback.start_interval, START_INTERVAL),
        }))
    }
}

/// One check that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// From the moment it was asked for to its begin.
    pub waited: Duration,
    /// From its begin to its end.
    pub took: Duration,
    /// What it said.
    pub result: CheckResult,
}

/// What a check said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckResult {
    /// It exited with 0.
    Passed,
    /// It did not; its output, or why there is none.
    Failed(String),
    /// It could not be begun for a reason that lies with the node: says nothing of the container.
    NotRun(String),
}

/// How one running container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    check: Arc<Check>,
    state: HealthState,
    streak: u32,
    output: String,
    uptime: Duration,
}

impl Health {
    /// A container that has run for `uptime` and of which `status` was last known (a new one's is empty).
    pub fn resume(check: Arc<Check>, status: &ContainerStatus, uptime: Duration) -> Self {
        let state = match status.health() {
            HealthState::None | HealthState::Starting => HealthState::Starting,
            known @ (HealthState::Healthy | HealthState::Unhealthy) => known,
        };
        Self { check, state, streak: status.failing_streak, output: status.health_output.clone(), uptime }
    }

    /// How long to wait for the next check.
    pub fn wait(&self) -> Duration {
        if self.is_excused(self.uptime) { self.check.start_interval } else { self.check.interval }
    }

    /// Whether a failure of a check that begins then does not count.
    fn is_excused(&self, at: Duration) -> bool {
        self.state == HealthState::Starting && at < self.check.start_period
    }

    /// The check to run.
    pub fn check(&self) -> &Arc<Check> {
        &self.check
    }

    /// Where it stands.
    pub fn state(&self) -> HealthState {
        self.state
    }

    /// Takes in a check's outcome.
    pub fn checked(&mut self, checked: Checked) {
        let began = self.uptime + checked.waited;
        self.uptime = began + checked.took;
        match checked.result {
            CheckResult::Passed => {
                self.state = HealthState::Healthy;
                self.streak = 0;
            }
            CheckResult::Failed(output) => {
                self.output = cut(output, OUTPUT_BYTES);
                if self.is_excused(began) {
                    return;
                }
                self.streak = self.streak.saturating_add(1);
                if self.streak >= self.check.retries {
                    self.state = HealthState::Unhealthy;
                }
            }
            CheckResult::NotRun(_) => {}
        }
    }

    /// Writes it into the container's status.
    pub fn tell(&self, status: &mut ContainerStatus) {
        status.set_health(self.state);
        status.failing_streak = self.streak;
        status.health_output.clone_from(&self.output);
    }

    /// What the task's error says: how often the check failed, and the first of its words.
    pub fn complaint(&self) -> String {
        let times = if self.streak == 1 { "once".to_owned() } else { format!("{} times", self.streak) };
        let words = self.output.split_whitespace().collect::<Vec<_>>().join(" ");
        let words = cut(words, QUOTED_BYTES);
        let colon = if words.is_empty() { "" } else { ": " };
        format!("health check failed {times}{colon}{words}")
    }
}

/// At most `bytes` of a text, in whole characters.
fn cut(mut text: String, bytes: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes));
    text
}

#[cfg(test)]
#[path = "health_test.rs"]
mod health_test;
