//! Streams of events against what is said about them.

#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use skep_proto::v1::{
    ContainerStatus, GlobalMode, Meta, Refusal, ReplicatedMode, Service, ServiceSpec, UpdateStatus, WatchEvent,
};

use super::*;

fn service(mode: Mode, desired: u64) -> WatchEvent {
    WatchEvent {
        removed: false,
        object: Some(Object::Service(ServiceSummary {
            service: Some(Service {
                id: vec![9; 16],
                spec: Some(ServiceSpec { name: "web".to_owned(), mode: Some(mode), ..ServiceSpec::default() }),
                ..Service::default()
            }),
            desired,
            ..ServiceSummary::default()
        })),
    }
}

fn replicas(replicas: u64) -> WatchEvent {
    service(Mode::Replicated(ReplicatedMode { replicas }), replicas)
}

fn task(id: u8, slot: u64, wanted: WantedState, state: TaskState) -> WatchEvent {
    task_with(id, slot, wanted, state, "", Vec::new())
}

fn task_with(
    id: u8,
    slot: u64,
    wanted: WantedState,
    state: TaskState,
    error: &str,
    refusals: Vec<Refusal>,
) -> WatchEvent {
    let mut status = TaskStatus { error: error.to_owned(), refusals, ..TaskStatus::default() };
    status.set_state(state);
    let mut task = Task {
        id: vec![id; 16],
        meta: Some(Meta { created_at_ms: id.into(), ..Meta::default() }),
        slot,
        status: Some(status),
        ..Task::default()
    };
    task.set_wanted(wanted);
    WatchEvent {
        removed: false,
        object: Some(Object::Task(TaskSummary {
            task: Some(task),
            service_name: "web".to_owned(),
            node_hostname: "host1".to_owned(),
            ..TaskSummary::default()
        })),
    }
}

fn after(events: Vec<WatchEvent>) -> Progress {
    let mut progress = Progress::new(Goal::Running);
    progress.apply(WatchResponse { version: 5, synced: true, events: Vec::new() });
    progress.apply(WatchResponse { version: 6, synced: false, events });
    progress
}

fn stand(events: Vec<WatchEvent>) -> Stand {
    after(events).picture(5).stand
}

#[test]
fn nothing_is_said_before_the_write_is_seen() {
    let progress = after(vec![replicas(0)]);
    assert_eq!(progress.picture(7).stand, Stand::Unknown);
    assert_eq!(progress.picture(6).stand, Stand::Converged);
    assert_eq!(Progress::new(Goal::Running).picture(0).stand, Stand::Unknown);
}

#[test]
fn converged_when_all_run() {
    use TaskState::{Preparing, Running, Starting};
    let running = |id, slot| task(id, slot, WantedState::Running, Running);
    assert_eq!(stand(vec![replicas(2), running(1, 1)]), Stand::Moving);
    assert_eq!(stand(vec![replicas(2), running(1, 1), task(2, 2, WantedState::Running, Starting)]), Stand::Moving);
    assert_eq!(stand(vec![replicas(2), running(1, 1), task(2, 2, WantedState::Ready, Preparing)]), Stand::Moving);
    assert_eq!(stand(vec![replicas(2), running(1, 1), running(2, 2)]), Stand::Converged);
}

#[test]
fn scaling_down_waits_until_the_loops_have_acted() {
    let events = vec![
        replicas(1),
        task(1, 1, WantedState::Running, TaskState::Running),
        task(2, 2, WantedState::Running, TaskState::Running),
    ];
    assert_eq!(stand(events.clone()), Stand::Moving);
    let removed = [events, vec![task(2, 2, WantedState::Remove, TaskState::Running)]].concat();
    assert_eq!(stand(removed), Stand::Converged);
}

#[test]
fn global_services_want_the_nodes_that_fit() {
    let global = |desired| service(Mode::Global(GlobalMode {}), desired);
    assert_eq!(stand(vec![global(2)]), Stand::Moving);
    assert_eq!(stand(vec![global(0)]), Stand::Converged);
    assert_eq!(stand(vec![global(1), task(1, 0, WantedState::Running, TaskState::Running)]), Stand::Converged);
}

