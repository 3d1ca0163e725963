//! Asks nodes how their networks are: a request goes down a node's session, its answer comes by `PublishNetworkCheck`. Used
//! by the control API, and by other managers for nodes whose session is here.
//!
//! Nothing is kept of an answer. A node speaks for itself only, and what it says is cut to a size.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngCore as _;
use rand::rngs::OsRng;
use skep_proto::id::NodeId;
use skep_proto::v1::relay_client::RelayClient;
use skep_proto::v1::{NetworkCheckAnswer, NetworkCheckRequest, NodeCheckRequest, session_down};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::reach::{Reach, Route};
use super::sessions::NotConnected;

/// Findings of one node at most.
const FINDINGS: usize = 1_000;
/// Bytes of one sentence; the rest is cut off.
const SENTENCE: usize = 1 << 10;
/// What a way through another manager may cost on top.
const RELAY: Duration = Duration::from_millis(250);

/// Requests under way. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct NodeChecks {
    reach: Reach,
    waiting: Arc<Mutex<HashMap<u64, Waiting>>>,
}

/// Who is to answer, and who waits for it.
struct Waiting {
    node: NodeId,
    answer: oneshot::Sender<NetworkCheckAnswer>,
}

/// Why a node did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// It has no session.
    #[error("it is not connected to any manager")]
    NotConnected,
    /// It said nothing.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The manager that has its session did not help.
    #[error("the manager that it is connected to cannot ask it: {0}")]
    Relay(String),
}

/// Takes a request out of the table when nobody waits any more.
struct Entry<'a>(&'a NodeChecks, u64);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl NodeChecks {
    pub(crate) fn new(reach: Reach) -> Self {
        Self { reach, waiting: Arc::default() }
    }

    /// Asks a node, wherever its session is.
    pub(crate) async fn ask(
        &self,
        node: NodeId,
        request: NetworkCheckRequest,
        within: Duration,
    ) -> Result<NetworkCheckAnswer, NoAnswer> {
        let home = match self.reach.route(node).ok_or(NoAnswer::NotConnected)? {
            Route::Here(_) => return self.ask_here(node, request, within).await,
            Route::There(home) => home,
        };
        let channel = self.reach.manager(home.manager).ok_or(NoAnswer::NotConnected)?;
        let relayed = NodeCheckRequest {
            node_id: node.to_vec(),
            check: Some(request),
            time_limit_ms: u32::try_from(within.as_millis()).unwrap_or(u32::MAX),
        };
        match timeout(within + RELAY, RelayClient::new(channel).node_check(relayed)).await {
            Ok(Ok(answer)) => Ok(checked(node, answer.into_inner())),
            Ok(Err(status)) if status.code() == Code::NotFound => Err(NoAnswer::NotConnected),
            Ok(Err(status)) if status.code() == Code::DeadlineExceeded => Err(NoAnswer::Silent(within)),
            Ok(Err(status)) => Err(NoAnswer::Relay(status.message().to_owned())),
            Err(_) => Err(NoAnswer::Silent(within)),
        }
    }

    /// Asks a node that has its session here.
    pub(super) async fn ask_here(
        &self,
        node: NodeId,
        request: NetworkCheckRequest,
        within: Duration,
    ) -> Result<NetworkCheckAnswer, NoAnswer> {
        // Random, so that an answer to another manager's request does not fit by accident.
        let id = OsRng.next_u64();
        let (answer, answered) = oneshot::channel();
        self.lock().insert(id, Waiting { node, answer });
        let _entry = Entry(self, id);
        let request = NetworkCheckRequest { request_id: id, ..request };
        let sent = self.reach.sessions().send(node, session_down::Message::NetworkCheck(request));
        sent.map_err(|NotConnected| NoAnswer::NotConnected)?;
        match timeout(within, answered).await {
            Ok(Ok(answer)) => Ok(checked(node, answer)),
            // Nobody else takes the sender away.
            Ok(Err(_)) | Err(_) => Err(NoAnswer::Silent(within)),
        }
    }

