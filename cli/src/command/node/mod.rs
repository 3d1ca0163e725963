//! `skep node …`: the verbs that read; `change.rs` has those that write.

mod change;

use clap::{Args, Subcommand};
use serde_json::{Map, Value};
use skep_proto::v1::{GetNodeRequest, InfoRequest, ListNodesRequest, ListTasksRequest, Node, NodeRole};

pub(super) use self::change::{AvailabilityName, RoleName};
use super::context::{Context, ReadFlags};
use super::inspect::{self, InspectFlags};
use super::listing::{self, LsArgs};
use super::network;
use super::outcome::Outcome;
use super::task_table;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::format::Listing;
use crate::output::{natural, time};
use crate::parse::filter::Filters;
use crate::view::mesh::MeshView;
use crate::view::node::NodeView;
use crate::view::{self, pretty_node, state};

#[derive(Subcommand, Debug)]
pub(crate) enum NodeCommand {
    /// List the nodes.
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show everything about nodes.
    Inspect(InspectArgs),
    /// List the tasks on nodes; on this one if none is named.
    Ps(PsArgs),
    /// Change a node: its availability, role and labels.
    Update(change::UpdateArgs),
    /// Make nodes managers.
    Promote(change::RoleArgs),
    /// Make managers workers.
    Demote(change::RoleArgs),
    /// Remove nodes from the swarm.
    #[command(visible_alias = "remove")]
    Rm(change::RmArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// Id, unique prefix of one, hostname, or `self`.
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    #[command(flatten)]
    flags: InspectFlags,
    /// Print for a person.
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    #[command(flatten)]
    read: ReadFlags,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct PsArgs {
    /// Id, unique prefix of one, hostname, or `self`.
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
    #[command(flatten)]
    flags: task_table::TaskFlags,
    #[command(flatten)]
    read: ReadFlags,
}

/// Docker's table of nodes; the star marks the one that answers.
const NODES: Listing = Listing {
    template: "{{.ID}} {{if .Self}}*{{else}} {{end}}\t{{.Hostname}}\t{{.Status}}\t{{.Availability}}\t\
               {{.ManagerStatus}}\t{{.EngineVersion}}",
    fields: &[
        ("ID", "ID"),
        ("Hostname", "HOSTNAME"),
        ("Status", "STATUS"),
        ("Availability", "AVAILABILITY"),
        ("ManagerStatus", "MANAGER STATUS"),
        ("EngineVersion", "ENGINE VERSION"),
        ("TLSStatus", "TLS STATUS"),
        ("Addr", "ADDRESS"),
        ("Role", "ROLE"),
        ("Message", "MESSAGE"),
        ("Self", ""),
    ],
    quiet: "ID",
};

impl NodeCommand {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Ls(args) => list(context, args).await,
            Self::Inspect(args) if args.pretty => {
                inspect::pretty(context, args.read, &args.nodes, async |client, reference| {
                    Ok(pretty_node::text(&get(client, reference).await?, time::now_ms()))
                })
                .await
            }
            Self::Inspect(args) => {
                inspect::run(context, args.read, &args.nodes, &args.flags, async |client, reference| {
                    let node = get(client, reference).await?;
                    let mesh = mesh(client, &node).await?;
                    Ok(NodeView::from(node).with_mesh(mesh))
                })
                .await
            }
            Self::Ps(args) => ps(context, args).await,
            Self::Update(args) => change::update(context, args).await,
            Self::Promote(args) => change::set_role(context, args, NodeRole::Manager).await,
            Self::Demote(args) => change::set_role(context, args, NodeRole::Worker).await,
            Self::Rm(args) => change::remove(context, args).await,
        }
    }
}

async fn get(client: &Client, reference: &str) -> Result<Node, Failure> {
    let call = async |read| client.nodes().get(GetNodeRequest { reference: reference.to_owned(), read }).await;
    let answer = client.read(call).await.map_err(|status| Failure::from_lookup("node", reference, status))?;
    Ok(answer.into_inner().node.unwrap_or_default())
}

/// How a node sees the mesh, where it has an end in it.
async fn mesh(client: &Client, node: &Node) -> Result<Option<MeshView>, Failure> {
    if node.description.as_ref().is_none_or(|description| description.fabric.is_none()) {
        return Ok(None);
    }
    let said = network::doctor::mesh(client, std::slice::from_ref(&node.id)).await.into_values().next();
    let nodes = all(client).await?;
    let name = |id: &[u8]| nodes.iter().find(|node| node.id == id).map(|node| hostname(node).to_owned());
    Ok(said.map(|said| MeshView::new(said, |id| name(id).unwrap_or_default(), None)))
}

/// All nodes, for listings and to turn ids into hostnames.
pub(super) async fn all(client: &Client) -> Result<Vec<Node>, Failure> {
    let list = async |read| {
        let pages = client.nodes().list(ListNodesRequest { read }).await?.into_inner();
        listing::collect(pages, |page| page.nodes).await
    };
    Ok(client.read(list).await?)
}

