//! `skep service update`: the flags, the call, the wait. What the flags do to the stored spec is in `edit.rs`.

use clap::{ArgAction, Args};
use skep_proto::v1::{RegistryAuth, ServiceSpec, ServiceSummary, UpdateServiceRequest, UpdateServiceResponse};

use super::flags::{Settings, WaitFlags};
use super::progress::Goal;
use super::spec::Caller;
use super::{converge, edit, get, rollback};
use crate::client::{Client, write};
use crate::command::conflict::{self, Attempt};
use crate::command::context::Context;
use crate::failure::Failure;
use crate::{output, registry};

#[derive(Args, Clone, Debug)]
#[command(max_term_width = 120)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    pub(crate) wait: WaitFlags,
    #[command(flatten)]
    pub(crate) change: Change,
    /// Go back to the revision before; goes with no other change. `skep service rollback --to` goes back further.
    #[arg(long)]
    pub(crate) rollback: bool,
    /// Name, id, or unique prefix of an id.
    #[arg(value_name = "SERVICE")]
    pub(crate) service: String,
}

/// Everything that changes the service.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub(crate) struct Change {
    /// Image; its name is resolved to a digest anew.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Arguments of the command, in a shell's quoting.
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub(crate) args: Option<String>,
    /// Replace all tasks although nothing changed.
    #[arg(long)]
    pub(crate) force: bool,
    /// Send the registry's credential from ~/.docker/config.json along, for the nodes that run the service.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub(crate) with_registry_auth: bool,
    #[command(flatten)]
    pub(crate) settings: Settings,
    #[command(flatten)]
    pub(crate) service: ServiceLists,
    #[command(flatten)]
    pub(crate) container: ContainerLists,
    #[command(flatten)]
    pub(crate) network: NetworkLists,
}

/// Lists of the service as a whole.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Service")]
pub(crate) struct ServiceLists {
    /// Add or replace a label of the service, as NAME=VALUE.
    #[arg(long, value_name = "LABEL")]
    pub(crate) label_add: Vec<String>,
    /// Remove a label of the service.
    #[arg(long, value_name = "NAME")]
    pub(crate) label_rm: Vec<String>,
    /// Add a constraint on where tasks may run.
    #[arg(long, value_name = "CONSTRAINT")]
    pub(crate) constraint_add: Vec<String>,
    /// Remove a constraint.
    #[arg(long, value_name = "CONSTRAINT")]
    pub(crate) constraint_rm: Vec<String>,
    /// Add a preference, after those that are there: spread=node.labels.NAME.
    #[arg(long, value_name = "PREFERENCE")]
    pub(crate) placement_pref_add: Vec<String>,
    /// Remove a preference.
    #[arg(long, value_name = "PREFERENCE")]
    pub(crate) placement_pref_rm: Vec<String>,
}

/// Lists of the container.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Container")]
pub(crate) struct ContainerLists {
    /// Add or replace an environment variable, as NAME=VALUE; NAME alone takes the caller's value.
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) env_add: Vec<String>,
    /// Remove an environment variable.
    #[arg(long, value_name = "NAME")]
    pub(crate) env_rm: Vec<String>,
    /// Add or replace a label of the containers, as NAME=VALUE.
    #[arg(long, value_name = "LABEL")]
    pub(crate) container_label_add: Vec<String>,
    /// Remove a label of the containers.
    #[arg(long, value_name = "NAME")]
    pub(crate) container_label_rm: Vec<String>,
    /// Add a further group of the user.
    #[arg(long, value_name = "GROUP")]
    pub(crate) group_add: Vec<String>,
    /// Remove a further group.
    #[arg(long, value_name = "GROUP")]
    pub(crate) group_rm: Vec<String>,
    /// Add a mount, or replace the one with its target.
    #[arg(long, value_name = "MOUNT")]
    pub(crate) mount_add: Vec<String>,
    /// Remove a mount by its target.
    #[arg(long, value_name = "PATH")]
    pub(crate) mount_rm: Vec<String>,
    /// Give a secret, or replace the one with its target: NAME, NAME@VERSION, or
    /// source=NAME[@VERSION][,target=PATH][,uid=ID][,gid=ID][,mode=MODE].
    #[arg(long, value_name = "SECRET")]
    pub(crate) secret_add: Vec<String>,
    /// Take a secret away, by its name or id.
    #[arg(long, value_name = "NAME")]
    pub(crate) secret_rm: Vec<String>,
    /// Give a config, or replace the one with its target: NAME, NAME@VERSION, or
    /// source=NAME[@VERSION][,target=PATH][,uid=ID][,gid=ID][,mode=MODE].
    #[arg(long, value_name = "CONFIG")]
    pub(crate) config_add: Vec<String>,
    /// Take a config away, by its name or id.
    #[arg(long, value_name = "NAME")]
    pub(crate) config_rm: Vec<String>,
    /// Add a capability; one that was dropped is no longer. RESET forgets all that were added and dropped.
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_add: Vec<String>,
    /// Drop a capability; one that was added is no longer. RESET forgets all that were added and dropped.
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_drop: Vec<String>,
    /// Add or replace a kernel parameter, as NAME=VALUE.
    #[arg(long, value_name = "SYSCTL")]
    pub(crate) sysctl_add: Vec<String>,
    /// Remove a kernel parameter.
    #[arg(long, value_name = "NAME")]
    pub(crate) sysctl_rm: Vec<String>,
    /// Add or replace a limit of its processes, as NAME=SOFT[:HARD].
    #[arg(long, value_name = "LIMIT")]
    pub(crate) ulimit_add: Vec<String>,
    /// Remove a limit.
    #[arg(long, value_name = "NAME")]
    pub(crate) ulimit_rm: Vec<String>,
}

