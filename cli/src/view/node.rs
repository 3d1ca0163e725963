//! A node as `node inspect` prints it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use skep_proto::v1;

use super::mesh::{FabricView, MeshView};
use super::{MetaView, state};
use crate::output::{human, time};

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NodeView {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(flatten)]
    meta: MetaView,
    spec: Spec,
    description: Description,
    status: Status,
    /// The certificate that it says it uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<CertificateView>,
    /// Role of its certificate; `Spec.Role` is the wanted one.
    role: &'static str,
    /// Managers only.
    #[serde(skip_serializing_if = "Option::is_none")]
    manager_status: Option<Manager>,
    /// Its end of the mesh between hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    fabric: Option<FabricView>,
    /// How it sees the other hosts there, as it says now.
    #[serde(skip_serializing_if = "Option::is_none")]
    mesh: Option<MeshView>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    labels: BTreeMap<String, String>,
    role: &'static str,
    availability: &'static str,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Description {
    hostname: String,
    platform: PlatformView,
    resources: ResourcesView,
    engine: Engine,
    kernel: String,
    #[serde(rename = "BootID")]
    boot_id: String,
    peer_addr: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct PlatformView {
    architecture: String,
    #[serde(rename = "OS")]
    os: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    variant: String,
}

impl From<v1::Platform> for PlatformView {
    fn from(platform: v1::Platform) -> Self {
        Self { architecture: platform.architecture, os: platform.os, variant: platform.variant }
    }
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ResourcesView {
    #[serde(rename = "NanoCPUs")]
    nano_cpus: i64,
    memory_bytes: i64,
}

impl From<Option<&v1::Resources>> for ResourcesView {
    fn from(resources: Option<&v1::Resources>) -> Self {
        let resources = resources.copied().unwrap_or_default();
        Self { nano_cpus: resources.nano_cpus, memory_bytes: resources.memory_bytes }
    }
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Engine {
    engine_version: String,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    state: &'static str,
    message: String,
    addr: String,
    since: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Manager {
    leader: bool,
    reachability: &'static str,
    addr: String,
    #[serde(rename = "RaftID")]
    raft_id: u64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CertificateView {
    /// SHA-256 of the root that signed it, in hex. Empty: a root that is not trusted any more.
    pub(crate) issuer_digest: String,
    pub(crate) not_before: String,
    pub(crate) not_after: String,
    /// What is left of its life, in words.
    pub(crate) remaining: String,
}

impl CertificateView {
    pub(super) fn new(certificate: &v1::NodeCertificate, now_ms: i64) -> Self {
        let left = certificate.not_after_ms.saturating_sub(now_ms);
        Self {
            issuer_digest: super::hex(&certificate.issuer),
            not_before: time::rfc3339_ms(certificate.not_before_ms),
            not_after: time::rfc3339_ms(certificate.not_after_ms),
            remaining: match u64::try_from(left) {
                Ok(left) => human::duration(Duration::from_millis(left)),
                Err(_) => "expired".to_owned(),
            },
        }
    }
}

impl NodeView {
    /// Adds what it says of the mesh.
    pub(crate) fn with_mesh(self, mesh: Option<MeshView>) -> Self {
        Self { mesh, ..self }
    }
}

impl From<v1::Node> for NodeView {
    fn from(node: v1::Node) -> Self {
        let role = state::role(node.role());
        let fabric = FabricView::of(&node);
        let spec = node.spec.unwrap_or_default();
        let description = node.description.unwrap_or_default();
        let status = node.status.unwrap_or_default();
        Self {
            id: super::id(&node.id),
            meta: node.meta.as_ref().into(),
            spec: Spec {
                role: state::role(spec.role()),
                availability: state::availability(spec.availability()),
                labels: spec.labels,
            },
            certificate: description.certificate.as_ref().map(|known| CertificateView::new(known, time::now_ms())),
            description: Description {
                resources: description.resources.as_ref().into(),
                hostname: description.hostname,
                platform: description.platform.unwrap_or_default().into(),
                engine: Engine { engine_version: description.engine_version, labels: description.engine_labels },
                kernel: description.kernel,
                boot_id: description.boot_id,
                peer_addr: description.peer_addr,
            },
            status: Status {
                state: state::node(status.state()),
                message: status.message,
                addr: status.addr,
                since: time::rfc3339_ms(status.since_ms),
            },
            role,
            manager_status: node.manager.map(|manager| Manager {
                leader: manager.leader,
                reachability: if manager.reachable || manager.leader { "reachable" } else { "unreachable" },
                addr: manager.addr,
                raft_id: manager.raft_id,
            }),
            fabric,
            mesh: None,
        }
    }
}
