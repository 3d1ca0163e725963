//! Nodes: list, get, update, remove.

use std::sync::Arc;
use std::time::Duration;

use skep_core::apply::Refused;
use skep_core::change::{Change, Op};
use skep_core::object::{Cluster, Node};
use skep_core::roles::{self, DemotionRefused};
use skep_core::store::State;
use skep_proto::id::{NodeId, RequestId};
use skep_proto::v1::nodes_server::Nodes;
use skep_proto::v1::{
    Availability, GetNodeRequest, GetNodeResponse, ListNodesRequest, ListNodesResponse, NodeRole, NodeSpec, NodeState,
    RemoveNodeRequest, RemoveNodeResponse, UpdateNodeRequest, UpdateNodeResponse,
};
use skep_proto::validate;
use tonic::{Request, Response, Status};

use super::error::IntoStatus;
use super::services::request_id;
use super::{ATTEMPTS, Control, read, summary};
use crate::keys;
use crate::store::{WriteError, Written};
use crate::topic::Topic;

const PIECE: usize = 500;
/// How long the removal of a manager waits until it is out of Raft.
const OUT_OF_RAFT: Duration = Duration::from_secs(15);

#[tonic::async_trait]
impl Nodes for Control {
    type ListStream = read::Answers<ListNodesResponse>;

    async fn list(&self, request: Request<ListNodesRequest>) -> Result<Response<Self::ListStream>, Status> {
        let state = read::state(&self.store, request.into_inner().read).await?;
        let (version, seen) = (state.version(), self.seen(&state));
        let nodes = state.nodes().map(|node| summary::node(node, &seen)).collect();
        Ok(Response::new(read::pieces(nodes, PIECE, move |nodes| ListNodesResponse { nodes, version })))
    }

    async fn get(&self, request: Request<GetNodeRequest>) -> Result<Response<GetNodeResponse>, Status> {
        let GetNodeRequest { reference, read } = request.into_inner();
        let state = read::state(&self.store, read).await?;
        let node = summary::node(self.find_node(&state, &reference)?, &self.seen(&state));
        Ok(Response::new(GetNodeResponse { node: Some(node), version: state.version() }))
    }

    async fn update(&self, request: Request<UpdateNodeRequest>) -> Result<Response<UpdateNodeResponse>, Status> {
        let UpdateNodeRequest { reference, spec, expect_version, write } = request.into_inner();
        let request_id = request_id(write)?;
        let spec = spec.ok_or_else(|| Status::invalid_argument("a node spec is needed"))?;
        check_spec(&spec)?;
        if let Some((id, version)) = read::first_answer(&read::fresh(&self.store).await?, request_id) {
            return Ok(Response::new(UpdateNodeResponse { id, version }));
        }
        let respec = |node: &Node| Node { spec: Arc::new(spec.clone()), ..node.clone() };
        let (before, written) = self.change_node(&reference, expect_version, request_id, respec).await?;
        if before.spec.role() == NodeRole::Manager && spec.role() == NodeRole::Worker {
            // New data keys were asked for; a manager that is away follows later.
            self.keys_everywhere(written.version).await;
        }
        Ok(Response::new(UpdateNodeResponse { id: written.object_id, version: written.version }))
    }

    async fn remove(&self, request: Request<RemoveNodeRequest>) -> Result<Response<RemoveNodeResponse>, Status> {
        let RemoveNodeRequest { reference, force, write } = request.into_inner();
        let request_id = request_id(write)?;
        let state = read::fresh(&self.store).await?;
        if let Some((id, version)) = read::first_answer(&state, request_id) {
            // The first try removed it: it is not to be found any more.
            return Ok(Response::new(RemoveNodeResponse { id, version, hostname: reference }));
        }
        let node = Arc::clone(self.find_node(&state, &reference)?);
        may_remove(&node, self.node, force)?;
        let was_manager = is_manager(&node);
        let node = if was_manager { self.take_vote(node.id).await? } else { node };
        let changes = vec![Change::update(node.meta.version, Op::RemoveNode(node.id))];
        let written = self.store.write(request_id, node.id.to_vec(), changes).await.map_err(IntoStatus::into_status)?;
        if was_manager {
            // Its demotion asked the others for new data keys; one that is away follows later.
            self.keys_everywhere(written.version).await;
        }
        let hostname = node.hostname().to_owned();
        Ok(Response::new(RemoveNodeResponse { id: written.object_id, version: written.version, hostname }))
    }
}

