//! The agent against a manager that speaks the protocol for real, over TCP, with simulated containers.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_proto::id::{CredentialId, NodeId};
use skep_proto::v1::assignment_item::Item;
use skep_proto::v1::session_down::Message as Down;
use skep_proto::v1::*;
use skep_worker::executor::{ExecEnd, ExecOutcome};
use skep_worker::{AgentEvent, DescriptionConfig, SessionState};
use support::*;

#[tokio::test]
async fn an_assignment_runs_and_its_end_is_told() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(vec![task(1, 1, WantedState::Running), revision(1, &[])], vec![]);
    until("running", || manager.task_state(task_id(1)) == Some(TaskState::Running)).await;
    assert_eq!(agent.containers_running(), 1);
    let container = manager.state().statuses[&task_id(1)].containers[0].clone();
    assert_eq!(container.pid, node.world.running()[&(task_id(1), "main".to_owned())]);
    until("applied is told", || manager.state().applied == 1).await;
    until("acknowledged", || agent.all_acknowledged()).await;

    node.world.end(task_id(1), "main", 3, false);
    until("failed", || manager.task_state(task_id(1)) == Some(TaskState::Failed)).await;
    assert_eq!(manager.state().statuses[&task_id(1)].error, "task: non-zero exit (3)");
    // The container is gone, its logs stay until the task leaves the assignments.
    until("removed", || node.world.running().is_empty()).await;
    assert!(node.world.leftovers().contains(&task_id(1)));
    manager.assign(vec![], vec![removed(1)]);
    until("forgotten", || node.world.leftovers().is_empty() && agent.tasks().is_empty()).await;
    agent.shutdown().await;
}

#[tokio::test]
async fn wanted_states_are_followed() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(vec![task(1, 1, WantedState::Ready), revision(1, &["SIM_PREPARE_MS=5"])], vec![]);
    until("ready", || manager.task_state(task_id(1)) == Some(TaskState::Ready)).await;
    assert!(node.world.running().is_empty());
    manager.assign(vec![task(1, 1, WantedState::Running)], vec![]);
    until("running", || manager.task_state(task_id(1)) == Some(TaskState::Running)).await;
    manager.assign(vec![task(1, 1, WantedState::Draining)], vec![]);
    manager.assign(vec![task(1, 1, WantedState::Shutdown)], vec![]);
    until("shutdown", || manager.task_state(task_id(1)) == Some(TaskState::Shutdown)).await;
    assert!(manager.state().statuses[&task_id(1)].error.is_empty());
    assert!(node.world.running().is_empty());
    assert_eq!(node.world.starts().values().copied().collect::<Vec<_>>(), [1]);
    agent.shutdown().await;
    assert_eq!(manager.state().goodbyes, [false]);
}

/// A template whose one container has a check that `World::command` answers for.
fn checked(number: u64) -> AssignmentItem {
    let mut item = revision(number, &[]);
    let Some(Item::Revision(revision)) = &mut item.item else { unreachable!("it was just made") };
    revision.template.as_mut().unwrap().containers[0].health_check = Some(HealthCheck {
        test: vec!["CMD".to_owned(), "probe".to_owned()],
        interval_ms: 20,
        timeout_ms: 500,
        retries: 3,
        ..HealthCheck::default()
    });
    item
}

fn answer(code: i32) -> ExecOutcome {
    ExecOutcome { end: ExecEnd::Exited(code), output: format!("code {code}") }
}

#[tokio::test]
async fn running_means_healthy_and_an_unhealthy_task_fails() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    // Slow enough to be seen one by one.
    node.world.command(task_id(1), "main", Duration::from_millis(300), answer(1));
    let (agent, _events) = node.start(&[server.addr]).await;
    let streak = |number| manager.state().statuses.get(&task_id(number)).map_or(0, |s| s.containers[0].failing_streak);
    // The first failure is told while it is starting; then the container recovers.
    manager.assign(vec![task(1, 1, WantedState::Running), checked(1)], vec![]);
    until("a failed check", || streak(1) >= 1).await;
    assert_eq!(manager.task_state(task_id(1)), Some(TaskState::Starting));
    node.world.command(task_id(1), "main", Duration::ZERO, answer(0));
    until("running", || manager.task_state(task_id(1)) == Some(TaskState::Running)).await;
    assert_eq!(manager.state().statuses[&task_id(1)].containers[0].health(), HealthState::Healthy);

    // Over a restart of the agent it stays what it is.
    agent.shutdown().await;
    let (agent, _events) = node.start(&[server.addr]).await;
    node.world.command(task_id(1), "main", Duration::ZERO, answer(3));
    until("failed", || manager.task_state(task_id(1)) == Some(TaskState::Failed)).await;
    let status = manager.state().statuses[&task_id(1)].clone();
    assert_eq!(status.error, "unhealthy container: health check failed 3 times: code 3");
    assert_eq!(status.containers[0].health(), HealthState::Unhealthy);
    assert!(node.world.running().is_empty());
    let told = manager.state().told[&task_id(1)].clone();
    assert!(told.is_sorted(), "{told:?}");
    agent.shutdown().await;
}

