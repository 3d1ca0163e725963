//! A service as `service inspect` prints it.

use std::collections::BTreeMap;

use serde::Serialize;
use skep_proto::v1::{self, service_spec::Mode};

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
    ports: Vec<PortView>,
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

impl From<v1::ServiceSummary> for ServiceView {
    fn from(summary: v1::ServiceSummary) -> Self {
        let service = summary.service.unwrap_or_default();
        let spec = service.spec.unwrap_or_default();
        let template = summary.revision.and_then(|revision| revision.template).or(spec.template).unwrap_or_default();
        let wanted_ports = spec.endpoint.unwrap_or_default().ports;
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
                endpoint_spec: EndpointSpec { ports: wanted_ports.iter().map(PortView::from).collect() },
                failover_delay: nanos(spec.failover_delay_ms, 0),
            },
            endpoint: Endpoint { ports: service.ports.iter().map(PortView::from).collect() },
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
