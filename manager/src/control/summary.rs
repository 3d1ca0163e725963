//! Objects with the names and counts that tables show.

use skep_core::codec;
use skep_core::object::{Node, Service, Task};
use skep_core::schedule::Needs;
use skep_core::store::State;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{self, ContainerSpec};

use crate::roles::Seen;

/// A service with its current revision and counts.
pub(crate) fn service(state: &State, service: &Service) -> v1::ServiceSummary {
    let revision = state.revision(service.current());
    let desired = match &service.spec.mode {
        Some(Mode::Replicated(mode)) => mode.replicas,
        Some(Mode::Global(_)) => revision.map_or(0, |revision| {
            let needs = Needs::new(revision, &[]);
            state.nodes().filter(|node| node.takes_tasks() && needs.check_place(node).is_ok()).count() as u64
        }),
        None => 0,
    };
    v1::ServiceSummary {
        service: Some(codec::service_to_wire(service)),
        revision: revision.map(|revision| codec::revision_to_wire(revision)),
        running: state.running_of(service.id),
        desired,
    }
}

/// A task with the names of its service and node.
pub(crate) fn task(state: &State, task: &Task) -> v1::TaskSummary {
    let revision = state.revision(task.revision);
    let image = revision.and_then(|revision| revision.template.containers.first()).map(image).unwrap_or_default();
    let service_name = revision.map(|revision| revision.service_name.to_string()).unwrap_or_default();
    let node = task.node.and_then(|node| state.node(node));
    v1::TaskSummary {
        task: Some(codec::task_to_wire(task)),
        service_name,
        node_hostname: node.map(|node| node.hostname().to_owned()).unwrap_or_default(),
        image,
    }
}

/// A node as the API shows it: with its part in Raft, and why its role is not yet as wanted.
pub(crate) fn node(node: &Node, seen: &Seen) -> v1::Node {
    let mut shown = codec::node_to_wire(node);
    if let Some(manager) = &mut shown.manager {
        manager.leader = seen.leads(manager.raft_id);
        manager.reachable = seen.is_reachable(manager.raft_id);
    }
    if let Some(why) = seen.waiting(node.id)
        && let Some(status) = &mut shown.status
    {
        let separator = if status.message.is_empty() { "" } else { "; " };
        status.message = format!("{}{separator}{why}", status.message);
    }
    shown
}

/// The image as written, with the digest that runs.
fn image(container: &ContainerSpec) -> String {
    if container.image_digest.is_empty() || container.image.contains('@') {
        return container.image.clone();
    }
    format!("{}@{}", container.image, container.image_digest)
}