#[tokio::test]
async fn failures_before_and_after_the_start_are_told_apart() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(
        vec![
            task(1, 1, WantedState::Running),
            revision(1, &["SIM_FAIL_PREPARE=no such image web:9"]),
            task(2, 2, WantedState::Running),
            revision(2, &["SIM_FAIL_START=exec: \"x\": not found"]),
        ],
        vec![],
    );
    until("rejected", || manager.task_state(task_id(1)) == Some(TaskState::Rejected)).await;
    until("failed", || manager.task_state(task_id(2)) == Some(TaskState::Failed)).await;
    let errors: Vec<_> = manager.state().statuses.values().map(|status| status.error.clone()).collect();
    assert_eq!(errors, ["no such image web:9", "exec: \"x\": not found"]);
    agent.shutdown().await;
}

#[tokio::test]
async fn a_task_waits_for_a_revision_that_comes_later() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(vec![task(1, 4, WantedState::Running), task(2, 4, WantedState::Running)], vec![]);
    until("says so", || {
        let state = manager.state();
        state.statuses.get(&task_id(1)).is_some_and(|status| status.message.contains("revision 4"))
    })
    .await;
    manager.assign(vec![], vec![removed(2)]);
    manager.assign(vec![revision(4, &[])], vec![]);
    until("running", || manager.task_state(task_id(1)) == Some(TaskState::Running)).await;
    assert_eq!(agent.tasks().len(), 1);
    agent.shutdown().await;
}

#[tokio::test]
async fn a_node_that_was_removed_meanwhile_stops_its_tasks() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(vec![task(1, 1, WantedState::Running), revision(1, &[])], vec![]);
    until("running", || manager.task_state(task_id(1)) == Some(TaskState::Running)).await;
    agent.shutdown().await;
    manager.state().removed = true;
    let (agent, mut events) = node.start(&[server.addr]).await;
    assert_eq!(events.recv().await, Some(AgentEvent::Removed));
    until("stopped", || node.world.running().is_empty() && agent.tasks().is_empty()).await;
    agent.shutdown().await;
    // Not even after another restart, with nobody to ask.
    let (agent, _events) = node.start(&[]).await;
    assert!(agent.tasks().is_empty());
    agent.shutdown().await;
}

#[tokio::test]
async fn a_lost_manager_changes_nothing_and_the_session_is_resumed() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let addr = server.addr;
    let node = TestNode::new();
    let (agent, _events) = node.start(&[addr]).await;
    manager.assign(vec![task(1, 1, WantedState::Running), task(2, 1, WantedState::Running), revision(1, &[])], vec![]);
    until("running", || manager.task_state(task_id(2)) == Some(TaskState::Running)).await;
    let pids = node.world.running();
    drop(server);
    let mut state = agent.session();
    state.wait_for(|state| matches!(state, SessionState::Connecting { error: Some(_) })).await.unwrap();
    // What happens meanwhile is told later; what is decided meanwhile arrives as a difference.
    node.world.end(task_id(1), "main", 0, false);
    manager.assign(vec![task(3, 1, WantedState::Running)], vec![]);
    let _server = manager.serve(&addr.to_string());
    until("told", || manager.task_state(task_id(1)) == Some(TaskState::Complete)).await;
    until("new task runs", || manager.task_state(task_id(3)) == Some(TaskState::Running)).await;
    assert_eq!(manager.state().resumed, 1);
    let key = (task_id(2), "main".to_owned());
    assert_eq!(node.world.running()[&key], pids[&key]);
    agent.shutdown().await;
}

