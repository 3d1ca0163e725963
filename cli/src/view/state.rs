//! Docker's words for the states of tasks and nodes.

use skep_proto::v1::{
    Availability, ContainerState, EndpointMode, FailureAction, HealthState, ManagerStatus, NetworkDriver, NodeRole,
    NodeState, Protocol, PublishMode, SwarmState, TaskState, UpdateOrder, UpdateState, WantedState,
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

/// "healthy"; "none" without a check, as in Docker.
pub(crate) fn health(state: HealthState) -> &'static str {
    match state {
        HealthState::None => "none",
        HealthState::Starting => "starting",
        HealthState::Healthy => "healthy",
        HealthState::Unhealthy => "unhealthy",
    }
}

/// "rollback_started"
pub(crate) fn update(state: UpdateState) -> &'static str {
    match state {
        UpdateState::None => "",
        UpdateState::Updating => "updating",
        UpdateState::Paused => "paused",
        UpdateState::Completed => "completed",
        UpdateState::RollbackStarted => "rollback_started",
        UpdateState::RollbackPaused => "rollback_paused",
        UpdateState::RollbackCompleted => "rollback_completed",
    }
}

/// "pause"
pub(crate) fn failure_action(action: FailureAction) -> &'static str {
    match action {
        FailureAction::Pause => "pause",
        FailureAction::Continue => "continue",
        FailureAction::Rollback => "rollback",
    }
}

/// "stop-first"
pub(crate) fn update_order(order: UpdateOrder) -> &'static str {
    match order {
        UpdateOrder::StopFirst => "stop-first",
        UpdateOrder::StartFirst => "start-first",
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

/// "overlay"
pub(crate) fn driver(driver: NetworkDriver) -> &'static str {
    match driver {
        NetworkDriver::Overlay => "overlay",
        NetworkDriver::Bridge => "bridge",
        NetworkDriver::Macvlan => "macvlan",
    }
}

/// "vip"
pub(crate) fn endpoint_mode(mode: EndpointMode) -> &'static str {
    match mode {
        EndpointMode::Vip => "vip",
        EndpointMode::Dnsrr => "dnsrr",
    }
}

/// "ingress"
pub(crate) fn publish_mode(mode: PublishMode) -> &'static str {
    match mode {
        PublishMode::Ingress => "ingress",
        PublishMode::Host => "host",
    }
}

/// "Running": with a capital, for tables.
pub(crate) fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
