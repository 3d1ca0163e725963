//! A task as `task inspect` prints it.

use serde::Serialize;
use skep_proto::v1;

use super::service::PortView;
use super::template::TemplateView;
use super::{MetaView, state};
use crate::output::time;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct TaskView {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(flatten)]
    meta: MetaView,
    /// `service.slot`, or `service.node` for a global service.
    name: String,
    spec: TemplateView,
    #[serde(rename = "ServiceID")]
    service_id: String,
    service_name: String,
    revision: u64,
    slot: u64,
    #[serde(rename = "NodeID")]
    node_id: String,
    node_hostname: String,
    status: Status,
    desired_state: &'static str,
    /// The task whose end it follows.
    replaces: String,
    /// With a desired state of ready: not started before.
    start_at: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    timestamp: String,
    state: &'static str,
    message: String,
    err: String,
    /// The first container's, as in Docker.
    container_status: Container,
    /// All containers'.
    containers: Vec<Container>,
    /// Why nodes cannot take it, with the number of nodes for each reason.
    refusals: Vec<RefusalView>,
    port_status: Ports,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ports {
    ports: Vec<PortView>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    name: String,
    state: &'static str,
    #[serde(rename = "ContainerID")]
    container_id: String,
    #[serde(rename = "PID")]
    pid: u32,
    exit_code: i32,
    #[serde(rename = "OOMKilled")]
    oom_killed: bool,
    started_at: String,
    finished_at: String,
    /// Absent where the container has no health check, as in Docker.
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<Health>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    status: &'static str,
    failing_streak: u32,
    /// Output of the last failed check.
    output: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct RefusalView {
    reason: String,
    nodes: u32,
}

/// `web.3`; a global service's tasks are named by their node.
pub(crate) fn name(service: &str, slot: u64, node: &str) -> String {
    match (slot, node) {
        (0, "") => service.to_owned(),
        (0, node) => format!("{service}.{node}"),
        (slot, _) => format!("{service}.{slot}"),
    }
}

impl TaskView {
    /// From the answer of `Tasks.Get`.
    pub(crate) fn new(summary: v1::TaskSummary, revision: Option<v1::Revision>) -> Self {
        let task = summary.task.unwrap_or_default();
        let desired_state = state::wanted(task.wanted());
        let status = task.status.unwrap_or_default();
        let node_id = super::id(&task.node_id);
        let current = state::task(status.state());
        let containers: Vec<Container> = status.containers.into_iter().map(container_view).collect();
        Self {
            id: super::id(&task.id),
            meta: task.meta.as_ref().into(),
            name: name(&summary.service_name, task.slot, &node_id),
            spec: revision.and_then(|revision| revision.template).unwrap_or_default().into(),
            service_id: super::id(&task.service_id),
            service_name: summary.service_name,
            revision: task.revision,
            slot: task.slot,
            node_id,
            node_hostname: summary.node_hostname,
            status: Status {
                timestamp: time::rfc3339_ms(status.since_ms),
                state: current,
                message: status.message,
                err: status.error,
                container_status: containers
                    .first()
                    .cloned()
                    .unwrap_or_else(|| container_view(v1::ContainerStatus::default())),
                containers,
                refusals: status
                    .refusals
                    .into_iter()
                    .map(|refusal| RefusalView { reason: refusal.reason, nodes: refusal.nodes })
                    .collect(),
                port_status: Ports { ports: task.ports.iter().map(PortView::from).collect() },
            },
            desired_state,
            replaces: super::id(&task.replaces),
            start_at: time::rfc3339_ms(task.start_at_ms),
        }
    }
}

fn container_view(container: v1::ContainerStatus) -> Container {
    let health = container.health();
    Container {
        health: (health != v1::HealthState::None).then(|| Health {
            status: state::health(health),
            failing_streak: container.failing_streak,
            output: container.health_output.clone(),
        }),
        state: state::container(container.state()),
        name: container.name,
        container_id: container.container_id,
        pid: container.pid,
        exit_code: container.exit_code,
        oom_killed: container.oom_killed,
        started_at: time::rfc3339_ms(container.started_at_ms),
        finished_at: time::rfc3339_ms(container.finished_at_ms),
    }
}
