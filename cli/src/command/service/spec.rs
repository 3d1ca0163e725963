//! From the flags of `service create` to a service's spec. Pure: the caller's environment and files come in by
//! [`Caller`]. What is wrong in itself is refused here; what contradicts itself, by `skep_proto::validate`.

use std::collections::BTreeMap;
use std::path::Path;

use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    ContainerSpec, DnsSpec, EndpointSpec, GlobalMode, Placement, ReplicatedMode, ServiceSpec, TaskTemplate,
};

use super::create::{ContainerFlags, CreateArgs, NetworkFlags, ServiceFlags};
use super::name;
use super::settings::CONTAINER_NAME;
use crate::failure::Failure;
use crate::parse::network::Networks;
use crate::parse::{ParseError, env, file, mount, pair, publish, ulimit};

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
    let networks = Networks::parse(&args.network.network).map_err(|error| error.of("--network"))?;
    let network = networks.mode.unwrap_or_default();
    let ports = each(&args.network.publish, "--publish", |text| publish::parse(text, network))?;
    let mut template = TaskTemplate {
        containers: vec![container(args, caller)?],
        placement: Some(placement(&args.service)?),
        hosts: each(&args.network.host, "--host", pair::host)?,
        dns: dns(&args.network),
        networks: networks.attachments,
        ..TaskTemplate::default()
    };
    template.set_network_mode(network);
    let mut spec = ServiceSpec {
        name: args.service.name.clone().unwrap_or_else(|| name::from_number(caller.random)),
        labels: pair::labels(&args.service.label).map_err(|error| error.of("--label"))?,
        mode: Some(mode),
        template: Some(template),
        endpoint: Some(EndpointSpec { ports, ..EndpointSpec::default() }),
        ..ServiceSpec::default()
    };
    args.settings.apply(&mut spec, caller)?;
    Ok(spec)
}

/// Parses every value of a repeated flag.
pub(super) fn each<T>(
    values: &[String],
    flag: &str,
    parse: impl Fn(&str) -> Result<T, ParseError>,
) -> Result<Vec<T>, Failure> {
    values.iter().map(|text| parse(text).map_err(|error| error.of(flag))).collect()
}

fn mode(flags: &ServiceFlags) -> Result<Mode, Failure> {
    match flags.mode.as_deref().unwrap_or("replicated") {
        "replicated" => Ok(Mode::Replicated(ReplicatedMode { replicas: 1 })),
        "global" => Ok(Mode::Global(GlobalMode {})),
        later @ ("replicated-job" | "global-job") => Err(Failure::Unsupported(format!("--mode {later}"))),
        other => {
            Err(Failure::Usage(format!("invalid value for --mode: {other:?} is not a mode: use replicated or global")))
        }
    }
}

fn placement(flags: &ServiceFlags) -> Result<Placement, Failure> {
    Ok(Placement {
        constraints: flags.constraint.clone(),
        spread: each(&flags.placement_pref, "--placement-pref", spread)?,
        max_replicas_per_node: 0,
    })
}

/// `spread=node.labels.zone`
pub(super) fn spread(text: &str) -> Result<String, ParseError> {
    match text.split_once('=') {
        Some(("spread", label)) if !label.is_empty() => Ok(label.to_owned()),
        Some(("spread", _)) => Err(ParseError::invalid("spread needs a label, as in spread=node.labels.zone")),
        _ => Err(ParseError::invalid(format!("{text:?} is not known: the only preference is spread=node.labels.NAME"))),
    }
}

fn container(args: &CreateArgs, caller: &Caller<'_>) -> Result<ContainerSpec, Failure> {
    let flags = &args.container;
    let (image, arguments) =
        args.image_and_args.split_first().ok_or_else(|| Failure::Usage("an image is needed".to_owned()))?;
    Ok(ContainerSpec {
        name: CONTAINER_NAME.to_owned(),
        image: image.clone(),
        args: arguments.to_vec(),
        env: environment(flags, caller)?,
        groups: flags.group.clone(),
        labels: labels(&flags.container_label, "--container-label")?,
        mounts: each(&flags.mount, "--mount", mount::parse)?,
        ulimits: each(&flags.ulimit, "--ulimit", ulimit::parse)?,
        secrets: each(&flags.secret, "--secret", file::secret)?,
        configs: each(&flags.config, "--config", file::config)?,
        cap_add: flags.cap_add.clone(),
        cap_drop: flags.cap_drop.clone(),
        sysctls: pair::sysctls(&flags.sysctl).map_err(|error| error.of("--sysctl"))?,
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

fn dns(flags: &NetworkFlags) -> Option<DnsSpec> {
    let spec =
        DnsSpec { nameservers: flags.dns.clone(), search: flags.dns_search.clone(), options: flags.dns_option.clone() };
    (spec != DnsSpec::default()).then_some(spec)
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod spec_test;
