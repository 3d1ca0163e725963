//! Puts the flags of `flags.rs` into a service's spec. Pure. `create` starts from an empty spec, `update` from the stored
//! one; what is not given stays.

use std::path::Path;
use std::time::Duration;

use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    Confinement, ContainerSpec, EndpointMode, FailureAction, HealthCheck, ReplicatedMode, Resources, RestartCondition,
    ServiceSpec, TaskTemplate, UpdateOrder, UpdatePolicy, UserNamespaceMode,
};

use super::flags::{
    Condition, ContainerSettings, Endpoint, HealthFlags, Order, PolicyFlags, ResourceFlags, RollbackFailure,
    ServiceSettings, Settings, UpdateFailure, Userns,
};
use super::spec::{Caller, each};
use crate::failure::Failure;
use crate::parse::security_opt::{self, Seccomp, SecurityOpt};
use crate::parse::{duration, log_opt, shell};

/// Name of the only container of a service that the command line makes.
pub(super) const CONTAINER_NAME: &str = "main";

impl Settings {
    /// Changes the spec; what is wrong in itself is refused, contradictions are left to `skep_proto::validate`.
    pub(super) fn apply(&self, spec: &mut ServiceSpec, caller: &Caller<'_>) -> Result<(), Failure> {
        self.service.apply(spec)?;
        self.policy.apply(spec);
        let template = spec.template.get_or_insert_default();
        self.container.apply(template, caller)?;
        let container = main_container(template);
        self.health.apply(container)?;
        self.resources.apply(container);
        Ok(())
    }
}

/// The container that the flags are about: the one that the command line makes, else the first.
pub(super) fn main_container(template: &mut TaskTemplate) -> &mut ContainerSpec {
    if template.containers.is_empty() {
        template.containers.push(ContainerSpec { name: CONTAINER_NAME.to_owned(), ..ContainerSpec::default() });
    }
    let index = template.containers.iter().position(|container| container.name == CONTAINER_NAME).unwrap_or(0);
    &mut template.containers[index]
}

/// Sets `field` to what is given, if anything is.
fn set<T>(field: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *field = value;
    }
}

/// Changes what an optional field holds. One that was absent and would hold only defaults stays absent, so that an edit
/// that changes nothing leaves the spec as it is, byte for byte.
pub(super) fn within<T, R>(field: &mut Option<T>, change: impl FnOnce(&mut T) -> R) -> R
where
    T: Default + PartialEq,
{
    let was_absent = field.is_none();
    let result = change(field.get_or_insert_default());
    if was_absent && *field == Some(T::default()) {
        *field = None;
    }
    result
}

impl ServiceSettings {
    fn apply(&self, spec: &mut ServiceSpec) -> Result<(), Failure> {
        match (self.replicas, &mut spec.mode) {
            (None, _) => {}
            (Some(replicas), Some(Mode::Replicated(mode))) => mode.replicas = replicas,
            (Some(replicas), mode @ None) => *mode = Some(Mode::Replicated(ReplicatedMode { replicas })),
            (Some(_), Some(Mode::Global(_))) => {
                return Err(Failure::Usage("replicas can only be used with replicated mode".to_owned()));
            }
        }
        if let Some(most) = self.replicas_max_per_node {
            let template = spec.template.get_or_insert_default();
            within(&mut template.placement, |placement| placement.max_replicas_per_node = most);
        }
        if let Some(mode) = self.endpoint_mode {
            within(&mut spec.endpoint, |endpoint| {
                endpoint.set_mode(match mode {
                    Endpoint::Vip => EndpointMode::Vip,
                    Endpoint::Dnsrr => EndpointMode::Dnsrr,
                });
            });
        }
        set(&mut spec.failover_delay_ms, self.failover_delay.map(duration::millis));
        Ok(())
    }
}