impl Control {
    /// `self` is the answering manager's own node.
    #[allow(clippy::result_large_err)]
    fn find_node<'a>(&self, state: &'a State, reference: &str) -> Result<&'a Arc<Node>, Status> {
        let own = (reference == "self").then(|| self.node.to_string());
        state.find_node(own.as_deref().unwrap_or(reference)).map_err(IntoStatus::into_status)
    }

    /// Writes a node's wanted part, if its role allows it. With `expect_version` 0 it is tried again when another write
    /// came between.
    async fn change_node(
        &self,
        reference: &str,
        expect_version: u64,
        request: Option<RequestId>,
        change: impl Fn(&Node) -> Node,
    ) -> Result<(Arc<Node>, Written), Status> {
        let mut attempts = 0;
        loop {
            let state = read::fresh(&self.store).await?;
            let node = self.find_node(&state, reference)?;
            let version = if expect_version == 0 { node.meta.version } else { expect_version };
            let changed = change(node);
            let mut changes = vec![Change::update(version, Op::PutNode(changed.clone()))];
            if node.spec.role() == NodeRole::Manager && changed.spec.role() == NodeRole::Worker {
                changes.push(self.demotion(&state, node)?);
            }
            attempts += 1;
            match self.store.write(request, node.id.to_vec(), changes).await {
                Ok(written) => return Ok((Arc::clone(node), written)),
                Err(WriteError::Refused(Refused::OutOfSequence { .. }))
                    if expect_version == 0 && attempts < ATTEMPTS => {}
                Err(error) => return Err(error.into_status()),
            }
        }
    }

    /// Checks a demotion, and guards it: the write that it comes with also needs the cluster object unchanged, so that
    /// of two demotions at once the second is checked against the first. A member that goes is a reason for new data keys.
    #[allow(clippy::result_large_err)]
    fn demotion(&self, state: &State, node: &Node) -> Result<Change, Status> {
        let seen = self.seen(state);
        roles::check_demotion(state, seen.view(), node)
            .map_err(|refused| Status::failed_precondition(refused.to_string()))?;
        let cluster = state.cluster().ok_or_else(|| Status::unavailable("the swarm's state is not loaded yet"))?;
        let changed = if keys::is_known(cluster) { keys::replaced(cluster) } else { Cluster::clone(cluster) };
        Ok(Change::update(cluster.meta.version, Op::PutCluster(changed)))
    }

    /// Demotes a manager and waits until it is out of Raft. Returns the node as it is then.
    async fn take_vote(&self, id: NodeId) -> Result<Arc<Node>, Status> {
        let mut nodes = self.store.watch(Topic::Nodes);
        let demote = |node: &Node| {
            let mut demoted = node.clone();
            Arc::make_mut(&mut demoted.spec).set_role(NodeRole::Worker);
            demoted
        };
        let refused = |status: Status| match status.message() {
            message if message == DemotionRefused::LastManager.to_string() => {
                Status::failed_precondition("attempting to remove the last manager of the swarm")
            }
            _ => status,
        };
        self.change_node(&id.to_string(), 0, None, demote).await.map_err(refused)?;
        let out = async {
            loop {
                let state = self.store.state();
                match state.node(id) {
                    None => return Err(Status::not_found(format!("node {id} is gone: someone else removed it"))),
                    Some(node) if node.manager.is_none() => return Ok(Arc::clone(node)),
                    Some(_) => nodes.changed().await,
                }
            }
        };
        tokio::time::timeout(OUT_OF_RAFT, out).await.unwrap_or_else(|_| {
            Err(Status::unavailable(format!(
                "node {id} is being demoted, but is not out of the managers' group yet: see `skep node inspect {id}`, and \
                 remove it again in a moment"
            )))
        })
    }
}

