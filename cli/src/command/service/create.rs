//! `skep service create`: the flags, the call, the wait. What the flags mean is in `spec.rs`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};
use skep_proto::v1::CreateServiceRequest;

use super::{converge, spec};
use crate::client::write;
use crate::command::context::Context;
use crate::failure::Failure;
use crate::parse::{duration, number, size};
use crate::{output, registry, view};

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

/// How the command itself behaves while the service converges.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct WaitFlags {
    /// Do not wait until the service runs.
    #[arg(short, long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) detach: bool,
    /// Wait, but say nothing.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Args, Clone, Debug)]
#[command(max_term_width = 120)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) wait: WaitFlags,
    #[command(flatten)]
    pub(crate) service: ServiceFlags,
    #[command(flatten)]
    pub(crate) container: ContainerFlags,
    #[command(flatten)]
    pub(crate) resources: ResourceFlags,
    #[command(flatten)]
    pub(crate) network: NetworkFlags,
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
    /// Send the registry's credential from ~/.docker/config.json along, for the nodes that run the service.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) with_registry_auth: bool,
    /// The image, then the arguments of its command.
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["IMAGE", "ARG"])]
    pub(crate) image_and_args: Vec<String>,
}

/// The service as a whole, and where its tasks run.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Service")]
pub(crate) struct ServiceFlags {
    /// Name of the service [default: a made-up one].
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// `replicated` or `global` (one task on every node that fits) [default: replicated].
    #[arg(long, value_name = "MODE")]
    pub(crate) mode: Option<String>,
    /// Number of tasks [default: 1].
    #[arg(long, value_name = "NUMBER", value_parser = number::count::<u64>, allow_hyphen_values = true)]
    pub(crate) replicas: Option<u64>,
    /// Label of the service, as NAME=VALUE.
    #[arg(short, long, value_name = "LABEL")]
    pub(crate) label: Vec<String>,
    /// Where tasks may run: node.id, node.hostname, node.role, node.ip, node.platform.os|arch, node.labels.NAME or
    /// engine.labels.NAME, with == or !=.
    #[arg(long, value_name = "CONSTRAINT")]
    pub(crate) constraint: Vec<String>,
    /// Spread tasks evenly over the values of a label: spread=node.labels.NAME.
    #[arg(long, value_name = "PREFERENCE")]
    pub(crate) placement_pref: Vec<String>,
    /// Tasks on one node at most; 0 is no limit.
    #[arg(long, value_name = "NUMBER", value_parser = number::count::<u64>, allow_hyphen_values = true)]
    pub(crate) replicas_max_per_node: Option<u64>,
    /// How long a node must be down before its tasks are replaced, on top of the heartbeats [default: 0s].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, allow_hyphen_values = true)]
    pub(crate) failover_delay: Option<Duration>,
}

/// The container.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Container")]
pub(crate) struct ContainerFlags {
    /// Environment variable, as NAME=VALUE; NAME alone takes the caller's value.
    #[arg(short, long, value_name = "VARIABLE")]
    pub(crate) env: Vec<String>,
    /// File of environment variables, one a line.
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Label of the containers, as NAME=VALUE.
    #[arg(long, value_name = "LABEL")]
    pub(crate) container_label: Vec<String>,
    /// Command in place of the image's entrypoint, in a shell's quoting.
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    pub(crate) entrypoint: Option<String>,
    /// User, as NAME|ID[:GROUP|ID].
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Further group of the user, by name or id.
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Vec<String>,
    /// Working directory.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Host name; may contain {{.Task.Slot}} and the like.
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Run a small init as process 1.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) init: bool,
    /// Mount the root file system read-only.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) read_only: bool,
    /// Mount: type=bind,source=PATH,target=PATH[,readonly] or type=tmpfs,target=PATH[,tmpfs-size=SIZE].
    #[arg(long, value_name = "MOUNT")]
    pub(crate) mount: Vec<String>,
    /// Signal that asks it to stop [default: the image's, else SIGTERM].
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,
    /// Time between that signal and SIGKILL [default: 10s].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, allow_hyphen_values = true)]
    pub(crate) stop_grace_period: Option<Duration>,
    /// Add a capability.
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_add: Vec<String>,
    /// Drop a capability.
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_drop: Vec<String>,
    /// Let set-uid programs gain privileges; refused otherwise.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) allow_new_privileges: bool,
    /// Kernel parameter of its namespaces, as NAME=VALUE.
    #[arg(long, value_name = "SYSCTL")]
    pub(crate) sysctl: Vec<String>,
    /// Log driver: json-file.
    #[arg(long, value_name = "DRIVER")]
    pub(crate) log_driver: Option<String>,
    /// Log rotation: max-size=SIZE [default: 10m], max-file=NUMBER [default: 3].
    #[arg(long, value_name = "OPTION")]
    pub(crate) log_opt: Vec<String>,
}

/// Limits and reservations.
#[derive(Args, Clone, Debug, Default)]
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
    /// Limit of its processes, as NAME=SOFT[:HARD].
    #[arg(long, value_name = "LIMIT")]
    pub(crate) ulimit: Vec<String>,
    /// Choice of the kernel's out-of-memory killer, -1000 to 1000.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(-1000..=1000), allow_hyphen_values = true)]
    pub(crate) oom_score_adj: Option<i32>,
}

/// The network.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkFlags {
    /// `host`, or `none` (loopback only) [default: none].
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Vec<String>,
    /// Port that a task takes on its node: published=PORT,target=PORT,mode=host, with --network host.
    #[arg(short, long, value_name = "PORT")]
    pub(crate) publish: Vec<String>,
    /// Line of /etc/hosts, as NAME:ADDRESS.
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Vec<String>,
    /// Name server.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dns: Vec<String>,
    /// Search domain.
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) dns_search: Vec<String>,
    /// Option of resolv.conf.
    #[arg(long, value_name = "OPTION")]
    pub(crate) dns_option: Vec<String>,
}

/// What happens when tasks end, and when the service changes.
#[derive(Args, Clone, Debug, Default)]
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

/// Creates the service, prints its id, and waits until it runs.
pub(crate) async fn run(context: &Context, args: &CreateArgs) -> Result<(), Failure> {
    let spec = spec::build(args, &spec::Caller::process())?;
    skep_proto::validate::service_spec(&spec).map_err(|invalid| Failure::Usage(invalid.to_string()))?;
    let image = args.image_and_args.first().map_or("", String::as_str);
    let auth = registry::credential(image, args.with_registry_auth)?;
    let client = context.connect().await?;
    let answer = write(|options| {
        let mut services = client.services();
        let request = CreateServiceRequest {
            spec: Some(spec.clone()),
            auth: auth.clone(),
            store_auth: args.with_registry_auth,
            write: Some(options),
        };
        async move { services.create(request).await }
    })
    .await?;
    output::warnings(&answer.warnings);
    output::data(format!("{}\n", view::id(&answer.id)))?;
    if args.wait.detach {
        return Ok(());
    }
    converge::wait(&client, &answer.id, answer.version, args.wait.quiet).await
}
