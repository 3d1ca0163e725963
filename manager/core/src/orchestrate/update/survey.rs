//! What a service's places look like to the updater: one walk over its tasks, which the store keeps by place.

use std::sync::Arc;

use skep_proto::id::ServiceId;
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{Availability, NodeState, TaskState, TaskTemplate, WantedState};

use super::currency::Currency;
use super::failure;
use super::policy::Policy;
use crate::object::{Service, Slot, Task};
use crate::store::State;

/// One place: a replica's slot, or a node of a global service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) slot: Slot,
    /// The task that is to run and is as the service wants it now.
    pub(super) current: Option<&'a Arc<Task>>,
    /// The task that is to run and is not.
    pub(super) older: Option<&'a Arc<Task>>,
    /// A task that is to stop may still run.
    pub(super) stopping: bool,
    /// The newest task of the current revision that counts as failed.
    pub(super) failure: Option<&'a Arc<Task>>,
    /// A task of the current revision had its turn here and ended by itself for good.
    pub(super) tried: bool,
    /// The orchestrator has nothing to replace here.
    pub(super) is_settled: bool,
    /// A replacement can start now: a replica's can, somewhere; a global service's only on a node that takes tasks.
    pub(super) takes_new_tasks: bool,
}

/// Why the next place has to wait for this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Busy {
    /// Until something happens.
    Event,
    /// Until then: the pause between batches.
    Until(UnixMs),
}

/// All places of a service.
pub(super) struct Survey<'a> {
    /// Filled places, by slot.
    pub(super) places: Vec<Place<'a>>,
    /// There are more places than replicas.
    pub(super) is_surplus: bool,
    /// There are as many places as replicas, and no task has to stop elsewhere.
    pub(super) is_whole: bool,
}

impl<'a> Survey<'a> {
    pub(super) fn of(state: &'a State, service: &Service, currency: &Currency<'_>, policy: &Policy) -> Self {
        let template = state.revision(service.current()).map(|revision| Arc::clone(&revision.template));
        let surveyor = Surveyor { state, service, currency, policy, template: template.unwrap_or_default() };
        let mut places = Vec::new();
        let mut is_emptying = false;
        let mut tasks = state.tasks_of_service(service.id).peekable();
        let mut place_tasks: Vec<&Arc<Task>> = Vec::new();
        while let Some(first) = tasks.next() {
            place_tasks.clear();
            place_tasks.push(first);
            while let Some(next) = tasks.next_if(|task| task.slot == first.slot) {
                place_tasks.push(next);
            }
            let (place, is_filled) = surveyor.place(first.slot, &place_tasks);
            if is_filled {
                places.push(place);
            }
            // Nobody waits for a silent node.
            is_emptying |= place.stopping && !is_filled && !surveyor.is_silent(first.slot);
        }
        let wanted = match &service.spec.mode {
            Some(Mode::Replicated(mode)) => Some(mode.replicas),
            // Which nodes fit is the orchestrator's business; it needs no update to make a task.
            Some(Mode::Global(_)) | None => None,
        };
        let count = places.len() as u64;
        Self {
            is_surplus: wanted.is_some_and(|wanted| count > wanted),
            is_whole: wanted.is_none_or(|wanted| count == wanted) && !is_emptying,
            places,
        }
    }
}

struct Surveyor<'a, 's> {
    state: &'a State,
    service: &'s Service,
    currency: &'s Currency<'s>,
    policy: &'s Policy,
    template: Arc<TaskTemplate>,
}

impl<'a> Surveyor<'a, '_> {
    /// The place of these tasks, and whether it is filled.
    fn place(&self, slot: Slot, tasks: &[&'a Arc<Task>]) -> (Place<'a>, bool) {
        let mut place = Place {
            slot,
            current: None,
            older: None,
            stopping: false,
            failure: None,
            tried: false,
            is_settled: true,
            takes_new_tasks: match slot {
                Slot::Replica(_) => true,
                Slot::Node(node) => self.state.node(node).is_some_and(|node| node.takes_tasks()),
            },
        };
        let mut is_held = false;
        for task in tasks.iter().copied() {
            let is_live = task.wanted.wants_to_run();
            if is_live {
                let half = if self.currency.is_current(task) { &mut place.current } else { &mut place.older };
                // Two of a kind are for the orchestrator to sort out.
                place.is_settled &= half.replace(task).is_none() && self.stays(task);
            } else {
                place.stopping |= may_run(self.state, task);
                let by_itself = failure::ended_by_itself(task.state) && task.wanted != WantedState::Remove;
                is_held |= by_itself && self.currency.runs_the_same(task);
                place.tried |= by_itself && self.is_rolled_out(task);
            }
            if self.is_failure(task) && place.failure.is_none_or(|noted| noted.since() <= task.since()) {
                place.failure = Some(task);
            }
        }
        (place, is_held || place.current.is_some() || place.older.is_some())
    }

    /// Whether the place is a node that is down.
    fn is_silent(&self, slot: Slot) -> bool {
        match slot {
            Slot::Replica(_) => false,
            Slot::Node(node) => self.state.node(node).is_some_and(|node| node.status.state == NodeState::Down),
        }
    }

    /// Whether the task came with the roll-out under way: each has a revision of its own.
    fn is_rolled_out(&self, task: &Task) -> bool {
        task.revision == self.service.current()
    }

    fn is_failure(&self, task: &Task) -> bool {
        task.wanted != WantedState::Remove
            && task.state.is_terminal()
            && self.is_rolled_out(task)
            && failure::is_failure(task, &self.template, self.policy.monitor)
    }

    /// Whether the orchestrator leaves the task where it is, as far as its end and its node tell.
    fn stays(&self, task: &Task) -> bool {
        let node = task.node.and_then(|node| self.state.node(node));
        match (task.node, node) {
            _ if task.state.is_terminal() => false,
            (None, _) => true,
            (Some(_), None) => false,
            (Some(_), Some(node)) => {
                // A global service's task stays on a silent node.
                let is_lost = node.status.state == NodeState::Down && matches!(task.slot, Slot::Replica(_));
                node.spec.availability() != Availability::Drain && !is_lost
            }
        }
    }
}

