//! The set of what this node is to run, as the managers number it. Pure.
//!
//! Used by the agent: it applies each [`Assignments`] message here first, writes the returned [`Changes`] to the record,
//! and acts only then. A message that does not fit is refused as a whole; the session then asks for a complete set.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_proto::id::{CredentialId, IdError, ServiceId, TaskId};
use skep_proto::v1::assignment_item::Item;
use skep_proto::v1::assignment_key::Key;
use skep_proto::v1::{Assignments, ContainerSpec, Credential, Revision, Task, TaskTemplate};

use crate::payload::{self, HeldPayload, PayloadId, Payloads};

/// Names one revision of a service.
pub type RevisionKey = (ServiceId, u64);

/// Why an assignments message was refused. Nothing of it was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentError {
    /// A difference to another set than the one that is here.
    #[error("the difference applies to sequence {applies_to}, this node has {here}")]
    Gap {
        /// What it applies to.
        applies_to: u64,
        /// What is here.
        here: u64,
    },
    /// A difference that does not lead forward.
    #[error("the difference leads from sequence {from} to {to}")]
    Backward {
        /// Where it starts.
        from: u64,
        /// Where it leads.
        to: u64,
    },
    /// An id with a wrong length.
    #[error("an item of kind {kind} has a bad id")]
    Id {
        /// The kind of the item.
        kind: &'static str,
        /// What is wrong.
        #[source]
        source: IdError,
    },
    /// An item of a kind that this build does not know.
    #[error("an item or key is of a kind that this version does not know")]
    Kind,
}

/// What a message changed, in the order for the record. Credentials and payloads are not in it: they never reach a disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// New or changed tasks.
    pub put_tasks: Vec<TaskId>,
    /// Of these, the ones that are told to take over another revision in place, with the number of the one before.
    pub moved_tasks: Vec<(TaskId, u64)>,
    /// Tasks that are no longer assigned.
    pub removed_tasks: Vec<TaskId>,
    /// New revisions.
    pub put_revisions: Vec<RevisionKey>,
    /// Revisions that no assigned task needs any more.
    pub removed_revisions: Vec<RevisionKey>,
}

/// Everything assigned to this node.
#[derive(Debug, Clone, Default)]
pub struct AssignmentSet {
    sequence: u64,
    tasks: BTreeMap<TaskId, Task>,
    revisions: BTreeMap<RevisionKey, Arc<Revision>>,
    credentials: BTreeMap<CredentialId, Credential>,
    payloads: Payloads,
    /// Payloads that were let go before the managers said so: the managers believe that they are here.
    dropped: BTreeSet<PayloadId>,
}

/// A message whose ids were all read.
#[derive(Default)]
struct Parsed {
    tasks: BTreeMap<TaskId, Task>,
    revisions: BTreeMap<RevisionKey, Revision>,
    credentials: BTreeMap<CredentialId, Credential>,
    payloads: Payloads,
    removed_tasks: BTreeSet<TaskId>,
    removed_revisions: BTreeSet<RevisionKey>,
    removed_credentials: BTreeSet<CredentialId>,
    removed_payloads: BTreeSet<PayloadId>,
}

impl AssignmentSet {
    /// The set that a record holds.
    pub fn from_record(
        sequence: u64,
        tasks: BTreeMap<TaskId, Task>,
        revisions: BTreeMap<RevisionKey, Arc<Revision>>,
    ) -> Self {
        Self { sequence, tasks, revisions, ..Self::default() }
    }

    /// The sequence of the last applied message. 0: none yet.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Assigned tasks.
    pub fn tasks(&self) -> &BTreeMap<TaskId, Task> {
        &self.tasks
    }

    /// The revision that a task runs.
    pub fn revision_of(&self, task: &Task) -> Option<&Arc<Revision>> {
        let service = ServiceId::from_wire(&task.service_id).ok()?;
        self.revisions.get(&(service, task.revision))
    }

    /// A revision by key.
    pub fn revision(&self, key: &RevisionKey) -> Option<&Arc<Revision>> {
        self.revisions.get(key)
    }

    /// Credentials at hand.
    pub fn credentials(&self) -> &BTreeMap<CredentialId, Credential> {
        &self.credentials
    }

    /// Secrets and configs at hand.
    pub fn payloads(&self) -> &Payloads {
        &self.payloads
    }

    /// Whether a record can restore the set wholly: nothing in it needs a credential, a secret or a config.
    pub fn is_recordable(&self) -> bool {
        let bare = |template: &TaskTemplate| {
            let without = |container: &ContainerSpec| container.secrets.is_empty() && container.configs.is_empty();
            template.credential_id.is_empty() && template.containers.iter().all(without)
        };
        self.revisions.values().all(|revision| revision.template.as_ref().is_none_or(bare))
    }

    /// Lets go of payloads that no task of `live` needs, while no manager is there to say so. True: there were any.
    pub fn drop_payloads(&mut self, live: impl Fn(&TaskId) -> bool) -> bool {
        let needed: BTreeSet<PayloadId> = self
            .tasks
            .iter()
            .filter(|(id, _)| live(id))
            .filter_map(|(_, task)| self.revision_of(task)?.template.as_ref())
            .flat_map(payload::of_template)
            .collect();
        let before = self.payloads.len();
        let dropped = &mut self.dropped;
        self.payloads.retain(|id, _| needed.contains(id) || !dropped.insert(*id));
        self.payloads.len() < before
    }

