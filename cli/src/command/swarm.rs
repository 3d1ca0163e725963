//! `skep swarm init|join|leave|update|join-token|doctor`; `keys.rs` has `unlock-key|unlock|data-key`, `ca.rs` has `ca`.

mod ca;
mod keys;

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value;
use skep_identity::JoinToken;
use skep_proto::v1::{
    self, ClusterSpec, DoctorRequest, DoctorResponse, Finding, GetClusterRequest, JoinTokenRequest, NodeRole, Severity,
    SwarmInitRequest, SwarmJoinRequest, SwarmLeaveRequest, UnlockKeyRequest, UpdateClusterRequest,
};

use super::conflict::{self, Attempt};
use super::context::Context;
use super::listing;
use super::node::{AvailabilityName, RoleName};
use crate::client::write;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::format::{Format, Listing};
use crate::output::{self, template};
use crate::parse::duration;
use crate::view::{self, state};

#[derive(Subcommand, Debug)]
pub(crate) enum SwarmCommand {
    /// Make a swarm with this host as its first manager.
    Init(InitArgs),
    /// Join this host to a swarm.
    Join(JoinArgs),
    /// Take this host out of its swarm: its containers stop and its local state is deleted.
    Leave(LeaveArgs),
    /// Change the swarm's settings.
    Update(UpdateArgs),
    /// Show the command that joins a worker or a manager.
    JoinToken(JoinTokenArgs),
    /// Show the root certificate, or change it.
    Ca(ca::CaArgs),
    /// Show the key that unlocks managers after a restart.
    UnlockKey(keys::UnlockKeyArgs),
    /// Unlock this host's manager; the key is asked for, or read from standard input.
    Unlock,
    /// Show how managers seal their data on disk, or replace the keys of it.
    DataKey(keys::DataKeyArgs),
    /// Check the whole stored state for contradictions.
    Doctor(DoctorArgs),
}

/// Where this host is reached.
#[derive(Args, Clone, Debug)]
struct Addresses {
    /// Address that others use to reach this host, as ADDRESS[:PORT] [default: that of the only interface with one].
    #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    advertise_addr: String,
    /// Address to listen on, as ADDRESS[:PORT] [default: 0.0.0.0:2377].
    #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    listen_addr: String,
    /// Whether tasks may run on this host.
    #[arg(long, value_enum, default_value_t = AvailabilityName::Active)]
    availability: AvailabilityName,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    addresses: Addresses,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    pools: Pools,
    /// Seal managers' keys on disk: one that restarts must be unlocked with a key that is printed.
    #[arg(long)]
    autolock: bool,
    /// Make this manager, whose quorum is lost for good, the only one of its swarm. The other managers must never come
    /// back with their old state; they join anew.
    #[arg(long, conflicts_with_all = ["availability", "cert_expiry", "dispatcher_heartbeat", "task_history_limit",
          "default_addr_pool", "default_addr_pool_mask_length", "data_path_port", "autolock"])]
    force_new_cluster: bool,
}

/// What the swarm's networks are made from; fixed from then on.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
struct Pools {
    /// Range of addresses, such as 10.64.0.0/10, from which networks without a subnet of their own get one
    /// [default: 10.0.0.0/8].
    #[arg(long, value_name = "RANGE", value_delimiter = ',')]
    default_addr_pool: Vec<String>,
    /// Prefix length of such a subnet [default: 24].
    #[arg(long, value_name = "LENGTH")]
    default_addr_pool_mask_length: Option<u32>,
    /// UDP port of overlays that are not encrypted, 1024 to 49151 [default: 4789].
    #[arg(long, value_name = "PORT")]
    data_path_port: Option<u32>,
}

impl Pools {
    /// Puts what is given into the spec, and checks the whole.
    fn apply(&self, mut spec: ClusterSpec) -> Result<ClusterSpec, Failure> {
        if self.default_addr_pool_mask_length == Some(0) {
            let message = "invalid value for --default-addr-pool-mask-length: it must be 8 to 30";
            return Err(Failure::Usage(message.to_owned()));
        }
        spec.address_pools.clone_from(&self.default_addr_pool);
        spec.subnet_length = self.default_addr_pool_mask_length.unwrap_or_default();
        // As in Docker, 0 is the default.
        spec.data_path_port = self.data_path_port.unwrap_or_default();
        skep_proto::validate::cluster_spec(&spec)?;
        Ok(spec)
    }
}

/// Settings of the whole swarm.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Settings {
    /// Life of node certificates, at least 1h [default: 2160h].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    cert_expiry: Option<Duration>,
    /// Time between a node's heartbeats, 100ms to 1m [default: 1s].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    dispatcher_heartbeat: Option<Duration>,
    /// Ended tasks kept for each slot; 0 keeps none [default: 5].
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    task_history_limit: Option<i32>,
}

