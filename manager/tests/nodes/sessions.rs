//! Sessions: registration, assignments, resuming, statuses, health, removal.

use std::collections::BTreeMap;

use skep_identity::transport::{Refusal, refusal};
use skep_proto::id::{NodeId, SessionId, TaskId};
use skep_proto::v1::session_down::Message as Down;
use skep_proto::v1::session_up::Message as Up;
use skep_proto::v1::{Goodbye, NodeState, Register, Task, TaskState, WantedState};
use tonic::Code;

use crate::agent::{Agent, description, observed};
use crate::swarm::{MANAGER, Swarm, soon};

const DIGEST: &str = "sha256:00";

fn running(count: usize) -> impl Fn(&BTreeMap<TaskId, Task>) -> bool {
    move |tasks| tasks.values().filter(|task| task.wanted() == WantedState::Running).count() == count
}

#[tokio::test]
async fn a_node_registers_and_follows_its_assignments() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let mut agent = Agent::connect(&host, "host2").await;
    assert!(!agent.registered.resumed);
    assert_eq!(agent.registered.heartbeat_period_ms, 300);
    let managers = agent.registered.managers.clone().unwrap().managers;
    assert_eq!(managers.len(), 1);
    assert_eq!((managers[0].node_id.clone(), managers[0].addr.clone()), (MANAGER.to_vec(), swarm.addr.to_string()));
    // Registered means written down.
    let node = swarm.node(host.id);
    assert_eq!((node.status.state, node.status.addr.as_str()), (NodeState::Ready, "127.0.0.1"));
    assert_eq!(node.hostname(), "host2");

    agent.until("the first set", |_| true).await;
    assert_eq!(agent.received, [(true, 0)], "the first message is the complete set, though it is empty");
    let web = swarm.create_service("web", DIGEST, 3).await;
    agent.until("three tasks", running(3)).await;
    assert!(agent.received[1..].iter().all(|(complete, _)| !complete), "{:?}", agent.received);

    let reports = agent.tasks.keys().map(|task| observed(*task, TaskState::Running)).collect();
    agent.report(reports).await;
    let states = || swarm.tasks(web).iter().map(|task| task.state).collect::<Vec<_>>();
    assert_eq!(states(), [TaskState::Running; 3], "acknowledged means stored");

    swarm.scale(web, 1).await;
    agent.until("two are to stop", running(1)).await;
    let stopped = agent.tasks.iter().filter(|(_, task)| task.wanted() != WantedState::Running);
    let reports = stopped.map(|(id, _)| observed(*id, TaskState::Shutdown)).collect();
    agent.report(reports).await;
    agent.until("they are gone", |tasks| tasks.len() == 1).await;
    swarm.stop().await;
}

#[tokio::test]
async fn a_session_resumes_with_differences() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let mut agent = Agent::connect(&host, "host2").await;
    let web = swarm.create_service("web", DIGEST, 2).await;
    agent.until("two tasks", running(2)).await;
    let (session, sequence) = (agent.registered.session_id.clone(), agent.sequence);
    agent.hang_up();

    swarm.scale(web, 3).await;
    let mut agent = agent.resume(session.clone(), sequence, "host2").await;
    assert!(agent.registered.resumed);
    assert_eq!(agent.registered.session_id, session);
    agent.until("the third task", running(3)).await;
    assert!(agent.received.iter().all(|(complete, _)| !complete), "{:?}", agent.received);

    // What the manager does not know any more is sent as a whole.
    let unknown = SessionId::new(77).to_vec();
    let mut agent = agent.resume(unknown, 9, "host2").await;
    assert!(!agent.registered.resumed);
    agent.until("all again", running(3)).await;
    assert!(agent.received[0].0);
    swarm.stop().await;
}

#[tokio::test]
async fn a_new_session_ends_the_old_one() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let mut old = Agent::connect(&host, "host2").await;
    let mut new = Agent::connect(&host, "host2").await;
    assert_eq!(old.end().await.unwrap().code(), Code::Aborted);
    new.until("its set", |_| true).await;
    assert_eq!(swarm.node(host.id).status.state, NodeState::Ready);
    swarm.stop().await;
}

