//! From the flags of `service create` to a service's spec. Pure: the caller's environment and files come in by
//! [`Caller`]. What is wrong in itself is refused here; what contradicts itself, by `skep_proto::validate`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    ContainerSpec, DnsSpec, EndpointSpec, FailureAction, GlobalMode, Placement, ReplicatedMode, ResourceSpec,
    Resources, RestartCondition, RestartPolicy, ServiceSpec, TaskTemplate, UpdateOrder, UpdatePolicy,
};

use super::create::{
    Condition, ContainerFlags, CreateArgs, NetworkFlags, Order, PolicyFlags, ResourceFlags, RollbackFailure,
    ServiceFlags, UpdateFailure,
};
use super::name;
use crate::failure::Failure;
use crate::parse::{ParseError, duration, env, log_opt, mount, network, pair, publish, shell, ulimit};

/// Name of the only container of a service that the command line makes.
const CONTAINER_NAME: &str = "main";

/// What the flags take from the caller's surroundings.
pub(crate) struct Caller<'a> {
    /// A variable of the caller's environment.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<String>,
    /// The text of a file.
    pub(crate) read: &'a dyn Fn(&Path) -> std::io::Result<String>,
    /// A random number, for a name.
    pub(crate) random: u64,
}

impl Caller<'static> {
    /// This process.
    pub(crate) fn process() -> Self {
        Self {
            variable: &|name| std::env::var(name).ok(),
            read: &|path| std::fs::read_to_string(path),
            random: rand::random(),
        }
    }
}

/// Builds the spec.
pub(crate) fn build(args: &CreateArgs, caller: &Caller<'_>) -> Result<ServiceSpec, Failure> {
    let mode = mode(&args.service)?;
    let network = network::parse(&args.network.network).map_err(|error| error.of("--network"))?;
    let ports = each(&args.network.publish, "--publish", |text| publish::parse(text, network))?;
    let mut template = TaskTemplate {
        containers: vec![container(args, caller)?],
        restart: Some(restart(&args.policy)),
        placement: Some(placement(&args.service)?),
        hostname: args.container.hostname.clone().unwrap_or_default(),
        hosts: each(&args.network.host, "--host", pair::host)?,
        dns: dns(&args.network),
        log: log(&args.container)?,
        ..TaskTemplate::default()
    };
    template.set_network_mode(network);
    Ok(ServiceSpec {
        name: args.service.name.clone().unwrap_or_else(|| name::from_number(caller.random)),
        labels: pair::labels(&args.service.label).map_err(|error| error.of("--label"))?,
        mode: Some(mode),
        template: Some(template),
        update: Some(update(&args.policy)),
        rollback: Some(rollback(&args.policy)),
        endpoint: Some(EndpointSpec { ports }),
        failover_delay_ms: args.service.failover_delay.map_or(0, duration::millis),
    })
}

/// Parses every value of a repeated flag.
fn each<T>(values: &[String], flag: &str, parse: impl Fn(&str) -> Result<T, ParseError>) -> Result<Vec<T>, Failure> {
    values.iter().map(|text| parse(text).map_err(|error| error.of(flag))).collect()
}

fn mode(flags: &ServiceFlags) -> Result<Mode, Failure> {
    match flags.mode.as_deref().unwrap_or("replicated") {
        "replicated" => Ok(Mode::Replicated(ReplicatedMode { replicas: flags.replicas.unwrap_or(1) })),
        "global" if flags.replicas.is_some() => {
            Err(Failure::Usage("replicas can only be used with replicated mode".to_owned()))
        }
        "global" => Ok(Mode::Global(GlobalMode {})),
        later @ ("replicated-job" | "global-job") => Err(Failure::Unsupported(format!("--mode {later}"))),
        other => {
            Err(Failure::Usage(format!("invalid value for --mode: {other:?} is not a mode: use replicated or global")))
        }
    }
}

fn placement(flags: &ServiceFlags) -> Result<Placement, Failure> {
    let spread = each(&flags.placement_pref, "--placement-pref", |text| match text.split_once('=') {
        Some(("spread", label)) if !label.is_empty() => Ok(label.to_owned()),
        Some(("spread", _)) => Err(ParseError::invalid("spread needs a label, as in spread=node.labels.zone")),
        _ => Err(ParseError::invalid(format!("{text:?} is not known: the only preference is spread=node.labels.NAME"))),
    })?;
    Ok(Placement {
        constraints: flags.constraint.clone(),
        spread,
        max_replicas_per_node: flags.replicas_max_per_node.unwrap_or(0),
    })
}

fn container(args: &CreateArgs, caller: &Caller<'_>) -> Result<ContainerSpec, Failure> {
    let flags = &args.container;
    let (image, arguments) =
        args.image_and_args.split_first().ok_or_else(|| Failure::Usage("an image is needed".to_owned()))?;
    let command = match &flags.entrypoint {
        Some(text) => shell::words(text).map_err(|error| error.of("--entrypoint"))?,
        None => Vec::new(),
    };
    Ok(ContainerSpec {
        name: CONTAINER_NAME.to_owned(),
        image: image.clone(),
        command,
        args: arguments.to_vec(),
        env: environment(flags, caller)?,
        dir: flags.workdir.clone().unwrap_or_default(),
        user: flags.user.clone().unwrap_or_default(),
        groups: flags.group.clone(),
        labels: labels(&flags.container_label, "--container-label")?,
        resources: Some(resources(&args.resources)),
        init: flags.init,
        read_only: flags.read_only,
        mounts: each(&flags.mount, "--mount", mount::parse)?,
        ulimits: each(&args.resources.ulimit, "--ulimit", ulimit::parse)?,
        stop_signal: flags.stop_signal.clone().unwrap_or_default(),
        stop_grace_period_ms: flags.stop_grace_period.map_or(0, duration::millis_or_none),
        cap_add: flags.cap_add.clone(),
        cap_drop: flags.cap_drop.clone(),
        allow_new_privileges: flags.allow_new_privileges,
        sysctls: pair::sysctls(&flags.sysctl).map_err(|error| error.of("--sysctl"))?,
        oom_score_adj: args.resources.oom_score_adj.unwrap_or(0),
        ..ContainerSpec::default()
    })
}

