//! `skep network doctor` and the mesh's health: all nodes concerned are asked at once, and their answers put together with
//! what the managers know.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use skep_core::network::{health, table};
use skep_core::store::State;
use skep_proto::id::{NetworkId, NodeId};
use skep_proto::v1::{
    CheckArea, CheckSeverity, MeshHealthRequest, MeshHealthResponse, NetworkCheck, NetworkCheckAnswer,
    NetworkCheckRequest, NetworkDoctorRequest, NetworkDoctorResponse, NetworkFinding, NodeMesh, NodeState,
};
use tonic::Status;

use super::error::IntoStatus;
use super::{Control, read};
use crate::dispatch::Dispatcher;
use crate::dispatch::checks::NoAnswer;

/// How long a node may take for a check.
const CHECK_WITHIN: Duration = Duration::from_secs(10);
/// How long a node may take to say how it sees the mesh.
const MESH_WITHIN: Duration = Duration::from_secs(2);
/// Nodes that are asked at the same time.
const AT_ONCE: usize = 64;
/// Nodes whose mesh can be asked for at a time.
const MESH_NODES: usize = 1_000;

impl Control {
    #[allow(clippy::result_large_err)]
    fn nodes(&self) -> Result<&Dispatcher, Status> {
        self.dispatcher.as_ref().ok_or_else(|| Status::unimplemented("this manager has no nodes to ask"))
    }

    /// Asks everybody who is ready, and judges.
    pub(super) async fn examine(&self, request: NetworkDoctorRequest) -> Result<NetworkDoctorResponse, Status> {
        let dispatcher = self.nodes()?;
        let state = read::state(&self.store, request.read).await?;
        let only = match request.reference.as_str() {
            "" => None,
            reference => Some(state.find_network(reference).map_err(IntoStatus::into_status)?.id),
        };
        let versions: BTreeMap<NetworkId, u64> = dispatcher
            .table_versions()
            .into_iter()
            .filter(|(network, _)| only.is_none_or(|only| only == *network))
            .collect();
        let ready = state.nodes().filter(|node| node.status.state == NodeState::Ready).map(|node| node.id);
        let concerned: BTreeSet<NodeId> = match only {
            Some(network) => {
                let members = table::members(&state, network);
                ready.filter(|node| members.contains(node)).collect()
            }
            None => ready.collect(),
        };
        let network_ids = only.iter().map(|id| id.to_vec()).collect();
        let question = NetworkCheckRequest { network_ids, ..NetworkCheckRequest::default() };
        let answers = ask_all(dispatcher, &concerned, &question, CHECK_WITHIN).await;
        Ok(judge(&state, answers, &versions, only))
    }

    /// How nodes see the mesh.
    pub(super) async fn mesh_of(&self, request: MeshHealthRequest) -> Result<MeshHealthResponse, Status> {
        let dispatcher = self.nodes()?;
        if request.node_ids.len() > MESH_NODES {
            return Err(Status::invalid_argument(format!("at most {MESH_NODES} nodes can be asked at a time")));
        }
        let ids = request.node_ids.iter().map(|id| NodeId::from_wire(id));
        let ids: BTreeSet<NodeId> =
            ids.collect::<Result<_, _>>().map_err(|error| Status::invalid_argument(error.to_string()))?;
        let question = NetworkCheckRequest { mesh_only: true, ..NetworkCheckRequest::default() };
        let answers = ask_all(dispatcher, &ids, &question, MESH_WITHIN).await;
        let nodes = answers.into_iter().map(|(node, answer)| {
            let (mesh, error) = match answer {
                Ok(answer) => (answer.mesh, answer.error),
                Err(why) => (None, why.to_string()),
            };
            NodeMesh { node_id: node.to_vec(), mesh, error }
        });
        Ok(MeshHealthResponse { nodes: nodes.collect() })
    }
}

type Answers = BTreeMap<NodeId, Result<NetworkCheckAnswer, NoAnswer>>;

async fn ask_all(
    dispatcher: &Dispatcher,
    nodes: &BTreeSet<NodeId>,
    question: &NetworkCheckRequest,
    within: Duration,
) -> Answers {
    let ask = |node: NodeId| {
        let (checks, question) = (dispatcher.checks().clone(), question.clone());
        async move { (node, checks.ask(node, question, within).await) }
    };
    stream::iter(nodes.iter().copied().map(ask)).buffer_unordered(AT_ONCE).collect().await
}

/// What all that means, the worst first. Pure.
fn judge(
    state: &State,
    answers: Answers,
    versions: &BTreeMap<NetworkId, u64>,
    only: Option<NetworkId>,
) -> NetworkDoctorResponse {
    let mut findings = health::state_findings(state, only);
    let mut checks: BTreeMap<NodeId, NetworkCheck> = BTreeMap::new();
    for (node, answer) in answers {
        let (problem, advice) = match answer {
            Ok(NetworkCheckAnswer { check: Some(check), error, .. }) if error.is_empty() => {
                checks.insert(node, check);
                continue;
            }
            Ok(answer) => {
                (format!("this host cannot be checked: {}", answer.error), "look at its daemon's log for `netd`")
            }
            Err(why) => (
                format!("this host cannot be asked: {why}"),
                "check that it runs and reaches a manager (`skep node ls`)",
            ),
        };
        findings.push(NetworkFinding {
            severity: CheckSeverity::Error.into(),
            area: CheckArea::Host.into(),
            node_id: node.to_vec(),
            problem,
            advice: advice.to_owned(),
            ..NetworkFinding::default()
        });
    }
    findings.extend(health::lagging(state, &checks, versions));
    let (_, untried) = health::pairs(state, &checks, only);
    let networks = state.networks().map(|network| network.id).filter(|id| only.is_none_or(|only| only == *id));
    let network_ids = networks.map(NetworkId::to_vec).collect();
    let node_ids = checks.keys().map(|node| node.to_vec()).collect();
    let mut paths = Vec::new();
    for check in checks.into_values() {
        findings.extend(check.findings);
        paths.extend(check.paths);
    }
    let mut findings = health::once_per_pair(findings);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let untried_pairs = u32::try_from(untried.len()).unwrap_or(u32::MAX);
    NetworkDoctorResponse { findings, paths, node_ids, network_ids, untried_pairs }
}