impl Settings {
    /// Puts what is given into the spec, and checks the whole.
    fn apply(&self, mut spec: ClusterSpec) -> Result<ClusterSpec, Failure> {
        if let Some(span) = self.cert_expiry {
            spec.node_cert_expiry_ms = given("--cert-expiry", span)?;
        }
        if let Some(span) = self.dispatcher_heartbeat {
            spec.heartbeat_period_ms = given("--dispatcher-heartbeat", span)?;
        }
        if let Some(limit) = self.task_history_limit {
            // 0 keeps none, which the wire calls -1.
            spec.task_history_limit = if limit <= 0 { -1 } else { limit };
        }
        skep_proto::validate::cluster_spec(&spec)?;
        Ok(spec)
    }
}

/// Zero would mean the default on the wire, which nobody means who writes it.
fn given(flag: &str, span: Duration) -> Result<i64, Failure> {
    if span.is_zero() {
        return Err(Failure::Usage(format!("invalid value for {flag}: it must be more than 0")));
    }
    Ok(duration::millis(span))
}

#[derive(Args, Clone, Debug)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    settings: Settings,
    /// Seal managers' keys on disk (true), so that one that restarts must be unlocked, or not (false).
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    autolock: Option<bool>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct JoinArgs {
    /// Join token; `skep swarm join-token` on a manager prints it.
    #[arg(long, value_name = "TOKEN")]
    token: String,
    #[command(flatten)]
    addresses: Addresses,
    /// Managers to try, as HOST:PORT.
    #[arg(required = true, value_name = "MANAGER")]
    managers: Vec<String>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct LeaveArgs {
    /// Leave although this is a manager: the others lose its vote. With the last one the swarm's state is lost.
    #[arg(short, long)]
    force: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct JoinTokenArgs {
    /// Role that the token admits.
    #[arg(value_enum)]
    role: RoleName,
    /// Print the token only.
    #[arg(short, long)]
    quiet: bool,
    /// Make a new token; the old one stops working at once, members stay.
    #[arg(long)]
    rotate: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct DoctorArgs {
    /// How to print the findings: `table`, `table TEMPLATE`, `json`, or a Go template.
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// The port of managers' API.
const MANAGER_PORT: &str = ":2377";

impl SwarmCommand {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Init(args) => init(context, args).await,
            Self::Join(args) => join(context, args).await,
            Self::Leave(args) => leave(context, args).await,
            Self::Update(args) => update(context, args).await,
            Self::JoinToken(args) => join_token(context, args).await,
            Self::Ca(args) => ca::run(context, args).await,
            Self::UnlockKey(args) => keys::unlock_key(context, args).await,
            Self::Unlock => keys::unlock(context).await,
            Self::DataKey(args) => keys::data_key(context, args).await,
            Self::Doctor(args) => doctor(context, args).await,
        }
    }
}

async fn init(context: &Context, args: &InitArgs) -> Result<(), Failure> {
    context.only_here("swarm init")?;
    let spec = args.pools.apply(args.settings.apply(ClusterSpec::default())?)?;
    let request = SwarmInitRequest {
        force_new_cluster: args.force_new_cluster,
        listen_addr: args.addresses.listen_addr.clone(),
        advertise_addr: args.addresses.advertise_addr.clone(),
        availability: v1::Availability::from(args.addresses.availability).into(),
        node_cert_expiry_ms: spec.node_cert_expiry_ms,
        task_history_limit: spec.task_history_limit,
        heartbeat_period_ms: spec.heartbeat_period_ms,
        address_pools: spec.address_pools,
        subnet_length: spec.subnet_length,
        data_path_port: spec.data_path_port,
        autolock: args.autolock,
    };
    let client = context.connect().await?;
    let answer = client.daemon().swarm_init(request).await?.into_inner();
    let unlock = match answer.unlock_key.as_str() {
        "" => String::new(),
        key => format!("\n{}", keys::unlock_instructions(key)),
    };
    output::data(format!(
        "Swarm initialized: current node ({}) is now a manager.\n\n{}\nTo add a manager to this swarm, run 'skep swarm \
         join-token manager' and follow the instructions.\n{unlock}",
        view::id(&answer.node_id),
        join_instructions(NodeRole::Worker, &answer.worker_token, &answer.manager_addr),
    ))
}

fn join_instructions(role: NodeRole, token: &str, addr: &str) -> String {
    format!(
        "To add a {} to this swarm, run the following command:\n\n    skep swarm join --token {token} {addr}\n",
        state::role(role)
    )
}

async fn join(context: &Context, args: &JoinArgs) -> Result<(), Failure> {
    context.only_here("swarm join")?;
    let token = args.token.trim();
    token.parse::<JoinToken>().map_err(|error| Failure::Usage(format!("invalid value for --token: {error}")))?;
    let remote_addrs = args.managers.iter().map(|addr| manager_addr(addr)).collect::<Result<_, _>>()?;
    let client = context.connect().await?;
    let request = SwarmJoinRequest {
        remote_addrs,
        token: token.to_owned(),
        listen_addr: args.addresses.listen_addr.clone(),
        advertise_addr: args.addresses.advertise_addr.clone(),
        availability: v1::Availability::from(args.addresses.availability).into(),
    };
    let answer = client.daemon().swarm_join(request).await?.into_inner();
    let what = if answer.returned { "is back in its swarm" } else { "joined a swarm" };
    output::data(format!("This node {what} as a {}.\n", state::role(answer.role())))
}

/// Adds the port where it is missing.
fn manager_addr(text: &str) -> Result<String, Failure> {
    let wrong = || Failure::Usage(format!("invalid manager address {text:?}: write HOST:PORT, such as 192.0.2.1:2377"));
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c == '/') {
        return Err(wrong());
    }
    if let Ok(addr) = text.parse::<std::net::Ipv6Addr>() {
        return Ok(format!("[{addr}]{MANAGER_PORT}"));
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => match port.parse::<u16>() {
            Ok(1..) if !host.is_empty() => Ok(text.to_owned()),
            _ => Err(wrong()),
        },
        _ => Ok(format!("{text}{MANAGER_PORT}")),
    }
}

async fn leave(context: &Context, args: &LeaveArgs) -> Result<(), Failure> {
    context.only_here("swarm leave")?;
    let client = context.connect().await?;
    let request = SwarmLeaveRequest { force: args.force };
    client.daemon().swarm_leave(request).await?;
    output::data("Node left the swarm.\n")
}

async fn update(context: &Context, args: &UpdateArgs) -> Result<(), Failure> {
    if args.settings == Settings::default() && args.autolock.is_none() {
        return Err(Failure::Usage(
            "nothing to change: name a setting, `skep swarm update --help` lists them".to_owned(),
        ));
    }
    args.settings.apply(ClusterSpec::default())?;
    let client = context.connect().await?;
    let managers = conflict::until_done(async || {
        let get = async |read| client.clusters().get(GetClusterRequest { read }).await;
        let cluster = client.read(get).await?.into_inner().cluster.unwrap_or_default();
        let mut spec = args.settings.apply(cluster.spec.unwrap_or_default())?;
        spec.autolock = args.autolock.unwrap_or(spec.autolock);
        let expect_version = cluster.meta.map_or(0, |meta| meta.version);
        let result = write(|options| {
            let mut clusters = client.clusters();
            let request = UpdateClusterRequest { spec: Some(spec.clone()), expect_version, write: Some(options) };
            async move { clusters.update(request).await }
        })
        .await;
        Ok(Attempt::of(result)?)
    })
    .await?;
    keys::tell(&managers.managers);
    output::data("Swarm updated.\n")?;
    if args.autolock != Some(true) {
        return Ok(());
    }
    // As Docker does, also where it was on already.
    let unlock = UnlockKeyRequest { rotate: false, write: None };
    let answer = client.clusters().unlock_key(unlock).await?.into_inner();
    output::data(format!("\n{}", keys::unlock_instructions(&answer.unlock_key)))
}

async fn join_token(context: &Context, args: &JoinTokenArgs) -> Result<(), Failure> {
    let role = NodeRole::from(args.role);
    let client = context.connect().await?;
    let answer = write(|options| {
        let mut clusters = client.clusters();
        async move {
            clusters.join_token(JoinTokenRequest { role: role.into(), rotate: args.rotate, write: Some(options) }).await
        }
    })
    .await?;
    if args.quiet {
        return output::data(format!("{}\n", answer.token));
    }
    let rotated =
        if args.rotate { format!("Successfully rotated {} join token.\n\n", state::role(role)) } else { String::new() };
    let instructions = join_instructions(role, &answer.token, &answer.manager_addr);
    output::data(format!("{rotated}{instructions}\n"))
}

const FINDINGS: Listing = Listing {
    template: "{{.Severity}}\t{{.Object}}\t{{.Message}}",
    fields: &[("Severity", "SEVERITY"), ("Object", "OBJECT"), ("Message", "MESSAGE")],
    quiet: "Object",
};

fn severity(finding: &Finding) -> &'static str {
    match finding.severity() {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

/// Ends with 1 if something is wrong, so that scripts and tests can ask.
async fn doctor(context: &Context, args: &DoctorArgs) -> Result<(), Failure> {
    let format = Format::from_flags(args.format.as_deref(), false)?;
    let client = context.connect().await?;
    let call = async |_| client.clusters().doctor(DoctorRequest {}).await;
    let answer = client.read(call).await?.into_inner();
    let rows: Vec<_> = answer
        .findings
        .iter()
        .map(|finding| {
            listing::row([
                ("Severity", severity(finding).into()),
                ("Object", Value::from(finding.object.clone())),
                ("Message", finding.message.clone().into()),
            ])
        })
        .collect();
    if !rows.is_empty() || !format.is_table() {
        listing::print(&FINDINGS, &rows, &format)?;
    }
    output::note(checked(&answer));
    let wrong = answer.findings.iter().any(|finding| finding.severity() == Severity::Error);
    if wrong { Err(Failure::Reported(Exit::Failed)) } else { Ok(()) }
}

/// "checked 3 nodes, 1 services: nothing wrong"
fn checked(answer: &DoctorResponse) -> String {
    let kinds: Vec<String> =
        answer.checked.iter().map(|(kind, count)| format!("{kind}: {}", template::text_of(&(*count).into()))).collect();
    let verdict = match answer.findings.len() {
        0 => "nothing wrong".to_owned(),
        1 => "1 finding".to_owned(),
        findings => format!("{findings} findings"),
    };
    format!("checked {} ({verdict})", kinds.join(", "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn manager_addresses_get_the_port() {
        assert_eq!(manager_addr("10.0.0.1").unwrap(), "10.0.0.1:2377");
        assert_eq!(manager_addr("10.0.0.1:99").unwrap(), "10.0.0.1:99");
        assert_eq!(manager_addr("host1").unwrap(), "host1:2377");
        assert_eq!(manager_addr("::1").unwrap(), "[::1]:2377");
        assert_eq!(manager_addr("[::1]").unwrap(), "[::1]:2377");
        assert_eq!(manager_addr("[::1]:5").unwrap(), "[::1]:5");
        for wrong in ["", "a b", "http://x", "host:0", "host:x", ":2377", "host:99999"] {
            assert!(manager_addr(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn settings_are_checked_before_the_call() {
        let settings = |heartbeat_ms, limit| Settings {
            dispatcher_heartbeat: Some(Duration::from_millis(heartbeat_ms)),
            task_history_limit: Some(limit),
            ..Settings::default()
        };
        let spec = settings(100, 0).apply(ClusterSpec { node_cert_expiry_ms: 7_200_000, ..ClusterSpec::default() });
        let spec = spec.unwrap();
        assert_eq!((spec.heartbeat_period_ms, spec.task_history_limit, spec.node_cert_expiry_ms), (100, -1, 7_200_000));
        for wrong in [settings(99, 5), settings(0, 5), settings(60_001, 5), settings(1_000, 1_000_000)] {
            assert!(matches!(wrong.apply(ClusterSpec::default()), Err(Failure::Usage(_))), "{wrong:?}");
        }
    }

    #[test]
    fn pools_are_checked_before_the_call() {
        let pools = |pools: &[&str], length, port| Pools {
            default_addr_pool: pools.iter().map(|pool| (*pool).to_owned()).collect(),
            default_addr_pool_mask_length: length,
            data_path_port: port,
        };
        let none = Pools::default().apply(ClusterSpec::default()).unwrap();
        assert_eq!(none, ClusterSpec::default());
        let spec = pools(&["10.64.0.0/10", "fd00::/48"], Some(26), Some(4790)).apply(ClusterSpec::default()).unwrap();
        assert_eq!((spec.address_pools.len(), spec.subnet_length, spec.data_path_port), (2, 26, 4790));
        for wrong in [
            pools(&["x"], None, None),
            pools(&["10.64.0.1/10"], None, None),
            pools(&["10.0.0.0/8", "10.1.0.0/16"], None, None),
            pools(&["10.0.0.0/25"], None, None),
            pools(&[], Some(0), None),
            pools(&[], Some(31), None),
            pools(&[], None, Some(80)),
        ] {
            assert!(matches!(wrong.apply(ClusterSpec::default()), Err(Failure::Usage(_))), "{wrong:?}");
        }
    }

    #[test]
    fn instructions_can_be_pasted() {
        let text = join_instructions(NodeRole::Worker, "SWMTKN-1-a-b", "10.0.0.1:2377");
        assert!(text.contains("\n    skep swarm join --token SWMTKN-1-a-b 10.0.0.1:2377\n"));
    }
}
