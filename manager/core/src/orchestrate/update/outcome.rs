//! What an update comes to: completed, paused, rolled back; and the words for it, which are Docker's.

use std::sync::Arc;

use skep_proto::time::UnixMs;
use skep_proto::v1::{FailureAction, TaskState, UpdateState, UpdateStatus};

use super::begin::{RollOut, begin};
use super::policy::Policy;
use super::survey::{Place, Survey};
use crate::change::{Change, Op};
use crate::network::{Endpoint, endpoint};
use crate::object::{RevisionKey, Service, Task};
use crate::store::{State, payload_refs};

/// What follows too many failures; `None`: the policy goes on. A rollback is never rolled back.
pub(super) fn failed(
    state: &State,
    service: &Service,
    policy: &Policy,
    task: &Task,
    now: UnixMs,
) -> Option<Vec<Change>> {
    let because = format!("due to failure or early termination of task {}", task.id);
    if service.is_rolled_back() {
        return match policy.action {
            FailureAction::Continue => None,
            FailureAction::Pause | FailureAction::Rollback => {
                Some(paused(service, UpdateState::RollbackPaused, format!("rollback paused {because}"), now))
            }
        };
    }
    match policy.action {
        FailureAction::Continue => None,
        FailureAction::Pause => Some(paused(service, UpdateState::Paused, format!("update paused {because}"), now)),
        FailureAction::Rollback => {
            let number = service.update.as_ref().map_or(0, |update| update.from_revision);
            match state.revision(RevisionKey { service: service.id, number }) {
                Some(target) => {
                    if let Some(gone) = payload_refs(&target.template).find(|one| state.payload(one.key).is_none()) {
                        let what = format!("version {} of {} {}", gone.key.version, gone.key.owner.kind(), gone.name);
                        let message = format!("update paused {because}: it cannot be rolled back: {what} is gone");
                        return Some(paused(service, UpdateState::Paused, message, now));
                    }
                    // Its networks may be others, or gone.
                    let seed = now.0.cast_unsigned();
                    let back = match endpoint::resolve(state, &service.spec, &target.template, Some(service), seed) {
                        Ok(Endpoint { ports, virtual_addresses }) => {
                            Service { ports, virtual_addresses, ..Service::clone(service) }
                        }
                        Err(error) => {
                            let message = format!("update paused {because}: it cannot be rolled back: {error}");
                            return Some(paused(service, UpdateState::Paused, message, now));
                        }
                    };
                    let message = format!("update rolled back {because}");
                    let kind = RollOut::Rollback { copied_from: number, message };
                    Some(begin(state, back, Arc::clone(&target.template), kind, now))
                }
                // The reaper keeps it; somebody else did not.
                None => {
                    let message =
                        format!("update paused {because}: revision {number} is gone, it cannot be rolled back");
                    Some(paused(service, UpdateState::Paused, message, now))
                }
            }
        }
    }
}

fn paused(service: &Service, state: UpdateState, message: String, now: UnixMs) -> Vec<Change> {
    vec![set_status(service, |status| {
        status.set_state(state);
        status.message = message;
        status.ended_at_ms = now.0;
    })]
}

/// The update is done.
pub(super) fn completed(service: &Service, now: UnixMs) -> Change {
    let (state, message) = match service.is_rolled_back() {
        true => (UpdateState::RollbackCompleted, "rollback completed"),
        false => (UpdateState::Completed, "update completed"),
    };
    set_status(service, |status| {
        status.set_state(state);
        message.clone_into(&mut status.message);
        status.ended_at_ms = now.0;
    })
}

/// What starts a message that says what the roll-out waits for.
const WAITS: &str = "waiting: ";

