//! `rotate` and `rollback`: a new version, and the wait until the services have it.

use clap::Args;
use skep_proto::v1::{RollbackPayloadRequest, RolloutOptions, RotateRequest, RotateResponse};

use super::api::{self, Kind};
use super::create;
use crate::client::Client;
use crate::command::context::Context;
use crate::command::service::{self, WaitFlags};
use crate::failure::Failure;
use crate::output;
use crate::parse::{ParseError, number};

/// How the services follow.
#[derive(Args, Clone, Debug)]
struct FollowFlags {
    /// Swap the files of running containers in place; without it tasks are replaced, by each service's update policy.
    /// Files below /run/secrets only.
    #[arg(long)]
    live: bool,
    /// With --live: signal to the first process of each container whose files changed, such as HUP.
    #[arg(long, value_name = "SIGNAL", requires = "live")]
    signal: Option<String>,
    #[command(flatten)]
    wait: WaitFlags,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RotateArgs {
    #[command(flatten)]
    follow: FollowFlags,
    /// Name, id, or unique prefix of an id.
    #[arg(value_name = "NAME")]
    name: String,
    /// File with the new data; `-` is standard input.
    #[arg(value_name = "FILE")]
    file: String,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RollbackArgs {
    #[command(flatten)]
    follow: FollowFlags,
    /// Version whose data are wanted again, as `history` lists them [default: the one before].
    #[arg(long, value_name = "VERSION", value_parser = version)]
    to: Option<u64>,
    /// Name, id, or unique prefix of an id.
    #[arg(value_name = "NAME")]
    name: String,
}

fn version(text: &str) -> Result<u64, ParseError> {
    match number::count(text)? {
        0 => Err(ParseError::invalid("versions count from 1".to_owned())),
        number => Ok(number),
    }
}

impl FollowFlags {
    fn rollout(&self) -> Result<Option<RolloutOptions>, Failure> {
        let signal = self.signal.clone().unwrap_or_default();
        if !signal.is_empty() && skep_proto::validate::signal_number(&signal).is_none() {
            return Err(Failure::Usage(format!("invalid value for --signal: there is no signal {signal:?}")));
        }
        Ok(Some(RolloutOptions { live: self.live, signal }))
    }
}

pub(super) async fn run(context: &Context, kind: Kind, args: &RotateArgs) -> Result<(), Failure> {
    let rollout = args.follow.rollout()?;
    let data = create::read(kind, &args.file)?;
    let client = context.connect().await?;
    let request = RotateRequest { reference: args.name.clone(), data, rollout, ..RotateRequest::default() };
    let answer = api::rotate(&client, kind, &request).await?;
    follow(&client, &args.name, answer, args.follow.wait).await
}

pub(super) async fn roll_back(context: &Context, kind: Kind, args: &RollbackArgs) -> Result<(), Failure> {
    let (reference, to_version) = (args.name.clone(), args.to.unwrap_or(0));
    let request = RollbackPayloadRequest {
        reference,
        to_version,
        rollout: args.follow.rollout()?,
        ..RollbackPayloadRequest::default()
    };
    let client = context.connect().await?;
    let answer = api::roll_back(&client, kind, &request).await?;
    follow(&client, &args.name, answer, args.follow.wait).await
}

/// Prints what was named, then waits for one service after the other: they go on side by side.
async fn follow(client: &Client, reference: &str, answer: RotateResponse, wait: WaitFlags) -> Result<(), Failure> {
    output::warnings(&answer.warnings);
    output::data(format!("{reference}\n"))?;
    if !wait.quiet {
        let services = match answer.service_ids.len() {
            0 => "no service uses it".to_owned(),
            1 => "one service follows".to_owned(),
            several => format!("{several} services follow"),
        };
        output::note(format_args!("version {}: {services}", answer.payload_version));
    }
    if wait.detach {
        return Ok(());
    }
    service::wait_for_rollouts(client, &answer.service_ids, answer.version, wait.quiet).await
}