impl ContainerSettings {
    fn apply(&self, template: &mut TaskTemplate, caller: &Caller<'_>) -> Result<(), Failure> {
        set(&mut template.hostname, self.hostname.clone());
        if let Some(driver) = &self.log_driver {
            log_opt::driver(driver).map_err(|error| error.of("--log-driver"))?;
        }
        if let Some(given) = log_opt::options(&self.log_opt).map_err(|error| error.of("--log-opt"))? {
            let log = template.log.get_or_insert_default();
            set(&mut log.max_file_bytes, (given.max_file_bytes != 0).then_some(given.max_file_bytes));
            set(&mut log.max_files, (given.max_files != 0).then_some(given.max_files));
        }
        let container = main_container(template);
        if let Some(text) = &self.entrypoint {
            container.command = shell::words(text).map_err(|error| error.of("--entrypoint"))?;
        }
        set(&mut container.user, self.user.clone());
        set(&mut container.dir, self.workdir.clone());
        set(&mut container.init, self.init);
        set(&mut container.read_only, self.read_only);
        set(&mut container.stop_signal, self.stop_signal.clone());
        set(&mut container.stop_grace_period_ms, self.stop_grace_period.map(duration::millis_or_none));
        set(&mut container.allow_new_privileges, self.allow_new_privileges);
        self.confine(container, caller)
    }
}

impl ContainerSettings {
    /// `--security-opt` and `--userns`.
    fn confine(&self, container: &mut ContainerSpec, caller: &Caller<'_>) -> Result<(), Failure> {
        for option in each(&self.security_opt, "--security-opt", security_opt::parse)? {
            match option {
                SecurityOpt::NoNewPrivileges(none) => container.allow_new_privileges = !none,
                SecurityOpt::AppArmor(name) => within(&mut container.confinement, |held| held.apparmor = name),
                SecurityOpt::Seccomp(given) => {
                    let text = match given {
                        None => String::new(),
                        Some(Seccomp::Unconfined) => "unconfined".to_owned(),
                        Some(Seccomp::File(path)) => profile(&path, caller)?,
                    };
                    within(&mut container.confinement, |held| held.seccomp = text);
                }
            }
        }
        if let Some(mode) = self.userns {
            within(&mut container.confinement, |held| {
                held.set_user_namespace(match mode {
                    Userns::Default => UserNamespaceMode::Default,
                    Userns::Host => UserNamespaceMode::Host,
                    Userns::Private => UserNamespaceMode::Private,
                });
            });
        }
        // What was set back to the defaults leaves the spec as it was.
        container.confinement.take_if(|held| *held == Confinement::default());
        Ok(())
    }
}

fn profile(path: &str, caller: &Caller<'_>) -> Result<String, Failure> {
    let unread = |error| Failure::Usage(format!("--security-opt seccomp: cannot read {path}: {error}"));
    let text = (caller.read)(Path::new(path)).map_err(unread)?;
    security_opt::profile(&text).map_err(|error| error.of("--security-opt"))
}

impl HealthFlags {
    /// As in Docker: `--no-healthcheck` goes with no other; any other takes the image's check into use again.
    fn apply(&self, container: &mut ContainerSpec) -> Result<(), Failure> {
        if *self == Self::default() {
            return Ok(());
        }
        let given = Self { no_healthcheck: None, ..self.clone() };
        if self.no_healthcheck == Some(true) {
            if given != Self::default() {
                return Err(Failure::Usage("--no-healthcheck conflicts with --health-* options".to_owned()));
            }
            container.health_check = Some(HealthCheck { test: vec!["NONE".to_owned()], ..HealthCheck::default() });
            return Ok(());
        }
        let check = container.health_check.get_or_insert_default();
        if check.test.first().is_some_and(|word| word == "NONE") {
            check.test.clear();
        }
        set(
            &mut check.test,
            self.health_cmd.as_ref().map(|line| match line.as_str() {
                "" => Vec::new(),
                line => vec!["CMD-SHELL".to_owned(), line.to_owned()],
            }),
        );
        set(&mut check.interval_ms, self.health_interval.map(duration::millis));
        set(&mut check.timeout_ms, self.health_timeout.map(duration::millis));
        set(&mut check.retries, self.health_retries);
        set(&mut check.start_period_ms, self.health_start_period.map(duration::millis));
        set(&mut check.start_interval_ms, self.health_start_interval.map(duration::millis));
        if *check == HealthCheck::default() {
            container.health_check = None;
        }
        Ok(())
    }
}

