//! What a stored change must not break: references, claims, and the direction of a task's life.

use skep_proto::id::TaskId;
use skep_proto::time::UnixMs;
use skep_proto::v1::{TaskState, WantedState};

use super::refused::Refused;
use super::{networks, parcels, protocol_word, word};
use crate::change::Op;
use crate::event::Event;
use crate::object::{Node, Revision, RevisionKey, Service, Slot, Task};
use crate::store::{Object, ObjectKey, State};

/// An object as messages name it: by its name where it has one.
pub(super) fn name_of(object: &Object) -> String {
    match object {
        Object::Service(service) => format!("service {}", service.spec.name),
        Object::Network(network) => format!("network {}", network.spec.name),
        Object::Parcel(parcel) => parcel.title(),
        Object::Client(client) => format!("client {}", client.name),
        other => other.key().to_string(),
    }
}

/// Whether what the change stores is a form that the log can carry and every reader expects. An entry that can be
/// written and not be read would stop all managers.
pub(super) fn well_formed(op: &Op) -> Result<(), Refused> {
    let (key, why) = match op {
        Op::PutTask(task) => (ObjectKey::Task(task.id), task_flaw(task)),
        Op::PutRevision(revision) if revision.key.number == 0 || revision.copied_from == Some(0) => {
            (ObjectKey::Revision(revision.key), Some("revisions are numbered from 1"))
        }
        Op::PutRevision(revision) => (ObjectKey::Revision(revision.key), parcels::revision_flaw(revision)),
        Op::PutParcel(parcel) => (ObjectKey::Parcel(parcel.id), parcels::parcel_flaw(parcel)),
        Op::PutPayload(payload) => (ObjectKey::Payload(payload.key), parcels::payload_flaw(payload)),
        Op::PutNetwork(network) => (ObjectKey::Network(network.id), networks::network_flaw(network)),
        Op::PutService(service) => {
            (ObjectKey::Service(service.id), networks::addresses_flaw(&service.virtual_addresses))
        }
        Op::PutNode(node) if node.fabric_number == Some(0) => {
            (ObjectKey::Node(node.id), Some("fabric numbers begin at 1"))
        }
        Op::PutImageName(name) if name.name.is_empty() => (ObjectKey::ImageName(String::new()), Some("it has no name")),
        Op::PutClient(client) if client.name.is_empty() => (ObjectKey::Client(client.id), Some("it has no name")),
        Op::ObserveTask(report) if TaskState::try_from(report.status.state).is_err() => {
            (ObjectKey::Task(report.task), Some("it is reported in a state that is not known"))
        }
        _ => return Ok(()),
    };
    why.map_or(Ok(()), |why| Err(Refused::Malformed { object: key.to_string(), why }))
}

fn task_flaw(task: &Task) -> Option<&'static str> {
    let placed = task.state >= TaskState::Assigned && !task.state.is_terminal();
    let flaws = [
        (i32::from(task.state) != task.status.state, "its state and its status differ"),
        (task.wanted == WantedState::Unspecified, "it has no wanted state"),
        (placed && task.node.is_none(), "its state says that it was placed, but it has no node"),
        (task.slot == Slot::Replica(0), "slots are numbered from 1"),
        (matches!(task.slot, Slot::Node(place) if task.node != Some(place)), "its place is a node, but not its node"),
        (task.start_at == Some(UnixMs::ZERO), "a start at 0 means none"),
    ];
    flaws.into_iter().find_map(|(wrong, why)| wrong.then_some(why)).or_else(|| networks::addresses_flaw(&task.networks))
}

/// Whether a task's new wanted part follows from the stored one.
pub(super) fn forward(stored: &Task, new: &Task) -> Result<(), Refused> {
    let object = || format!("task {}", stored.id);
    let fixed = |part| Err(Refused::Fixed { object: object(), part });
    if stored.service() != new.service() {
        return fixed("service");
    }
    if stored.slot != new.slot {
        return fixed("slot");
    }
    if stored.node.is_some() && stored.node != new.node {
        return fixed("node");
    }
    // They follow from the placement; what a task has it keeps.
    if stored.occupies_node() && stored.networks != new.networks {
        return fixed("addresses");
    }
    let backwards =
        |part, from: &str, to: &str| Err(Refused::Backwards { object: object(), part, from: word(from), to: word(to) });
    if new.wanted < stored.wanted {
        return backwards("wanted state", stored.wanted.as_str_name(), new.wanted.as_str_name());
    }
    // From ACCEPTED on the loops' view of the state may lag; it is not taken over then.
    if new.state < stored.state && !stored.state.belongs_to_node() {
        return backwards("state", stored.state.as_str_name(), new.state.as_str_name());
    }
    Ok(())
}

/// Whether the host ports that a task claims are free or its own.
pub(super) fn ports_free(state: &State, task: &Task) -> Result<(), Refused> {
    for claim in task.claimed_ports() {
        if let Some(holder) = state.port_holder(claim).filter(|holder| *holder != task.id) {
            let protocol = protocol_word(claim.protocol);
            return Err(Refused::PortTaken { node: claim.node, protocol, port: claim.port, holder });
        }
    }
    Ok(())
}