/// A wish that this version knows in every part.
#[allow(clippy::result_large_err)]
fn check_spec(spec: &NodeSpec) -> Result<(), Status> {
    validate::node_spec(spec).map_err(IntoStatus::into_status)?;
    if NodeRole::try_from(spec.role).is_err() {
        return Err(Status::invalid_argument("invalid role: it is none of worker, manager"));
    }
    if Availability::try_from(spec.availability).is_err() {
        return Err(Status::invalid_argument("invalid availability: it is none of active, pause, drain"));
    }
    Ok(())
}

fn is_manager(node: &Node) -> bool {
    node.manager.is_some() || node.spec.role() == NodeRole::Manager
}

/// Whether a node may be removed. `own` is the answering manager's.
#[allow(clippy::result_large_err)]
fn may_remove(node: &Node, own: NodeId, force: bool) -> Result<(), Status> {
    let id = node.id;
    let refuse = |why: String| Err(Status::failed_precondition(why));
    if id == own {
        return refuse(format!(
            "node {id} is the manager that answers: remove it from another manager, or leave the swarm on it with \
             `skep swarm leave`"
        ));
    }
    if force {
        return Ok(());
    }
    if is_manager(node) {
        return refuse(format!("node {id} is a manager: demote it first with `skep node demote {id}`, or use --force"));
    }
    match node.status.state {
        NodeState::Down => Ok(()),
        // It joined and never had a session: it runs nothing.
        NodeState::Unknown if node.status.addr.is_empty() => Ok(()),
        NodeState::Disconnected => refuse(format!(
            "node {id} has only just gone and is not down yet: try again in a few seconds, or use --force"
        )),
        NodeState::Ready | NodeState::Unknown => refuse(format!(
            "node {id} is not down and can't be removed: stop it or let it leave with `skep swarm leave` first, or use --force"
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_core::object::{ManagerStatus, Meta, NodeStatus};

    use super::*;

    fn node(state: NodeState, addr: &str) -> Node {
        Node {
            id: NodeId::new(2),
            meta: Meta::default(),
            spec: Arc::default(),
            description: None,
            status: NodeStatus { state, addr: addr.into(), ..NodeStatus::default() },
            role: NodeRole::Worker,
            manager: None,
            fabric_number: None,
            ingress: None,
        }
    }

    fn refused(node: &Node, force: bool) -> String {
        may_remove(node, NodeId::new(1), force).map_or_else(|status| status.message().to_owned(), |()| String::new())
    }

    #[test]
    fn only_nodes_that_are_gone_are_removed_without_force() {
        assert_eq!(refused(&node(NodeState::Down, "10.0.0.2"), false), "");
        assert_eq!(refused(&node(NodeState::Unknown, ""), false), "");
        let ready = node(NodeState::Ready, "10.0.0.2");
        assert!(refused(&ready, false).contains("is not down and can't be removed"));
        assert_eq!(refused(&ready, true), "");
        assert!(refused(&node(NodeState::Unknown, "10.0.0.2"), false).contains("is not down"));
        assert!(refused(&node(NodeState::Disconnected, "10.0.0.2"), false).contains("not down yet"));
    }

    #[test]
    fn managers_are_demoted_first_and_none_removes_itself() {
        let manager = Some(ManagerStatus { raft_id: 2, addr: "10.0.0.2:2377".into() });
        let mut down = Node { manager, ..node(NodeState::Down, "10.0.0.2") };
        assert!(refused(&down, false).contains("demote it first"));
        assert_eq!(refused(&down, true), "");
        down.id = NodeId::new(1);
        assert!(refused(&down, true).contains("the manager that answers"));
    }

    #[test]
    fn wishes_of_a_newer_version_are_refused() {
        let message = |spec: NodeSpec| check_spec(&spec).unwrap_err().message().to_owned();
        assert!(check_spec(&NodeSpec::default()).is_ok());
        assert!(message(NodeSpec { role: 7, ..NodeSpec::default() }).contains("role"));
        assert!(message(NodeSpec { availability: 7, ..NodeSpec::default() }).contains("availability"));
        let labels = [(String::new(), "x".to_owned())].into();
        assert!(message(NodeSpec { labels, ..NodeSpec::default() }).contains("labels"));
    }
}
