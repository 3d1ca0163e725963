//! The calls of the agent, each on a thread that may block; of several networks at the same time.

use std::sync::Arc;

use skep_proto::id::{NetworkId, NodeId};
use skep_proto::v1;
use skep_proto::v1::netd_server::Netd as Calls;
use tonic::{Request, Response, Status};

use super::{Netd, NetdError, define, keep, lock};
use crate::host::PublishError;
use crate::mesh::MeshError;
use crate::network::NetworkError;
use crate::table::TableError;

/// What answers the socket.
pub(super) struct Service(pub(super) Arc<Netd>);

/// An error with all its reasons, in one line.
pub(crate) fn text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(reason) = next {
        let reason_text = reason.to_string();
        if !text.ends_with(&reason_text) {
            text = format!("{text}: {reason_text}");
        }
        next = reason.source();
    }
    text
}

fn status(error: NetdError) -> Status {
    let text = text(&error);
    tracing::warn!("{text}");
    match error {
        NetdError::Id(..) => Status::invalid_argument(text),
        NetdError::Refused(_) | NetdError::Mtu(_) | NetdError::Publish(PublishError::Taken(_)) => {
            Status::failed_precondition(text)
        }
        NetdError::NoTable(_)
        | NetdError::Mesh(MeshError::Waits(_))
        | NetdError::Network(NetworkError::Mesh(MeshError::Waits(_))) => {
            // It comes with a table. The agent waited for one, and a table may be dropped just then.
            Status::unavailable(text)
        }
        NetdError::Mesh(MeshError::Key(..) | MeshError::Address(_) | MeshError::Number(_)) => {
            Status::invalid_argument(text)
        }
        _ => Status::internal(text),
    }
}

/// Runs what may block.
async fn block<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(format!("netd failed: {error}")))
}

impl Service {
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Netd) -> Result<T, NetdError> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let netd = Arc::clone(&self.0);
        block(move || work(&netd)).await?.map(Response::new).map_err(status)
    }
}

impl Netd {
    /// Takes the messages of one network. Returns its version, and what could not be done.
    fn apply_network(
        &self,
        id: NetworkId,
        messages: &[v1::NetworkTable],
    ) -> (v1::AppliedVersion, Option<v1::NetworkFault>) {
        let network = self.network(id);
        let device = self.mesh.generation();
        let mut state = lock(&network);
        let before = state.version();
        let (touched, failed) = state.apply(self, messages);
        state.note(failed.as_ref());
        let fault = failed.map(|error| {
            let needs_complete = matches!(error, NetdError::Table(TableError::Gap { .. }));
            let error = text(&error);
            tracing::warn!(network = %id, "{error}");
            v1::NetworkFault { network_id: id.to_vec(), error, needs_complete }
        });
        let version = state.version();
        drop(state);
        self.forget(&network, id);
        if self.mesh.generation() != device {
            // The table moved this host in the mesh: all its networks go with it.
            self.reconfigure();
        }
        for task in touched {
            self.refresh_names(task);
        }
        if (before == 0 && version > 0) || messages.last().is_some_and(|message| message.dropped) {
            self.find_table(id);
        }
        (v1::AppliedVersion { object_id: id.to_vec(), version }, fault)
    }

    pub(super) fn configure(&self, request: v1::ConfigureRequest) -> Result<v1::ConfigureResponse, NetdError> {
        let node = NodeId::from_wire_opt(&request.node_id).map_err(|source| NetdError::Id("node", source))?;
        let key = self.mesh.configure(node, &request)?;
        let changed = {
            let mut config = self.config.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            let changed = config.request != request;
            if changed && let Err(error) = keep::write(&self.config_file(), &request) {
                tracing::warn!("cannot keep what this host is: {error}");
            }
            config.node = node;
            config.request = request;
            changed
        };
        if changed {
            self.reconfigure();
        }
        Ok(v1::ConfigureResponse { public_key: key.map(|key| key.to_vec()).unwrap_or_default() })
    }

    /// Makes all networks follow what is known of this host.
    fn reconfigure(&self) {
        for network in self.all_networks() {
            let mut state = lock(&network);
            let followed = state.reconfigure(self);
            state.note(followed.as_ref().err());
            if let Err(error) = followed {
                // It is tried again.
                tracing::warn!(network = %state.id, "{}", text(&error));
            }
        }
    }

