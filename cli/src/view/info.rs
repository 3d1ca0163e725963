//! The daemon and its place in a swarm as `skep info` prints it.

use std::collections::BTreeMap;

use serde::Serialize;
use skep_proto::v1::{self, SwarmState};

use super::{MetaView, state};
use crate::output::time;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct InfoView {
    pub(crate) name: String,
    pub(crate) server_version: String,
    pub(crate) operating_system: String,
    pub(crate) kernel_version: String,
    pub(crate) architecture: String,
    #[serde(rename = "NCPU")]
    pub(crate) ncpu: f64,
    pub(crate) mem_total: i64,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) containers_running: u32,
    pub(crate) images: u32,
    pub(crate) cgroup_version: String,
    pub(crate) default_runtime: String,
    pub(crate) data_dir: String,
    pub(crate) security_options: Vec<String>,
    pub(crate) swarm: SwarmView,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct SwarmView {
    #[serde(rename = "NodeID")]
    pub(crate) node_id: String,
    pub(crate) node_addr: String,
    pub(crate) local_node_state: &'static str,
    pub(crate) control_available: bool,
    pub(crate) role: &'static str,
    pub(crate) error: String,
    pub(crate) remote_managers: Vec<RemoteManager>,
    /// Known on managers only, as in Docker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nodes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) managers: Option<u32>,
    pub(crate) certificate_expires_at: String,
    pub(crate) cluster: Option<ClusterView>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RemoteManager {
    pub(crate) addr: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ClusterView {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(flatten)]
    meta: MetaView,
    /// Whether the root certificate is being changed.
    root_rotation_in_progress: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) root_rotation: Option<RotationView>,
}

/// How far a change of the root certificate is.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RotationView {
    /// SHA-256 of the new root, in hex.
    digest: String,
    started_at: String,
    pub(crate) nodes_done: u32,
    pub(crate) nodes: u32,
    /// Hostname and reason of those that have no certificate of the new root, at most 100.
    waiting: Vec<String>,
}

impl From<v1::RootRotationStatus> for RotationView {
    fn from(status: v1::RootRotationStatus) -> Self {
        let waiting = status.waiting.iter().map(|wait| format!("{} {}", wait.hostname, wait.reason));
        Self {
            digest: super::hex(&status.digest),
            started_at: time::rfc3339_ms(status.started_at_ms),
            nodes_done: status.done,
            nodes: status.total,
            waiting: waiting.collect(),
        }
    }
}

impl SwarmView {
    /// A manager that waits for its unlock key.
    pub(crate) fn is_locked(&self) -> bool {
        self.local_node_state == state::swarm(SwarmState::Locked)
    }
}

impl InfoView {
    /// From the daemon's answer and, on a manager, the swarm's.
    pub(crate) fn new(info: v1::InfoResponse, cluster: Option<v1::GetClusterResponse>) -> Self {
        let (state, role) = (state::swarm(info.state()), state::role(info.role()));
        let description = info.description.unwrap_or_default();
        let platform = description.platform.unwrap_or_default();
        let resources = description.resources.unwrap_or_default();
        let counts = cluster.as_ref().map(|cluster| (cluster.nodes, cluster.managers));
        Self {
            name: description.hostname,
            server_version: info.version,
            operating_system: platform.os,
            kernel_version: description.kernel,
            architecture: platform.architecture,
            ncpu: resources.nano_cpus as f64 / 1e9,
            mem_total: resources.memory_bytes,
            labels: description.engine_labels,
            containers_running: info.containers_running,
            images: info.images,
            cgroup_version: info.cgroup_layout,
            default_runtime: info.runtime,
            data_dir: info.data_dir,
            security_options: info.security_options,
            swarm: SwarmView {
                node_id: super::id(&info.node_id),
                node_addr: info.node_addr,
                local_node_state: state,
                control_available: info.control_available,
                role: if info.node_id.is_empty() { "" } else { role },
                error: info.error,
                remote_managers: info.manager_addrs.into_iter().map(|addr| RemoteManager { addr }).collect(),
                nodes: counts.map(|(nodes, _)| nodes),
                managers: counts.map(|(_, managers)| managers),
                certificate_expires_at: time::rfc3339_ms(info.cert_expires_at_ms),
                cluster: cluster.and_then(|answer| {
                    let (cluster, rotation) = (answer.cluster?, answer.root_rotation);
                    Some(ClusterView {
                        id: super::id(&cluster.id),
                        meta: cluster.meta.as_ref().into(),
                        root_rotation_in_progress: rotation.is_some(),
                        root_rotation: rotation.map(RotationView::from),
                    })
                }),
            },
        }
    }
}
