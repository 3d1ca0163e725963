//! Flags that `service create` and `service update` share: each sets one field, and one that is not given leaves it as it
//! is. `settings.rs` puts them into a spec; lists, where the two commands differ, are in `create.rs` and `update.rs`.

use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};

use crate::parse::{self, duration, number, size};

/// When ended tasks are replaced.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    None,
    OnFailure,
    Any,
}

/// What a failed update does.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpdateFailure {
    Pause,
    Continue,
    Rollback,
}

/// What a failed rollback does.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RollbackFailure {
    Pause,
    Continue,
}

/// Which of old and new task goes first.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    StartFirst,
    StopFirst,
}

/// Whose user and group ids a container has.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Userns {
    /// As its node does.
    Default,
    /// The host's.
    Host,
    /// Its own.
    Private,
}

/// What a service's name resolves to.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// One virtual address on each network, balanced over the tasks.
    Vip,
    /// The addresses of all tasks, in turn.
    Dnsrr,
}

/// How the command itself behaves while the service converges.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WaitFlags {
    /// Do not wait until the service runs.
    #[arg(short, long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) detach: bool,
    /// Wait, but say nothing.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Everything that the two commands share.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    #[command(flatten)]
    pub(crate) service: ServiceSettings,
    #[command(flatten)]
    pub(crate) container: ContainerSettings,
    #[command(flatten)]
    pub(crate) health: HealthFlags,
    #[command(flatten)]
    pub(crate) resources: ResourceFlags,
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
}

/// The service as a whole, and where its tasks run.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Service")]
pub(crate) struct ServiceSettings {
    /// Number of tasks [default: 1].
    #[arg(long, value_name = "NUMBER", value_parser = number::count::<u64>, allow_hyphen_values = true)]
    pub(crate) replicas: Option<u64>,
    /// Tasks on one node at most; 0 is no limit.
    #[arg(long, value_name = "NUMBER", value_parser = number::count::<u64>, allow_hyphen_values = true)]
    pub(crate) replicas_max_per_node: Option<u64>,
    /// How long a node must be down before its tasks are replaced, on top of the heartbeats [default: 0s].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, allow_hyphen_values = true)]
    pub(crate) failover_delay: Option<Duration>,
    /// What its name resolves to [default: vip].
    #[arg(long, value_enum, value_name = "MODE", help_heading = "Network")]
    pub(crate) endpoint_mode: Option<Endpoint>,
}

/// The container.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Container")]
pub(crate) struct ContainerSettings {
    /// Command in place of the image's entrypoint, in a shell's quoting.
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    pub(crate) entrypoint: Option<String>,
    /// User, as NAME|ID[:GROUP|ID].
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Working directory.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Host name; may contain {{.Task.Slot}} and the like.
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Run a small init as process 1.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse::boolean,
          value_name = "BOOL")]
    pub(crate) init: Option<bool>,
    /// Mount the root file system read-only.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse::boolean,
          value_name = "BOOL")]
    pub(crate) read_only: Option<bool>,
    /// Signal that asks it to stop [default: the image's, else SIGTERM].
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,
    /// Time between that signal and SIGKILL [default: 10s].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, allow_hyphen_values = true)]
    pub(crate) stop_grace_period: Option<Duration>,
    /// Let set-uid programs gain privileges; refused otherwise.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse::boolean,
          value_name = "BOOL")]
    pub(crate) allow_new_privileges: Option<bool>,
    /// How it is confined: no-new-privileges[:BOOL], seccomp=unconfined|default|FILE (a profile in Docker's form),
    /// apparmor=unconfined|default|PROFILE (one that is loaded on its nodes).
    #[arg(long, value_name = "OPTION")]
    pub(crate) security_opt: Vec<String>,
    /// Its user namespace on nodes that remap ids (`skep daemon --userns-remap`): `host` (the host's ids), `private` (its
    /// own, or it does not run), or `default` (as the node does).
    #[arg(long, value_name = "MODE")]
    pub(crate) userns: Option<Userns>,
    /// Log driver: json-file.
    #[arg(long, value_name = "DRIVER")]
    pub(crate) log_driver: Option<String>,
    /// Log rotation: max-size=SIZE [default: 10m], max-file=NUMBER [default: 3].
    #[arg(long, value_name = "OPTION")]
    pub(crate) log_opt: Vec<String>,
}

/// Whether the container works: a task runs once its check has succeeded, and is replaced when it has failed.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Health")]
pub(crate) struct HealthFlags {
    /// Command line that tells by its exit code whether the container works [default: the image's check].
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    pub(crate) health_cmd: Option<String>,
    /// Time between checks [default: the image's, else 30s].
    #[arg(long, value_name = "DURATION", value_parser = health_span, allow_hyphen_values = true)]
    pub(crate) health_interval: Option<Duration>,
    /// Time after which a check has failed [default: the image's, else 30s].
    #[arg(long, value_name = "DURATION", value_parser = health_span, allow_hyphen_values = true)]
    pub(crate) health_timeout: Option<Duration>,
    /// Failures in a row that make it unhealthy [default: the image's, else 3].
    #[arg(long, value_name = "NUMBER", value_parser = number::count::<u32>, allow_hyphen_values = true)]
    pub(crate) health_retries: Option<u32>,
    /// Time after the start in which failures do not count [default: the image's, else 0s].
    #[arg(long, value_name = "DURATION", value_parser = health_span, allow_hyphen_values = true)]
    pub(crate) health_start_period: Option<Duration>,
    /// Time between checks in the start period [default: the image's, else 5s].
    #[arg(long, value_name = "DURATION", value_parser = health_span, allow_hyphen_values = true)]
    pub(crate) health_start_interval: Option<Duration>,
    /// Make no check, not even the image's.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse::boolean,
          value_name = "BOOL")]
    pub(crate) no_healthcheck: Option<bool>,
}

