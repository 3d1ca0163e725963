//! Which tasks are as the service wants them now. A task of an older revision is, if the revisions differ in placement or
//! in the credential alone and the task may stay where it is: then nothing would change but its number. And so is one whose
//! revision is taken over by the current one live: it gets that one's number where it is.

use std::collections::BTreeSet;

use skep_proto::id::NetworkId;
use skep_proto::v1::{PortSpec, TaskState, TaskTemplate};

use crate::object::{Revision, RevisionKey, Service, Task};
use crate::orchestrate::make;
use crate::schedule::Needs;
use crate::store::State;

/// Judges the tasks of one service.
pub(in crate::orchestrate) struct Currency<'a> {
    state: &'a State,
    number: u64,
    /// Kept revisions that run the same, by number.
    same: BTreeSet<u64>,
    /// Kept revisions whose tasks take over the current one in place, by number.
    live: BTreeSet<u64>,
    needs: Option<Needs<'a>>,
    credential: &'a [u8],
    ports: Vec<PortSpec>,
    /// The routing mesh's network, where the service publishes ports by it.
    mesh: Option<NetworkId>,
}

impl<'a> Currency<'a> {
    /// Compares the kept revisions with the current one.
    pub(in crate::orchestrate) fn of(state: &'a State, service: &Service) -> Self {
        let current = state.revision(service.current());
        // The first revision has none to be compared with.
        let older = state.revisions_of(service.id).filter(|revision| revision.key != service.current());
        let same = current.map_or_else(BTreeSet::new, |current| {
            older.filter(|revision| run_the_same(revision, current)).map(|revision| revision.key.number).collect()
        });
        Self {
            state,
            number: service.revision,
            same,
            live: current.map_or_else(BTreeSet::new, |current| taken_over(state, current)),
            needs: current.map(|current| Needs::new(current, &[])),
            credential: current.map_or(&[], |current| &current.template.credential_id),
            ports: make::host_ports(service),
            mesh: service.ingress_ports().next().and_then(|_| Some(state.ingress_network()?.id)),
        }
    }

    /// Whether the task, which is to run, need not be replaced.
    pub(in crate::orchestrate) fn is_current(&self, task: &Task) -> bool {
        task.revision.number == self.number || (self.runs_the_same(task) && self.may_stay(task))
    }

    /// Whether the task's end counts as an end of the current revision's.
    pub(in crate::orchestrate) fn runs_the_same(&self, task: &Task) -> bool {
        let number = task.revision.number;
        number == self.number || self.same.contains(&number) || self.live.contains(&number)
    }

    /// Whether the task, which is to run, takes over the current revision where it is.
    pub(in crate::orchestrate) fn takes_over(&self, task: &Task) -> bool {
        self.live.contains(&task.revision.number) && !task.state.is_terminal() && self.may_stay(task)
    }

    fn may_stay(&self, task: &Task) -> bool {
        let Some(needs) = &self.needs else { return false };
        let credential =
            || self.state.revision(task.revision).map(|revision| revision.template.credential_id.as_slice());
        // From READY on it has its image, and no use for a credential.
        let can_pull = task.state >= TaskState::Ready || credential() == Some(self.credential);
        let fits = task.node.and_then(|node| self.state.node(node)).is_none_or(|node| needs.check_place(node).is_ok());
        can_pull && fits && task.ports == self.ports && self.is_in_mesh(task)
    }
}

impl Currency<'_> {
    /// Whether the task can be reached by the ports that the routing mesh publishes, or will be.
    fn is_in_mesh(&self, task: &Task) -> bool {
        let placed = task.state >= TaskState::Assigned;
        match self.mesh.filter(|_| placed) {
            Some(mesh) => task.networks.iter().any(|one| one.network == mesh),
            None => true,
        }
    }
}

/// Revisions whose tasks take over `current` live: the one that it says, those that run the same as that one, and so on
/// through live changes that came before.
fn taken_over(state: &State, current: &Revision) -> BTreeSet<u64> {
    let mut numbers = BTreeSet::new();
    let mut later = current;
    while let Some(live) = &later.live {
        let key = RevisionKey { number: live.from_revision, ..current.key };
        let Some(from) = state.revision(key).filter(|from| from.key.number < later.key.number) else { break };
        let same = state.revisions_of(key.service).filter(|other| run_the_same(other, from));
        numbers.extend(same.map(|revision| revision.key.number));
        later = from;
    }
    numbers.remove(&current.key.number);
    numbers
}

/// Whether both templates make the same containers. Aliases are the service's: they ask nothing of its tasks.
fn run_the_same(a: &Revision, b: &Revision) -> bool {
    let essence = |template: &TaskTemplate| {
        let mut essence = TaskTemplate { placement: None, credential_id: Vec::new(), ..TaskTemplate::clone(template) };
        for attachment in &mut essence.networks {
            attachment.name.clear();
            attachment.aliases.clear();
        }
        essence
    };
    a.template == b.template || essence(&a.template) == essence(&b.template)
}
