//! `skep service scale web=3 db=1`.

use clap::{ArgAction, Args};
use skep_proto::v1::{ScaleServiceRequest, ScaleServiceResponse};

use super::converge;
use super::progress::Goal;
use crate::client::{Client, write};
use crate::command::context::Context;
use crate::command::outcome::Outcome;
use crate::failure::Failure;
use crate::output;
use crate::parse::number;

#[derive(Args, Clone, Debug)]
pub(crate) struct ScaleArgs {
    /// Services and their numbers of replicas.
    #[arg(required = true, value_name = "SERVICE=REPLICAS", value_parser = target)]
    targets: Vec<Target>,
    /// Do not wait until the services run.
    #[arg(short, long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    detach: bool,
    /// Wait, but say nothing.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    service: String,
    replicas: u64,
}

fn target(text: &str) -> Result<Target, String> {
    let (service, replicas) = text
        .rsplit_once('=')
        .filter(|(service, _)| !service.is_empty())
        .ok_or_else(|| "write it like web=3".to_owned())?;
    let replicas = number::count(replicas).map_err(|error| error.to_string())?;
    Ok(Target { service: service.to_owned(), replicas })
}

/// Scales all, then waits for each; what fails for one does not stop the others.
pub(crate) async fn run(context: &Context, args: &ScaleArgs) -> Result<(), Failure> {
    for target in &args.targets {
        skep_proto::validate::replicas(target.replicas)
            .map_err(|invalid| Failure::Usage(format!("{}: {invalid}", target.service)))?;
    }
    let client = context.connect().await?;
    let mut outcome = Outcome::default();
    let mut scaled = Vec::new();
    for target in &args.targets {
        if let Some(answer) = outcome.take(scale(&client, target).await)? {
            output::data(format!("{} scaled to {}\n", target.service, target.replicas))?;
            scaled.push(answer);
        }
    }
    if !args.detach {
        for answer in &scaled {
            outcome.take(converge::wait(&client, &answer.id, answer.version, Goal::Running, args.quiet).await)?;
        }
    }
    outcome.finish()
}

async fn scale(client: &Client, target: &Target) -> Result<ScaleServiceResponse, Failure> {
    write(|options| {
        let mut services = client.services();
        let request = ScaleServiceRequest {
            reference: target.service.clone(),
            replicas: target.replicas,
            expect_version: 0,
            write: Some(options),
        };
        async move { services.scale(request).await }
    })
    .await
    .map_err(|status| match Failure::from_lookup("service", &target.service, status) {
        Failure::Failed(message) if !message.starts_with("no such") => {
            Failure::Failed(format!("{}: {message}", target.service))
        }
        failure => failure,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn targets() {
        assert_eq!(target("web=3").unwrap().replicas, 3);
        assert_eq!(target("web=0").unwrap().service, "web");
        for wrong in ["web", "web=", "web=x", "web=-1", "=3", "web=1.5", "web=99999999999999999999"] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }
}
