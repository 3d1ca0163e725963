//! `skep service create`: the flags, the call, the wait. What the flags mean is in `spec.rs`.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use skep_proto::v1::CreateServiceRequest;

use super::flags::{Settings, WaitFlags};
use super::progress::Goal;
use super::{converge, spec};
use crate::client::write;
use crate::command::context::Context;
use crate::failure::Failure;
use crate::{output, registry, view};

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
    pub(crate) settings: Settings,
    #[command(flatten)]
    pub(crate) network: NetworkFlags,
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
    /// Further group of the user, by name or id.
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Vec<String>,
    /// Mount: type=bind,source=PATH,target=PATH[,readonly] or type=tmpfs,target=PATH[,tmpfs-size=SIZE].
    #[arg(long, value_name = "MOUNT")]
    pub(crate) mount: Vec<String>,
    /// Secret to give, as NAME or NAME@VERSION, in /run/secrets/NAME; or
    /// source=NAME[@VERSION][,target=PATH][,uid=ID][,gid=ID][,mode=MODE].
    #[arg(long, value_name = "SECRET")]
    pub(crate) secret: Vec<String>,
    /// Config to give, as NAME or NAME@VERSION, in /NAME; or source=NAME[@VERSION][,target=PATH][,uid=ID][,gid=ID][,mode=MODE].
    #[arg(long, value_name = "CONFIG")]
    pub(crate) config: Vec<String>,
    /// Add a capability.
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_add: Vec<String>,
    /// Drop a capability.
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_drop: Vec<String>,
    /// Kernel parameter of its namespaces, as NAME=VALUE.
    #[arg(long, value_name = "SYSCTL")]
    pub(crate) sysctl: Vec<String>,
    /// Limit of its processes, as NAME=SOFT[:HARD].
    #[arg(long, value_name = "LIMIT")]
    pub(crate) ulimit: Vec<String>,
}

/// The network.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkFlags {
    /// Network to attach to: NAME, or name=NAME[,alias=NAME][,ip=ADDRESS]; or `host`, or `none` (loopback only)
    /// [default: none].
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network: Vec<String>,
    /// Port to publish: [PUBLISHED:]TARGET[/tcp|udp], or published=PORT,target=PORT[,protocol=udp][,mode=host]: on every
    /// node, or with mode=host on the task's node only.
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

/// Creates the service, prints its id, and waits until it runs.
pub(crate) async fn run(context: &Context, args: &CreateArgs) -> Result<(), Failure> {
    let spec = spec::build(args, &spec::Caller::process())?;
    skep_proto::validate::service_spec(&spec)?;
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
    converge::wait(&client, &answer.id, answer.version, Goal::Running, args.wait.quiet).await
}
