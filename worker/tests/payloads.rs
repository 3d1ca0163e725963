//! Secrets and configs between a manager and the agent: tasks wait for them, restarts ask for them anew, running tasks take
//! over other versions in place. Containers are simulated.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use skep_proto::id::SecretId;
use skep_proto::v1::assignment_item::Item;
use skep_proto::v1::assignment_key::Key;
use skep_proto::v1::payload_key::Owner;
use skep_proto::v1::*;
use support::*;

const SECRET: SecretId = SecretId::new(5);

fn key(version: u64) -> PayloadKey {
    PayloadKey { owner: Some(Owner::SecretId(SECRET.to_vec())), version }
}

fn payload(version: u64) -> AssignmentItem {
    let data = format!("data of version {version}").into_bytes();
    let payload = Payload { key: Some(key(version)), data: data.into() };
    AssignmentItem { item: Some(Item::Payload(AssignedPayload { payload: Some(payload), templated: false })) }
}

fn without(version: u64) -> AssignmentKey {
    AssignmentKey { key: Some(Key::Payload(key(version))) }
}

/// A revision whose container has that version of the secret; one that others come to in place where `live`.
fn using(number: u64, version: u64, live: bool) -> AssignmentItem {
    let mut item = revision(number, &[]);
    let Some(Item::Revision(revision)) = &mut item.item else { unreachable!("it was just made") };
    let name = "db".to_owned();
    let secret = SecretRef { secret_id: SECRET.to_vec(), version, name, ..SecretRef::default() };
    revision.template.as_mut().unwrap().containers[0].secrets = vec![secret];
    revision.live = live.then(|| LiveChange { from_revision: number - 1, signal: String::new() });
    item
}

fn revision_key(number: u64) -> RevisionKey {
    RevisionKey { service_id: skep_proto::id::ServiceId::new(1).to_vec(), number }
}

fn message(manager: &TestManager, id: u128) -> String {
    manager.state().statuses.get(&task_id(id)).map(|status| status.message.clone()).unwrap_or_default()
}

fn files(version: u64) -> Vec<Vec<u8>> {
    vec![format!("data of version {version}").into_bytes()]
}

#[tokio::test]
async fn a_task_waits_for_its_secrets_and_a_restart_disturbs_nothing() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(vec![task(1, 1, WantedState::Running), using(1, 1, false)], vec![]);
    until("told", || message(&manager, 1) == "waiting for a manager to send its secrets and configs").await;
    manager.assign(vec![payload(1)], vec![]);
    until("running", || manager.task_state(task_id(1)) == Some(TaskState::Running)).await;
    assert_eq!(node.world.files(task_id(1)), files(1));

    // Without a manager, a restarted agent goes on with what runs, and a task that has yet to start waits.
    let addr = server.addr;
    manager.assign(vec![task(2, 1, WantedState::Ready)], vec![]);
    until("ready", || manager.task_state(task_id(2)) == Some(TaskState::Ready)).await;
    drop(server);
    agent.shutdown().await;
    let (agent, _events) = node.start(&[addr]).await;
    let told = || {
        let tasks = agent.tasks();
        tasks.iter().any(|(id, status)| *id == task_id(2) && status.message.starts_with("waiting for a manager"))
    };
    until("it says so", told).await;
    assert_eq!(node.world.running().len(), 1);

    let server = manager.serve(&addr.to_string());
    manager.assign(vec![task(2, 1, WantedState::Running)], vec![]);
    until("the other runs", || manager.task_state(task_id(2)) == Some(TaskState::Running)).await;
    assert_eq!(manager.state().resumed, 0, "secrets are not in the record, so it asks for all");
    assert_eq!(node.world.starts().values().copied().collect::<Vec<_>>(), [1, 1]);
    agent.shutdown().await;
    drop(server);
}

#[tokio::test]
async fn what_runs_takes_over_other_versions_in_place_also_over_a_restart() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(vec![payload(1), using(1, 1, false), task(1, 1, WantedState::Running)], vec![]);
    until("running", || manager.task_state(task_id(1)) == Some(TaskState::Running)).await;

    let gone = AssignmentKey { key: Some(Key::Revision(revision_key(1))) };
    manager.assign(vec![payload(2), using(2, 2, true), task(1, 2, WantedState::Running)], vec![gone, without(1)]);
    until("replaced", || node.world.files(task_id(1)) == files(2)).await;
    until("told", || message(&manager, 1).ends_with("has the secrets and configs of revision 2")).await;

    // The next version comes without its data; the agent is restarted before they do.
    let gone = AssignmentKey { key: Some(Key::Revision(revision_key(2))) };
    manager.assign(vec![using(3, 3, true), task(1, 3, WantedState::Running)], vec![gone, without(2)]);
    until("it waits", || message(&manager, 1).contains("waiting for a manager")).await;
    agent.shutdown().await;
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(vec![payload(3)], vec![]);
    until("replaced after the restart", || node.world.files(task_id(1)) == files(3)).await;
    until("told again", || message(&manager, 1).ends_with("has the secrets and configs of revision 3")).await;
    assert_eq!(node.world.starts().values().copied().collect::<Vec<_>>(), [1]);

    // What cannot be done is told, with what helps.
    node.world.fix_files(task_id(1));
    manager.assign(vec![payload(4), using(4, 4, true), task(1, 4, WantedState::Running)], vec![without(3)]);
    until("refused", || message(&manager, 1).contains("cannot take over the secrets and configs of revision 4")).await;
    assert!(message(&manager, 1).contains("--force"));
    assert_eq!(manager.task_state(task_id(1)), Some(TaskState::Running));
    assert_eq!(node.world.files(task_id(1)), files(3));
    agent.shutdown().await;
}

#[tokio::test]
async fn a_task_that_has_not_started_is_prepared_for_the_new_version() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(vec![payload(1), using(1, 1, false), task(1, 1, WantedState::Ready)], vec![]);
    until("ready", || manager.task_state(task_id(1)) == Some(TaskState::Ready)).await;
    manager.assign(vec![payload(2), using(2, 2, true), task(1, 2, WantedState::Running)], vec![without(1)]);
    until("running", || manager.task_state(task_id(1)) == Some(TaskState::Running)).await;
    assert_eq!(node.world.files(task_id(1)), files(2));
    agent.shutdown().await;
}

#[tokio::test]
async fn without_a_manager_secrets_of_ended_tasks_are_let_go() {
    let manager = TestManager::new();
    let server = manager.serve("127.0.0.1:0");
    let node = TestNode::new();
    let (agent, _events) = node.start(&[server.addr]).await;
    manager.assign(vec![payload(1), using(1, 1, false), task(1, 1, WantedState::Running)], vec![]);
    until("running", || manager.task_state(task_id(1)) == Some(TaskState::Running)).await;
    let addr = server.addr;
    drop(server);
    node.world.end(task_id(1), "main", 0, false);
    until("ended", || node.world.running().is_empty()).await;
    until("let go", || agent.payloads_held() == 0).await;

    // The managers believe that it is there; the next task needs it.
    manager.assign(vec![task(2, 1, WantedState::Running)], vec![]);
    let server = manager.serve(&addr.to_string());
    until("sent anew", || manager.task_state(task_id(2)) == Some(TaskState::Running)).await;
    assert_eq!(agent.payloads_held(), 1);
    manager.assign(vec![], vec![removed(1), removed(2), without(1)]);
    until("taken back", || agent.payloads_held() == 0).await;
    agent.shutdown().await;
    drop(server);
}