#[tokio::test]
async fn a_silent_node_is_down_and_a_heard_one_is_ready_again() {
    let swarm = Swarm::start().await;
    let (host, other) = (swarm.join("host2").await, swarm.join("host3").await);
    let agent = Agent::connect(&host, "host2").await;
    let _other = Agent::connect(&other, "host3").await;
    agent.stop_beating();
    let is = |id: NodeId, wanted| move |state: &skep_core::store::State| state.node(id).unwrap().status.state == wanted;
    swarm.until("down", is(host.id, NodeState::Down)).await;
    let message = swarm.node(host.id).status.message.clone();
    assert!(message.starts_with("heartbeat failure: nothing heard for "), "{message}");
    assert_eq!(swarm.node(other.id).status.state, NodeState::Ready);
    // It was only slow: its session still stands.
    agent.say(Up::Heartbeat(Default::default())).await;
    swarm.until("ready", is(host.id, NodeState::Ready)).await;
    swarm.stop().await;
}

#[tokio::test]
async fn a_node_whose_daemon_stops_says_so_and_is_down_after_the_grace() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let mut agent = Agent::connect(&host, "host2").await;
    agent.stop_beating();
    agent.say(Up::Goodbye(Goodbye { leaving: false })).await;
    agent.hang_up();
    assert!(agent.end().await.is_none(), "the manager ends its half when it has read all");
    let mut seen = Vec::new();
    swarm
        .until("down", |state| {
            let status = &state.node(host.id).unwrap().status;
            if seen.last() != Some(&status.state) {
                seen.push(status.state);
            }
            status.state == NodeState::Down
        })
        .await;
    assert_eq!(seen[seen.len() - 2], NodeState::Disconnected, "{seen:?}");
    let message = swarm.node(host.id).status.message.clone();
    assert!(message.starts_with("the daemon stopped"), "{message}");
    swarm.stop().await;
}

#[tokio::test]
async fn a_node_that_leaves_the_swarm_is_down_at_once() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let mut agent = Agent::connect(&host, "host2").await;
    agent.say(Up::Goodbye(Goodbye { leaving: true })).await;
    // What it still says does not bring it back.
    agent.say(Up::Heartbeat(Default::default())).await;
    agent.hang_up();
    assert!(agent.end().await.is_none());
    let mut seen = Vec::new();
    swarm
        .until("down", |state| {
            let status = &state.node(host.id).unwrap().status;
            seen.push(status.state);
            status.state == NodeState::Down
        })
        .await;
    assert!(!seen.contains(&NodeState::Disconnected), "{seen:?}");
    assert_eq!(swarm.node(host.id).status.message, "the node has left the swarm");
    swarm.stop().await;
}

#[tokio::test]
async fn a_node_that_describes_itself_without_end_fills_no_log() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let agent = Agent::connect(&host, "host2").await;
    let before = swarm.state().version();
    for number in 0..300 {
        agent.say(Up::Description(description(&format!("host{number}")))).await;
    }
    swarm.until("the last", |state| state.node(host.id).unwrap().hostname() == "host299").await;
    let written = swarm.state().version() - before;
    assert!(written < 30, "{written} writes");
    swarm.stop().await;
}

#[tokio::test]
async fn a_node_that_registers_without_end_fills_no_log_and_its_last_word_is_stored() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let mut agents = vec![Agent::connect(&host, "host2").await];
    let hostname = || swarm.node(host.id).hostname().to_owned();
    let (started, mut written) = (std::time::Instant::now(), std::collections::BTreeSet::new());
    for number in 0..30 {
        let mut agent = Agent::connect(&host, &format!("host{number}")).await;
        written.insert(hostname());
        // Nor is a session that ends at once a way around.
        agent.say(Up::Description(description(&format!("late{number}")))).await;
        agent.hang_up();
        agents.push(agent);
    }
    let seconds = usize::try_from(started.elapsed().as_secs()).unwrap();
    assert!(written.len() <= seconds + 2, "{written:?} in {seconds} s");
    swarm.until("the last", |state| state.node(host.id).unwrap().hostname() == "late29").await;
    let _agent = Agent::connect(&host, "last").await;
    swarm.until("what it says as it registers", |state| state.node(host.id).unwrap().hostname() == "last").await;
    swarm.stop().await;
}

