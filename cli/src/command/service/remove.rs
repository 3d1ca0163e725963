//! `skep service rm`.

use clap::Args;
use skep_proto::v1::RemoveServiceRequest;

use crate::client::write;
use crate::command::context::Context;
use crate::command::outcome::remove_each;
use crate::failure::Failure;

#[derive(Args, Clone, Debug)]
pub(crate) struct RmArgs {
    /// Name, id, or unique prefix of an id.
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

/// Removes each and prints what was named, as Docker does.
pub(crate) async fn run(context: &Context, args: &RmArgs) -> Result<(), Failure> {
    let client = context.connect().await?;
    remove_each(&args.services, async |reference| {
        let removed = write(|options| {
            let mut services = client.services();
            let request = RemoveServiceRequest { reference: reference.to_owned(), write: Some(options) };
            async move { services.remove(request).await }
        });
        removed.await.map(drop).map_err(|status| Failure::from_lookup("service", reference, status))
    })
    .await
}
