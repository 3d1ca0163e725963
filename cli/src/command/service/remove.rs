//! `skep service rm`.

use clap::Args;
use skep_proto::v1::RemoveServiceRequest;

use crate::client::write;
use crate::command::context::Context;
use crate::command::outcome::Outcome;
use crate::failure::Failure;
use crate::output;

#[derive(Args, Clone, Debug)]
pub(crate) struct RmArgs {
    /// Name, id, or unique prefix of an id.
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

/// Removes each and prints what was named, as Docker does.
pub(crate) async fn run(context: &Context, args: &RmArgs) -> Result<(), Failure> {
    let client = context.connect().await?;
    let mut outcome = Outcome::default();
    for reference in &args.services {
        let result = write(|options| {
            let mut services = client.services();
            let request = RemoveServiceRequest { reference: reference.clone(), write: Some(options) };
            async move { services.remove(request).await }
        })
        .await
        .map_err(|status| Failure::from_lookup("service", reference, status));
        if outcome.take(result)?.is_some() {
            output::data(format!("{reference}\n"))?;
        }
    }
    outcome.finish()
}
