//! Nodes: list, get.

use skep_identity::Caller;
use skep_proto::v1::nodes_server::Nodes;
use skep_proto::v1::{GetNodeRequest, GetNodeResponse, ListNodesRequest, ListNodesResponse};
use tonic::{Request, Response, Status};

use super::error::IntoStatus;
use super::{Control, read, summary};

const PIECE: usize = 500;

#[tonic::async_trait]
impl Nodes for Control {
    type ListStream = read::Answers<ListNodesResponse>;

    async fn list(&self, request: Request<ListNodesRequest>) -> Result<Response<Self::ListStream>, Status> {
        Caller::of(&request)?.require_operator()?;
        let state = read::state(&self.store, request.into_inner().read).await?;
        let version = state.version();
        let nodes = state.nodes().map(|node| summary::node(node)).collect();
        Ok(Response::new(read::pieces(nodes, PIECE, move |nodes| ListNodesResponse { nodes, version })))
    }

    async fn get(&self, request: Request<GetNodeRequest>) -> Result<Response<GetNodeResponse>, Status> {
        Caller::of(&request)?.require_operator()?;
        let GetNodeRequest { reference, read } = request.into_inner();
        let state = read::state(&self.store, read).await?;
        let reference = if reference == "self" { self.node.to_string() } else { reference };
        let node = state.find_node(&reference).map_err(IntoStatus::into_status)?;
        Ok(Response::new(GetNodeResponse { node: Some(summary::node(node)), version: state.version() }))
    }

    async fn update(
        &self,
        _: Request<skep_proto::v1::UpdateNodeRequest>,
    ) -> Result<Response<skep_proto::v1::UpdateNodeResponse>, Status> {
        Err(Status::unimplemented("not supported yet: this call"))
    }

    async fn remove(
        &self,
        _: Request<skep_proto::v1::RemoveNodeRequest>,
    ) -> Result<Response<skep_proto::v1::RemoveNodeResponse>, Status> {
        Err(Status::unimplemented("not supported yet: this call"))
    }
}
