//! Why a group of changes was not applied, as a sentence for a person.

use skep_proto::cidr::Cidr;
use skep_proto::id::{NodeId, ServiceId, TaskId};

/// Why a group was refused. Nothing of it was applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It was to be made.
    #[error("{object} is there already")]
    Exists { object: String },
    /// It was to be changed.
    #[error("{object} is not there (any more)")]
    Gone { object: String },
    /// Another write came between.
    #[error("update out of sequence: {object} is at version {stored}, not {expected}; read it again")]
    OutOfSequence { object: String, stored: u64, expected: u64 },
    /// Names of services are unique.
    #[error("name {name} is in use by service {holder}")]
    NameTaken { name: String, holder: ServiceId },
    /// One task at most may claim a port of a node.
    #[error("port {port}/{protocol} of node {node} is in use by task {holder}")]
    PortTaken { node: NodeId, protocol: &'static str, port: u32, holder: TaskId },
    /// A network's, a secret's or a config's name, a VNI, an address, a port of the routing mesh, a number in the fabric: one may have it.
    #[error("{what} is taken by {holder}")]
    Taken { what: String, holder: String },
    /// Subnets of networks do not overlap.
    #[error("subnet {subnet} overlaps with {other} of network {network}")]
    Overlaps { subnet: Cidr, other: Cidr, network: String },
    /// What it refers to does not exist.
    #[error("{needed_by} needs {object}, which is not there (any more)")]
    Missing { object: String, needed_by: String },
    /// What it would remove is needed.
    #[error("{object} is in use by {by}")]
    InUse { object: String, by: String },
    /// A removed node's id never comes back.
    #[error("node {node} was removed from the swarm: it has to join again")]
    NodeRemoved { node: NodeId },
    /// The swarm object's id never changes.
    #[error("there is another swarm's object already")]
    OtherCluster,
    /// A part that stays as it was made.
    #[error("the {part} of {object} cannot change")]
    Fixed { object: String, part: &'static str },
    /// States, wanted states and revision numbers only go forward.
    #[error("the {part} of {object} cannot go back from {from} to {to}")]
    Backwards { object: String, part: &'static str, from: String, to: String },
    /// It could not be stored, or not be read back: a mistake of who made the change.
    #[error("{object} is malformed: {why}")]
    Malformed { object: String, why: &'static str },
    /// Beyond the limits of a transaction.
    #[error("the change is too large: {size} {unit}, at most {limit} fit one transaction; split it")]
    TooLarge { size: usize, limit: usize, unit: &'static str },
}
