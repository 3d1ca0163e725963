//! What this manager answers other managers (`managers.proto`). Its handlers run on the threads of the managers' port:
//! they decode, hand on, and wait; whatever takes longer is done elsewhere.

use std::sync::Arc;

use skep_core::apply::Refused;
use skep_core::codec;
use skep_identity::Caller;
use skep_proto::id::NodeId;
use skep_proto::v1::quorum_server::{Quorum, QuorumServer};
use skep_proto::v1::submit_failed::Reason;
use skep_proto::v1::submit_response::Outcome;
use skep_proto::v1::{
    DescribeRequest, DescribeResponse, EnterRequest, EnterResponse, RaftMessage, ReadVersionRequest,
    ReadVersionResponse, SubmitFailed, SubmitRequest, SubmitResponse, SubmitWritten,
};
use skep_raft::{Consensus as _, HandleError, MessageKind, RaftId, RaftNode};
use tonic::{Request, Response, Status};
use tracing::info;

use super::ask::MESSAGE_BYTES;
use super::enter::{self, Entry, Refusal};
use super::level::FEATURE_LEVEL;
use super::{Leader, Route, wire};
use crate::callers;
use crate::keys;
use crate::machine::Machine;
use crate::store::{Store, WRITE_DEADLINE, WriteError, Written};

/// How often an entry is written again when somebody changed the swarm's object meanwhile.
const ATTEMPTS: u32 = 5;

/// The service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct QuorumService {
    raft: Arc<RaftNode<Machine>>,
    store: Store,
    keys: keys::Board,
}

impl QuorumService {
    /// Answers for this manager; `keys` say how far it is with its keys on disk.
    pub(crate) fn new(raft: Arc<RaftNode<Machine>>, store: Store, keys: keys::Board) -> Self {
        Self { raft, store, keys }
    }

    /// The gRPC service, for the managers' port.
    pub(crate) fn service(&self) -> QuorumServer<Self> {
        QuorumServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }

    /// Whether Raft's messages of this node are not for this group: the state says that it is no manager, and this
    /// manager hears one that is. While it hears none it may itself be behind, and the sender be made a manager since:
    /// then Raft alone judges.
    fn is_stranger(&self, sender: NodeId) -> bool {
        let is_known = |leader: &Leader| leader.node.is_some_and(|node| node != sender);
        self.store.peers().leader().borrow().as_ref().is_some_and(is_known)
            && callers::is_demoted(&self.store.state(), sender)
    }

    /// Gives a node its Raft id. Only on the leader.
    async fn let_in(&self, node: NodeId, addr: &str, level: u32) -> Result<EnterResponse, Status> {
        for _ in 0..ATTEMPTS {
            let state = self.store.state();
            let raft = self.raft.status().borrow().clone();
            let entry = enter::decide(&state, &raft, node, addr, level).map_err(|refusal| refusal_status(&refusal))?;
            let raft_id: RaftId = match entry {
                Entry::Known(raft_id) => raft_id,
                Entry::New(raft_id, changes) => match self.store.write(None, node.to_vec(), changes).await {
                    Ok(_) => {
                        info!(%node, raft_id, addr, "a node becomes a manager");
                        raft_id
                    }
                    Err(WriteError::Refused(Refused::OutOfSequence { .. })) => continue,
                    Err(error) => return Err(Status::unavailable(error.to_string())),
                },
            };
            let state = self.store.state();
            let cluster = state.cluster().ok_or_else(|| refusal_status(&Refusal::NoState))?;
            let unlock_key = cluster.unlock_key.map(Vec::from).unwrap_or_default();
            return Ok(EnterResponse { raft_id, unlock_key, data_key_epoch: cluster.data_key_epoch });
        }
        Err(Status::aborted("the swarm's object is changing all the time: try again"))
    }
}

#[tonic::async_trait]
impl Quorum for QuorumService {
    async fn step(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let sender = Caller::of(&request)?.require_manager()?.node_id;
        let RaftMessage { kind: number, bytes } = request.into_inner();
        if self.is_stranger(sender) {
            let bytes = self.raft.answer_left_behind(bytes.into()).ok_or_else(|| callers::refusal(sender))?;
            return Ok(Response::new(RaftMessage { kind: number, bytes: bytes.into() }));
        }
        let kind = u8::try_from(number).ok().and_then(MessageKind::from_u8).ok_or_else(|| {
            Status::unimplemented("this manager does not know this kind of message: upgrade skep on it")
        })?;
        let answer = self.raft.handle(kind, bytes.into()).await.map_err(|error| match error {
            HandleError::Wire(_) => Status::failed_precondition(error.to_string()),
            HandleError::Stopped(_) | HandleError::Storage(_) => Status::unavailable(error.to_string()),
        })?;
        Ok(Response::new(RaftMessage { kind: number, bytes: answer.into() }))
    }

