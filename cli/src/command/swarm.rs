//! `skep swarm init|join|leave|join-token|doctor`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;
use skep_identity::JoinToken;
use skep_proto::v1::{
    self, DoctorRequest, DoctorResponse, Finding, JoinTokenRequest, NodeRole, Severity, SwarmInitRequest,
    SwarmJoinRequest, SwarmLeaveRequest,
};

use super::context::Context;
use super::listing;
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
    /// Show the command that joins a worker or a manager.
    JoinToken(JoinTokenArgs),
    /// Check the whole stored state for contradictions.
    Doctor(DoctorArgs),
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum AvailabilityName {
    Active,
    Pause,
    Drain,
}

impl From<AvailabilityName> for v1::Availability {
    fn from(name: AvailabilityName) -> Self {
        match name {
            AvailabilityName::Active => Self::Active,
            AvailabilityName::Pause => Self::Pause,
            AvailabilityName::Drain => Self::Drain,
        }
    }
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
    /// Life of node certificates, at least 1h [default: 2160h].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    cert_expiry: Option<Duration>,
    /// Time between a node's heartbeats [default: 1s].
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    dispatcher_heartbeat: Option<Duration>,
    /// Ended tasks kept for each slot; -1 keeps none [default: 5].
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    task_history_limit: Option<i32>,
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
    /// Leave although this is the last manager, and the swarm's state is lost.
    #[arg(short, long)]
    force: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum RoleName {
    Worker,
    Manager,
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
            Self::JoinToken(args) => join_token(context, args).await,
            Self::Doctor(args) => doctor(context, args).await,
        }
    }
}

async fn init(context: &Context, args: &InitArgs) -> Result<(), Failure> {
    let request = SwarmInitRequest {
        force_new_cluster: false,
        listen_addr: args.addresses.listen_addr.clone(),
        advertise_addr: args.addresses.advertise_addr.clone(),
        availability: v1::Availability::from(args.addresses.availability).into(),
        node_cert_expiry_ms: args.cert_expiry.map_or(0, duration::millis),
        // 0 keeps none, which the wire calls -1.
        task_history_limit: match args.task_history_limit {
            None => 0,
            Some(..=0) => -1,
            Some(limit) => limit,
        },
        heartbeat_period_ms: args.dispatcher_heartbeat.map_or(0, duration::millis),
    };
    let client = context.connect().await?;
    let answer = client.daemon().swarm_init(request).await?.into_inner();
    output::data(format!(
        "Swarm initialized: current node ({}) is now a manager.\n\n{}\nTo add a manager to this swarm, run 'skep swarm \
         join-token manager' and follow the instructions.\n",
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
    output::data(format!("This node joined a swarm as a {}.\n", state::role(answer.role())))
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
    let client = context.connect().await?;
    let request = SwarmLeaveRequest { force: args.force };
    client.daemon().swarm_leave(request).await?;
    output::data("Node left the swarm.\n")
}

async fn join_token(context: &Context, args: &JoinTokenArgs) -> Result<(), Failure> {
    let role = match args.role {
        RoleName::Worker => NodeRole::Worker,
        RoleName::Manager => NodeRole::Manager,
    };
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
    let answer = client.clusters().doctor(DoctorRequest {}).await?.into_inner();
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
    fn instructions_can_be_pasted() {
        let text = join_instructions(NodeRole::Worker, "SWMTKN-1-a-b", "10.0.0.1:2377");
        assert!(text.contains("\n    skep swarm join --token SWMTKN-1-a-b 10.0.0.1:2377\n"));
    }
}
