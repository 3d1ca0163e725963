//! `skep network create|ls|inspect|rm|doctor`.

mod create;
pub(super) mod doctor;

use clap::{Args, Subcommand};
use serde_json::{Map, Value};
use skep_proto::v1::{
    GetNetworkRequest, GetNetworkResponse, ListNetworksRequest, Network, NetworkDriver, RemoveNetworkRequest,
};

use super::context::{Context, ReadFlags};
use super::inspect::{self, InspectFlags};
use super::listing::{self, ListFlags};
use super::node;
use super::outcome::Outcome;
use crate::client::{Client, write};
use crate::failure::Failure;
use crate::output;
use crate::output::format::Listing;
use crate::output::{natural, time};
use crate::parse::filter::{Filters, label_matches};
use crate::view::network::{NetworkView, SCOPE};
use crate::view::{self, state};

#[derive(Subcommand, Debug)]
pub(crate) enum NetworkCommand {
    /// Make a network that services can attach to.
    Create(Box<create::CreateArgs>),
    /// List the networks.
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show everything about networks: addresses, services, tasks, hosts.
    Inspect(InspectArgs),
    /// Look for what is wrong with networks, and say what to do. Asks all hosts, which send packets to each other; changes
    /// nothing. Fails if something does not work.
    Doctor(doctor::DoctorArgs),
    /// Remove networks that nothing uses.
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    flags: ListFlags,
    #[command(flatten)]
    read: ReadFlags,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// Name, id, or unique prefix of an id.
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    #[command(flatten)]
    flags: InspectFlags,
    /// Show the tasks of each service, too, the keys of the hosts, and how they see each other in the encrypted mesh.
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    read: ReadFlags,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RmArgs {
    /// Name, id, or unique prefix of an id.
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

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

impl NetworkCommand {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create(args) => create::run(context, args).await,
            Self::Ls(args) => list(context, args).await,
            Self::Inspect(args) => {
                inspect::run(context, args.read, &args.networks, &args.flags, async |client, reference| {
                    let answer = get(client, reference).await?;
                    let peers: Vec<Vec<u8>> = answer.peers.iter().map(|peer| peer.node_id.clone()).collect();
                    let mesh = match args.verbose && is_encrypted(&answer) && !peers.is_empty() {
                        true => Some(doctor::mesh(client, &peers).await),
                        false => None,
                    };
                    Ok(NetworkView::new(answer, &node::all(client).await?, args.verbose).with_mesh(mesh, &peers))
                })
                .await
            }
            Self::Doctor(args) => doctor::run(context, args).await,
            Self::Rm(args) => remove(context, args).await,
        }
    }
}

/// Whether its packets go through the mesh: overlays' do, unless they were made otherwise.
fn is_encrypted(answer: &GetNetworkResponse) -> bool {
    let spec = answer.network.as_ref().and_then(|network| network.spec.as_ref());
    spec.is_some_and(|spec| {
        spec.driver() == NetworkDriver::Overlay && spec.options.get("encrypted").map(String::as_str) != Some("false")
    })
}

async fn get(client: &Client, reference: &str) -> Result<GetNetworkResponse, Failure> {
    let call = async |read| client.networks().get(GetNetworkRequest { reference: reference.to_owned(), read }).await;
    let answer = client.read(call).await.map_err(|status| Failure::from_lookup("network", reference, status))?;
    Ok(answer.into_inner())
}

/// All networks, for listings and to turn ids into names.
pub(super) async fn all(client: &Client) -> Result<Vec<Network>, Failure> {
    let call = async |read| client.networks().list(ListNetworksRequest { read }).await;
    Ok(client.read(call).await?.into_inner().networks)
}

async fn list(context: &Context, args: &LsArgs) -> Result<(), Failure> {
    let format = args.flags.format()?;
    let known = ["driver", "id", "label", "name", "scope"];
    let filters = Filters::parse(&args.flags.filter, &known, &["dangling", "type"])?;
    filters.only("scope", &["swarm", "global", "local"])?;
    let client = context.connect_to_read(args.read).await?;
    let mut networks = all(&client).await?;
    networks.retain(|network| matches(network, &filters));
    networks.sort_by(|a, b| natural::compare(name(a), name(b)));
    let shorten = !args.flags.no_trunc;
    let rows: Vec<_> = networks.iter().map(|network| row(network, shorten)).collect();
    listing::print(&NETWORKS, &rows, &format)
}

fn name(network: &Network) -> &str {
    network.spec.as_ref().map_or("", |spec| &spec.name)
}

/// Names and ids match by any part of them, as in Docker.
fn matches(network: &Network, filters: &Filters) -> bool {
    let spec = network.spec.clone().unwrap_or_default();
    filters.passes("id", |part| view::id(&network.id).contains(part))
        && filters.passes("name", |part| spec.name.contains(part))
        && filters.passes("driver", |wanted| wanted == state::driver(spec.driver()))
        && filters.passes("scope", |wanted| wanted == SCOPE)
        && filters.passes("label", |label| label_matches(&spec.labels, label))
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

/// Removes each and prints what was named, as Docker does.
async fn remove(context: &Context, args: &RmArgs) -> Result<(), Failure> {
    let client = context.connect().await?;
    let mut outcome = Outcome::default();
    for reference in &args.networks {
        let result = write(|options| {
            let mut networks = client.networks();
            let request = RemoveNetworkRequest { reference: reference.clone(), write: Some(options) };
            async move { networks.remove(request).await }
        })
        .await
        .map_err(|status| Failure::from_lookup("network", reference, status));
        if outcome.take(result)?.is_some() {
            output::data(format!("{reference}\n"))?;
        }
    }
    outcome.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::{NetworkSpec, Subnet};

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
    fn filters() {
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
            let known = ["driver", "id", "label", "name", "scope"];
            let filters = Filters::parse(&[filter.to_owned()], &known, &[]).unwrap();
            assert_eq!(matches(&network, &filters), passes, "{filter}");
        }
    }
}