#[tokio::test]
async fn last_words_are_stored_and_acknowledged() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let mut agent = Agent::connect(&host, "host2").await;
    let web = swarm.create_service("web", DIGEST, 1).await;
    agent.until("a task", running(1)).await;
    let task = *agent.tasks.keys().next().unwrap();
    let batch =
        |batch, state| Up::Statuses(skep_proto::v1::StatusBatch { batch, statuses: vec![observed(task, state)] });
    agent.say(batch(1, TaskState::Accepted)).await;
    agent.say(batch(2, TaskState::Running)).await;
    agent.hang_up();
    for expected in [1, 2] {
        let acked = agent.wait_for("acknowledgement", |message| match message {
            Down::StatusAck(ack) => Some(ack.batch),
            _ => None,
        });
        assert_eq!(acked.await, expected);
    }
    assert_eq!(swarm.tasks(web)[0].state, TaskState::Running);
    swarm.stop().await;
}

#[tokio::test]
async fn a_node_cannot_report_on_anothers_task() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let mut agent = Agent::connect(&host, "host2").await;
    let web = swarm.create_service("web", DIGEST, 1).await;
    agent.until("a task", running(1)).await;
    let task = *agent.tasks.keys().next().unwrap();

    let rogue = swarm.join("host3").await;
    let mut rogue = Agent::connect(&rogue, "host3").await;
    let mut forged = observed(task, TaskState::Failed);
    forged.node_id = host.id.to_vec();
    rogue.report(vec![forged, observed(TaskId::new(5), TaskState::Running)]).await;
    assert_eq!(swarm.tasks(web)[0].state, TaskState::Assigned);
    rogue.until("its own set", |_| true).await;
    assert!(rogue.tasks.is_empty(), "and it is told of nothing");
    swarm.stop().await;
}

#[tokio::test]
async fn a_removed_node_is_out() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let mut agent = Agent::connect(&host, "host2").await;
    agent.until("its set", |_| true).await;
    swarm.remove_node(host.id).await;
    let cut = [Code::Cancelled, Code::Unavailable, Code::Unknown];
    // It is told, or thrown out by its certificate, whichever is faster.
    let _ = agent.end().await;
    soon("denial", async {
        while !swarm.deny.is_denied(host.id) {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
    // A call that meets the end of its connection hears of that end alone; one of the next is told why.
    soon("the reason", async {
        loop {
            let register = Register { description: Some(description("host2")), ..Register::default() };
            let Err(Err(status)) = Agent::register(&host.channel, register).await else { panic!("it was let in") };
            match refusal(&status) {
                Some(refusal) => return assert_eq!(refusal, Refusal::Removed, "{status:?}"),
                None => assert!(cut.contains(&status.code()), "{status:?}"),
            }
        }
    })
    .await;
    swarm.stop().await;
}

#[tokio::test]
async fn what_is_no_registration_is_refused() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let nameless = Register { description: Some(Default::default()), ..Register::default() };
    let unnumbered =
        Register { description: Some(description("host2")), session_id: vec![1, 2, 3], ..Register::default() };
    for bad in [Register::default(), nameless, unnumbered] {
        let Err(Err(status)) = Agent::register(&host.channel, bad).await else { panic!("it was let in") };
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    // Nobody without a certificate has a session.
    let register = Register { description: Some(description("host2")), ..Register::default() };
    let Err(Err(status)) = Agent::register(&swarm.stranger(), register).await else { panic!("it was let in") };
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(swarm.node(host.id).status.state, NodeState::Unknown);
    swarm.stop().await;
}

#[tokio::test]
async fn a_manager_that_stops_ends_its_sessions() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let mut agent = Agent::connect(&host, "host2").await;
    let stopping = swarm.stop();
    let (ended, ()) = tokio::join!(agent.end(), stopping);
    drop(ended);
}