    /// Whether a task needs a payload that was let go: only a complete set brings it back.
    pub fn lacks_dropped(&self, task: &Task) -> bool {
        let template = self.revision_of(task).and_then(|revision| revision.template.as_ref());
        !self.dropped.is_empty()
            && template.is_some_and(|template| !payload::of_template(template).is_disjoint(&self.dropped))
    }

    /// Applies one message, wholly or not at all.
    pub fn apply(&mut self, message: Assignments) -> Result<Changes, AssignmentError> {
        let (complete, applies_to, sequence) = (message.complete, message.applies_to, message.sequence);
        if !complete {
            if applies_to != self.sequence {
                return Err(AssignmentError::Gap { applies_to, here: self.sequence });
            }
            if sequence <= applies_to {
                return Err(AssignmentError::Backward { from: applies_to, to: sequence });
            }
        }
        let mut parsed = parse(message)?;
        if complete {
            // A complete set is a difference that removes all it does not put.
            parsed.removed_tasks = absent(&self.tasks, &parsed.tasks);
            parsed.removed_revisions = absent(&self.revisions, &parsed.revisions);
            parsed.removed_credentials = absent(&self.credentials, &parsed.credentials);
            parsed.removed_payloads = absent(&self.payloads, &parsed.payloads);
            self.dropped.clear();
        }
        self.sequence = sequence;
        Ok(self.commit(parsed))
    }

    fn commit(&mut self, parsed: Parsed) -> Changes {
        let mut changes = Changes::default();
        for key in parsed.removed_tasks {
            if self.tasks.remove(&key).is_some() {
                changes.removed_tasks.push(key);
            }
        }
        for key in parsed.removed_revisions {
            if self.revisions.remove(&key).is_some() {
                changes.removed_revisions.push(key);
            }
        }
        for key in parsed.removed_credentials {
            self.credentials.remove(&key);
        }
        for (key, task) in parsed.tasks {
            if self.tasks.get(&key) != Some(&task) {
                let revision = task.revision;
                let before = self.tasks.insert(key, task).map(|before| before.revision);
                changes.moved_tasks.extend(before.filter(|before| *before != revision).map(|before| (key, before)));
                changes.put_tasks.push(key);
            }
        }
        for (key, revision) in parsed.revisions {
            if self.revisions.get(&key).map(Arc::as_ref) != Some(&revision) {
                self.revisions.insert(key, Arc::new(revision));
                changes.put_revisions.push(key);
            }
        }
        self.credentials.extend(parsed.credentials);
        for key in parsed.removed_payloads {
            self.payloads.remove(&key);
            self.dropped.remove(&key);
        }
        for (key, payload) in parsed.payloads {
            self.dropped.remove(&key);
            // They never change.
            self.payloads.entry(key).or_insert(payload);
        }
        changes
    }
}

/// Keys that are in `old` and not in `new`.
fn absent<K: Ord + Copy, A, B>(old: &BTreeMap<K, A>, new: &BTreeMap<K, B>) -> BTreeSet<K> {
    old.keys().filter(|key| !new.contains_key(key)).copied().collect()
}

fn parse(message: Assignments) -> Result<Parsed, AssignmentError> {
    let bad = |kind| move |source| AssignmentError::Id { kind, source };
    let mut parsed = Parsed::default();
    for item in message.put {
        match item.item.ok_or(AssignmentError::Kind)? {
            Item::Task(task) => {
                let id = TaskId::from_wire(&task.id).map_err(bad("task"))?;
                ServiceId::from_wire(&task.service_id).map_err(bad("service of a task"))?;
                parsed.tasks.insert(id, task);
            }
            Item::Revision(revision) => {
                let service = ServiceId::from_wire(&revision.service_id).map_err(bad("revision"))?;
                parsed.revisions.insert((service, revision.number), revision);
            }
            Item::Credential(credential) => {
                let id = CredentialId::from_wire(&credential.id).map_err(bad("credential"))?;
                parsed.credentials.insert(id, credential);
            }
            Item::Payload(assigned) => {
                let key = assigned.payload.as_ref().and_then(|payload| payload.key.as_ref());
                let key = PayloadId::from_wire(key.ok_or(AssignmentError::Kind)?).map_err(bad("payload"))?;
                parsed.payloads.insert(key, HeldPayload::take(assigned));
            }
        }
    }
    for key in message.remove {
        match key.key.ok_or(AssignmentError::Kind)? {
            Key::TaskId(id) => {
                parsed.removed_tasks.insert(TaskId::from_wire(&id).map_err(bad("task"))?);
            }
            Key::Revision(key) => {
                let service = ServiceId::from_wire(&key.service_id).map_err(bad("revision"))?;
                parsed.removed_revisions.insert((service, key.number));
            }
            Key::CredentialId(id) => {
                let id = CredentialId::from_wire(&id).map_err(bad("credential"))?;
                parsed.removed_credentials.insert(id);
            }
            Key::Payload(key) => {
                parsed.removed_payloads.insert(PayloadId::from_wire(&key).map_err(bad("payload"))?);
            }
        }
    }
    Ok(parsed)
}

#[cfg(test)]
#[path = "assignments_test.rs"]
mod assignments_test;