/// Whether a task's record may go: while it may still run on a node of the swarm, its ports and resources are taken.
pub(super) fn may_forget(state: &State, id: TaskId) -> Result<(), Refused> {
    let held = state.task(id).filter(|task| task.occupies_node()).and_then(|task| task.node);
    match held.filter(|node| state.node(*node).is_some()) {
        Some(node) => Err(Refused::InUse { object: format!("task {id}"), by: format!("node {node}") }),
        None => Ok(()),
    }
}

/// Whether everything that a group stored refers to what is there, and nothing that it removed is still needed. Looks
/// at the state after the whole group, so that the order within it does not matter.
pub(super) fn references(state: &State, events: &[Event]) -> Result<(), Refused> {
    for event in events {
        match (&event.before, &event.after) {
            (before, Some(Object::Service(service))) => service_refers(state, before.as_ref(), service)?,
            (before, Some(Object::Node(node))) => node_refers(state, before.as_ref(), node)?,
            (Some(Object::Network(network)), None) => networks::unused(state, network)?,
            (_, Some(Object::Parcel(parcel))) => parcels::is_whole(state, parcel.id)?,
            (Some(Object::Parcel(parcel)), None) => parcels::parcel_unused(state, parcel)?,
            (_, Some(Object::Payload(payload))) => parcels::is_whole(state, payload.key.owner)?,
            (Some(Object::Payload(payload)), None) => parcels::payload_unused(state, payload.key)?,
            (_, Some(Object::Revision(revision))) => revision_refers(state, revision)?,
            (Some(Object::Revision(revision)), None) => still_current(state, revision.key)?,
            (None, Some(Object::Task(task))) => {
                needs(state, ObjectKey::Service(task.service()), &event.key)?;
                task_refers(state, None, task)?;
            }
            (Some(Object::Task(before)), Some(Object::Task(task))) => task_refers(state, Some(before), task)?,
            (None, Some(Object::Credential(credential))) => {
                needs(state, ObjectKey::Service(credential.service), &event.key)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn needs(state: &State, object: ObjectKey, needed_by: &ObjectKey) -> Result<(), Refused> {
    if state.contains(&object) {
        return Ok(());
    }
    Err(Refused::Missing { object: object.to_string(), needed_by: needed_by.to_string() })
}

fn service_refers(state: &State, before: Option<&Object>, service: &Service) -> Result<(), Refused> {
    // A later change of the group may have removed it again.
    if state.service(service.id).is_none() {
        return Ok(());
    }
    let needed_by = ObjectKey::Service(service.id);
    needs(state, ObjectKey::Revision(service.current()), &needed_by)?;
    networks::attachments_fit(state, service)?;
    if let Some(revision) = state.revision(service.current()) {
        parcels::uses_fit(state, service, revision)?;
    }
    let before = match before {
        Some(Object::Service(before)) => &before.virtual_addresses[..],
        _ => &[],
    };
    networks::addresses_fit(state, before, &service.virtual_addresses, &needed_by)
}

fn node_refers(state: &State, before: Option<&Object>, node: &Node) -> Result<(), Refused> {
    if state.node(node.id).is_none() {
        return Ok(());
    }
    let before = match before {
        Some(Object::Node(before)) => before.ingress.as_slice(),
        _ => &[],
    };
    networks::addresses_fit(state, before, node.ingress.as_slice(), &ObjectKey::Node(node.id))
}

fn revision_refers(state: &State, revision: &Revision) -> Result<(), Refused> {
    let key = ObjectKey::Revision(revision.key);
    if state.revision(revision.key).is_none() {
        return Ok(());
    }
    needs(state, ObjectKey::Service(revision.key.service), &key)?;
    parcels::versions_fit(state, revision)?;
    match state.service(revision.key.service).filter(|service| service.current() == revision.key) {
        Some(service) => networks::attachments_fit(state, service),
        None => Ok(()),
    }
}

fn still_current(state: &State, key: RevisionKey) -> Result<(), Refused> {
    match state.service(key.service).filter(|service| service.current() == key) {
        Some(service) => Err(Refused::InUse {
            object: ObjectKey::Revision(key).to_string(),
            by: format!("service {}", service.spec.name),
        }),
        None => Ok(()),
    }
}

/// A task needs its revision, and its node at the moment when it is placed; later the node may go.
fn task_refers(state: &State, before: Option<&Task>, task: &Task) -> Result<(), Refused> {
    if state.task(task.id).is_none() {
        return Ok(());
    }
    let key = ObjectKey::Task(task.id);
    if before.is_none_or(|before| before.revision != task.revision) {
        needs(state, ObjectKey::Revision(task.revision), &key)?;
    }
    let held = before.map_or(&[][..], Task::held_addresses);
    networks::addresses_fit(state, held, task.held_addresses(), &key)?;
    let was_placed = before.is_some_and(|before| before.node.is_some() && before.occupies_node());
    match task.node {
        Some(node) if task.occupies_node() && !was_placed => needs(state, ObjectKey::Node(node), &key),
        _ => Ok(()),
    }
}
