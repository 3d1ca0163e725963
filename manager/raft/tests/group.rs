//! Several voters over a transport inside the process: the shapes that several managers will use hold.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Node, PATIENCE, Pairs, new_group, put, put_many, wait};
use futures::FutureExt;
use futures::future::BoxFuture;
use skep_raft::{
    BarrierError, Config, Consensus, Member, MembershipError, MessageKind, ProposeError, RaftNode, Start, Status,
    Transport, TransportError,
};

/// Carries messages between nodes of this process, except to and from those that are cut off.
#[derive(Clone, Default)]
struct Wires(Arc<Mutex<Ends>>);

#[derive(Default)]
struct Ends {
    nodes: HashMap<u64, Node>,
    cut: HashSet<u64>,
}

/// One node's end.
struct End {
    from: u64,
    wires: Wires,
}

impl Transport for End {
    fn call(
        &self,
        target: Member,
        kind: MessageKind,
        message: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let node = {
            let ends = self.wires.0.lock().unwrap();
            let cut = ends.cut.contains(&self.from) || ends.cut.contains(&target.id);
            ends.nodes.get(&target.id).filter(|_| !cut).cloned()
        };
        async move {
            let failed = |reason: String| TransportError::Failed { id: target.id, address: "here".to_owned(), reason };
            let Some(node) = node else {
                return Err(TransportError::Unreachable {
                    id: target.id,
                    address: target.address.clone(),
                    reason: "cut off".to_owned(),
                });
            };
            let answer = tokio::time::timeout(timeout, node.handle(kind, message)).await;
            answer.map_err(|_| failed("timeout".to_owned()))?.map_err(|error| failed(error.to_string()))
        }
        .boxed()
    }
}

impl Wires {
    async fn start(&self, dir: &Path, id: u64) -> (Node, Pairs) {
        let dir = dir.join(id.to_string());
        let start = match (Node::exists(&dir), id) {
            (true, _) => Start::Existing,
            (false, 1) => new_group(),
            (false, _) => Start::Join,
        };
        let mut config = Config::new(dir, id, start);
        config.limits.snapshot_after_changes = 300;
        config.limits.keep_entries = 10;
        config.limits.snapshot_chunk_bytes = 1000;
        let pairs = Pairs::default();
        let end = End { from: id, wires: self.clone() };
        let node = RaftNode::start(config, pairs.clone(), Arc::new(end)).await.unwrap();
        self.0.lock().unwrap().nodes.insert(id, node.clone());
        (node, pairs)
    }

    fn cut(&self, ids: &[u64]) {
        self.0.lock().unwrap().cut = ids.iter().copied().collect();
    }

    async fn stop(&self, id: u64) {
        let node = self.0.lock().unwrap().nodes.remove(&id).unwrap();
        node.shutdown().await;
    }
}

fn member(id: u64) -> Member {
    Member { id, address: format!("node-{id}") }
}

async fn group_of_three(wires: &Wires, dir: &Path) -> Vec<(Node, Pairs)> {
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(wires.start(dir, id).await);
    }
    let leader = nodes[0].0.clone();
    for id in 2..=3 {
        leader.add_learner(member(id), PATIENCE).await.unwrap();
        let caught_up = |status: &Status| status.matched.get(&id).is_some_and(|upto| *upto >= status.last_applied);
        wait(&leader, "learner caught up", caught_up).await;
        leader.promote(id, PATIENCE).await.unwrap();
    }
    wait(&leader, "three voters", |status| status.membership.voters.len() == 3 && !status.membership.changing).await;
    nodes
}

