//! A service as `service inspect` prints it.

use std::collections::BTreeMap;

use serde::Serialize;
use skep_proto::v1::{self, service_spec::Mode};

use super::network::Prefixes;
use super::template::TemplateView;
use super::{MetaView, nanos, state};
use crate::output::time;

/// The default of `--update-monitor`.
pub(crate) const MONITOR_MS: i64 = 5_000;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ServiceView {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(flatten)]
    meta: MetaView,
    spec: Spec,
    endpoint: Endpoint,
    service_status: ServiceStatus,
    /// The newest update or rollback; absent where there was none, as in Docker.
    #[serde(skip_serializing_if = "Option::is_none")]
    update_status: Option<UpdateStatus>,
    /// Number of the current task template.
    revision: u64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    name: String,
    labels: BTreeMap<String, String>,
    task_template: TemplateView,
    mode: ModeView,
    update_config: Policy,
    rollback_config: Policy,
    endpoint_spec: EndpointSpec,
    /// Nanoseconds.
    failover_delay: i64,
}

#[derive(Debug, Clone, Serialize)]
enum ModeView {
    Replicated {
        #[serde(rename = "Replicas")]
        replicas: u64,
    },
    Global {},
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Policy {
    /// 0: all at once, as in Docker.
    parallelism: u32,
    delay: i64,
    failure_action: &'static str,
    monitor: i64,
    max_failure_ratio: f64,
    order: &'static str,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct EndpointSpec {
    mode: &'static str,
    ports: Vec<PortView>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct PortView {
    protocol: &'static str,
    target_port: u32,
    published_port: u32,
    publish_mode: &'static str,
}

impl From<&v1::PortSpec> for PortView {
    fn from(port: &v1::PortSpec) -> Self {
        Self {
            protocol: state::protocol(port.protocol()),
            target_port: port.target_port,
            published_port: port.published_port,
            publish_mode: state::publish_mode(port.mode()),
        }
    }
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    spec: EndpointSpec,
    ports: Vec<PortView>,
    #[serde(rename = "VirtualIPs")]
    virtual_ips: Vec<VirtualIp>,
}

/// One for each network and family.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct VirtualIp {
    #[serde(rename = "NetworkID")]
    network_id: String,
    network_name: String,
    /// With the length of the subnet's prefix.
    addr: String,
}

/// The virtual addresses of a service; the networks are asked for their names and subnets.
fn virtual_ips(service: &v1::Service, networks: &[v1::Network]) -> Vec<VirtualIp> {
    let mut all = Vec::new();
    for on_network in &service.virtual_addresses {
        let network = networks.iter().find(|network| network.id == on_network.network_id);
        let prefixes = network.map(Prefixes::of).unwrap_or_default();
        let name = network.and_then(|network| network.spec.as_ref()).map(|spec| spec.name.clone()).unwrap_or_default();
        all.extend(on_network.addresses.iter().map(|address| VirtualIp {
            network_id: super::id(&on_network.network_id),
            network_name: name.clone(),
            addr: prefixes.text(address),
        }));
    }
    all
}

/// `front 10.0.1.2/24`, for a person.
pub(super) fn virtual_addresses(service: &v1::Service, networks: &[v1::Network]) -> Vec<String> {
    let text = |ip: VirtualIp| {
        let network = if ip.network_name.is_empty() { ip.network_id } else { ip.network_name };
        format!("{network} {}", ip.addr)
    };
    virtual_ips(service, networks).into_iter().map(text).collect()
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct UpdateStatus {
    state: &'static str,
    started_at: String,
    /// Empty while it goes on.
    completed_at: String,
    message: String,
    /// The revision before it.
    from_revision: u64,
}

impl From<v1::UpdateStatus> for UpdateStatus {
    fn from(status: v1::UpdateStatus) -> Self {
        Self {
            state: state::update(status.state()),
            started_at: time::rfc3339_ms(status.started_at_ms),
            completed_at: time::rfc3339_ms(status.ended_at_ms),
            message: status.message,
            from_revision: status.from_revision,
        }
    }
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceStatus {
    running_tasks: u64,
    desired_tasks: u64,
}

impl ServiceView {
    /// From a service and the networks that it has virtual addresses on.
    pub(crate) fn new(summary: v1::ServiceSummary, networks: &[v1::Network]) -> Self {
        let service = summary.service.unwrap_or_default();
        let virtual_ips = virtual_ips(&service, networks);
        let spec = service.spec.unwrap_or_default();
        let template = summary.revision.and_then(|revision| revision.template).or(spec.template).unwrap_or_default();
        let endpoint = spec.endpoint.unwrap_or_default();
        let endpoint_spec = EndpointSpec {
            mode: state::endpoint_mode(endpoint.mode()),
            ports: endpoint.ports.iter().map(PortView::from).collect(),
        };
        Self {
            id: super::id(&service.id),
            meta: service.meta.as_ref().into(),
            spec: Spec {
                name: spec.name,
                labels: spec.labels,
                task_template: template.into(),
                mode: match spec.mode {
                    Some(Mode::Global(_)) => ModeView::Global {},
                    Some(Mode::Replicated(mode)) => ModeView::Replicated { replicas: mode.replicas },
                    None => ModeView::Replicated { replicas: 0 },
                },
                update_config: policy(spec.update.unwrap_or_default()),
                rollback_config: policy(spec.rollback.unwrap_or_default()),
                endpoint_spec: endpoint_spec.clone(),
                failover_delay: nanos(spec.failover_delay_ms, 0),
            },
            endpoint: Endpoint {
                spec: endpoint_spec,
                ports: service.ports.iter().map(PortView::from).collect(),
                virtual_ips,
            },
            service_status: ServiceStatus { running_tasks: summary.running, desired_tasks: summary.desired },
            update_status: service.update.filter(|update| update.state() != v1::UpdateState::None).map(Into::into),
            revision: service.revision,
        }
    }
}

fn policy(policy: v1::UpdatePolicy) -> Policy {
    Policy {
        parallelism: match (policy.all, policy.parallelism) {
            (true, _) => 0,
            (false, 0) => 1,
            (false, parallelism) => parallelism,
        },
        delay: nanos(policy.delay_ms, 0),
        failure_action: state::failure_action(policy.failure_action()),
        monitor: nanos(policy.monitor_ms, MONITOR_MS),
        max_failure_ratio: policy.max_failure_ratio,
        order: state::update_order(policy.order()),
    }
}
