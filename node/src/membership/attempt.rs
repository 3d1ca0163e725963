//! How a host asks the managers to let it in: fetch the root, compare it with the token, send a certificate request.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use skep_identity::transport::ChannelOptions;
use skep_identity::{Credentials, JoinError, JoinToken, NodeKey, RootBundle, join_channel};
use skep_proto::id::RequestId;
use skep_proto::v1::certificate_authority_client::CertificateAuthorityClient;
use skep_proto::v1::{GetRootRequest, IssueRequest, ReturningNode};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::info;

use crate::backoff::{Backoff, status_may_pass};

/// How long one call to the certificate authority may take.
const CA_DEADLINE: Duration = Duration::from_secs(15);
/// How long managers that cannot answer now (a leader was just lost) are asked again.
const PATIENCE: Duration = Duration::from_secs(20);

/// One host's wish to join. Its retries carry the same request id, so that they make one node.
#[derive(Clone, Debug)]
pub(super) struct JoinAttempt {
    token: JoinToken,
    pub(super) managers: Vec<String>,
    request: RequestId,
    /// Who this host was, and wants to be again.
    returning: Option<Arc<Credentials>>,
}

/// Why one try gave no certificate.
enum AskError {
    /// Ask again.
    Passing(anyhow::Error),
    /// The id names a node that is gone.
    StaleRequest(anyhow::Error),
    Refused(anyhow::Error),
}

impl JoinAttempt {
    pub(super) fn new(token: JoinToken, managers: Vec<String>) -> Self {
        Self { token, managers, request: RequestId::new(rand::random()), returning: None }
    }

    /// The way back of a node whose certificate is of no use any more.
    pub(super) fn back(token: JoinToken, managers: Vec<String>, was: Arc<Credentials>) -> Self {
        Self { returning: Some(was), ..Self::new(token, managers) }
    }

    /// The same attempt with the addresses of a repeated command, if that wants into the same swarm in the same role.
    pub(super) fn again(self, token: &JoinToken, managers: &[String]) -> Option<Self> {
        token.matches(&self.token).then(|| Self { managers: managers.to_owned(), ..self })
    }

    /// Asks until there is a certificate, a manager says no, or the time is up. Writes nothing here.
    pub(super) async fn ask(&mut self, hostname: &str, availability: i32) -> anyhow::Result<Credentials> {
        let deadline = Instant::now() + PATIENCE;
        let mut backoff = Backoff::default();
        let mut fresh = false;
        loop {
            let error = match self.ask_once(hostname, availability).await {
                Ok(credentials) => return Ok(credentials),
                Err(AskError::Refused(error)) => return Err(error),
                Err(AskError::StaleRequest(error)) if fresh => return Err(error),
                Err(AskError::StaleRequest(_)) => {
                    (self.request, fresh) = (RequestId::new(rand::random()), true);
                    continue;
                }
                Err(AskError::Passing(error)) => error,
            };
            let pause = backoff.pause();
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            info!(error = %format!("{error:#}"), "no manager could let this host in; asking again");
            self.managers.rotate_left(1);
            tokio::time::sleep(pause).await;
        }
    }

    async fn ask_once(&self, hostname: &str, availability: i32) -> Result<Credentials, AskError> {
        let joined = join_channel(self.managers.clone(), &self.token, ChannelOptions::NODES, fetch_root).await;
        let (_, channel) = joined.map_err(|error| match &error {
            JoinError::Fetch(status) if status_may_pass(status) => AskError::Passing(error.into()),
            // An address that nobody answers at is more often mistyped than coming up.
            JoinError::Fetch(_) | JoinError::Unreachable(_) | JoinError::Root(_) | JoinError::Untrusted(_) => {
                AskError::Refused(error.into())
            }
        })?;
        let refused = |error: anyhow::Error| AskError::Refused(error);
        let key = NodeKey::generate().map_err(|error| refused(error.into()))?;
        let csr_pem = key.signing_request_pem().map_err(|error| refused(error.into()))?;
        let proof = self.returning.as_ref().map(|was| was.prove_return(&csr_pem)).transpose();
        let proof = proof.map_err(|error| refused(error.into()))?;
        let issue = IssueRequest {
            returning: proof.map(|(cert_chain_pem, signature)| ReturningNode { cert_chain_pem, signature }),
            csr_pem,
            token: self.token.to_string(),
            hostname: hostname.to_owned(),
            availability,
            request_id: self.request.to_vec(),
        };
        let answered = tokio::time::timeout(CA_DEADLINE, CertificateAuthorityClient::new(channel).issue(issue)).await;
        let issued = match answered {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(no(&status)),
            Err(_) => {
                let text = format!("the manager did not answer within {} s", CA_DEADLINE.as_secs());
                return Err(AskError::Passing(anyhow::anyhow!(text)));
            }
        };
        let credentials = || -> anyhow::Result<Credentials> {
            let roots = RootBundle::from_pem(&issued.root_cert_pem)?;
            Ok(Credentials::new(key, &issued.cert_chain_pem, roots)?)
        };
        credentials().map_err(refused)
    }
}

fn no(status: &Status) -> AskError {
    let error = anyhow::anyhow!("{}", status.message());
    if status_may_pass(status) {
        AskError::Passing(error)
    } else if status.code() == Code::InvalidArgument && status.message().contains("request id") {
        AskError::StaleRequest(error)
    } else {
        AskError::Refused(error)
    }
}

async fn fetch_root(channel: Channel) -> Result<String, Status> {
    let mut authority = CertificateAuthorityClient::new(channel);
    match tokio::time::timeout(CA_DEADLINE, authority.get_root(GetRootRequest {})).await {
        Ok(answer) => Ok(answer?.into_inner().root_cert_pem),
        Err(_) => Err(Status::deadline_exceeded("the manager did not answer in time")),
    }
}

/// A repeated command's attempt goes on where the first ended.
pub(super) fn attempt(
    before: Option<JoinAttempt>,
    token: JoinToken,
    managers: Vec<String>,
) -> anyhow::Result<JoinAttempt> {
    if managers.is_empty() {
        bail!("the address of a manager is needed: skep swarm join --token TOKEN HOST:PORT");
    }
    let again = before.and_then(|before| before.again(&token, &managers));
    Ok(again.unwrap_or_else(|| JoinAttempt::new(token, managers)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_identity::{RootCa, TokenSecret};
    use skep_proto::id::ClusterId;

    use super::*;

    #[test]
    fn a_repeated_command_makes_no_second_node() {
        let root = RootCa::generate(ClusterId::new(1), std::time::SystemTime::now()).unwrap().cert().digest();
        let token = |secret| JoinToken::new(root, TokenSecret::new([secret; 16]));
        let at = |addr: &str| vec![addr.to_owned()];
        let first = attempt(None, token(1), at("a:1")).unwrap();
        let again = attempt(Some(first.clone()), token(1), at("b:1")).unwrap();
        assert_eq!((again.request, again.managers.as_slice()), (first.request, ["b:1".to_owned()].as_slice()));
        let other = attempt(Some(first.clone()), token(2), at("a:1")).unwrap();
        assert_ne!(other.request, first.request);
        assert!(attempt(None, token(1), Vec::new()).is_err());
    }

    #[test]
    fn only_managers_that_cannot_answer_are_asked_again() {
        assert!(matches!(no(&Status::unavailable("no leader")), AskError::Passing(_)));
        assert!(matches!(no(&Status::permission_denied("token")), AskError::Refused(_)));
        let stale = Status::invalid_argument("the request id was used for something else");
        assert!(matches!(no(&stale), AskError::StaleRequest(_)));
    }
}