    /// Takes a node's answer.
    #[allow(clippy::result_large_err)]
    pub(super) fn publish(&self, node: NodeId, answer: NetworkCheckAnswer) -> Result<(), Status> {
        let mut waiting = self.lock();
        let id = answer.request_id;
        let asked = waiting.get(&id).is_some_and(|waiting| waiting.node == node);
        let found = if asked { waiting.remove(&id) } else { None };
        drop(waiting);
        let left = || Status::cancelled("nobody waits for this answer");
        found.ok_or_else(left)?.answer.send(answer).map_err(|_| left())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a node says, about itself only, and no more than is read.
fn checked(node: NodeId, mut answer: NetworkCheckAnswer) -> NetworkCheckAnswer {
    let cut = |text: &mut String| text.truncate(text.floor_char_boundary(SENTENCE));
    cut(&mut answer.error);
    if let Some(check) = &mut answer.check {
        check.findings.truncate(FINDINGS);
        for finding in &mut check.findings {
            finding.node_id = node.to_vec();
            cut(&mut finding.problem);
            cut(&mut finding.advice);
        }
        for path in &mut check.paths {
            path.node_id = node.to_vec();
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::{NetworkCheck, NetworkFinding, SessionDown};
    use tokio::sync::mpsc;

    use super::*;
    use crate::dispatch::Alone;
    use crate::dispatch::homes::Registered;
    use crate::dispatch::sessions::{Down, Sessions};

    const NODE: NodeId = NodeId::new(1);
    const WITHIN: Duration = Duration::from_secs(5);

    fn connected() -> (NodeChecks, mpsc::Receiver<Down>) {
        let sessions = Sessions::new();
        let (urgent, down) = mpsc::channel(8);
        let registered = Registered { version: 1, at: skep_proto::time::UnixMs::ZERO };
        sessions.begin(NODE, registered, None, urgent);
        (NodeChecks::new(Reach::new(NodeId::new(9), sessions, Arc::new(Alone))), down)
    }

    async fn asked(down: &mut mpsc::Receiver<Down>) -> NetworkCheckRequest {
        let SessionDown { message } = down.recv().await.unwrap().unwrap();
        let Some(session_down::Message::NetworkCheck(request)) = message else { panic!("no request") };
        request
    }

    #[tokio::test]
    async fn a_request_is_answered_by_its_node_about_itself() {
        let (checks, mut down) = connected();
        let ask = checks.ask(NODE, NetworkCheckRequest { mesh_only: true, ..Default::default() }, WITHIN);
        let answer = async {
            let request = asked(&mut down).await;
            assert!(request.mesh_only);
            let forged = NetworkFinding {
                node_id: NodeId::new(7).to_vec(),
                problem: "x".repeat(SENTENCE + 1),
                ..NetworkFinding::default()
            };
            let check = NetworkCheck { findings: vec![forged; FINDINGS + 1], ..NetworkCheck::default() };
            let answer =
                NetworkCheckAnswer { request_id: request.request_id, check: Some(check), ..Default::default() };
            assert!(checks.publish(NodeId::new(2), answer.clone()).is_err(), "another node");
            checks.publish(NODE, answer.clone()).unwrap();
            assert!(checks.publish(NODE, answer).is_err(), "answered already");
        };
        let (answer, ()) = tokio::join!(ask, answer);
        let findings = answer.unwrap().check.unwrap().findings;
        assert_eq!((findings.len(), findings[0].problem.len()), (FINDINGS, SENTENCE));
        assert_eq!(findings[0].node_id, NODE.to_vec());
        assert!(checks.lock().is_empty());
    }

    #[tokio::test]
    async fn who_says_nothing_is_not_waited_for() {
        let (checks, _down) = connected();
        let request = NetworkCheckRequest::default();
        let within = Duration::from_millis(20);
        assert_eq!(checks.ask(NODE, request.clone(), within).await, Err(NoAnswer::Silent(within)));
        assert_eq!(checks.ask(NodeId::new(2), request, WITHIN).await, Err(NoAnswer::NotConnected));
        assert!(checks.lock().is_empty());
    }
}
