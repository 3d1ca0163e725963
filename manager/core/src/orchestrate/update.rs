//! The updater: brings a service's tasks to its current revision, a few at a time, and stops or goes back when the new
//! ones fail. A plan of the snapshot alone: what was done, what failed and what is being watched is read off the tasks,
//! so that a leader that is lost in the middle is followed by one that goes on at the same point.
//!
//! It replaces older tasks; what ends or loses its node is replaced by the orchestrator, with the current revision. The
//! two never touch the same place at once: the updater leaves alone what the orchestrator has to act on.

mod begin;
mod currency;
mod failure;
mod outcome;
mod policy;
mod survey;

#[cfg(test)]
mod failure_test;
#[cfg(test)]
mod prop_test;
#[cfg(test)]
mod update_test;
#[cfg(test)]
mod world;

pub use begin::{RollOut, begin};
pub(super) use currency::Currency;
pub(super) use failure::ended_by_itself;
pub(super) use survey::predecessor_runs;

use std::collections::BTreeSet;
use std::sync::Arc;

use skep_proto::id::{ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::{TaskState, UpdateOrder, UpdateState, WantedState};

use super::fit::{self, Stay};
use super::{drain, make};
use crate::change::{Change, Plan};
use crate::ids::Ids;
use crate::object::{Service, Slot, Task};
use crate::schedule::Needs;
use crate::store::State;
use policy::Policy;
use survey::{Busy, Place, Survey};

/// Goes on with one service's update, where there is something to do. Stable: applied once, the next plan for the same
/// state and time is empty, or says that the update is over; and applied once when it begins a rollback, the next one goes
/// on with that.
pub fn plan(state: &State, service: ServiceId, now: UnixMs, ids: &mut Ids) -> Plan {
    let mut plan = Plan::default();
    let Some(service) = state.service(service) else {
        return plan;
    };
    let policy = Policy::of(service);
    let currency = Currency::of(state, service);
    let survey = Survey::of(state, service, &currency, &policy);
    let mut updater = Updater { state, service, policy, currency: &currency, survey, now, ids, plan: &mut plan };
    let is_paused = matches!(service.update_state(), UpdateState::Paused | UpdateState::RollbackPaused);
    let released = updater.release(is_paused);
    if !is_paused {
        updater.take_over(&released);
    }
    match service.update_state() {
        // What runs is kept as it is until the operator decides.
        UpdateState::Paused | UpdateState::RollbackPaused => {}
        UpdateState::Updating | UpdateState::RollbackStarted => {
            if !updater.stop_on_failure() {
                updater.advance();
                updater.conclude();
            }
        }
        // A node that was silent while the rest was updated still has older tasks.
        UpdateState::None | UpdateState::Completed | UpdateState::RollbackCompleted => updater.advance(),
    }
    plan
}

/// Whether the reaper must keep an ended task for the updater: what a running update counts as failed, and what tells
/// that a place's turn is over.
pub(super) fn is_evidence(service: &Service, task: &Task) -> bool {
    task.revision == service.current() && ended_by_itself(task.state)
}

struct Updater<'a, 'b> {
    state: &'a State,
    service: &'a Service,
    policy: Policy,
    currency: &'a Currency<'a>,
    survey: Survey<'a>,
    now: UnixMs,
    ids: &'b mut Ids,
    plan: &'b mut Plan,
}

impl Updater<'_, '_> {
    /// Starts the tasks that waited for their predecessors to stop; older ones only where they are not replaced. Returns
    /// which.
    fn release(&mut self, older_too: bool) -> BTreeSet<TaskId> {
        let mut released = BTreeSet::new();
        for place in self.survey.places.iter().filter(|place| !place.stopping && place.is_settled) {
            let is_kept = older_too || !place.takes_new_tasks;
            for task in place.current.into_iter().chain(place.older.filter(|_| is_kept)) {
                if task.wanted == WantedState::Ready && task.start_at.is_none() {
                    let running = if !older_too && self.currency.takes_over(task) {
                        make::take_over(task, self.service, WantedState::Running)
                    } else {
                        make::want(task, WantedState::Running)
                    };
                    self.plan.push(vec![running]);
                    released.insert(task.id);
                }
            }
        }
        released
    }

    /// Gives the current revision to the tasks that take it over in place, all at once: nothing of them stops. Those that
    /// were released just now have it.
    fn take_over(&mut self, released: &BTreeSet<TaskId>) {
        for task in self.survey.places.iter().filter_map(|place| place.current) {
            if self.currency.takes_over(task) && !released.contains(&task.id) {
                self.plan.push(vec![make::take_over(task, self.service, task.wanted)]);
            }
        }
    }

    /// Pauses the update or goes back, if too many of the new tasks failed. Returns whether it did.
    fn stop_on_failure(&mut self) -> bool {
        let failures = self.survey.places.iter().filter_map(|place| place.failure);
        let failed = failures.clone().count();
        let Some(newest) = failures.max_by_key(|task| (task.since(), task.id)) else {
            return false;
        };
        if !self.policy.is_exceeded(failed, self.survey.places.len()) {
            return false;
        }
        match outcome::failed(self.state, self.service, &self.policy, newest, self.now) {
            Some(changes) => {
                self.plan.push(changes);
                true
            }
            None => false,
        }
    }

    /// Finishes hand-overs, replaces what serves nobody, and begins the next batch.
    fn advance(&mut self) {
        if self.survey.is_surplus {
            // Which places go is the orchestrator's choice; it chooses now.
            return;
        }
        let mut in_flight = 0;
        let mut wake_at: Option<UnixMs> = None;
        for place in &self.survey.places {
            match place.busy(self.service, &self.policy, self.now) {
                Some(Busy::Event) => in_flight += 1,
                Some(Busy::Until(at)) => {
                    in_flight += 1;
                    wake_at = Some(wake_at.map_or(at, |noted| noted.min(at)));
                }
                None => {}
            }
        }
        let Some(revision) = self.state.revision(self.service.current()) else {
            return;
        };
        let needs = Needs::new(revision, &[]);
        let mut is_held_back = false;
        for index in 0..self.survey.places.len() {
            let place = self.survey.places[index];
            let Some(older) = place.older.filter(|_| place.is_settled && place.takes_new_tasks) else { continue };
            let is_running = older.state == TaskState::Running;
            if place.current.is_none() && is_running && (place.stopping || in_flight >= self.policy.parallelism) {
                is_held_back = true;
                continue;
            }
            if fit::judge(self.state, self.service, older, self.now) != Stay::Yes {
                continue;
            }
            match place.current {
                Some(_) => self.hand_over(&place, older),
                None if place.tried => {}
                None if self.is_out_of_place(older, &needs) => {
                    self.plan.push(vec![drain::stop(self.state, older, WantedState::Shutdown)]);
                }
                None if is_running => {
                    in_flight += 1;
                    self.replace_running(&place, older);
                }
                // It serves nobody: nothing is lost.
                None => self.replace_idle(&place, older),
            }
        }
        // A pause between batches matters only while there is a next one.
        if let Some(at) = wake_at.filter(|_| is_held_back) {
            self.plan.wake_by(at);
        }
    }

    /// Once the new task runs and did not end at once, the old one goes.
    fn hand_over(&mut self, place: &Place<'_>, older: &Arc<Task>) {
        match place.serves_from(&self.policy, self.now) {
            Some(at) if at > self.now => self.plan.wake_by(at),
            Some(_) => self.plan.push(vec![drain::stop(self.state, older, WantedState::Shutdown)]),
            None => {}
        }
    }

    /// Whether the place is a node on which the current revision may not be.
    fn is_out_of_place(&self, older: &Task, needs: &Needs<'_>) -> bool {
        match older.slot {
            Slot::Replica(_) => false,
            Slot::Node(node) => self.state.node(node).is_none_or(|node| needs.check_place(node).is_err()),
        }
    }

    fn replace_running(&mut self, place: &Place<'_>, older: &Arc<Task>) {
        let changes = match self.policy.order {
            UpdateOrder::StopFirst => {
                let next = self.successor(place, older, WantedState::Ready);
                vec![drain::stop(self.state, older, WantedState::Shutdown), next]
            }
            UpdateOrder::StartFirst => vec![self.successor(place, older, WantedState::Running)],
        };
        self.plan.push(changes);
    }

    /// Replaces a task that does not run. If its place is in flight, it was so before.
    fn replace_idle(&mut self, place: &Place<'_>, older: &Arc<Task>) {
        let must_wait = place.stopping || older.occupies_node();
        let wanted = if must_wait { WantedState::Ready } else { WantedState::Running };
        let next = self.successor(place, older, wanted);
        self.plan.push(vec![drain::stop(self.state, older, WantedState::Shutdown), next]);
    }

    /// A task of the current revision for the place of an older one. It follows `older`, or whom that one followed if it
    /// was never placed: so it is known whether the place ever served, and has to serve again before the next one's turn.
    fn successor(&mut self, place: &Place<'_>, older: &Task, wanted: WantedState) -> Change {
        let replaces = if older.occupies_node() { Some(older.id) } else { older.replaces };
        make::create(Task { wanted, replaces, ..make::new_task(self.service, self.ids.task(), place.slot, self.now) })
    }

    /// Ends the update when every place is done and was watched; else says what it waits for.
    fn conclude(&mut self) {
        if !self.plan.groups.is_empty() {
            return;
        }
        let mut watched_until: Option<UnixMs> = None;
        for place in &self.survey.places {
            if !place.is_done() {
                let waits = outcome::waits(self.service, &self.survey);
                self.plan.push(waits.into_iter().collect());
                return;
            }
            watched_until = watched_until.max(place.watched_until(self.service, &self.policy, self.now));
        }
        if !self.survey.is_whole {
            return;
        }
        match watched_until {
            Some(at) if at > self.now => self.plan.wake_by(at),
            _ => self.plan.push(vec![outcome::completed(self.service, self.now)]),
        }
    }
}
