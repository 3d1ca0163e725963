//! `skep service rollback`.

use clap::Args;
use skep_proto::v1::RollbackServiceRequest;

use super::converge;
use super::flags::WaitFlags;
use super::progress::Goal;
use crate::client::write;
use crate::command::context::Context;
use crate::failure::Failure;
use crate::output;
use crate::parse::{ParseError, number};

#[derive(Args, Clone, Debug)]
pub(crate) struct RollbackArgs {
    #[command(flatten)]
    wait: WaitFlags,
    /// Revision to go back to, as `skep service history` lists them [default: the one before].
    #[arg(long, value_name = "REVISION", value_parser = revision)]
    to: Option<u64>,
    /// Name, id, or unique prefix of an id.
    #[arg(value_name = "SERVICE")]
    service: String,
}

fn revision(text: &str) -> Result<u64, ParseError> {
    match number::count(text)? {
        0 => Err(ParseError::invalid("revisions count from 1".to_owned())),
        number => Ok(number),
    }
}

pub(crate) async fn run(context: &Context, args: &RollbackArgs) -> Result<(), Failure> {
    roll_back(context, &args.service, args.to.unwrap_or(0), args.wait).await
}

/// Rolls back to a revision (0: the one before), prints what was named, and waits until it is rolled out.
pub(super) async fn roll_back(
    context: &Context,
    reference: &str,
    to_revision: u64,
    wait: WaitFlags,
) -> Result<(), Failure> {
    let client = context.connect().await?;
    let answer = write(|options| {
        let mut services = client.services();
        let request = RollbackServiceRequest {
            reference: reference.to_owned(),
            to_revision,
            expect_version: 0,
            write: Some(options),
        };
        async move { services.rollback(request).await }
    })
    .await
    .map_err(|status| no_revision_or_service(reference, to_revision, status))?;
    output::data(format!("{reference}\n"))?;
    if wait.detach {
        return Ok(());
    }
    let goal = Goal::Rollout { revision: answer.revision, is_rollback: true };
    converge::wait(&client, &answer.id, answer.version, goal, wait.quiet).await
}

/// NOT_FOUND is about the service, unless a revision was named: then the manager's words say which of the two.
fn no_revision_or_service(reference: &str, to_revision: u64, status: tonic::Status) -> Failure {
    if to_revision == 0 { Failure::from_lookup("service", reference, status) } else { status.into() }
}