/// Lists of the network.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Network")]
pub(crate) struct NetworkLists {
    /// Attach to a network, or change how: NAME, or name=NAME[,alias=NAME][,ip=ADDRESS]; or use `host`.
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network_add: Vec<String>,
    /// Leave a network, by its name or id, or `host`.
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network_rm: Vec<String>,
    /// Add a port, or replace the one with its target: [PUBLISHED:]TARGET[/tcp|udp], or
    /// published=PORT,target=PORT[,protocol=udp][,mode=host].
    #[arg(long, value_name = "PORT")]
    pub(crate) publish_add: Vec<String>,
    /// Remove a port by its target, as PORT[/PROTOCOL].
    #[arg(long, value_name = "PORT")]
    pub(crate) publish_rm: Vec<String>,
    /// Add a line of /etc/hosts, as NAME:ADDRESS.
    #[arg(long, value_name = "HOST")]
    pub(crate) host_add: Vec<String>,
    /// Remove a line of /etc/hosts, as NAME:ADDRESS, or all of a NAME.
    #[arg(long, value_name = "HOST")]
    pub(crate) host_rm: Vec<String>,
    /// Add a name server.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dns_add: Vec<String>,
    /// Remove a name server.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dns_rm: Vec<String>,
    /// Add a search domain.
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) dns_search_add: Vec<String>,
    /// Remove a search domain.
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) dns_search_rm: Vec<String>,
    /// Add an option of resolv.conf.
    #[arg(long, value_name = "OPTION")]
    pub(crate) dns_option_add: Vec<String>,
    /// Remove an option of resolv.conf.
    #[arg(long, value_name = "OPTION")]
    pub(crate) dns_option_rm: Vec<String>,
}

/// What was stored, and what came of it.
struct Written {
    before: ServiceSummary,
    spec: ServiceSpec,
    answer: UpdateServiceResponse,
}

/// Changes the service, prints what was named, and waits until the change is rolled out.
pub(crate) async fn run(context: &Context, args: &UpdateArgs) -> Result<(), Failure> {
    if args.rollback {
        if args.change != Change::default() {
            return Err(Failure::Usage("other flags may not be combined with --rollback".to_owned()));
        }
        return rollback::roll_back(context, &args.service, 0, args.wait).await;
    }
    edit::check(&args.change, &Caller::process())?;
    let client = context.connect().await?;
    let written = conflict::until_done(async || update(&client, args).await).await?;
    output::warnings(&written.answer.warnings);
    output::data(format!("{}\n", args.service))?;
    match goal(&written) {
        Some(goal) if !args.wait.detach => {
            let Written { answer, .. } = written;
            converge::wait(&client, &answer.id, answer.version, goal, args.wait.quiet).await
        }
        _ => Ok(()),
    }
}

/// One try: read, edit, write.
async fn update(client: &Client, args: &UpdateArgs) -> Result<Attempt<Written>, Failure> {
    let before = get(client, &args.service).await?;
    let edited = edit::edit(edit::whole_spec(&before), &args.change, &Caller::process())?;
    skep_proto::validate::service_spec(&edited.spec)?;
    let auth = credential(&edited.spec, &args.change)?;
    let service = before.service.clone().unwrap_or_default();
    let result = write(|options| {
        let mut services = client.services();
        let request = UpdateServiceRequest {
            // By id, so that a retry cannot meet another service of the same name.
            reference: crate::view::id(&service.id),
            spec: Some(edited.spec.clone()),
            expect_version: service.meta.map_or(0, |meta| meta.version),
            auth: auth.clone(),
            store_auth: args.change.with_registry_auth,
            write: Some(options),
        };
        async move { services.update(request).await }
    })
    .await;
    let attempt = Attempt::of(result).map_err(|status| match status.message().starts_with("no service ") {
        true => Failure::from_lookup("service", &args.service, status),
        // A network or an image that is not there.
        false => status.into(),
    })?;
    Ok(match attempt {
        Attempt::Conflict(status) => Attempt::Conflict(status),
        Attempt::Done(answer) => {
            output::warnings(&edited.warnings);
            Attempt::Done(Written { before, spec: edited.spec, answer })
        }
    })
}

/// The registry's credential, where the image is resolved or the credential is to be stored.
fn credential(spec: &ServiceSpec, change: &Change) -> Result<Option<RegistryAuth>, Failure> {
    if change.image.is_none() && !change.with_registry_auth {
        return Ok(None);
    }
    let container = spec.template.as_ref().and_then(|template| template.containers.first());
    registry::credential(container.map_or("", |container| &container.image), change.with_registry_auth)
}

/// What is to be waited for. `None`: the change does not concern any task.
fn goal(written: &Written) -> Option<Goal> {
    let before = written.before.service.clone().unwrap_or_default();
    if written.answer.revision != before.revision {
        return Some(Goal::Rollout { revision: written.answer.revision, is_rollback: false });
    }
    let mode = before.spec.and_then(|spec| spec.mode);
    (mode != written.spec.mode).then_some(Goal::Running)
}