#[tokio::test]
async fn a_manager_that_forgot_the_session_sends_a_complete_set() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let addr = server.addr;
    let node = TestNode::new();
    let (agent, _events) = node.start(&[addr]).await;
    manager.assign(vec![task(1, 1, WantedState::Running), task(2, 1, WantedState::Running), revision(1, &[])], vec![]);
    until("running", || manager.task_state(task_id(2)) == Some(TaskState::Running)).await;
    drop(server);
    manager.forget_sessions();
    // Not told as a difference: only the complete set shows that it is gone.
    manager.assign(vec![], vec![removed(1)]);
    let _server = manager.serve(&addr.to_string());
    until("not wanted any more", || node.world.running().len() == 1).await;
    assert_eq!(manager.state().resumed, 0);
    assert!(node.world.starts().values().all(|count| *count == 1));
    agent.shutdown().await;
}

#[tokio::test]
async fn a_gap_leads_to_a_complete_set() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(vec![task(1, 1, WantedState::Running), revision(1, &[])], vec![]);
    until("running", || manager.task_state(task_id(1)) == Some(TaskState::Running)).await;
    manager.send(Down::Assignments(Assignments { applies_to: 40, sequence: 41, ..Assignments::default() }));
    until("registered again", || manager.state().registers.len() == 2).await;
    assert!(manager.state().registers[1].session_id.is_empty());
    until("applied", || manager.state().applied == 1).await;
    manager.assign(vec![task(2, 1, WantedState::Running)], vec![]);
    until("goes on", || manager.task_state(task_id(2)) == Some(TaskState::Running)).await;
    assert!(node.world.starts().values().all(|count| *count == 1));
    agent.shutdown().await;
}

#[tokio::test]
async fn a_restarted_agent_takes_over_what_runs_and_tells_what_ended() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(
        vec![
            task(1, 1, WantedState::Running),
            task(2, 1, WantedState::Running),
            task(3, 1, WantedState::Running),
            revision(1, &[]),
        ],
        vec![],
    );
    for number in 1..=3 {
        until("running", || manager.task_state(task_id(number)) == Some(TaskState::Running)).await;
    }
    let before = node.world.running();
    agent.shutdown().await;
    assert_eq!(node.world.running(), before, "containers go on");
    assert!(matches!(*agent.session().borrow(), SessionState::Closed));

    node.world.end(task_id(2), "main", 7, false);
    manager.assign(vec![task(3, 1, WantedState::Shutdown)], vec![]);
    let batches = manager.state().batches;
    let (agent, _events) = node.start(&[server.addr]).await;
    until("its end is told", || manager.task_state(task_id(2)) == Some(TaskState::Failed)).await;
    assert_eq!(manager.state().statuses[&task_id(2)].containers[0].exit_code, 7);
    until("stopped", || manager.task_state(task_id(3)) == Some(TaskState::Shutdown)).await;
    assert_eq!(manager.state().resumed, 1, "the record resumes the session");
    let key = (task_id(1), "main".to_owned());
    assert_eq!(node.world.running(), BTreeMap::from([(key.clone(), before[&key])]));
    assert!(node.world.starts().values().all(|count| *count == 1));
    assert_eq!(manager.state().told[&task_id(1)].iter().filter(|state| **state == TaskState::Running).count(), 1);
    assert!(manager.state().batches > batches);
    agent.shutdown().await;
}

#[tokio::test]
async fn without_a_manager_a_restarted_agent_still_drives_its_tasks() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(vec![task(1, 1, WantedState::Ready), revision(1, &["SIM_PREPARE_MS=1"])], vec![]);
    manager.assign(vec![task(1, 1, WantedState::Running)], vec![]);
    until("running", || manager.task_state(task_id(1)) == Some(TaskState::Running)).await;
    agent.shutdown().await;
    let addr = server.addr;
    drop(server);
    node.world.end(task_id(1), "main", 0, false);
    let (agent, _events) = node.start(&[]).await;
    until("settled", || agent.tasks().iter().any(|(_, status)| status.state() == TaskState::Complete)).await;
    // The record knows the manager's address only if it was told one; here it was not.
    assert!(!agent.all_acknowledged());
    agent.shutdown().await;
    let _server = manager.serve(&addr.to_string());
    let (agent, _events) = node.start(&[addr]).await;
    until("told after another restart", || manager.task_state(task_id(1)) == Some(TaskState::Complete)).await;
    agent.shutdown().await;
}

#[tokio::test]
async fn after_a_reboot_running_tasks_have_failed() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let mut node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(vec![task(1, 1, WantedState::Running), revision(1, &[])], vec![]);
    until("running", || manager.task_state(task_id(1)) == Some(TaskState::Running)).await;
    agent.shutdown().await;
    node.world.power_off();
    node.boot_id = "boot-2".to_owned();
    let (agent, _events) = node.start(&[server.addr]).await;
    until("failed", || manager.task_state(task_id(1)) == Some(TaskState::Failed)).await;
    assert_eq!(manager.state().statuses[&task_id(1)].error, "host rebooted");
    assert!(manager.state().statuses[&task_id(1)].host_lost);
    assert!(node.world.running().is_empty());
    agent.shutdown().await;
}