    async fn submit(&self, request: Request<SubmitRequest>) -> Result<Response<SubmitResponse>, Status> {
        let mut transactions = codec::decode_entry(&request.into_inner().entry)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (Some(transaction), None) = (transactions.pop(), transactions.pop()) else {
            return Err(Status::invalid_argument("an entry with exactly one transaction is needed"));
        };
        let outcome = self.store.submit_here(transaction, WRITE_DEADLINE).await;
        Ok(Response::new(SubmitResponse { outcome: Some(outcome_to_wire(outcome)) }))
    }

    async fn read_version(&self, _: Request<ReadVersionRequest>) -> Result<Response<ReadVersionResponse>, Status> {
        let confirmed = self.store.peers().confirm_lead().await;
        confirmed.map_err(|_| Status::unavailable("this manager does not lead: ask the leader"))?;
        let (version, now_ms) = (self.store.state().version(), self.store.now().0);
        Ok(Response::new(ReadVersionResponse { version, now_ms }))
    }

    async fn enter(&self, request: Request<EnterRequest>) -> Result<Response<EnterResponse>, Status> {
        // Whether it may become one is decided by the leader, for whom this manager only asks.
        let caller = Caller::of(&request)?.require_manager()?.node_id;
        let on_behalf = NodeId::from_wire_opt(&request.get_ref().node_id)
            .map_err(|error| Status::invalid_argument(format!("node_id: {error}")))?;
        if on_behalf.is_some() && callers::is_demoted(&self.store.state(), caller) {
            return Err(callers::refusal(caller));
        }
        let request = request.into_inner();
        let node = on_behalf.unwrap_or(caller);
        match (self.store.peers().route(), on_behalf) {
            (Route::Here, _) => self.let_in(node, &request.addr, request.feature_level).await.map(Response::new),
            // Handed on once only.
            (Route::There(_, channel), None) => {
                let request = EnterRequest { node_id: node.to_vec(), ..request };
                enter::ask(channel, request).await.map(Response::new)
            }
            (Route::There(..), Some(_)) | (Route::Nowhere, _) => {
                Err(Status::unavailable("there is no leader right now: try again in a moment"))
            }
        }
    }

    async fn describe(&self, request: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        // One that is a manager no longer asks, too: it is to learn that here.
        let node = Caller::of(&request)?.require_manager()?.node_id;
        let state = match request.get_ref().caller {
            true => self.store.fresh().await.map_err(|error| Status::unavailable(error.to_string()))?,
            false => self.store.state(),
        };
        let raft_id = || state.node(node).and_then(|node| node.manager.as_ref()).map_or(0, |manager| manager.raft_id);
        let answer = DescribeResponse {
            feature_level: FEATURE_LEVEL,
            version: state.version(),
            caller_raft_id: request.get_ref().caller.then(raft_id),
            ..DescribeResponse::default()
        };
        Ok(Response::new(self.keys.borrow().describe(answer)))
    }
}

fn outcome_to_wire(outcome: Result<Written, WriteError>) -> Outcome {
    let failed = |reason: Reason, error: &WriteError| {
        Outcome::Failed(SubmitFailed { reason: reason.into(), message: error.to_string() })
    };
    match outcome {
        Ok(Written { version, object_id, refused }) => {
            let refused = refused.iter().map(wire::refused_to_wire).collect();
            Outcome::Written(SubmitWritten { version, object_id, refused })
        }
        Err(error @ WriteError::NoLeader) => failed(Reason::NoLeader, &error),
        Err(error @ WriteError::Unknown) => failed(Reason::Unknown, &error),
        Err(WriteError::Stopped(message)) => Outcome::Failed(SubmitFailed { reason: Reason::Stopped.into(), message }),
        // Only a whole user's write is refused like this, and that is told by the group.
        Err(error @ WriteError::Refused(_)) => failed(Reason::Stopped, &error),
    }
}

fn refusal_status(refusal: &Refusal) -> Status {
    let words = refusal.to_string();
    match refusal {
        Refusal::NoState => Status::unavailable(words),
        Refusal::Gone => Status::permission_denied(words),
        Refusal::Address(_) => Status::invalid_argument(words),
        Refusal::Worker(_) | Refusal::AddressTaken { .. } | Refusal::TooOld { .. } => {
            Status::failed_precondition(words)
        }
    }
}
