//! Docker's words for the states of tasks and nodes.

use skep_proto::v1::{
    Availability, ContainerState, ManagerStatus, NodeRole, NodeState, PortSpec, Protocol, PublishMode, SwarmState,
    TaskState, WantedState,
};

/// "running"
pub(crate) fn task(state: TaskState) -> &'static str {
    match state {
        TaskState::New => "new",
        TaskState::Pending => "pending",
        TaskState::Assigned => "assigned",
        TaskState::Accepted => "accepted",
        TaskState::Preparing => "preparing",
        TaskState::Ready => "ready",
        TaskState::Starting => "starting",
        TaskState::Running => "running",
        TaskState::Complete => "complete",
        TaskState::Shutdown => "shutdown",
        TaskState::Failed => "failed",
        TaskState::Rejected => "rejected",
        TaskState::Orphaned => "orphaned",
    }
}

/// "running"
pub(crate) fn wanted(state: WantedState) -> &'static str {
    match state {
        WantedState::Unspecified => "unspecified",
        WantedState::Ready => "ready",
        WantedState::Running => "running",
        WantedState::Draining => "draining",
        WantedState::Shutdown => "shutdown",
        WantedState::Remove => "remove",
    }
}

/// Every wanted state that a filter may name.
pub(crate) const WANTED: [&str; 5] = ["ready", "running", "draining", "shutdown", "remove"];

/// "exited"
pub(crate) fn container(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Exited => "exited",
        ContainerState::Lost => "lost",
    }
}

/// "ready"
pub(crate) fn node(state: NodeState) -> &'static str {
    match state {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::Ready => "ready",
        NodeState::Disconnected => "disconnected",
    }
}

/// "active"
pub(crate) fn availability(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    }
}

/// "worker"
pub(crate) fn role(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Worker => "worker",
        NodeRole::Manager => "manager",
    }
}

/// "Leader", "Reachable", "Unreachable"; empty for workers.
pub(crate) fn manager(status: Option<&ManagerStatus>) -> &'static str {
    match status {
        None => "",
        Some(status) if status.leader => "Leader",
        Some(status) if status.reachable => "Reachable",
        Some(_) => "Unreachable",
    }
}

/// "active"
pub(crate) fn swarm(state: SwarmState) -> &'static str {
    match state {
        SwarmState::Inactive => "inactive",
        SwarmState::Pending => "pending",
        SwarmState::Active => "active",
        SwarmState::Error => "error",
        SwarmState::Locked => "locked",
    }
}

/// "tcp"
pub(crate) fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// "ingress"
pub(crate) fn publish_mode(mode: PublishMode) -> &'static str {
    match mode {
        PublishMode::Ingress => "ingress",
        PublishMode::Host => "host",
    }
}

/// `*:8080->80/tcp`, as tables show ports.
pub(crate) fn ports(ports: &[PortSpec]) -> String {
    let texts: Vec<String> = ports
        .iter()
        .map(|port| {
            let protocol = protocol(port.protocol());
            format!("*:{}->{}/{protocol}", port.published_port, port.target_port)
        })
        .collect();
    texts.join(",")
}

/// "Running": with a capital, for tables.
pub(crate) fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