/// The change that says what the update waits for; `None` where that has been said.
pub(super) fn waits(service: &Service, survey: &Survey<'_>) -> Option<Change> {
    let said = &service.update.as_ref()?.message;
    let message = match survey.places.iter().find_map(stuck) {
        Some(text) => text,
        None if said.starts_with(WAITS) => match service.is_rolled_back() {
            true => "rollback in progress".to_owned(),
            false => "update in progress".to_owned(),
        },
        None => return None,
    };
    (message != *said).then(|| set_status(service, |status| status.message = message))
}

/// Says why a new task that is to start first finds no node. It is told often enough that the scheduler has explained it.
fn stuck(place: &Place<'_>) -> Option<String> {
    let (new, old) = (place.current?, place.older?);
    if new.state != TaskState::Pending || new.status.error.is_empty() {
        return None;
    }
    let holds_port = !old.ports.is_empty();
    let remedy = if holds_port { "; the old tasks hold its ports: use stop-first, or add a node" } else { "" };
    Some(format!(
        "{WAITS}task {} starts before task {} stops, and there is {}{remedy}",
        new.id, old.id, new.status.error
    ))
}

fn set_status(service: &Service, change: impl FnOnce(&mut UpdateStatus)) -> Change {
    let mut status = service.update.as_deref().cloned().unwrap_or_default();
    change(&mut status);
    let version = service.meta.version;
    Change::update(version, Op::PutService(Service { update: Some(Arc::new(status)), ..Service::clone(service) }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::id::NetworkId;
    use skep_proto::v1::{NetworkAttachment, UpdatePolicy};

    use super::*;
    use crate::example::{START, change_service, network, pending_tasks, replicated, swarm, with_service};
    use crate::object::Revision;
    use crate::store::ObjectKey;

    /// What the automatic rollback of `web` writes: revision 2 left network 1, which revision 1 was on.
    fn rolled_back(network_stays: bool) -> Service {
        let mut state = swarm(1);
        state.put(network(1, "front", "10.1.0.0/24", false));
        let id = with_service(&mut state, replicated(1), |template| {
            let network_id = NetworkId::new(1).to_vec();
            template.networks = vec![NetworkAttachment { network_id, ..NetworkAttachment::default() }];
        });
        let failure_action = FailureAction::Rollback.into();
        let policy = UpdatePolicy { failure_action, ..UpdatePolicy::default() };
        change_service(&mut state, id, |spec| spec.update = Some(policy));
        let mut second = Revision::clone(state.revision(RevisionKey { service: id, number: 1 }).unwrap());
        second.key.number = 2;
        Arc::make_mut(&mut second.template).networks.clear();
        state.put(second);
        let mut service = Service::clone(state.service(id).unwrap());
        let update = UpdateStatus { state: UpdateState::Updating.into(), from_revision: 1, ..UpdateStatus::default() };
        (service.revision, service.update) = (2, Some(Arc::new(update)));
        state.put(service.clone());
        let task = pending_tasks(&mut state, id)[0];
        if !network_stays {
            state.remove(&ObjectKey::Network(NetworkId::new(1)));
        }
        let changes =
            failed(&state, &service, &Policy::of(&service), state.task(task).unwrap(), START).expect("it acts");
        let put = changes.into_iter().find_map(|change| match change.op {
            Op::PutService(service) => Some(service),
            _ => None,
        });
        put.unwrap()
    }

    #[test]
    fn a_rollback_gets_the_addresses_of_its_networks_back() {
        let back = rolled_back(true);
        assert_eq!((back.revision, back.update_state()), (3, UpdateState::RollbackStarted));
        assert_eq!(back.virtual_addresses.len(), 1);
        assert_eq!(back.virtual_addresses[0].network, NetworkId::new(1));
    }

    #[test]
    fn a_network_that_is_gone_pauses_the_update() {
        let paused = rolled_back(false);
        assert_eq!((paused.revision, paused.update_state()), (2, UpdateState::Paused));
        let message = paused.update.unwrap().message.clone();
        assert!(
            message.contains("it cannot be rolled back: network 0000000000000000000000001 is not there"),
            "{message}"
        );
    }
}
