//! One run of one slot's task.

use std::sync::Arc;

use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::{PortSpec, TaskState, TaskStatus, WantedState};

use super::{Meta, NetworkAddresses, RevisionKey};

/// Which of a service's places a task fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// A replica's number, 1 and up.
    Replica(u64),
    /// The one place on a node, for a global service.
    Node(NodeId),
}

/// One run. Small: what it runs is in its revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    pub id: TaskId,
    pub meta: Meta,
    pub revision: RevisionKey,
    pub slot: Slot,
    /// Chosen node; for a global service's task set from the start.
    pub node: Option<NodeId>,
    pub wanted: WantedState,
    /// Observed state, the same as `status.state`.
    pub state: TaskState,
    /// Observed part: below `ACCEPTED` the loops', from there on the node's.
    pub status: Arc<TaskStatus>,
    /// Host ports claimed on its node.
    pub ports: Vec<PortSpec>,
    /// With wanted `READY`: not started before.
    pub start_at: Option<UnixMs>,
    /// The task whose end it follows.
    pub replaces: Option<TaskId>,
    /// It replaces a task that ended by itself, so it counts as an attempt of the restart policy.
    pub policy_restart: bool,
    /// Its addresses, in the order of the attachments, then the routing mesh's. Chosen when it is placed; its own until
    /// its observed state is terminal.
    pub networks: Vec<NetworkAddresses>,
}

impl Slot {
    /// Sorts before every place of a service.
    pub const MIN: Self = Self::Replica(0);
    /// Sorts after every other place of a service.
    pub const MAX: Self = Self::Node(NodeId::new(u128::MAX));
}

impl Task {
    /// Its service.
    pub fn service(&self) -> ServiceId {
        self.revision.service
    }

    /// Whether it occupies resources of its node: assigned, and not known to have ended.
    pub fn occupies_node(&self) -> bool {
        self.node.is_some() && self.state >= TaskState::Assigned && !self.state.is_terminal()
    }

    /// When the observed state was entered, by the reporter's clock.
    pub fn since(&self) -> UnixMs {
        UnixMs(self.status.since_ms)
    }
}
