//! The plan `(running, wanted) → actions`: what the agent does so that the node runs what is assigned. Pure.
//!
//! Called by the agent after every applied message, at start, and whenever a driver ends. It is complete each time: no
//! earlier event needs to have been seen, and a plan carried out twice changes nothing the second time.

use std::collections::BTreeMap;

use skep_proto::id::TaskId;
use skep_proto::v1::WantedState;

use crate::assignments::AssignmentSet;

/// What the agent holds of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The wanted state that its driver last heard.
    pub wanted: WantedState,
    /// Whether a driver is at work on it. False: it has ended, only its logs are left.
    pub driven: bool,
    /// Revision that its driver last heard.
    pub revision: u64,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Begin a driver for a task that is not held.
    Begin(TaskId, WantedState),
    /// Tell its driver another wanted state.
    Want(TaskId, WantedState),
    /// Tell its driver to take over another revision in place.
    Move(TaskId, u64),
    /// Say that it waits for its revision, which the managers have yet to send (a very large set comes in pieces).
    Await(TaskId, u64),
    /// It is neither assigned nor running: drop its logs and its record.
    Forget(TaskId),
}

/// What leads from `held` to `assigned`.
pub fn plan(held: &BTreeMap<TaskId, Held>, assigned: &AssignmentSet) -> Vec<Action> {
    let mut actions = Vec::new();
    for (&id, task) in assigned.tasks() {
        let wanted = task.wanted();
        match held.get(&id) {
            Some(known) => {
                if known.driven && known.wanted != wanted {
                    actions.push(Action::Want(id, wanted));
                }
                // Its revision may come in a later message.
                if known.driven && known.revision != task.revision && runnable(assigned, task) {
                    actions.push(Action::Move(id, task.revision));
                }
            }
            None if runnable(assigned, task) => actions.push(Action::Begin(id, wanted)),
            None => actions.push(Action::Await(id, task.revision)),
        }
    }
    for (&id, known) in held {
        if assigned.tasks().contains_key(&id) {
            continue;
        }
        if !known.driven {
            actions.push(Action::Forget(id));
        } else if known.wanted != WantedState::Remove {
            actions.push(Action::Want(id, WantedState::Remove));
        }
    }
    actions
}

fn runnable(assigned: &AssignmentSet, task: &skep_proto::v1::Task) -> bool {
    assigned
        .revision_of(task)
        .and_then(|revision| revision.template.as_ref())
        .is_some_and(|template| !template.containers.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use proptest::prelude::*;
    use skep_proto::id::ServiceId;
    use skep_proto::v1::{ContainerSpec, Revision, Task, TaskTemplate};

    use super::*;

    const STATES: [WantedState; 5] =
        [WantedState::Ready, WantedState::Running, WantedState::Draining, WantedState::Shutdown, WantedState::Remove];

    fn assigned(tasks: &BTreeMap<u128, usize>, with_revision: bool) -> AssignmentSet {
        let service = ServiceId::new(1);
        let tasks = tasks
            .iter()
            .map(|(id, wanted)| {
                let mut task = Task {
                    id: TaskId::new(*id).to_vec(),
                    service_id: service.to_vec(),
                    revision: 3,
                    ..Task::default()
                };
                task.set_wanted(STATES[*wanted]);
                (TaskId::new(*id), task)
            })
            .collect();
        let revision = Revision {
            template: Some(TaskTemplate { containers: vec![ContainerSpec::default()], ..TaskTemplate::default() }),
            ..Revision::default()
        };
        let revisions = with_revision.then(|| ((service, 3), Arc::new(revision)));
        AssignmentSet::from_record(1, tasks, revisions.into_iter().collect())
    }

    /// Carries a plan out; a task that is asked to stop has stopped by the next look when `stops`.
    fn carry_out(held: &mut BTreeMap<TaskId, Held>, actions: &[Action], stops: bool) {
        for action in actions {
            match action {
                Action::Begin(id, wanted) => {
                    let before = held.insert(*id, Held { wanted: *wanted, driven: true, revision: 3 });
                    assert!(before.is_none(), "a task begins once");
                }
                Action::Want(id, wanted) => held.get_mut(id).unwrap().wanted = *wanted,
                Action::Move(id, revision) => held.get_mut(id).unwrap().revision = *revision,
                Action::Await(..) => {}
                Action::Forget(id) => {
                    assert!(!held.remove(id).unwrap().driven, "nothing is forgotten while it runs");
                }
            }
        }
        for known in held.values_mut() {
            if stops && known.wanted.wants_to_stop() {
                known.driven = false;
            }
        }
    }

    #[test]
    fn a_task_waits_for_its_revision() {
        let actions = plan(&BTreeMap::new(), &assigned(&[(1, 1)].into(), false));
        assert_eq!(actions, [Action::Await(TaskId::new(1), 3)]);
    }

    proptest! {
        #[test]
        fn converges_and_runs_nothing_that_is_not_wanted(
            tasks in prop::collection::btree_map(0u128..12, 0usize..5, 0..8),
            before in prop::collection::btree_map(0u128..12, (0usize..5, any::<bool>(), 2u64..4), 0..8),
        ) {
            let assigned = assigned(&tasks, true);
            let mut held: BTreeMap<_, _> = before
                .iter()
                .map(|(id, (wanted, driven, revision))| {
                    (TaskId::new(*id), Held { wanted: STATES[*wanted], driven: *driven, revision: *revision })
                })
                .collect();
            // Nothing stops yet: one plan says all there is to say.
            let actions = plan(&held, &assigned);
            carry_out(&mut held, &actions, false);
            prop_assert_eq!(plan(&held, &assigned), vec![]);
            for (id, known) in &held {
                match assigned.tasks().get(id) {
                    Some(task) => {
                        prop_assert!(!known.driven || (known.wanted == task.wanted() && known.revision == 3));
                    }
                    None => prop_assert!(known.driven && known.wanted == WantedState::Remove),
                }
            }
            // Once all has stopped, what is held is what is assigned.
            carry_out(&mut held, &[], true);
            let actions = plan(&held, &assigned);
            carry_out(&mut held, &actions, true);
            prop_assert_eq!(plan(&held, &assigned), vec![]);
            prop_assert!(held.keys().eq(assigned.tasks().keys()));
        }
    }
}