fn labels(list: &[String], flag: &str) -> Result<BTreeMap<String, String>, Failure> {
    pair::labels(list).map_err(|error| error.of(flag))
}

/// Files first, then `--env`; a later setting of a name replaces an earlier one.
fn environment(flags: &ContainerFlags, caller: &Caller<'_>) -> Result<Vec<String>, Failure> {
    let mut variables = Vec::new();
    for path in &flags.env_file {
        let text = (caller.read)(path)
            .map_err(|error| Failure::Usage(format!("--env-file: cannot read {}: {error}", path.display())))?;
        let file =
            env::file(&text, caller.variable).map_err(|error| error.of(&format!("--env-file {}", path.display())))?;
        variables.extend(file);
    }
    variables.extend(each(&flags.env, "--env", |text| env::variable(text, caller.variable))?);
    let mut unique: Vec<String> = Vec::new();
    for variable in variables {
        let name = |text: &str| text.split('=').next().unwrap_or_default().to_owned();
        let this = name(&variable);
        match unique.iter_mut().find(|known| name(known) == this) {
            Some(known) => *known = variable,
            None => unique.push(variable),
        }
    }
    Ok(unique)
}

fn resources(flags: &ResourceFlags) -> ResourceSpec {
    ResourceSpec {
        limits: Some(Resources {
            nano_cpus: flags.limit_cpu.unwrap_or(0),
            memory_bytes: flags.limit_memory.unwrap_or(0),
        }),
        reservations: Some(Resources {
            nano_cpus: flags.reserve_cpu.unwrap_or(0),
            memory_bytes: flags.reserve_memory.unwrap_or(0),
        }),
        pids_limit: flags.limit_pids.unwrap_or(0),
    }
}

fn dns(flags: &NetworkFlags) -> Option<DnsSpec> {
    let spec =
        DnsSpec { nameservers: flags.dns.clone(), search: flags.dns_search.clone(), options: flags.dns_option.clone() };
    (spec != DnsSpec::default()).then_some(spec)
}

fn log(flags: &ContainerFlags) -> Result<Option<skep_proto::v1::LogSpec>, Failure> {
    if let Some(driver) = &flags.log_driver {
        log_opt::driver(driver).map_err(|error| error.of("--log-driver"))?;
    }
    log_opt::options(&flags.log_opt).map_err(|error| error.of("--log-opt"))
}

fn restart(flags: &PolicyFlags) -> RestartPolicy {
    let mut policy = RestartPolicy {
        delay_ms: flags.restart_delay.map_or(0, duration::millis_or_none),
        max_attempts: flags.restart_max_attempts.unwrap_or(0),
        window_ms: flags.restart_window.map_or(0, duration::millis),
        ..RestartPolicy::default()
    };
    policy.set_condition(match flags.restart_condition.unwrap_or(Condition::Any) {
        Condition::Any => RestartCondition::Any,
        Condition::OnFailure => RestartCondition::OnFailure,
        Condition::None => RestartCondition::None,
    });
    policy
}

fn update(flags: &PolicyFlags) -> UpdatePolicy {
    let action = match flags.update_failure_action.unwrap_or(UpdateFailure::Pause) {
        UpdateFailure::Pause => FailureAction::Pause,
        UpdateFailure::Continue => FailureAction::Continue,
        UpdateFailure::Rollback => FailureAction::Rollback,
    };
    policy(
        flags.update_parallelism,
        flags.update_delay,
        action,
        flags.update_monitor,
        flags.update_max_failure_ratio,
        flags.update_order,
    )
}

fn rollback(flags: &PolicyFlags) -> UpdatePolicy {
    let action = match flags.rollback_failure_action.unwrap_or(RollbackFailure::Pause) {
        RollbackFailure::Pause => FailureAction::Pause,
        RollbackFailure::Continue => FailureAction::Continue,
    };
    policy(
        flags.rollback_parallelism,
        flags.rollback_delay,
        action,
        flags.rollback_monitor,
        flags.rollback_max_failure_ratio,
        flags.rollback_order,
    )
}

fn policy(
    parallelism: Option<u32>,
    delay: Option<Duration>,
    action: FailureAction,
    monitor: Option<Duration>,
    max_failure_ratio: Option<f64>,
    order: Option<Order>,
) -> UpdatePolicy {
    let mut policy = UpdatePolicy {
        parallelism: parallelism.unwrap_or(0),
        all: parallelism == Some(0),
        delay_ms: delay.map_or(0, duration::millis),
        // Zero means the default on the wire; the shortest watch stands for none.
        monitor_ms: monitor.map_or(0, |span| duration::millis(span).max(1)),
        max_failure_ratio: max_failure_ratio.unwrap_or(0.0),
        ..UpdatePolicy::default()
    };
    policy.set_failure_action(action);
    policy.set_order(match order.unwrap_or(Order::StopFirst) {
        Order::StopFirst => UpdateOrder::StopFirst,
        Order::StartFirst => UpdateOrder::StartFirst,
    });
    policy
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod spec_test;