#[tokio::test]
async fn unacknowledged_statuses_are_told_again() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let addr = server.addr;
    manager.state().mute_statuses = true;
    let node = TestNode::new();
    let (agent, _events) = node.start(&[addr]).await;
    manager.assign(vec![task(1, 1, WantedState::Running), revision(1, &[])], vec![]);
    until("running", || agent.containers_running() == 1).await;
    assert!(!agent.all_acknowledged());
    drop(server);
    manager.state().mute_statuses = false;
    let _server = manager.serve(&addr.to_string());
    until("told", || manager.task_state(task_id(1)) == Some(TaskState::Running)).await;
    until("acknowledged", || agent.all_acknowledged()).await;
    agent.shutdown().await;
}

#[tokio::test]
async fn logs_are_answered_with_follow_tail_and_cancel() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(vec![task(1, 1, WantedState::Running), revision(1, &[])], vec![]);
    until("running", || manager.task_state(task_id(1)) == Some(TaskState::Running)).await;
    node.world.log(task_id(1), "main", "second\n");
    let request = |stream_id, tail, follow, task: u128| {
        Down::LogRequest(LogRequest {
            stream_id,
            task_ids: vec![task_id(task).to_vec()],
            options: Some(LogOptions { follow, tail, ..LogOptions::default() }),
        })
    };
    manager.send(request(5, Some(1), true, 1));
    until("the last line", || manager.state().log_lines.len() == 1).await;
    assert_eq!(manager.state().log_lines[0].data, b"second\n");
    assert_eq!(manager.state().log_lines[0].node_id, NODE.to_vec());
    node.world.log(task_id(1), "main", "third\n");
    until("follows", || manager.state().log_lines.len() == 2).await;
    manager.send(Down::LogCancel(LogCancel { stream_id: 5 }));
    node.world.log(task_id(1), "main", "unheard\n");
    manager.send(request(6, None, false, 1));
    until("ends by itself", || manager.state().log_streams_ended >= 1).await;
    let texts: Vec<_> = manager.state().log_lines.iter().map(|line| line.data.clone()).collect();
    assert!(texts.ends_with(&[
        b"started main\n".to_vec(),
        b"second\n".to_vec(),
        b"third\n".to_vec(),
        b"unheard\n".to_vec()
    ]));
    manager.send(request(7, None, false, 99));
    until("a warning", || !manager.state().log_warnings.is_empty()).await;
    assert!(manager.state().log_warnings[0].ends_with("is not on this node"));
    agent.shutdown().await;
}

/// The node as it is described after a disk was added.
fn with_ssd(node: &TestNode) -> DescriptionConfig {
    let engine_labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
    DescriptionConfig { engine_labels, ..node.description() }
}

#[tokio::test]
async fn a_change_of_the_node_during_its_registration_is_told_after_it() {
    let manager = TestManager::new();
    manager.state().hold_registrations = true;
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    until("it registers", || !manager.state().waiting.is_empty()).await;
    agent.redescribe(with_ssd(&node));
    manager.admit();
    until("described", || !manager.state().descriptions.is_empty()).await;
    assert!(manager.state().registers[0].description.as_ref().unwrap().engine_labels.is_empty());
    assert_eq!(manager.state().descriptions[0].engine_labels["disk"], "ssd");
    agent.shutdown().await;
}

#[tokio::test]
async fn changes_of_the_node_and_its_images_are_pushed() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    node.world.hold_images(&["sha256:a"]);
    let (agent, mut events) = node.start(&[server.addr]).await;
    until("first images", || manager.state().images.len() == 1).await;
    assert_eq!(
        manager.state().images[0],
        HeldImages { complete: true, added: vec!["sha256:a".to_owned()], removed: vec![] }
    );
    assert_eq!(manager.state().registers[0].description.as_ref().unwrap().hostname, "host1");
    node.world.hold_images(&["sha256:b"]);
    until("changed images", || manager.state().images.len() == 2).await;
    assert_eq!(
        manager.state().images[1],
        HeldImages { complete: false, added: vec!["sha256:b".to_owned()], removed: vec!["sha256:a".to_owned()] }
    );
    agent.redescribe(with_ssd(&node));
    until("described", || manager.state().descriptions.len() == 1).await;
    assert_eq!(manager.state().descriptions[0].engine_labels["disk"], "ssd");
    manager.send(Down::RenewCertificate(RenewCertificate {}));
    assert_eq!(events.recv().await, Some(AgentEvent::RenewCertificate));
    manager.send(Down::Removed(Removed {}));
    assert_eq!(events.recv().await, Some(AgentEvent::Removed));
    agent.session().wait_for(|state| *state == SessionState::Removed).await.unwrap();
    agent.shutdown().await;
}