#[test]
fn a_task_that_ended_for_good_ends_the_wait() {
    let ended = vec![replicas(1), task(1, 1, WantedState::Shutdown, TaskState::Complete)];
    assert_eq!(stand(ended.clone()), Stand::Ended);
    let replaced = [ended, vec![task(2, 1, WantedState::Ready, TaskState::Ready)]].concat();
    assert_eq!(stand(replaced), Stand::Moving);
}

#[test]
fn a_removed_service_ends_the_wait() {
    let mut removal = replicas(1);
    removal.removed = true;
    assert_eq!(stand(vec![replicas(1), removal]), Stand::Removed);
}

#[test]
fn reasons_are_shown() {
    let refusals = vec![Refusal { reason: "insufficient memory".to_owned(), nodes: 3 }];
    let picture = after(vec![
        replicas(2),
        task_with(1, 1, WantedState::Running, TaskState::Pending, "", refusals),
        task_with(2, 2, WantedState::Shutdown, TaskState::Rejected, "no such image: x", Vec::new()),
        task(3, 2, WantedState::Ready, TaskState::Preparing),
    ])
    .picture(0);
    assert_eq!(picture.rows[0].detail, "no suitable node (insufficient memory on 3 nodes)");
    assert_eq!(picture.rows[1].detail, "the one before it failed: no such image: x");
    assert!(picture.rows.iter().all(|row| row.is_stuck));
}

#[test]
fn a_failing_check_is_shown() {
    let mut starting = task(1, 1, WantedState::Running, TaskState::Starting);
    if let Some(Object::Task(summary)) = &mut starting.object {
        let container = ContainerStatus {
            failing_streak: 2,
            health_output: "\nconnection refused\n".to_owned(),
            ..ContainerStatus::default()
        };
        summary.task.as_mut().unwrap().status.as_mut().unwrap().containers = vec![container];
    }
    let picture = after(vec![replicas(1), starting]).picture(0);
    assert_eq!(picture.rows[0].detail, "its health check failed 2 times: connection refused");
    assert!(picture.rows[0].is_stuck);
}

#[test]
fn only_what_began_to_run_is_to_be_watched() {
    let mut progress = Progress::new(Goal::Running);
    let mut service = replicas(3);
    if let Some(Object::Service(summary)) = &mut service.object {
        summary.service.as_mut().unwrap().meta = Some(Meta { updated_at_ms: 10, ..Meta::default() });
    }
    let running = |id, slot| task(id, slot, WantedState::Running, TaskState::Running);
    let starting = task(2, 2, WantedState::Running, TaskState::Starting);
    // Task 1 ran before the change, task 2 was made before and still starts, task 12 was made by the change.
    let events = vec![service, running(1, 1), starting, running(12, 3)];
    progress.apply(WatchResponse { version: 5, synced: true, events });
    assert_eq!(progress.picture(5).new_running, [vec![12; 16]].into());
    progress.apply(WatchResponse { version: 6, synced: true, events: vec![running(2, 2)] });
    assert_eq!(progress.picture(5).new_running, [vec![2; 16], vec![12; 16]].into());
}

/// A service of two replicas at revision 2, with the state of its roll-out.
fn updating(state: UpdateState) -> WatchEvent {
    let mut event = replicas(2);
    if let Some(Object::Service(summary)) = &mut event.object {
        let service = summary.service.as_mut().unwrap();
        service.revision = 2;
        let mut update = UpdateStatus { message: "task web.1 failed".to_owned(), ..UpdateStatus::default() };
        update.set_state(state);
        service.update = Some(update);
    }
    event
}

fn task_of(revision: u64, mut event: WatchEvent) -> WatchEvent {
    if let Some(Object::Task(summary)) = &mut event.object {
        summary.task.as_mut().unwrap().revision = revision;
    }
    event
}

fn rollout(state: UpdateState, is_rollback: bool, revisions: [u64; 2]) -> Picture {
    let mut progress = Progress::new(Goal::Rollout { revision: 2, is_rollback });
    let tasks = [1u8, 2].map(|slot| task(slot, slot.into(), WantedState::Running, TaskState::Running));
    let mut events = vec![updating(state)];
    events.extend(tasks.into_iter().zip(revisions).map(|(event, revision)| task_of(revision, event)));
    progress.apply(WatchResponse { version: 6, synced: true, events });
    progress.picture(6)
}