    /// Makes right what others may have changed in the kernel meanwhile.
    pub(super) fn check(&self) {
        let told = |error: &(dyn std::error::Error + 'static)| tracing::warn!("{}", text(error));
        if let Err(error) = self.host.check() {
            told(&error);
        }
        for network in self.all_networks() {
            let live = lock(&network).live.clone();
            if let Some(Err(error)) = live.map(|live| live.check()) {
                told(&error);
            }
        }
    }

    /// Tries again what could not be done.
    pub(super) fn try_again(&self) {
        for network in self.all_networks() {
            let mut state = lock(&network);
            if state.fault.is_some() {
                state.try_again(self);
            }
        }
        self.try_missing();
        self.publish_contested();
    }

    /// The tables in force.
    pub(super) fn applied(&self) -> Vec<v1::AppliedVersion> {
        let version = |network: &Arc<std::sync::Mutex<super::NetworkState>>| {
            let state = lock(network);
            v1::AppliedVersion { object_id: state.id.to_vec(), version: state.version() }
        };
        self.all_networks().iter().map(version).filter(|applied| applied.version > 0).collect()
    }

    fn state(&self) -> v1::NetdStateResponse {
        let (mut networks, mut notes) = (Vec::new(), self.missing_notes());
        notes.extend(self.mesh.notes(self.host.has_wireguard()));
        for network in self.all_networks() {
            let state = lock(&network);
            let version = state.version();
            if let Some(fault) = &state.fault {
                let name = state.definition.as_deref().map_or("", define::name);
                notes.push(format!("network {name} is not as it should be: {fault}"));
            }
            if version > 0 {
                networks.push(v1::AppliedVersion { object_id: state.id.to_vec(), version });
            }
        }
        let attached = lock(&self.attached);
        let whole = attached.iter().filter(|(_, attached)| attached.response.is_some());
        let sandboxes = whole.map(|(task, _)| task.to_vec()).collect();
        v1::NetdStateResponse {
            networks,
            sandboxes,
            engine_version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            notes: [notes, self.host.notes()].concat(),
        }
    }

    fn shutdown(&self) -> Result<(), NetdError> {
        for name in self.names.ids() {
            self.runtime.block_on(self.names.remove(&name));
        }
        lock(&self.attached).clear();
        for network in self.all_networks() {
            let mut state = lock(&network);
            state.holders.clear();
            state.members.clear();
            state.take_down(self)?;
        }
        lock(&self.networks).clear();
        self.kept.clone().close()?;
        self.mesh.stop()?;
        for entry in std::fs::read_dir(self.networks_dir()).into_iter().flatten().flatten() {
            crate::network::remove(&entry.path())?;
        }
        self.sandboxes.clone().close()?;
        crate::sandbox::Sandboxes::open(&self.networks_dir())?.close()?;
        self.host.close()?;
        Ok(())
    }
}

#[tonic::async_trait]
impl Calls for Service {
    async fn state(&self, _: Request<v1::NetdStateRequest>) -> Result<Response<v1::NetdStateResponse>, Status> {
        self.call(|netd| Ok(netd.state())).await
    }

    async fn configure(
        &self,
        request: Request<v1::ConfigureRequest>,
    ) -> Result<Response<v1::ConfigureResponse>, Status> {
        let request = request.into_inner();
        self.call(move |netd| netd.configure(request)).await
    }

    async fn apply(
        &self,
        request: Request<v1::ApplyTablesRequest>,
    ) -> Result<Response<v1::ApplyTablesResponse>, Status> {
        let mut of_network: std::collections::BTreeMap<NetworkId, Vec<v1::NetworkTable>> = Default::default();
        for table in request.into_inner().tables {
            let id =
                NetworkId::from_wire(&table.network_id).map_err(|source| status(NetdError::Id("network", source)))?;
            of_network.entry(id).or_default().push(table);
        }
        let work = of_network.into_iter().map(|(id, messages)| {
            let netd = Arc::clone(&self.0);
            block(move || netd.apply_network(id, &messages))
        });
        let mut response = v1::ApplyTablesResponse::default();
        for done in futures::future::join_all(work).await {
            let (applied, fault) = done?;
            response.applied.push(applied);
            response.faults.extend(fault);
        }
        Ok(Response::new(response))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Result<Response<v1::AttachResponse>, Status> {
        let request = request.into_inner();
        self.call(move |netd| netd.attach(request)).await
    }

    async fn detach(&self, request: Request<v1::DetachRequest>) -> Result<Response<v1::DetachResponse>, Status> {
        let request = request.into_inner();
        self.call(move |netd| netd.detach(&request).map(|()| v1::DetachResponse {})).await
    }

    async fn mesh(&self, _: Request<v1::MeshRequest>) -> Result<Response<v1::MeshResponse>, Status> {
        self.call(|netd| Ok(netd.mesh.status()?)).await
    }

    async fn check(&self, request: Request<v1::CheckRequest>) -> Result<Response<v1::CheckResponse>, Status> {
        let request = request.into_inner();
        self.call(move |netd| netd.examine(&request)).await
    }

    async fn shutdown(
        &self,
        _: Request<v1::NetdShutdownRequest>,
    ) -> Result<Response<v1::NetdShutdownResponse>, Status> {
        let answer = self.call(|netd| netd.shutdown().map(|()| v1::NetdShutdownResponse {})).await?;
        self.0.stop.notify_one();
        Ok(answer)
    }
}
