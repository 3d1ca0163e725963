//! What an event concerns: the topics under which sessions, watches and waiters register, so that an event costs those
//! concerned and nobody else. Pure; the channels around it are the manager's.

use std::collections::BTreeSet;

use skep_proto::id::{ClientId, NodeId, ServiceId};

use crate::assign;
use crate::event::Event;
use crate::object::Task;
use crate::store::{Object, State};

/// A part of the state that can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Anything at all.
    All,
    /// One service, its revisions and tasks.
    Service(ServiceId),
    /// What is assigned to one node, and the node itself. Not the progress of its tasks.
    Node(NodeId),
    /// Any node.
    Nodes,
    /// Any service itself (without its tasks).
    Services,
    /// The cluster object.
    Cluster,
    /// One client.
    Client(ClientId),
}

/// The topics that the events of one or more transactions concern. `state` is the one after them.
pub fn topics<'a>(events: impl IntoIterator<Item = &'a Event>, state: &State) -> BTreeSet<Topic> {
    let mut topics = BTreeSet::new();
    for event in events {
        topics.insert(Topic::All);
        add(&mut topics, event, state);
    }
    topics
}

fn add(topics: &mut BTreeSet<Topic>, event: &Event, state: &State) {
    match event.after.as_ref().or(event.before.as_ref()) {
        Some(Object::Cluster(_)) => {
            topics.insert(Topic::Cluster);
        }
        Some(Object::Node(node)) => topics.extend([Topic::Nodes, Topic::Node(node.id)]),
        Some(Object::Service(service)) => topics.extend([Topic::Services, Topic::Service(service.id)]),
        Some(Object::Revision(revision)) => {
            topics.insert(Topic::Service(revision.key.service));
        }
        Some(Object::Task(task)) => {
            topics.insert(Topic::Service(task.service()));
            topics.extend(assigned_nodes(event).map(Topic::Node));
        }
        Some(Object::Credential(credential)) => {
            // It usually comes before the first task that needs it: then this loop is empty.
            let nodes = state.tasks_of_service(credential.service).filter_map(|task| task.node);
            topics.extend(nodes.map(Topic::Node));
        }
        Some(Object::Payload(payload)) => {
            // It comes before the first revision that names it, and goes after the last: then this loop is empty.
            let services: BTreeSet<_> = state.revisions_with(payload.key).map(|one| one.key.service).collect();
            let tasks = services.into_iter().flat_map(|service| state.tasks_of_service(service));
            topics.extend(tasks.filter_map(|task| task.node).map(Topic::Node));
        }
        Some(Object::Client(client)) => {
            topics.insert(Topic::Client(client.id));
        }
        Some(Object::ImageName(_) | Object::Network(_) | Object::Parcel(_)) | None => {}
    }
}

/// Nodes whose assignments a task's event changes.
fn assigned_nodes(event: &Event) -> impl Iterator<Item = NodeId> {
    let (before, after) = (as_task(&event.before), as_task(&event.after));
    let same = before.zip(after).is_some_and(|(before, after)| assign::same_assignment(before, after));
    let concerned = move |task: Option<&Task>| task.filter(|task| !same && assign::is_assigned(task))?.node;
    concerned(before).into_iter().chain(concerned(after))
}

fn as_task(object: &Option<Object>) -> Option<&Task> {
    match object {
        Some(Object::Task(task)) => Some(task),
        _ => None,
    }
}

#[cfg(test)]
mod watch_test;
