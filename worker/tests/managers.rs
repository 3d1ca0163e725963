//! Which manager an agent turns to: the own one first, another one when one falls silent or is gone.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use skep_proto::v1::{ManagerAddr, TaskState, WantedState};
use skep_worker::AgentEvent;
use support::*;

fn managers_of(addrs: &[(u8, std::net::SocketAddr)]) -> Vec<ManagerAddr> {
    addrs.iter().map(|(id, addr)| ManagerAddr { node_id: vec![*id; 16], addr: addr.to_string() }).collect()
}

#[tokio::test]
async fn a_silent_manager_is_given_up_for_another() {
    let (silent, other) = (TestManager::new(), TestManager::new());
    let (first, second) = (silent.serve("127.0.0.1:0"), other.serve("127.0.0.1:0"));
    silent.state().managers = vec![ManagerAddr { node_id: vec![1; 16], addr: second.addr.to_string() }];
    let node = TestNode::new();
    let (agent, mut events) = node.start(&[first.addr]).await;
    until("registered", || silent.state().registers.len() == 1).await;
    assert!(matches!(events.recv().await, Some(AgentEvent::Managers(_))));
    silent.assign(vec![task(1, 1, WantedState::Running), revision(1, &[])], vec![]);
    other.assign(vec![task(1, 1, WantedState::Running), revision(1, &[])], vec![]);
    until("running", || !node.world.running().is_empty()).await;
    let start = Instant::now();
    silent.state().mute_heartbeats = true;
    until("the other one took over", || {
        other.task_state(task_id(1)) == Some(TaskState::Running) || !other.state().registers.is_empty()
    })
    .await;
    assert!(start.elapsed() >= Duration::from_millis(400), "three periods of 200 ms, less the last answer's age");
    assert_eq!(node.world.starts().len(), 1);
    agent.shutdown().await;
    // The record knows the manager that it learned of.
    let (agent, _events) = node.start(&[]).await;
    until("found again", || other.state().registers.len() >= 2).await;
    agent.shutdown().await;
}

#[tokio::test]
async fn a_node_of_a_manager_that_fell_silent_is_elsewhere_within_two_heartbeats() {
    let (silent, other) = (TestManager::new(), TestManager::new());
    let (first, second) = (silent.serve("127.0.0.1:0"), other.serve("127.0.0.1:0"));
    let all = managers_of(&[(1, first.addr), (2, second.addr)]);
    for manager in [&silent, &other] {
        manager.state().managers.clone_from(&all);
        manager.state().period_ms = 1_000;
    }
    let node = TestNode::new();
    let (agent, _events) = node.start(&[first.addr]).await;
    until("beating", || silent.state().heartbeats >= 1).await;
    silent.state().mute_heartbeats = true;
    let start = Instant::now();
    until("the other one took over", || !other.state().registers.is_empty()).await;
    // A period until the next heartbeat, half of one for its answer, a tenth before the next try; and a busy machine.
    assert!(start.elapsed() < Duration::from_millis(2_500), "{:?}", start.elapsed());
    agent.shutdown().await;
}

#[tokio::test]
async fn a_manager_that_is_gone_is_replaced_at_once() {
    let (gone, other) = (TestManager::new(), TestManager::new());
    let (first, second) = (gone.serve("127.0.0.1:0"), other.serve("127.0.0.1:0"));
    let all = managers_of(&[(1, first.addr), (2, second.addr)]);
    for manager in [&gone, &other] {
        manager.state().managers.clone_from(&all);
    }
    let node = TestNode::new();
    let (agent, _events) = node.start(&[first.addr]).await;
    until("registered", || gone.state().registers.len() == 1).await;
    let start = Instant::now();
    drop(first);
    until("the other one took over", || !other.state().registers.is_empty()).await;
    assert!(start.elapsed() < Duration::from_millis(1_500), "{:?}", start.elapsed());
    assert_eq!(gone.state().registers.len(), 1, "the lost one is tried last");
    agent.shutdown().await;
}

#[tokio::test]
async fn the_manager_on_this_host_comes_first() {
    let (own, other) = (TestManager::new(), TestManager::new());
    let (first, second) = (own.serve("127.0.0.1:0"), other.serve("127.0.0.1:0"));
    let mut all = managers_of(&[(1, first.addr), (2, second.addr)]);
    all[0].node_id = NODE.to_vec();
    for manager in [&own, &other] {
        manager.state().managers.clone_from(&all);
    }
    let node = TestNode::new();
    for round in 1..=8 {
        // It was told of both; only the first seed is the other one's.
        let seeds = if round == 1 { vec![second.addr] } else { Vec::new() };
        let (agent, mut events) = node.start(&seeds).await;
        let sessions = || own.state().registers.len() + other.state().registers.len();
        until("registered", || sessions() == round).await;
        // It keeps what it is told in the first round for the later ones.
        if round == 1 {
            assert!(matches!(events.recv().await, Some(AgentEvent::Managers(_))));
        }
        agent.shutdown().await;
    }
    assert_eq!(own.state().registers.len(), 7);
}