/// As in Docker: nothing between 0 and a millisecond.
fn health_span(text: &str) -> Result<Duration, parse::ParseError> {
    let span = duration::parse(text)?;
    if !span.is_zero() && span < Duration::from_millis(1) {
        return Err(parse::ParseError::invalid("it must be 0 or at least 1ms"));
    }
    Ok(span)
}

/// Limits and reservations.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Resources")]
pub(crate) struct ResourceFlags {
    /// CPUs at most, such as 1.5.
    #[arg(long, value_name = "CPUS", value_parser = size::nano_cpus, allow_hyphen_values = true)]
    pub(crate) limit_cpu: Option<i64>,
    /// Memory at most, such as 512m.
    #[arg(long, value_name = "SIZE", value_parser = size::bytes, allow_hyphen_values = true)]
    pub(crate) limit_memory: Option<i64>,
    /// Processes at most; 0 is no limit.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(0..), allow_hyphen_values = true)]
    pub(crate) limit_pids: Option<i64>,
    /// CPUs that a node must have free for it.
    #[arg(long, value_name = "CPUS", value_parser = size::nano_cpus, allow_hyphen_values = true)]
    pub(crate) reserve_cpu: Option<i64>,
    /// Memory that a node must have free for it.
    #[arg(long, value_name = "SIZE", value_parser = size::bytes, allow_hyphen_values = true)]
    pub(crate) reserve_memory: Option<i64>,
    /// Choice of the kernel's out-of-memory killer, -1000 to 1000.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(-1000..=1000), allow_hyphen_values = true)]
    pub(crate) oom_score_adj: Option<i32>,
}

/// What happens when tasks end, and when the service changes.
#[derive(Args, Clone, Debug, Default, PartialEq)]
#[command(next_help_heading = "Policies")]
pub(crate) struct PolicyFlags {
    /// Which ended tasks are replaced [default: any].
    #[arg(long, value_enum, value_name = "CONDITION")]
    pub(crate) restart_condition: Option<Condition>,
    /// Wait before a failed task's replacement starts [default: 5s].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, allow_hyphen_values = true)]
    pub(crate) restart_delay: Option<Duration>,
    /// Replacements at most; 0 is no limit.
    #[arg(long, value_name = "NUMBER", value_parser = number::count::<u64>, allow_hyphen_values = true)]
    pub(crate) restart_max_attempts: Option<u64>,
    /// Span in which replacements are counted; 0s is for ever.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, allow_hyphen_values = true)]
    pub(crate) restart_window: Option<Duration>,
    /// Tasks updated at once; 0 is all [default: 1].
    #[arg(long, value_name = "NUMBER", value_parser = number::count::<u32>, allow_hyphen_values = true)]
    pub(crate) update_parallelism: Option<u32>,
    /// Wait between updates [default: 0s].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, allow_hyphen_values = true)]
    pub(crate) update_delay: Option<Duration>,
    /// What a failed update does [default: pause].
    #[arg(long, value_enum, value_name = "ACTION")]
    pub(crate) update_failure_action: Option<UpdateFailure>,
    /// How long an updated task is watched [default: 5s].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, allow_hyphen_values = true)]
    pub(crate) update_monitor: Option<Duration>,
    /// Share of tasks that may fail, 0 to 1 [default: 0].
    #[arg(long, value_name = "RATIO", value_parser = ratio, allow_hyphen_values = true)]
    pub(crate) update_max_failure_ratio: Option<f64>,
    /// Which of old and new task goes first [default: stop-first].
    #[arg(long, value_enum, value_name = "ORDER")]
    pub(crate) update_order: Option<Order>,
    /// Tasks rolled back at once; 0 is all [default: 1].
    #[arg(long, value_name = "NUMBER", value_parser = number::count::<u32>, allow_hyphen_values = true)]
    pub(crate) rollback_parallelism: Option<u32>,
    /// Wait between rollbacks [default: 0s].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, allow_hyphen_values = true)]
    pub(crate) rollback_delay: Option<Duration>,
    /// What a failed rollback does [default: pause].
    #[arg(long, value_enum, value_name = "ACTION")]
    pub(crate) rollback_failure_action: Option<RollbackFailure>,
    /// How long a rolled back task is watched [default: 5s].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, allow_hyphen_values = true)]
    pub(crate) rollback_monitor: Option<Duration>,
    /// Share of tasks that may fail, 0 to 1 [default: 0].
    #[arg(long, value_name = "RATIO", value_parser = ratio, allow_hyphen_values = true)]
    pub(crate) rollback_max_failure_ratio: Option<f64>,
    /// Which of old and new task goes first [default: stop-first].
    #[arg(long, value_enum, value_name = "ORDER")]
    pub(crate) rollback_order: Option<Order>,
}

fn ratio(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|ratio| (0.0..=1.0).contains(ratio))
        .ok_or_else(|| format!("{text:?} is not a number from 0 to 1"))
}
