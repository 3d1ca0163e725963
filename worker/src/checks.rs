//! Answers the managers' question how this host's networks are: asks netd, sends its answer by `PublishNetworkCheck`.
//!
//! Owned by the agent. Each request is one tokio task; a new session's managers ask anew, so all end with the session. It
//! changes nothing on the host.

use std::time::Duration;

use skep_proto::v1::dispatch_client::DispatchClient;
use skep_proto::v1::netd_client::NetdClient;
use skep_proto::v1::{CheckRequest, MeshRequest, NetworkCheckAnswer, NetworkCheckRequest};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;

/// How long netd may take for a check: the managers wait for 10 s.
const CHECK: Duration = Duration::from_secs(6);
/// How long it may take to say how the mesh is: the managers wait for 2 s.
const MESH: Duration = Duration::from_millis(1500);
/// Requests at a time; more than that come from nobody who reads the answers.
const AT_ONCE: usize = 8;

/// The requests under way.
#[derive(Debug)]
pub(crate) struct Checks {
    /// A connection to netd. `None`: it does not run now.
    netd: watch::Receiver<Option<Channel>>,
    running: JoinSet<()>,
}

impl Checks {
    /// By the netd that is reached by `netd`.
    pub(crate) fn new(netd: watch::Receiver<Option<Channel>>) -> Self {
        Self { netd, running: JoinSet::new() }
    }

    /// Begins to answer, over the manager's connection.
    pub(crate) fn begin(&mut self, request: NetworkCheckRequest, manager: Channel) {
        while self.running.try_join_next().is_some() {}
        if self.running.len() >= AT_ONCE {
            tracing::debug!("too many requests to check networks: this one is not answered");
            return;
        }
        let netd = self.netd.borrow().clone();
        self.running.spawn(async move {
            let answer = answer(&request, netd).await;
            if let Err(status) = DispatchClient::new(manager).publish_network_check(answer).await {
                tracing::debug!(error = status.message(), "a manager did not take what was found about networks");
            }
        });
    }

    /// Ends all: the session is gone, and nobody listens.
    pub(crate) fn cancel_all(&mut self) {
        self.running.abort_all();
    }
}

/// What netd says.
async fn answer(request: &NetworkCheckRequest, netd: Option<Channel>) -> NetworkCheckAnswer {
    let nothing = NetworkCheckAnswer { request_id: request.request_id, ..NetworkCheckAnswer::default() };
    let Some(channel) = netd else {
        return NetworkCheckAnswer { error: "its netd does not run".to_owned(), ..nothing };
    };
    let (limit, asked) = match request.mesh_only {
        true => (MESH, None),
        false => (CHECK, Some(request.network_ids.clone())),
    };
    match timeout(limit + MESH, ask(channel, asked)).await {
        Ok(Ok(said)) => NetworkCheckAnswer { request_id: request.request_id, ..said },
        Ok(Err(status)) => NetworkCheckAnswer { error: format!("its netd failed: {}", status.message()), ..nothing },
        Err(_) => NetworkCheckAnswer { error: "its netd does not answer".to_owned(), ..nothing },
    }
}

async fn ask(channel: Channel, networks: Option<Vec<Vec<u8>>>) -> Result<NetworkCheckAnswer, Status> {
    let mut client = NetdClient::new(channel);
    let check = match networks {
        Some(network_ids) => {
            let time_limit_ms = u32::try_from(CHECK.as_millis()).unwrap_or(u32::MAX);
            client.check(CheckRequest { network_ids, time_limit_ms }).await?.into_inner().check
        }
        None => None,
    };
    // After the check, whose packets wake the mesh.
    let mesh = client.mesh(MeshRequest {}).await?.into_inner();
    Ok(NetworkCheckAnswer { mesh: Some(mesh), check, ..NetworkCheckAnswer::default() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_host_without_netd_says_so() {
        let request = NetworkCheckRequest { request_id: 7, ..NetworkCheckRequest::default() };
        let said = answer(&request, None).await;
        assert_eq!((said.request_id, said.error.as_str(), said.check), (7, "its netd does not run", None));
        // One that died just now.
        let nobody = tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let said = answer(&request, Some(nobody)).await;
        assert!(said.request_id == 7 && said.error.starts_with("its netd failed: "), "{}", said.error);
    }
}