#[tokio::test]
async fn a_task_waits_for_its_credential_after_a_restart() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    let container = ContainerSpec { name: "main".to_owned(), ..ContainerSpec::default() };
    let credential = AssignmentItem {
        item: Some(Item::Credential(Credential { id: CredentialId::new(5).to_vec(), ..Credential::default() })),
    };
    manager.assign(
        vec![task(1, 1, WantedState::Running), revision_of(1, vec![container], Some(CredentialId::new(5)))],
        vec![],
    );
    until("waits and says so", || {
        manager.state().statuses.get(&task_id(1)).is_some_and(|status| status.message.contains("credential"))
    })
    .await;
    agent.shutdown().await;
    manager.assign(vec![credential], vec![]);
    let (agent, _events) = node.start(&[server.addr]).await;
    until("running", || manager.task_state(task_id(1)) == Some(TaskState::Running)).await;
    assert_eq!(manager.state().resumed, 0, "credentials are not in the record, so it asks for all");
    agent.shutdown().await;
}

#[tokio::test]
async fn leaving_stops_everything_and_forgets() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(
        vec![task(1, 1, WantedState::Running), task(2, 1, WantedState::Running), revision(1, &["SIM_STOP_MS=20"])],
        vec![],
    );
    until("running", || agent.containers_running() == 2).await;
    agent.stop_all().await;
    assert_eq!(manager.state().goodbyes, [true], "it says that it leaves");
    assert!(node.world.running().is_empty() && node.world.leftovers().is_empty());
    assert!(!node.data.path().join("agent").exists());
    // A second order finds nothing to do.
    agent.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_start_fast_and_in_few_messages() {
    const TASKS: u128 = 500;
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    until("registered", || manager.state().registers.len() == 1).await;
    let mut put = vec![revision(1, &[])];
    put.extend((1..=TASKS).map(|number| task(number, 1, WantedState::Running)));
    let (start, cpu) = (Instant::now(), cpu_time());
    manager.assign(put, vec![]);
    until("all run", || {
        let state = manager.state();
        state.statuses.len() == TASKS as usize
            && state.statuses.values().all(|status| status.state() == TaskState::Running)
    })
    .await;
    let (wall, cpu) = (start.elapsed(), cpu_time() - cpu);
    println!("{TASKS} tasks: {wall:?}, {:?} CPU each, {} batches", cpu / TASKS as u32, manager.state().batches);
    assert!(cpu / (TASKS as u32) < Duration::from_millis(2), "budget of the agent, manager's side included");
    agent.shutdown().await;
}

/// CPU time of this process.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the duration of the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn heartbeats_go_on_while_the_main_runtime_is_busy() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    until("first beats", || manager.state().heartbeats >= 2).await;
    let before = manager.state().heartbeats;
    // Blocks the only worker thread, as a long plan or unpack would.
    tokio::spawn(async { std::thread::sleep(Duration::from_millis(1500)) }).await.unwrap();
    assert!(manager.state().heartbeats >= before + 5, "200 ms each");
    assert_eq!(manager.state().registers.len(), 1);
    agent.shutdown().await;
    let _keep = Arc::new(server);
}

#[tokio::test]
async fn nodes_that_are_out_are_handed_on() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    until("registered", || manager.state().down.is_some()).await;
    let say = |complete, added: &[u128], removed: &[u128]| {
        let ids = |list: &[u128]| list.iter().map(|id| NodeId::new(*id).to_vec()).collect();
        manager.send(Down::Denied(Denied { complete, added: ids(added), removed: ids(removed) }));
    };
    let is = |wanted: &[u128]| node.connector.denied().iter().map(|node| node.value()).eq(wanted.iter().copied());
    say(true, &[5, 6], &[]);
    until("two are out", || is(&[5, 6])).await;
    say(false, &[7], &[5]);
    until("another two", || is(&[6, 7])).await;
    say(true, &[], &[]);
    until("none", || is(&[])).await;
    agent.shutdown().await;
}
