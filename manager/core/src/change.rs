//! What may happen to the state: changes, in groups, in transactions. They carry results, never computations. Made by
//! loops and by the control API; checked and applied by `apply`.

use std::sync::Arc;

use skep_proto::id::{ClientId, CredentialId, NetworkId, NodeId, RequestId, ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::{NodeDescription, NodeRole, TaskStatus};

use crate::object::{
    Client, Cluster, Credential, ImageName, Network, Node, NodeStatus, Parcel, ParcelId, Payload, PayloadKey, Revision,
    RevisionKey, Service, Task,
};

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Version of the object's wanted part that it was decided on.
    pub expect: Expect,
    pub op: Op,
}

/// What a change requires of the stored object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It does not exist.
    Absent,
    /// Its `meta.version` is this.
    Version(u64),
    /// Nothing (observed parts, idempotent removals).
    Any,
}

/// The result that a change stores.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    PutCluster(Cluster),
    PutNode(Node),
    PutService(Service),
    PutRevision(Revision),
    PutTask(Task),
    PutImageName(ImageName),
    PutCredential(Credential),
    PutNetwork(Network),
    PutParcel(Parcel),
    PutPayload(Payload),
    PutClient(Client),
    RemoveNode(NodeId),
    RemoveService(ServiceId),
    RemoveRevision(RevisionKey),
    RemoveTask(TaskId),
    RemoveImageName(String),
    RemoveCredential(CredentialId),
    RemoveNetwork(NetworkId),
    RemoveParcel(ParcelId),
    RemovePayload(PayloadKey),
    RemoveClient(ClientId),
    ObserveTask(TaskObserved),
    ObserveNode(NodeObserved),
}

/// A task's status as its node reports it; merges forward only.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskObserved {
    pub task: TaskId,
    /// The reporter; another node's task is left alone.
    pub node: NodeId,
    pub status: Arc<TaskStatus>,
}

/// A node's observed parts; `None` leaves a part as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeObserved {
    pub node: Option<NodeId>,
    pub description: Option<Arc<NodeDescription>>,
    pub status: Option<NodeStatus>,
    pub role: Option<NodeRole>,
}

/// Changes applied together or refused together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group(pub Vec<Change>);

/// What came together: a user's write is one group, a loop's are independent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transaction {
    /// The client's id for it; none for loops.
    pub request: Option<RequestId>,
    /// The leader's clock when it was accepted.
    pub at: UnixMs,
    pub groups: Vec<Group>,
    /// Printed id of the object that the answer names; repeated for a retry. Empty: none.
    pub object_id: Vec<u8>,
}

/// What a loop's plan function returns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Independent groups, each applied or refused alone.
    pub groups: Vec<Group>,
    /// When the loop must look again though nothing changes (a delay runs out). `None`: only when something changes.
    pub wake_at: Option<UnixMs>,
}

impl Change {
    /// Stores an object that must not exist yet.
    pub fn create(op: Op) -> Self {
        Self { expect: Expect::Absent, op }
    }

    /// Replaces an object that must still have the version it was read with.
    pub fn update(version: u64, op: Op) -> Self {
        Self { expect: Expect::Version(version), op }
    }

    /// A change without a condition.
    pub fn any(op: Op) -> Self {
        Self { expect: Expect::Any, op }
    }
}

impl Plan {
    /// Notes that the loop must look again at `at`, if that is sooner than what is noted.
    pub fn wake_by(&mut self, at: UnixMs) {
        self.wake_at = Some(self.wake_at.map_or(at, |noted| noted.min(at)));
    }

    /// Adds a group unless it is empty.
    pub fn push(&mut self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.groups.push(Group(changes));
        }
    }
}