impl ResourceFlags {
    fn apply(&self, container: &mut ContainerSpec) {
        let amounts = |amounts: &mut Option<Resources>, nano_cpus, memory_bytes| {
            within(amounts, |amounts| {
                set(&mut amounts.nano_cpus, nano_cpus);
                set(&mut amounts.memory_bytes, memory_bytes);
            });
        };
        within(&mut container.resources, |resources| {
            amounts(&mut resources.limits, self.limit_cpu, self.limit_memory);
            amounts(&mut resources.reservations, self.reserve_cpu, self.reserve_memory);
            set(&mut resources.pids_limit, self.limit_pids);
        });
        set(&mut container.oom_score_adj, self.oom_score_adj);
    }
}

impl PolicyFlags {
    fn apply(&self, spec: &mut ServiceSpec) {
        within(&mut spec.template.get_or_insert_default().restart, |restart| {
            set(&mut restart.delay_ms, self.restart_delay.map(duration::millis_or_none));
            set(&mut restart.max_attempts, self.restart_max_attempts);
            set(&mut restart.window_ms, self.restart_window.map(duration::millis));
            if let Some(condition) = self.restart_condition {
                restart.set_condition(match condition {
                    Condition::Any => RestartCondition::Any,
                    Condition::OnFailure => RestartCondition::OnFailure,
                    Condition::None => RestartCondition::None,
                });
            }
        });
        let update = PolicyChange {
            parallelism: self.update_parallelism,
            delay: self.update_delay,
            action: self.update_failure_action.map(|action| match action {
                UpdateFailure::Pause => FailureAction::Pause,
                UpdateFailure::Continue => FailureAction::Continue,
                UpdateFailure::Rollback => FailureAction::Rollback,
            }),
            monitor: self.update_monitor,
            max_failure_ratio: self.update_max_failure_ratio,
            order: self.update_order,
        };
        within(&mut spec.update, |policy| update.apply(policy));
        let rollback = PolicyChange {
            parallelism: self.rollback_parallelism,
            delay: self.rollback_delay,
            action: self.rollback_failure_action.map(|action| match action {
                RollbackFailure::Pause => FailureAction::Pause,
                RollbackFailure::Continue => FailureAction::Continue,
            }),
            monitor: self.rollback_monitor,
            max_failure_ratio: self.rollback_max_failure_ratio,
            order: self.rollback_order,
        };
        within(&mut spec.rollback, |policy| rollback.apply(policy));
    }
}

/// What is given of an update's or a rollback's policy.
struct PolicyChange {
    parallelism: Option<u32>,
    delay: Option<Duration>,
    action: Option<FailureAction>,
    monitor: Option<Duration>,
    max_failure_ratio: Option<f64>,
    order: Option<Order>,
}

impl PolicyChange {
    fn apply(self, policy: &mut UpdatePolicy) {
        if let Some(parallelism) = self.parallelism {
            policy.parallelism = parallelism;
            policy.all = parallelism == 0;
        }
        set(&mut policy.delay_ms, self.delay.map(duration::millis));
        // Zero means the default on the wire; the shortest watch stands for none.
        set(&mut policy.monitor_ms, self.monitor.map(|span| duration::millis(span).max(1)));
        set(&mut policy.max_failure_ratio, self.max_failure_ratio);
        if let Some(action) = self.action {
            policy.set_failure_action(action);
        }
        if let Some(order) = self.order {
            policy.set_order(match order {
                Order::StopFirst => UpdateOrder::StopFirst,
                Order::StartFirst => UpdateOrder::StartFirst,
            });
        }
    }
}
