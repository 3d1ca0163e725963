//! From the state to what one node is to run: its assignment set, and the difference between two sets. A pure function
//! of a snapshot: any manager computes the same set, and a session that missed events misses nothing. The cost is
//! that of the node's own tasks. Called by the dispatcher.
//!
//! A node gets: the tasks placed on it until their records are deleted (the ended ones too: their logs are kept as long),
//! the revisions of these tasks, the credentials that those of them need which may still pull an image, and the secrets and
//! configs of those that are to run. Nothing else, ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_proto::id::{CredentialId, NodeId, TaskId};
use skep_proto::v1::assignment_item::Item;
use skep_proto::v1::assignment_key::Key;
use skep_proto::v1::{self, TaskState, TaskStatus, WantedState};

use crate::codec;
use crate::object::{Credential, Payload, PayloadKey, Revision, RevisionKey, Task};
use crate::store::{State, payload_refs};

/// Everything assigned to a node at one version of the store.
#[derive(Clone, Debug, Default)]
pub struct AssignmentSet {
    tasks: BTreeMap<TaskId, Arc<Task>>,
    revisions: BTreeMap<RevisionKey, Arc<Revision>>,
    credentials: BTreeMap<CredentialId, Arc<Credential>>,
    payloads: BTreeMap<PayloadKey, Arc<Given>>,
}

/// A payload as a node gets it.
#[derive(Clone, Debug, PartialEq)]
struct Given {
    payload: Arc<Payload>,
    templated: bool,
}

/// What leads from one set to another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    pub put: Vec<v1::AssignmentItem>,
    pub remove: Vec<v1::AssignmentKey>,
}

/// Whether a node is told of the task: it was placed.
pub(crate) fn is_assigned(task: &Task) -> bool {
    task.node.is_some() && task.state >= TaskState::Assigned
}

/// What the node is told to do: an ended task is never started again, whatever the loops still want of it (a node that
/// lost its disk would).
fn told(task: &Task) -> WantedState {
    if task.state.is_terminal() { task.wanted.max(WantedState::Shutdown) } else { task.wanted }
}

/// Whether two forms of a task are the same for its node: all but the observed part.
pub(crate) fn same_assignment(a: &Task, b: &Task) -> bool {
    is_assigned(a) == is_assigned(b)
        && a.node == b.node
        && told(a) == told(b)
        && a.meta == b.meta
        && a.revision == b.revision
        && a.slot == b.slot
        && a.ports == b.ports
        && a.start_at == b.start_at
        && a.replaces == b.replaces
}

impl AssignmentSet {
    /// What the state assigns to the node.
    pub fn of(state: &State, node: NodeId) -> Self {
        let mut set = Self::default();
        let mut runs = BTreeSet::new();
        for task in state.tasks_on_node(node).filter(|task| is_assigned(task)) {
            let Some(revision) = state.revision(task.revision) else { continue };
            if told(task).wants_to_run() {
                if let Some(credential) = credential_of(state, revision) {
                    set.credentials.insert(credential.id, Arc::clone(credential));
                }
                // Tasks of a service share a revision.
                if runs.insert(revision.key) {
                    set.give(state, revision);
                }
            }
            set.revisions.insert(revision.key, Arc::clone(revision));
            set.tasks.insert(task.id, Arc::clone(task));
        }
        set
    }

    /// Adds the payloads that tasks of a revision use.
    fn give(&mut self, state: &State, revision: &Revision) {
        for key in payload_refs(&revision.template).map(|one| one.key) {
            if let (Some(payload), Some(owner)) = (state.payload(key), state.parcel(key.owner)) {
                let given = Given { payload: Arc::clone(payload), templated: owner.spec.templated };
                self.payloads.insert(key, Arc::new(given));
            }
        }
    }

    /// How many tasks are in it.
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// Whether the task is in it.
    pub fn has_task(&self, id: TaskId) -> bool {
        self.tasks.contains_key(&id)
    }

