//! `skep network ls`.

use clap::Args;
use serde_json::{Map, Value};
use skep_proto::v1::{ListNetworksResponse, Network};

use super::{answer, is_builtin, name};
use crate::command::context::{Context, ReadFlags};
use crate::command::listing::{self, ListFlags, TruncFlag};
use crate::failure::Failure;
use crate::output::format::Listing;
use crate::output::{natural, time};
use crate::parse::filter::Filters;
use crate::view::network::SCOPE;
use crate::view::{self, state};

#[derive(Args, Clone, Debug)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    flags: ListFlags,
    #[command(flatten)]
    trunc: TruncFlag,
    #[command(flatten)]
    read: ReadFlags,
}

/// What it can be filtered by.
const FILTERS: [&str; 7] = ["dangling", "driver", "id", "label", "name", "scope", "type"];

/// Docker's table of networks.
const NETWORKS: Listing = Listing {
    template: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
    fields: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("IPv4", "IPV4"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
    quiet: "ID",
};

pub(super) async fn run(context: &Context, args: &LsArgs) -> Result<(), Failure> {
    let format = args.flags.format()?;
    let filters = Filters::parse(&args.flags.filter, &FILTERS, &[])?;
    filters.only("scope", &["swarm", "global", "local"])?;
    filters.only("type", &["builtin", "custom"])?;
    filters.only("dangling", &["true", "false", "1", "0"])?;
    let client = context.connect_to_read(args.read).await?;
    let ListNetworksResponse { mut networks, unused_ids, .. } = answer(&client).await?;
    networks.retain(|network| matches(network, unused_ids.contains(&network.id), &filters));
    networks.sort_by(|a, b| natural::compare(name(a), name(b)));
    let shorten = !args.trunc.no_trunc;
    let rows: Vec<_> = networks.iter().map(|network| row(network, shorten)).collect();
    listing::print(&NETWORKS, &rows, &format)
}

/// Names and ids match by any part of them, as in Docker; what the swarm made itself never counts as left over.
fn matches(network: &Network, is_unused: bool, filters: &Filters) -> bool {
    let spec = network.spec.clone().unwrap_or_default();
    let is_dangling = is_unused && !is_builtin(network);
    filters.passes("id", |part| view::id(&network.id).contains(part))
        && filters.passes("name", |part| spec.name.contains(part))
        && filters.passes("driver", |wanted| wanted == state::driver(spec.driver()))
        && filters.passes("scope", |wanted| wanted == SCOPE)
        && filters.passes("type", |wanted| (wanted == "builtin") == is_builtin(network))
        && filters.passes("dangling", |wanted| matches!(wanted, "true" | "1") == is_dangling)
        && filters.labels("label", &spec.labels)
}

fn row(network: &Network, shorten: bool) -> Map<String, Value> {
    let spec = network.spec.clone().unwrap_or_default();
    let has = |v6: bool| network.subnets.iter().any(|subnet| subnet.subnet.contains(':') == v6).to_string();
    let labels: Vec<String> = spec.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    listing::row([
        ("ID", if shorten { view::short_id(&network.id) } else { view::id(&network.id) }.into()),
        ("Driver", state::driver(spec.driver()).into()),
        ("Scope", SCOPE.into()),
        ("IPv4", has(false).into()),
        ("IPv6", has(true).into()),
        ("Internal", spec.internal.to_string().into()),
        ("Labels", labels.join(",").into()),
        ("CreatedAt", time::rfc3339_ms(network.meta.map_or(0, |meta| meta.created_at_ms)).into()),
        ("Name", spec.name.into()),
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::{NetworkDriver, NetworkSpec, Subnet};

    use super::*;
    use crate::output::format::Format;

    fn network(id: u8, name: &str, driver: NetworkDriver) -> Network {
        let mut spec = NetworkSpec {
            name: name.to_owned(),
            labels: [("tier".to_owned(), "front".to_owned())].into(),
            ..NetworkSpec::default()
        };
        spec.set_driver(driver);
        let subnet = Subnet { subnet: "10.0.1.0/24".to_owned(), ..Subnet::default() };
        Network { id: vec![id; 16], spec: Some(spec), subnets: vec![subnet], ..Network::default() }
    }

    #[test]
    fn the_table_is_dockers() {
        let rows = [row(&network(1, "front", NetworkDriver::Overlay), true)];
        let table = NETWORKS.render(&rows, &Format::Table(None)).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "NETWORK ID     NAME      DRIVER    SCOPE");
        assert_eq!(lines[1], format!("{}   front     overlay   swarm", view::short_id(&[1; 16])));
        assert_eq!(row(&network(1, "front", NetworkDriver::Overlay), false)["ID"], view::id(&[1; 16]));
        assert_eq!((rows[0]["IPv4"].as_str(), rows[0]["IPv6"].as_str()), (Some("true"), Some("false")));
    }

    #[test]
    fn every_field_has_a_value() {
        let row = row(&network(1, "front", NetworkDriver::Overlay), true);
        let fields: Vec<&str> = NETWORKS.fields.iter().map(|(field, _)| *field).collect();
        assert!(fields.iter().all(|field| row.contains_key(*field)));
        assert_eq!(row.len(), fields.len());
    }

    #[test]
    fn every_filter() {
        let network = network(1, "front", NetworkDriver::Macvlan);
        let id = view::id(&[1; 16]);
        for (filter, passes) in [
            ("name=ron", true),
            ("name=back", false),
            ("driver=macvlan", true),
            ("driver=overlay", false),
            ("label=tier", true),
            ("label=tier=back", false),
            ("scope=swarm", true),
            ("scope=local", false),
            (&format!("id={}", &id[..6]), true),
            ("id=!", false),
        ] {
            assert_eq!(matches(&network, true, &filters(&[filter])), passes, "{filter}");
        }
    }

    fn filters(texts: &[&str]) -> Filters {
        Filters::parse(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), &FILTERS, &[]).unwrap()
    }

    #[test]
    fn what_the_swarm_made_and_what_nobody_uses() {
        let front = network(1, "front", NetworkDriver::Overlay);
        let mut mesh = network(2, "ingress", NetworkDriver::Overlay);
        mesh.spec.as_mut().unwrap().ingress = true;
        for (filter, unused, used, own) in [
            ("type=custom", true, true, false),
            ("type=builtin", false, false, true),
            ("dangling=true", true, false, false),
            ("dangling=0", false, true, true),
        ] {
            let filters = filters(&[filter]);
            let seen = (matches(&front, true, &filters), matches(&front, false, &filters));
            assert_eq!((seen, matches(&mesh, true, &filters)), ((unused, used), own), "{filter}");
        }
        assert!(!matches(&front, true, &filters(&["label=tier", "label=other"])), "all labels are asked for");
    }
}