async fn leader_of(nodes: &[&(Node, Pairs)]) -> usize {
    let begun = Instant::now();
    loop {
        let at = nodes.iter().position(|(node, _)| {
            let status = node.status().borrow().clone();
            let fresh = status.millis_since_quorum_ack(Instant::now()).is_some_and(|millis| millis < 500);
            status.is_leader() && fresh
        });
        if let Some(at) = at {
            return at;
        }
        assert!(begun.elapsed() < PATIENCE, "no leader");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Writes through whoever leads, and answers who that is and where the entry went. Right after a cut is healed a node
/// that campaigned meanwhile may still depose the leader once: there is no pre-vote yet.
async fn put_somewhere(nodes: &[&(Node, Pairs)], key: &str, value: &str) -> (usize, u64) {
    let begun = Instant::now();
    loop {
        let at = leader_of(nodes).await;
        let entry = Bytes::from(format!("{key}={value}"));
        match nodes[at].0.propose(entry, Duration::from_secs(2)).await {
            Ok(done) => return (at, done.index),
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_voters_replicate_fail_over_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::default();
    let nodes = group_of_three(&wires, dir.path()).await;
    put_many(&nodes[0].0, 100, "one").await;
    let index = put(&nodes[0].0, "last", "1").await;
    for (node, pairs) in &nodes {
        wait(node, "applied", |status| status.last_applied >= Some(index)).await;
        assert_eq!(pairs.len(), 101);
    }
    let refused = nodes[1].0.propose(Bytes::from_static(b"a=1"), PATIENCE).await;
    assert_eq!(
        refused,
        Err(ProposeError::NotLeader { leader: Some(Member { id: 1, address: "127.0.0.1:2377".into() }) })
    );
    assert!(matches!(nodes[1].0.read_barrier(PATIENCE).await, Err(BarrierError::NotLeader { leader: Some(_) })));

    wires.stop(1).await;
    let left = [&nodes[1], &nodes[2]];
    let (leader, applied) = put_somewhere(&left, "after", "failover").await;
    assert_eq!(left[leader].1.get("last").unwrap(), "1");

    let (back, pairs) = wires.start(dir.path(), 1).await;
    wait(&back, "caught up", |status| status.last_applied >= Some(applied)).await;
    assert_eq!(pairs.get("after").unwrap(), "failover");
    for id in 1..=3 {
        wires.stop(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_quorum_says_so_and_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::default();
    let nodes = group_of_three(&wires, dir.path()).await;
    let leader = &nodes[leader_of(&nodes.iter().collect::<Vec<_>>()).await].0;
    put(leader, "a", "1").await;
    let id = leader.status().borrow().id;
    let others: Vec<u64> = (1..=3).filter(|other| *other != id).collect();
    wires.cut(&others);
    let unknown = leader.propose(Bytes::from_static(b"b=1"), Duration::from_millis(200)).await;
    assert!(matches!(unknown, Err(ProposeError::ResultUnknown { .. })), "{unknown:?}");
    let begun = Instant::now();
    loop {
        match leader.propose(Bytes::from_static(b"c=1"), Duration::from_millis(100)).await {
            Err(ProposeError::NoQuorum { silent_ms }) => {
                assert!(silent_ms > 1000, "{silent_ms}");
                break;
            }
            Err(ProposeError::ResultUnknown { .. }) if begun.elapsed() < PATIENCE => {}
            other => panic!("{other:?}"),
        }
    }
    let barrier = leader.read_barrier(PATIENCE).await;
    assert!(matches!(barrier, Err(BarrierError::NoQuorum { .. })), "{barrier:?}");
    wires.cut(&[]);
    let nodes: Vec<_> = nodes.iter().collect();
    put_somewhere(&nodes, "d", "1").await;
    for id in 1..=3 {
        wires.stop(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_far_behind_gets_the_snapshot_and_members_can_go() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::default();
    let nodes = group_of_three(&wires, dir.path()).await;
    wires.cut(&[3]);
    let reachable = [&nodes[0], &nodes[1]];
    let at = leader_of(&reachable).await;
    let leader = &reachable[at].0;
    put_many(leader, 1000, "many").await;
    let behind = nodes[2].0.status().borrow().last_log.unwrap();
    let status = wait(leader, "purged", |status| status.first_log > behind + 1).await;
    assert!(status.snapshot.unwrap().bytes > 3 * 1000, "several chunks");
    wires.cut(&[]);
    let (at, index) = put_somewhere(&nodes.iter().collect::<Vec<_>>(), "healed", "1").await;
    let leader = &nodes[at].0;
    let status = wait(&nodes[2].0, "caught up", |status| status.last_applied >= Some(index)).await;
    assert!(status.snapshot.is_some());
    assert_eq!(nodes[2].1.len(), 1001);
    assert_eq!(nodes[2].1.get("k999").unwrap(), "many");

    let gone = if at == 1 { 3 } else { 2 };
    leader.demote(gone, PATIENCE).await.unwrap();
    wait(leader, "a learner", |status| status.membership.learners.contains_key(&gone)).await;
    leader.remove(gone, PATIENCE).await.unwrap();
    let status = wait(leader, "two members", |status| status.membership.learners.is_empty()).await;
    assert_eq!(status.membership.voters.len(), 2);
    let unknown = leader.promote(9, PATIENCE).await;
    assert!(matches!(unknown, Err(MembershipError::Refused(_))), "{unknown:?}");
    put(leader, "after", "1").await;
    for id in 1..=3 {
        wires.stop(id).await;
    }
}