    /// The whole set, for a node that has none.
    pub fn complete(&self) -> Difference {
        Self::default().difference(self)
    }

    /// What leads from this set to `new`; empty where the node sees no difference.
    pub fn difference(&self, new: &Self) -> Difference {
        let mut difference = Difference::default();
        // What tasks need comes before them, and goes after them.
        for given in
            changed(&self.payloads, &new.payloads, |a, b| a.templated == b.templated && a.payload.key == b.payload.key)
        {
            difference.put(Item::Payload(v1::AssignedPayload {
                payload: Some(codec::payload_to_wire(&given.payload)),
                templated: given.templated,
            }));
        }
        for credential in changed(&self.credentials, &new.credentials, |a, b| a == b) {
            difference.put(Item::Credential(codec::credential_to_wire(credential)));
        }
        for revision in changed(&self.revisions, &new.revisions, |a, b| a == b) {
            difference.put(Item::Revision(codec::revision_to_wire(revision)));
        }
        for task in changed(&self.tasks, &new.tasks, same_assignment) {
            difference.put(Item::Task(task_item(task)));
        }
        for id in gone(&self.tasks, &new.tasks) {
            difference.remove(Key::TaskId(id.to_vec()));
        }
        for key in gone(&self.revisions, &new.revisions) {
            difference.remove(Key::Revision(codec::revision_key_to_wire(*key)));
        }
        for id in gone(&self.credentials, &new.credentials) {
            difference.remove(Key::CredentialId(id.to_vec()));
        }
        for key in gone(&self.payloads, &new.payloads) {
            difference.remove(Key::Payload(codec::payload_key_to_wire(*key)));
        }
        difference
    }
}

impl Difference {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.remove.is_empty()
    }

    /// The message that replaces all that the node has.
    pub fn into_complete(self, sequence: u64) -> v1::Assignments {
        v1::Assignments { complete: true, applies_to: 0, sequence, put: self.put, remove: Vec::new() }
    }

    /// The message that leads from sequence `applies_to` to `sequence`.
    pub fn into_message(self, applies_to: u64, sequence: u64) -> v1::Assignments {
        v1::Assignments { complete: false, applies_to, sequence, put: self.put, remove: self.remove }
    }

    fn put(&mut self, item: Item) {
        self.put.push(v1::AssignmentItem { item: Some(item) });
    }

    fn remove(&mut self, key: Key) {
        self.remove.push(v1::AssignmentKey { key: Some(key) });
    }
}

/// The credential that a revision names; it must be its own service's.
fn credential_of<'a>(state: &'a State, revision: &Revision) -> Option<&'a Arc<Credential>> {
    let id = CredentialId::from_wire_opt(&revision.template.credential_id).ok().flatten()?;
    state.credential(id).filter(|credential| credential.service == revision.key.service)
}

/// A task as its node hears it: what is wanted, without what was observed.
fn task_item(task: &Task) -> v1::Task {
    let bare = Task { wanted: told(task), status: Arc::new(TaskStatus::default()), ..Task::clone(task) };
    v1::Task { status: None, ..codec::task_to_wire(&bare) }
}

/// Entries of `new` that `old` has not, or has otherwise.
fn changed<'a, K: Ord, V>(
    old: &BTreeMap<K, Arc<V>>,
    new: &'a BTreeMap<K, Arc<V>>,
    same: impl Fn(&V, &V) -> bool,
) -> impl Iterator<Item = &'a Arc<V>> {
    new.iter()
        .filter(move |(key, value)| !old.get(key).is_some_and(|was| Arc::ptr_eq(was, value) || same(was, value)))
        .map(|(_, value)| value)
}

/// Keys of `old` that `new` has not.
fn gone<'a, K: Ord, V>(old: &'a BTreeMap<K, V>, new: &BTreeMap<K, V>) -> impl Iterator<Item = &'a K> {
    old.keys().filter(|key| !new.contains_key(key))
}

#[cfg(test)]
mod assign_test;
