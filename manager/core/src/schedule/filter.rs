//! Which nodes can take a task of a revision, and why the others cannot. Pure checks, each with a reason that a user
//! sees with the number of nodes it excludes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use skep_proto::constraint::Constraint;
use skep_proto::v1::{Availability, NodeState, PortSpec, Protocol, Refusal};

use super::ledger::{Load, reserved_by};
use super::matching;
use crate::network::NoAddress;
use crate::object::{Node, Revision};

/// Why a node cannot take a task. The order is that of the checks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    Down,
    NotActive(&'static str),
    Platform,
    Constraint(String),
    Cpus,
    Memory,
    HostPort(u32, Protocol),
    MaxPerNode(u64),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => f.write_str("node is down"),
            Self::NotActive(availability) => write!(f, "node is set to {availability}"),
            Self::Platform => f.write_str("image has no variant for the node's platform"),
            Self::Constraint(text) => write!(f, "constraint {text} is not met"),
            Self::Cpus => f.write_str("not enough CPUs left to reserve"),
            Self::Memory => f.write_str("not enough memory left to reserve"),
            Self::HostPort(port, protocol) => {
                write!(
                    f,
                    "host port {port}/{} is taken",
                    protocol.as_str_name().trim_start_matches("PROTOCOL_").to_lowercase()
                )
            }
            Self::MaxPerNode(max) => write!(f, "already has the most replicas per node ({max})"),
        }
    }
}

/// Reasons with the number of nodes each excludes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    by_node: BTreeMap<Reason, u32>,
    /// What keeps the task from every node, and how many there are.
    everywhere: Option<(NoAddress, u32)>,
}

impl Refusals {
    /// One more node is excluded by `reason`.
    pub fn count(&mut self, reason: Reason) {
        *self.by_node.entry(reason).or_default() += 1;
    }

    /// No address for the task: no node can take it, whichever of the `nodes` it is.
    pub fn everywhere(reason: NoAddress, nodes: usize) -> Self {
        let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
        Self { by_node: BTreeMap::new(), everywhere: Some((reason, nodes)) }
    }

    /// For the task's status.
    pub fn to_wire(&self) -> Vec<Refusal> {
        let everywhere = self.everywhere.iter().map(|(reason, nodes)| (reason.to_string(), *nodes));
        let by_node = self.by_node.iter().map(|(reason, nodes)| (reason.to_string(), *nodes));
        everywhere.chain(by_node).map(|(reason, nodes)| Refusal { reason, nodes }).collect()
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((reason, _)) = &self.everywhere {
            return reason.fmt(f);
        }
        if self.by_node.is_empty() {
            return f.write_str("no suitable node: the swarm has no nodes");
        }
        f.write_str("no suitable node: ")?;
        for (index, (reason, nodes)) in self.by_node.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{reason} on {nodes} {}", if *nodes == 1 { "node" } else { "nodes" })?;
        }
        Ok(())
    }
}

/// A node during one pass: what is left of it, as placements go on.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    pub node: &'a Arc<Node>,
    /// Tasks of any service on it.
    pub tasks: u64,
    pub free_nano_cpus: i64,
    pub free_memory_bytes: i64,
    pub taken_ports: BTreeSet<(Protocol, u32)>,
}

impl<'a> Candidate<'a> {
    /// A node with what its tasks hold.
    pub fn new(node: &'a Arc<Node>, load: Load, taken_ports: BTreeSet<(Protocol, u32)>) -> Self {
        let total = node.description.as_ref().and_then(|description| description.resources).unwrap_or_default();
        Self {
            node,
            tasks: load.tasks,
            free_nano_cpus: total.nano_cpus.saturating_sub(load.nano_cpus),
            free_memory_bytes: total.memory_bytes.saturating_sub(load.memory_bytes),
            taken_ports,
        }
    }
}

/// What tasks of one revision ask of a node.
#[derive(Clone, Debug)]
pub struct Needs<'a> {
    revision: &'a Revision,
    reserved: Load,
    constraints: Vec<Constraint>,
    max_per_node: u64,
    ports: &'a [PortSpec],
}

impl<'a> Needs<'a> {
    /// `ports` are the host ports that each task claims. A constraint that does not parse is held to exclude no node:
    /// the API refused it already, and a newer manager may know more.
    pub fn new(revision: &'a Revision, ports: &'a [PortSpec]) -> Self {
        let placement = revision.template.placement.as_ref();
        Self {
            revision,
            reserved: reserved_by(revision),
            constraints: parsed_constraints(revision),
            max_per_node: placement.map_or(0, |placement| placement.max_replicas_per_node),
            ports,
        }
    }

    /// Checks that do not change while a pass places tasks.
    pub fn check_node(&self, node: &Node) -> Result<(), Reason> {
        if node.status.state != NodeState::Ready {
            return Err(Reason::Down);
        }
        match node.spec.availability() {
            Availability::Active => {}
            Availability::Pause => return Err(Reason::NotActive("pause")),
            Availability::Drain => return Err(Reason::NotActive("drain")),
        }
        self.check_place(node)
    }

    /// Whether tasks may be on the node at all: platform and constraints.
    pub fn check_place(&self, node: &Node) -> Result<(), Reason> {
        for container in &self.revision.template.containers {
            if !matching::runs_on(node, &container.image_platforms) {
                return Err(Reason::Platform);
            }
        }
        match self.constraints.iter().find(|constraint| !matching::meets(node, constraint)) {
            Some(constraint) => Err(Reason::Constraint(constraint.to_string())),
            None => Ok(()),
        }
    }

    /// Checks that placements change. `of_service` is the number of the service's tasks on the node.
    pub fn check_room(&self, candidate: &Candidate<'_>, of_service: u64) -> Result<(), Reason> {
        if self.reserved.nano_cpus > 0 && self.reserved.nano_cpus > candidate.free_nano_cpus {
            return Err(Reason::Cpus);
        }
        if self.reserved.memory_bytes > 0 && self.reserved.memory_bytes > candidate.free_memory_bytes {
            return Err(Reason::Memory);
        }
        for port in self.ports {
            if candidate.taken_ports.contains(&(port.protocol(), port.published_port)) {
                return Err(Reason::HostPort(port.published_port, port.protocol()));
            }
        }
        if self.max_per_node > 0 && of_service >= self.max_per_node {
            return Err(Reason::MaxPerNode(self.max_per_node));
        }
        Ok(())
    }

    /// Takes what one task needs.
    pub fn occupy(&self, candidate: &mut Candidate<'_>) {
        candidate.tasks += 1;
        candidate.free_nano_cpus -= self.reserved.nano_cpus;
        candidate.free_memory_bytes -= self.reserved.memory_bytes;
        candidate.taken_ports.extend(self.ports.iter().map(|port| (port.protocol(), port.published_port)));
    }
}

/// A revision's constraints; those that do not parse are left out.
pub fn parsed_constraints(revision: &Revision) -> Vec<Constraint> {
    let placement = revision.template.placement.as_ref();
    let texts = placement.map_or(&[][..], |placement| &placement.constraints);
    texts.iter().filter_map(|text| Constraint::parse(text).ok()).collect()
}