async fn list(context: &Context, args: &LsArgs) -> Result<(), Failure> {
    let format = args.flags.format()?;
    let filters =
        Filters::parse(&args.flags.filter, &["id", "label", "membership", "name", "node.label", "role"], &[])?;
    filters.only("role", &["worker", "manager"])?;
    filters.only("membership", &["accepted", "pending"])?;
    let client = context.connect_to_read(args.read).await?;
    let this = if client.is_remote() {
        get(&client, "self").await?.id
    } else {
        client.daemon().info(InfoRequest {}).await?.into_inner().node_id
    };
    let mut nodes = all(&client).await?;
    nodes.retain(|node| matches(node, &filters));
    nodes.sort_by(|a, b| natural::compare(hostname(a), hostname(b)).then_with(|| a.id.cmp(&b.id)));
    let rows: Vec<_> = nodes.iter().map(|node| row(node, &this)).collect();
    listing::print(&NODES, &rows, &format)
}

fn hostname(node: &Node) -> &str {
    node.description.as_ref().map_or("", |description| &description.hostname)
}

fn matches(node: &Node, filters: &Filters) -> bool {
    let spec = node.spec.clone().unwrap_or_default();
    let description = node.description.clone().unwrap_or_default();
    filters.passes("id", |prefix| view::id(&node.id).starts_with(prefix))
        && filters.passes("name", |prefix| description.hostname.starts_with(prefix))
        && filters.passes("role", |role| role == state::role(spec.role()))
        // A node is a member once it has a certificate; there is no pending membership.
        && filters.passes("membership", |membership| membership == "accepted")
        && filters.labels("node.label", &spec.labels)
        && filters.labels("label", &description.engine_labels)
}

fn row(node: &Node, this: &[u8]) -> Map<String, Value> {
    let spec = node.spec.clone().unwrap_or_default();
    let description = node.description.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    listing::row([
        ("ID", view::id(&node.id).into()),
        ("Hostname", description.hostname.into()),
        ("Status", state::capital(state::node(status.state())).into()),
        ("Availability", state::capital(state::availability(spec.availability())).into()),
        ("ManagerStatus", state::manager(node.manager.as_ref()).into()),
        ("EngineVersion", description.engine_version.into()),
        ("TLSStatus", "Ready".into()),
        ("Addr", status.addr.into()),
        ("Role", state::role(node.role()).into()),
        ("Message", status.message.into()),
        ("Self", (!this.is_empty() && node.id == this).into()),
    ])
}

async fn ps(context: &Context, args: &PsArgs) -> Result<(), Failure> {
    let prepared = args.flags.prepare(&["id", "name", "desired-state", "label"])?;
    let client = context.connect_to_read(args.read).await?;
    let this = ["self".to_owned()];
    let references = if args.nodes.is_empty() { &this[..] } else { &args.nodes };
    let mut outcome = Outcome::default();
    let mut node_ids = Vec::new();
    for reference in references {
        node_ids.extend(outcome.take(get(&client, reference).await)?.map(|node| node.id));
    }
    if !node_ids.is_empty() {
        let request = ListTasksRequest { node_ids, ..ListTasksRequest::default() };
        prepared.print(&client, request).await?;
    }
    outcome.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::{ManagerStatus, NodeDescription, NodeState, NodeStatus};

    use super::*;
    use crate::output::format::Format;

    fn node(id: u8, hostname: &str, manager: bool) -> Node {
        let mut status = NodeStatus::default();
        status.set_state(NodeState::Ready);
        Node {
            id: vec![id; 16],
            description: Some(NodeDescription {
                hostname: hostname.to_owned(),
                engine_version: "0.1.0".to_owned(),
                ..NodeDescription::default()
            }),
            status: Some(status),
            manager: manager.then(|| ManagerStatus { leader: true, ..ManagerStatus::default() }),
            ..Node::default()
        }
    }

    #[test]
    fn the_table_is_dockers() {
        let nodes = [node(1, "host1", true), node(2, "host2", false)];
        let rows: Vec<_> = nodes.iter().map(|node| row(node, &[1; 16])).collect();
        let table = NODES.render(&rows, &Format::Table(None)).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines[0],
            "ID                            HOSTNAME   STATUS    AVAILABILITY   MANAGER STATUS   ENGINE VERSION"
        );
        assert!(lines[1].contains(" *   host1      Ready     Active         Leader           0.1.0"), "{}", lines[1]);
        assert!(lines[2].contains("     host2      Ready     Active                          0.1.0"), "{}", lines[2]);
    }

    #[test]
    fn filters() {
        let list = |text: &str| Filters::parse(&[text.to_owned()], &["name", "role", "id"], &[]).unwrap();
        assert!(matches(&node(1, "host1", true), &list("name=host")));
        assert!(!matches(&node(1, "host1", true), &list("name=other")));
        assert!(matches(&node(1, "host1", true), &list("role=worker")));
    }
}
