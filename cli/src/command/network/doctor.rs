//! `skep network doctor`: what is wrong with networks, and what to do; and how nodes see the mesh, for `inspect`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use clap::Args;
use serde_json::{Map, Value};
use skep_proto::v1::{
    CheckArea, CheckSeverity, MeshHealthRequest, Network, NetworkDoctorRequest, NetworkDoctorResponse, NetworkFinding,
    Node, NodeMesh,
};

use super::node;
use crate::client::Client;
use crate::command::context::{Context, ReadFlags};
use crate::command::listing;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;
use crate::output::format::{Format, Listing};
use crate::view;

#[derive(Args, Clone, Debug)]
pub(crate) struct DoctorArgs {
    /// Name, id, or unique prefix of an id [default: all networks, and all hosts].
    #[arg(value_name = "NETWORK")]
    network: Option<String>,
    /// How to print the findings: `table`, `table TEMPLATE`, `json`, or a Go template [default: sentences].
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    #[command(flatten)]
    read: ReadFlags,
}

/// What is wrong.
const FINDINGS: Listing = Listing {
    template: "{{.Severity}}\t{{.Area}}\t{{.Node}}\t{{.Peer}}\t{{.Network}}\t{{.Problem}}",
    fields: &[
        ("Severity", "SEVERITY"),
        ("Area", "AREA"),
        ("Node", "NODE"),
        ("NodeID", "NODE ID"),
        ("Peer", "PEER"),
        ("PeerID", "PEER ID"),
        ("Network", "NETWORK"),
        ("NetworkID", "NETWORK ID"),
        ("Problem", "PROBLEM"),
        ("Advice", "ADVICE"),
    ],
    quiet: "Problem",
};

/// Asks, prints, and fails where something does not work.
pub(super) async fn run(context: &Context, args: &DoctorArgs) -> Result<(), Failure> {
    let format = args.format.as_deref().map(|format| Format::from_flags(Some(format), false)).transpose()?;
    let client = context.connect_to_read(args.read).await?;
    let reference = args.network.clone().unwrap_or_default();
    let call = async |read| {
        let request = NetworkDoctorRequest { reference: reference.clone(), read };
        client.networks().doctor(request).await
    };
    let answer = client.read(call).await.map_err(|status| Failure::from_lookup("network", &reference, status))?;
    let answer = answer.into_inner();
    let names = Names::of(&node::all(&client).await?, &super::all(&client).await?);
    match format {
        Some(format) => {
            let rows: Vec<_> = answer.findings.iter().map(|finding| row(finding, &names)).collect();
            if !rows.is_empty() || !format.is_table() {
                listing::print(&FINDINGS, &rows, &format)?;
            }
        }
        None => output::data(sentences(&answer, &names))?,
    }
    output::note(summary(&answer));
    match count(&answer, CheckSeverity::Error) {
        0 => Ok(()),
        _ => Err(Failure::Reported(Exit::Failed)),
    }
}

/// How the nodes see the mesh. A manager that cannot tell says why for each.
pub(crate) async fn mesh(client: &Client, ids: &[Vec<u8>]) -> BTreeMap<Vec<u8>, NodeMesh> {
    let request = MeshHealthRequest { node_ids: ids.to_vec() };
    match client.networks().mesh(request).await {
        Ok(answer) => answer.into_inner().nodes.into_iter().map(|mesh| (mesh.node_id.clone(), mesh)).collect(),
        Err(status) => {
            let failed = |id: &Vec<u8>| {
                let error = status.message().to_owned();
                (id.clone(), NodeMesh { node_id: id.clone(), error, ..NodeMesh::default() })
            };
            ids.iter().map(failed).collect()
        }
    }
}

/// What ids are called.
struct Names {
    nodes: BTreeMap<Vec<u8>, String>,
    networks: BTreeMap<Vec<u8>, String>,
}

impl Names {
    fn of(nodes: &[Node], networks: &[Network]) -> Self {
        let hostname = |node: &Node| {
            let description = node.description.as_ref();
            let name = description.map(|description| description.hostname.clone());
            (node.id.clone(), name.filter(|name| !name.is_empty()).unwrap_or_else(|| view::short_id(&node.id)))
        };
        let name = |network: &Network| (network.id.clone(), super::name(network).to_owned());
        Self { nodes: nodes.iter().map(hostname).collect(), networks: networks.iter().map(name).collect() }
    }

    fn find(names: &BTreeMap<Vec<u8>, String>, id: &[u8]) -> String {
        match id {
            [] => String::new(),
            id => names.get(id).cloned().unwrap_or_else(|| view::short_id(id)),
        }
    }

    fn node(&self, id: &[u8]) -> String {
        Self::find(&self.nodes, id)
    }

    fn network(&self, id: &[u8]) -> String {
        Self::find(&self.networks, id)
    }
}

fn severity(finding: &NetworkFinding) -> &'static str {
    match finding.severity() {
        CheckSeverity::Ok => "ok",
        CheckSeverity::Warning => "warning",
        CheckSeverity::Error => "error",
    }
}

fn area(finding: &NetworkFinding) -> &'static str {
    match finding.area() {
        CheckArea::Host => "host",
        CheckArea::Reachability => "reachability",
        CheckArea::Mtu => "mtu",
        CheckArea::Mesh => "mesh",
        CheckArea::Rules => "rules",
        CheckArea::Devices => "devices",
        CheckArea::Settings => "settings",
        CheckArea::Addresses => "addresses",
        CheckArea::Tables => "tables",
        CheckArea::Ports => "ports",
    }
}

