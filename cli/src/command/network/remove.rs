//! `skep network rm|prune`.

use std::time::Duration;

use clap::Args;
use skep_proto::v1::{ListNetworksResponse, Network, RemoveNetworkRequest, RemoveNetworkResponse};
use tonic::{Code, Status};

use super::{answer, is_builtin, name};
use crate::client::{Client, write_with};
use crate::command::confirm;
use crate::command::context::Context;
use crate::command::outcome::Outcome;
use crate::failure::Failure;
use crate::output::{self, natural, time};
use crate::parse::filter::Filters;
use crate::parse::since;
use crate::retry::Patience;

/// How long tasks that are stopping are waited for: longer than they drain and their usual grace period together.
const TASKS_STOP_WITHIN: Duration = Duration::from_secs(20);

#[derive(Args, Clone, Debug)]
pub(crate) struct RmArgs {
    /// Name, id, or unique prefix of an id.
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    /// Do not fail where a network does not exist.
    #[arg(short, long)]
    force: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct PruneArgs {
    /// Only what matches: `label=KEY[=VALUE]`, `label!=KEY[=VALUE]`, `until=TIME` (made before a date, or a span of time ago).
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Do not ask.
    #[arg(short, long)]
    force: bool,
}

/// Removes each and prints what was named, as Docker does. Waits for tasks that are stopping.
pub(super) async fn run(context: &Context, args: &RmArgs) -> Result<(), Failure> {
    let client = context.connect().await?;
    let mut outcome = Outcome::default();
    for reference in &args.networks {
        let result = match remove(&client, reference, Patience::of(TASKS_STOP_WITHIN)).await {
            Err(status) if args.force && status.code() == Code::NotFound => continue,
            result => result.map_err(|status| Failure::from_lookup("network", reference, status)),
        };
        if outcome.take(result)?.is_some() {
            output::data(format!("{reference}\n"))?;
        }
    }
    outcome.finish()
}

async fn remove(client: &Client, reference: &str, patience: Patience) -> Result<RemoveNetworkResponse, Status> {
    write_with(patience, |options| {
        let mut networks = client.networks();
        let request = RemoveNetworkRequest { reference: reference.to_owned(), write: Some(options) };
        async move { networks.remove(request).await }
    })
    .await
}

/// Removes what nobody uses, in the order of names. A network that came into use meanwhile stays.
pub(super) async fn prune(context: &Context, args: &PruneArgs) -> Result<(), Failure> {
    let chosen = Chosen::new(&args.filter, time::now_ms())?;
    if !args.force {
        confirm::removal("all networks that no service and no task is on")?;
    }
    let client = context.connect().await?;
    let ListNetworksResponse { mut networks, unused_ids, .. } = answer(&client).await?;
    networks.retain(|network| unused_ids.contains(&network.id) && chosen.has(network));
    networks.sort_by(|a, b| natural::compare(name(a), name(b)));
    let mut outcome = Outcome::default();
    let mut removed = String::new();
    for network in &networks {
        let reference = crate::view::id(&network.id);
        match remove(&client, &reference, Patience::new()).await {
            Ok(_) => removed.push_str(&format!("{}\n", name(network))),
            Err(status) if matches!(status.code(), Code::NotFound | Code::FailedPrecondition) => {}
            Err(status) => {
                outcome.take::<()>(Err(status.into()))?;
            }
        }
    }
    if !removed.is_empty() {
        output::data(format!("Deleted Networks:\n{removed}\n"))?;
    }
    outcome.finish()
}

/// Which networks are to go, of those that nobody uses.
struct Chosen {
    filters: Filters,
    /// Made before this moment.
    until_ms: Option<i64>,
}

impl Chosen {
    fn new(filter: &[String], now_ms: i64) -> Result<Self, Failure> {
        let filters = Filters::parse(filter, &["label", "label!", "until"], &[])?;
        let until_ms = match filters.values("until") {
            [] => None,
            [text] => Some(since::parse_ns(text, now_ms).map_err(|error| error.of("--filter until"))? / 1_000_000),
            _ => return Err(Failure::Usage("--filter until: one moment is enough".to_owned())),
        };
        Ok(Self { filters, until_ms })
    }

    fn has(&self, network: &Network) -> bool {
        let labels = network.spec.clone().unwrap_or_default().labels;
        let made_ms = network.meta.map_or(0, |meta| meta.created_at_ms);
        !is_builtin(network)
            && self.until_ms.is_none_or(|until| made_ms < until)
            && self.filters.labels("label", &labels)
            && self.filters.lacks_labels("label!", &labels)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::{Meta, NetworkSpec};

    use super::*;

    #[test]
    fn what_is_pruned() {
        let network = |made_ms: i64, ingress: bool| Network {
            meta: Some(Meta { created_at_ms: made_ms, ..Meta::default() }),
            spec: Some(NetworkSpec {
                labels: [("tier".to_owned(), "front".to_owned()), ("keep".to_owned(), String::new())].into(),
                ingress,
                ..NetworkSpec::default()
            }),
            ..Network::default()
        };
        let has = |filters: &[&str], network: &Network| {
            let filters: Vec<String> = filters.iter().map(|text| (*text).to_owned()).collect();
            Chosen::new(&filters, 100_000).unwrap().has(network)
        };
        let old = network(30_000, false);
        assert!(has(&[], &old) && !has(&[], &network(0, true)), "the routing mesh stays");
        for (filters, goes) in [
            (&["label=tier"][..], true),
            (&["label=tier=front", "label=keep"], true),
            (&["label=tier=front", "label=other"], false),
            (&["label!=other"], true),
            (&["label!=tier=back"], true),
            (&["label!=keep"], false),
            (&["label!=other", "label!=keep"], false),
            (&["until=1m"], true),
            (&["until=90s"], false),
            (&["until=1970-01-01T00:00:31Z"], true),
            (&["until=29"], false),
        ] {
            assert_eq!(has(filters, &old), goes, "{filters:?}");
        }
        for wrong in [&["until=soon"][..], &["until=1m", "until=2m"], &["dangling=true"]] {
            let filters: Vec<String> = wrong.iter().map(|text| (*text).to_owned()).collect();
            assert!(matches!(Chosen::new(&filters, 0), Err(Failure::Usage(_))), "{wrong:?}");
        }
    }
}