impl Place<'_> {
    /// Whether, and until when, the next place has to wait for this one.
    pub(super) fn busy(&self, service: &Service, policy: &Policy, now: UnixMs) -> Option<Busy> {
        if !self.takes_new_tasks {
            // Nobody waits for a silent node.
            return None;
        }
        if self.stopping {
            return Some(Busy::Event);
        }
        let Some(current) = self.current else {
            // An older task that ended, lost its node or does not run yet: its place does not serve.
            let older = self.older.filter(|_| self.failure.is_none())?;
            let serves = self.is_settled && (older.state == TaskState::Running || never_served(older));
            return (!serves).then_some(Busy::Event);
        };
        if self.failure.is_some() {
            // It had its turn; whether the update goes on is a question of the ratio.
            return None;
        }
        if !self.is_settled {
            return Some(Busy::Event);
        }
        match current.state {
            // Its predecessor is to stop first.
            TaskState::Running if self.older.is_some() => Some(Busy::Event),
            TaskState::Running => {
                let since = self.rolled_out_since(service, now)?;
                let until = since.plus(policy.delay);
                (until > now).then_some(Busy::Until(until))
            }
            _ if self.older.is_none() && never_served(current) => None,
            _ => Some(Busy::Event),
        }
    }

    /// Whether the update has nothing more to do here than to watch.
    pub(super) fn is_done(&self) -> bool {
        if !self.takes_new_tasks {
            return true;
        }
        if self.stopping {
            return false;
        }
        match (self.current, self.older) {
            (None, None) => true,
            // Given up by the restart policy; what ran before runs on.
            (None, Some(_)) => self.tried,
            (Some(_), _) if self.failure.is_some() => true,
            (Some(current), None) => current.state == TaskState::Running && self.is_settled,
            (Some(_), Some(_)) => false,
        }
    }

    /// From when on the place's task serves, so that an older one beside it can go; `None` while it does not run.
    pub(super) fn serves_from(&self, policy: &Policy, now: UnixMs) -> Option<UnixMs> {
        let current = self.current.filter(|task| task.state == TaskState::Running)?;
        Some(running_since(current, now).plus(policy.settle))
    }

    /// Until when the new task is watched; `None` where there is none.
    pub(super) fn watched_until(&self, service: &Service, policy: &Policy, now: UnixMs) -> Option<UnixMs> {
        Some(self.rolled_out_since(service, now)?.plus(policy.monitor))
    }

    /// Since when the roll-out's task runs here.
    fn rolled_out_since(&self, service: &Service, now: UnixMs) -> Option<UnixMs> {
        let current = self.current.filter(|task| task.state == TaskState::Running)?;
        (current.revision == service.current()).then(|| running_since(current, now))
    }
}

/// Since when a running task runs, by the leader's clock. The node's word counts where it can be true: not before the
/// task was told to run, and not in the future; else its clock is wrong, and the moment it was told is taken.
fn running_since(task: &Task, now: UnixMs) -> UnixMs {
    let told = task.meta.updated_at;
    let said = task.since();
    if (told..=now).contains(&said) { said } else { told }
}

/// Whether no node takes the task, nor took one that it follows: its place never served, so nothing was taken away.
fn never_served(task: &Task) -> bool {
    task.replaces.is_none() && task.state <= TaskState::Pending
}

/// Whether a task may still run where the next one of its place is to. A replica's next one starts elsewhere if the node
/// is down; a global service's starts there when the node is back, and may then find it running.
fn may_run(state: &State, task: &Task) -> bool {
    let node = task.node.filter(|_| task.occupies_node()).and_then(|node| state.node(node));
    node.is_some_and(|node| node.status.state != NodeState::Down || matches!(task.slot, Slot::Node(_)))
}

/// Whether a task that is to stop still may run in this place: a new one then waits for it.
pub(in crate::orchestrate) fn predecessor_runs(state: &State, service: ServiceId, slot: Slot) -> bool {
    state.tasks_in_slot(service, slot).any(|task| !task.wanted.wants_to_run() && may_run(state, task))
}
