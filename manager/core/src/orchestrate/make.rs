//! Makes tasks, and changes what is wanted of them.

use std::sync::Arc;

use skep_proto::id::{NodeId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::{PortSpec, PublishMode, TaskState, TaskStatus, WantedState};

use crate::change::{Change, Op};
use crate::object::{Meta, Service, Slot, Task};

/// A new task of the service's current revision. Nothing needs allocating, so it starts as pending.
pub(super) fn new_task(service: &Service, id: TaskId, slot: Slot, now: UnixMs) -> Task {
    let status = TaskStatus { state: TaskState::Pending.into(), since_ms: now.0, ..TaskStatus::default() };
    Task {
        id,
        meta: Meta::default(),
        revision: service.current(),
        slot,
        node: match slot {
            Slot::Node(node) => Some(node),
            Slot::Replica(_) => None::<NodeId>,
        },
        wanted: WantedState::Running,
        state: TaskState::Pending,
        status: Arc::new(status),
        ports: host_ports(service),
        start_at: None,
        replaces: None,
        policy_restart: false,
        networks: Vec::new(),
    }
}

/// Ports that each of the service's tasks claims on its node.
pub(super) fn host_ports(service: &Service) -> Vec<PortSpec> {
    service.ports.iter().filter(|port| port.mode() == PublishMode::Host).copied().collect()
}

/// Stores a new task.
pub(super) fn create(task: Task) -> Change {
    Change::create(Op::PutTask(task))
}

/// Makes a task one of the service's current revision, where it is and as it is.
pub(super) fn take_over(task: &Arc<Task>, service: &Service, wanted: WantedState) -> Change {
    let changed = Task { revision: service.current(), wanted, ..Task::clone(task) };
    Change::update(task.meta.version, Op::PutTask(changed))
}

/// Changes what is wanted of a task.
pub(super) fn want(task: &Arc<Task>, wanted: WantedState) -> Change {
    let changed = Task { wanted, start_at: None, ..Task::clone(task) };
    Change::update(task.meta.version, Op::PutTask(changed))
}
