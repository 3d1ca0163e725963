//! Tasks: list, get.

use std::collections::BTreeSet;
use std::sync::Arc;

use skep_core::codec;
use skep_core::object::Task;
use skep_core::store::State;
use skep_proto::id::{IdError, NodeId, ServiceId, TaskId};
use skep_proto::v1::tasks_server::Tasks;
use skep_proto::v1::{GetTaskRequest, GetTaskResponse, ListTasksRequest, ListTasksResponse};
use tonic::{Request, Response, Status};

use super::error::IntoStatus;
use super::{Control, read, summary};

const PIECE: usize = 500;

#[tonic::async_trait]
impl Tasks for Control {
    type ListStream = read::Answers<ListTasksResponse>;

    async fn list(&self, request: Request<ListTasksRequest>) -> Result<Response<Self::ListStream>, Status> {
        let request = request.into_inner();
        let services = ids(&request.service_ids, ServiceId::from_wire)?;
        let nodes = ids(&request.node_ids, NodeId::from_wire)?;
        let state = read::state(&self.store, request.read).await?;
        let version = state.version();
        let selected = select(&state, &services, &nodes)
            .into_iter()
            .filter(|task| !request.only_wanted || task.wanted.wants_to_run())
            .map(|task| summary::task(&state, task))
            .collect();
        Ok(Response::new(read::pieces(selected, PIECE, move |tasks| ListTasksResponse { tasks, version })))
    }

    async fn get(&self, request: Request<GetTaskRequest>) -> Result<Response<GetTaskResponse>, Status> {
        let GetTaskRequest { reference, read } = request.into_inner();
        let state = read::state(&self.store, read).await?;
        let task = state.find_task(&reference).map_err(IntoStatus::into_status)?;
        let revision = state.revision(task.revision).map(|revision| codec::revision_to_wire(revision));
        let answer = GetTaskResponse { task: Some(summary::task(&state, task)), revision, version: state.version() };
        Ok(Response::new(answer))
    }
}

fn ids<T>(wire: &[Vec<u8>], read: impl Fn(&[u8]) -> Result<T, IdError>) -> Result<Vec<T>, Status> {
    wire.iter().map(|bytes| read(bytes).map_err(|error| Status::invalid_argument(error.to_string()))).collect()
}

/// The tasks of the services, or on the nodes, or both; each once. Uses the index of what is given.
fn select<'a>(state: &'a State, services: &[ServiceId], nodes: &[NodeId]) -> Vec<&'a Arc<Task>> {
    let on_nodes = |task: &&Arc<Task>| nodes.is_empty() || task.node.is_some_and(|node| nodes.contains(&node));
    if !services.is_empty() {
        let mut seen = BTreeSet::<TaskId>::new();
        let tasks = services.iter().flat_map(|service| state.tasks_of_service(*service));
        return tasks.filter(on_nodes).filter(|task| seen.insert(task.id)).collect();
    }
    if nodes.is_empty() {
        return state.tasks().collect();
    }
    let mut seen = BTreeSet::<TaskId>::new();
    nodes.iter().flat_map(|node| state.tasks_on_node(*node)).filter(|task| seen.insert(task.id)).collect()
}