#[test]
fn a_roll_out_counts_new_tasks_until_the_managers_say_that_it_is_over() {
    let picture = rollout(UpdateState::Updating, false, [2, 1]);
    assert_eq!((picture.stand, picture.running), (Stand::Moving, 1));
    let picture = rollout(UpdateState::Updating, false, [2, 2]);
    assert_eq!((picture.stand, picture.running), (Stand::Moving, 2));
    // A placement that fits tasks as they are leaves them at their revision.
    let picture = rollout(UpdateState::Completed, false, [2, 1]);
    assert_eq!((picture.stand, picture.running, picture.note), (Stand::Converged, 2, None));
}

#[test]
fn roll_outs_that_fail_say_why() {
    let failed = |text: &str| Stand::Failed(format!("{text}: task web.1 failed"));
    assert_eq!(rollout(UpdateState::Paused, false, [2, 1]).stand, failed("service update paused"));
    assert_eq!(rollout(UpdateState::RollbackPaused, true, [2, 1]).stand, failed("service rollback paused"));
    assert_eq!(rollout(UpdateState::RollbackCompleted, false, [2, 2]).stand, failed("service rolled back"));
    assert_eq!(rollout(UpdateState::RollbackCompleted, true, [2, 2]).stand, Stand::Converged);
    let picture = rollout(UpdateState::RollbackStarted, false, [2, 1]);
    assert_eq!((picture.stand, picture.is_rolling_back), (Stand::Moving, true));
    assert_eq!(picture.note.unwrap(), "rollback: task web.1 failed");
    assert_eq!(rollout(UpdateState::RollbackStarted, true, [2, 1]).note, None);
}

#[test]
fn an_old_paused_update_does_not_keep_a_service_from_running() {
    let events = vec![
        updating(UpdateState::Paused),
        task(1, 1, WantedState::Running, TaskState::Running),
        task(2, 2, WantedState::Running, TaskState::Running),
    ];
    assert_eq!(stand(events), Stand::Converged);
}

#[test]
fn a_new_stream_begins_anew() {
    let events = vec![replicas(1), task(1, 1, WantedState::Running, TaskState::Running)];
    let mut progress = after(events.clone());
    progress.restart();
    assert_eq!(progress.picture(0).stand, Stand::Unknown);
    progress.apply(WatchResponse { version: 7, synced: true, events });
    assert_eq!(progress.picture(7).new_running.len(), 1, "it began to run after the command did");
    progress.restart();
    progress.apply(WatchResponse { version: 8, synced: true, events: Vec::new() });
    assert_eq!(progress.picture(8).stand, Stand::Removed);
}

proptest! {
    #[test]
    fn never_panics_and_never_claims_too_much(
        wanted in 0u64..5,
        tasks in proptest::collection::vec((0u8..12, 0u64..5, 0usize..6, 0usize..13), 0..20),
    ) {
        const WANTED: [WantedState; 6] = [
            WantedState::Unspecified, WantedState::Ready, WantedState::Running, WantedState::Draining,
            WantedState::Shutdown, WantedState::Remove,
        ];
        const STATES: [TaskState; 13] = [
            TaskState::New, TaskState::Pending, TaskState::Assigned, TaskState::Accepted, TaskState::Preparing,
            TaskState::Ready, TaskState::Starting, TaskState::Running, TaskState::Complete, TaskState::Shutdown,
            TaskState::Failed, TaskState::Rejected, TaskState::Orphaned,
        ];
        let mut events = vec![replicas(wanted)];
        events.extend(tasks.iter().map(|(id, slot, want, state)| task(*id, *slot, WANTED[*want], STATES[*state])));
        let picture = after(events).picture(0);
        if picture.stand == Stand::Converged {
            prop_assert_eq!(picture.running, wanted);
        }
        prop_assert!(u64::try_from(picture.rows.len()).unwrap() >= picture.running);
    }
}