fn row(finding: &NetworkFinding, names: &Names) -> Map<String, Value> {
    let id = |id: &[u8]| if id.is_empty() { String::new() } else { view::id(id) };
    listing::row([
        ("Severity", severity(finding).into()),
        ("Area", area(finding).into()),
        ("Node", names.node(&finding.node_id).into()),
        ("NodeID", id(&finding.node_id).into()),
        ("Peer", names.node(&finding.peer_id).into()),
        ("PeerID", id(&finding.peer_id).into()),
        ("Network", names.network(&finding.network_id).into()),
        ("NetworkID", id(&finding.network_id).into()),
        ("Problem", finding.problem.clone().into()),
        ("Advice", finding.advice.clone().into()),
    ])
}

/// What is wrong, by hosts, the swarm as a whole first. What is only worth knowing stays out.
fn sentences(answer: &NetworkDoctorResponse, names: &Names) -> String {
    let mut of_host: BTreeMap<String, Vec<&NetworkFinding>> = BTreeMap::new();
    for finding in answer.findings.iter().filter(|finding| finding.severity() != CheckSeverity::Ok) {
        of_host.entry(names.node(&finding.node_id)).or_default().push(finding);
    }
    let mut text = String::new();
    for (host, findings) in of_host {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}:", if host.is_empty() { "swarm" } else { &host });
        for finding in findings {
            let peer = match finding.peer_id.as_slice() {
                [] => String::new(),
                id => format!(" (to {})", names.node(id)),
            };
            let _ = writeln!(text, "  {}{peer}: {}", severity(finding), finding.problem);
            if !finding.advice.is_empty() {
                let _ = writeln!(text, "    -> {}", finding.advice);
            }
        }
    }
    text
}

fn count(answer: &NetworkDoctorResponse, severity: CheckSeverity) -> usize {
    answer.findings.iter().filter(|finding| finding.severity() == severity).count()
}

fn counted(count: usize, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

/// "3 hosts, 3 pairs of them, 2 networks: all well"
fn summary(answer: &NetworkDoctorResponse) -> String {
    let pair = |path: &skep_proto::v1::NetworkPath| {
        (path.node_id.clone().min(path.peer_id.clone()), path.node_id.clone().max(path.peer_id.clone()))
    };
    let pairs: BTreeSet<_> = answer.paths.iter().map(pair).collect();
    let verdict = match (count(answer, CheckSeverity::Error), count(answer, CheckSeverity::Warning)) {
        (0, 0) => "all well".to_owned(),
        (errors, 0) => counted(errors, "error"),
        (0, warnings) => counted(warnings, "warning"),
        (errors, warnings) => format!("{}, {}", counted(errors, "error"), counted(warnings, "warning")),
    };
    let untried = match answer.untried_pairs {
        0 => String::new(),
        pairs => format!(" ({pairs} more run no tasks that could answer)"),
    };
    format!(
        "checked {}, {} of them{untried}, {}: {verdict}",
        counted(answer.node_ids.len(), "host"),
        counted(pairs.len(), "pair"),
        counted(answer.network_ids.len(), "network"),
    )
}

#[cfg(test)]
mod tests {
    use skep_proto::v1::NetworkPath;

    use super::*;

    fn finding(severity: CheckSeverity, node: u8) -> NetworkFinding {
        NetworkFinding {
            severity: severity.into(),
            area: CheckArea::Reachability.into(),
            node_id: if node == 0 { Vec::new() } else { vec![node; 16] },
            peer_id: if node == 0 { Vec::new() } else { vec![node + 1; 16] },
            problem: "packets do not come through".to_owned(),
            advice: "let UDP port 4789 pass".to_owned(),
            ..NetworkFinding::default()
        }
    }

    fn names() -> Names {
        let names = |text: &str, count: u8| (1..=count).map(|n| (vec![n; 16], format!("{text}{n}"))).collect();
        Names { nodes: names("host", 3), networks: names("net", 1) }
    }

    #[test]
    fn sentences_are_grouped_by_host() {
        let findings =
            vec![finding(CheckSeverity::Error, 1), finding(CheckSeverity::Warning, 0), finding(CheckSeverity::Ok, 2)];
        let path =
            |from: u8, to: u8| NetworkPath { node_id: vec![from; 16], peer_id: vec![to; 16], ..NetworkPath::default() };
        let answer = NetworkDoctorResponse {
            findings,
            paths: vec![path(1, 2), path(2, 1), path(1, 3)],
            node_ids: vec![vec![1; 16]; 3],
            network_ids: vec![vec![1; 16]],
            untried_pairs: 1,
        };
        assert_eq!(
            sentences(&answer, &names()),
            "swarm:\n  warning: packets do not come through\n    -> let UDP port 4789 pass\nhost1:\n  error (to host2): packets do \
             not come through\n    -> let UDP port 4789 pass\n"
        );
        assert_eq!(
            summary(&answer),
            "checked 3 hosts, 2 pairs of them (1 more run no tasks that could answer), 1 network: 1 error, 1 warning"
        );
        assert_eq!(
            summary(&NetworkDoctorResponse::default()),
            "checked 0 hosts, 0 pairs of them, 0 networks: all well"
        );
        let row = row(&answer.findings[0], &names());
        assert!(
            FINDINGS.fields.iter().all(|(field, _)| row.contains_key(*field)) && row.len() == FINDINGS.fields.len()
        );
        assert_eq!((row["Node"].as_str(), row["Peer"].as_str()), (Some("host1"), Some("host2")));
    }
}
