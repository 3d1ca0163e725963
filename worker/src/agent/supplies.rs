//! What a task's preparation may ask the agent for: credentials, secrets, configs and image sources of the managers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use skep_proto::id::CredentialId;
use skep_proto::v1::dispatch_client::DispatchClient;
use skep_proto::v1::{Credential, ImageSourcesRequest, ImageSourcesResponse};
use tokio::sync::{mpsc, watch};

use crate::executor::{ExecError, Supplies};
use crate::payload::{PayloadId, Payloads};
use crate::session::ManagerLink;

/// Credentials of the assigned services. In memory only.
pub(super) type Credentials = Arc<BTreeMap<CredentialId, Credential>>;

/// A manager's answer about image sources: past this, the registry is tried.
const SOURCES_TIMEOUT: Duration = Duration::from_secs(5);

/// One task's supplies.
pub(super) struct TaskSupplies {
    pub(super) progress: mpsc::UnboundedSender<String>,
    pub(super) credentials: watch::Receiver<Credentials>,
    pub(super) payloads: watch::Receiver<Arc<Payloads>>,
    pub(super) link: watch::Receiver<Option<ManagerLink>>,
}

#[tonic::async_trait]
impl Supplies for TaskSupplies {
    fn progress(&self, message: String) {
        // A driver that is gone needs none.
        let _ = self.progress.send(message);
    }

    async fn credential(&self, id: CredentialId) -> Credential {
        let mut credentials = self.credentials.clone();
        let held = credentials.borrow_and_update().get(&id).cloned();
        if let Some(credential) = held {
            return credential;
        }
        self.progress("waiting for a manager to send the registry credential".to_owned());
        loop {
            if credentials.changed().await.is_err() {
                // The agent is going; so is the driver that waits here.
                std::future::pending::<()>().await;
            }
            let held = credentials.borrow_and_update().get(&id).cloned();
            if let Some(credential) = held {
                return credential;
            }
        }
    }

    async fn payloads(&self, ids: &[PayloadId]) -> Payloads {
        let mut payloads = self.payloads.clone();
        let mut told = false;
        loop {
            {
                let held = payloads.borrow_and_update();
                let found: Payloads = ids.iter().filter_map(|id| Some((*id, held.get(id)?.clone()))).collect();
                if ids.iter().all(|id| found.contains_key(id)) {
                    return found;
                }
            }
            if !told {
                self.progress("waiting for a manager to send its secrets and configs".to_owned());
                told = true;
            }
            if payloads.changed().await.is_err() {
                // The agent is going; so is the driver that waits here.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn image_sources(&self, digest: &str) -> Result<ImageSourcesResponse, ExecError> {
        let link = self.link.borrow().clone();
        let link = link.ok_or_else(|| ExecError::new("no manager is connected"))?;
        let mut client = DispatchClient::new(link.channel);
        let request = ImageSourcesRequest { digest: digest.to_owned() };
        let answer = tokio::time::timeout(SOURCES_TIMEOUT, client.image_sources(request))
            .await
            .map_err(|_| ExecError::new(format!("manager {} does not answer", link.addr)))?;
        answer.map(tonic::Response::into_inner).map_err(|status| ExecError::new(status.message()))
    }
}
