//! `skep network create|ls|inspect|rm|prune|doctor`. One file per verb or pair of verbs.

mod create;
pub(super) mod doctor;
mod list;
mod remove;

use clap::{Args, Subcommand};
use skep_proto::v1::{
    GetNetworkRequest, GetNetworkResponse, ListNetworksRequest, ListNetworksResponse, Network, NetworkDriver,
};

use super::context::{Context, ReadFlags};
use super::inspect::{self, InspectFlags};
use super::node;
use crate::client::Client;
use crate::failure::Failure;
use crate::view::network::NetworkView;

#[derive(Subcommand, Debug)]
pub(crate) enum NetworkCommand {
    /// Make a network that services can attach to.
    Create(Box<create::CreateArgs>),
    /// List the networks.
    #[command(visible_alias = "list")]
    Ls(list::LsArgs),
    /// Show everything about networks: addresses, services, tasks, hosts.
    Inspect(InspectArgs),
    /// Look for what is wrong with networks, and say what to do. Asks all hosts, which send packets to each other; changes
    /// nothing. Fails if something does not work.
    Doctor(doctor::DoctorArgs),
    /// Remove networks that nothing uses.
    #[command(visible_alias = "remove")]
    Rm(remove::RmArgs),
    /// Remove all networks that no service and no task is on.
    Prune(remove::PruneArgs),
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

impl NetworkCommand {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create(args) => create::run(context, args).await,
            Self::Ls(args) => list::run(context, args).await,
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
            Self::Rm(args) => remove::run(context, args).await,
            Self::Prune(args) => remove::prune(context, args).await,
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
    Ok(answer(client).await?.networks)
}

/// All networks, and which of them are not used.
async fn answer(client: &Client) -> Result<ListNetworksResponse, Failure> {
    let call = async |read| client.networks().list(ListNetworksRequest { read }).await;
    Ok(client.read(call).await?.into_inner())
}

fn name(network: &Network) -> &str {
    network.spec.as_ref().map_or("", |spec| &spec.name)
}

/// Whether the swarm needs it itself: the routing mesh's. A user's way to be rid of it is to remove it by its name.
fn is_builtin(network: &Network) -> bool {
    network.spec.as_ref().is_some_and(|spec| spec.ingress)
}
