//! Several nodes in this process over a transport that can lose, delay and cut.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use rand::Rng;
use skep_raft::{
    Config, Consensus, Member, MessageKind, ProposeError, RaftNode, Start, Status, Transport, TransportError,
};

use crate::common::{Node, PATIENCE, Pairs, new_group, wait};

type Adjust = Arc<dyn Fn(&mut Config) + Send + Sync>;

/// Carries messages between nodes of this process.
#[derive(Clone)]
pub struct Wires {
    dir: PathBuf,
    ends: Arc<Mutex<Ends>>,
    adjust: Adjust,
}

#[derive(Default)]
struct Ends {
    nodes: HashMap<u64, Node>,
    /// Groups that cannot talk to each other: nodes with different numbers.
    side: HashMap<u64, u32>,
    /// Share of messages lost, and as many answers.
    loss: f64,
    /// Longest delay of a message.
    delay: Duration,
    /// Nobody is taken notice of any more: as if the process was killed.
    dead: HashSet<u64>,
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
        let (from, wires) = (self.from, self.wires.clone());
        async move {
            let failed = |reason: &str| TransportError::Failed {
                id: target.id,
                address: target.address.clone(),
                reason: reason.to_owned(),
            };
            let carried = async {
                wires.travel(from, target.id).await.ok_or_else(|| failed("lost"))?;
                let node = wires.node(target.id).ok_or_else(|| failed("nobody is there"))?;
                let answer = node.handle(kind, message).await.map_err(|error| failed(&error.to_string()))?;
                wires.travel(target.id, from).await.ok_or_else(|| failed("the answer was lost"))?;
                Ok(answer)
            };
            tokio::time::timeout(timeout, carried).await.unwrap_or_else(|_| Err(failed("timeout")))
        }
        .boxed()
    }
}

impl Wires {
    pub fn new(dir: &Path, adjust: impl Fn(&mut Config) + Send + Sync + 'static) -> Self {
        Self { dir: dir.to_owned(), ends: Arc::default(), adjust: Arc::new(adjust) }
    }

    fn node(&self, id: u64) -> Option<Node> {
        self.ends.lock().unwrap().nodes.get(&id).cloned()
    }

    /// One way of a message; None if it does not arrive.
    async fn travel(&self, from: u64, to: u64) -> Option<()> {
        let delay = {
            let ends = self.ends.lock().unwrap();
            let side = |id| ends.side.get(&id).copied().unwrap_or(0);
            let cut = side(from) != side(to) || ends.dead.contains(&from) || ends.dead.contains(&to);
            let mut rng = rand::thread_rng();
            if cut || rng.gen_bool(ends.loss) {
                return None;
            }
            if ends.delay.is_zero() { Duration::ZERO } else { rng.gen_range(Duration::ZERO..ends.delay) }
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        Some(())
    }

    pub fn path(&self, id: u64) -> PathBuf {
        self.dir.join(id.to_string())
    }

    pub fn config(&self, id: u64) -> Config {
        let dir = self.path(id);
        let start = match (Node::exists(&dir), id) {
            (true, _) => Start::Existing,
            (false, 1) => new_group(),
            (false, _) => Start::Join,
        };
        let mut config = Config::new(dir, id, start);
        (self.adjust)(&mut config);
        config
    }

    pub async fn start(&self, id: u64) -> (Node, Pairs) {
        self.start_machine(id, Pairs::default()).await
    }

    pub async fn start_machine(&self, id: u64, pairs: Pairs) -> (Node, Pairs) {
        self.ends.lock().unwrap().dead.remove(&id);
        let end = End { from: id, wires: self.clone() };
        let node = RaftNode::start(self.config(id), pairs.clone(), Arc::new(end)).await.unwrap();
        self.ends.lock().unwrap().nodes.insert(id, node.clone());
        (node, pairs)
    }

    /// Cuts these nodes off from all others; those of one list hear each other.
    pub fn cut(&self, ids: &[u64]) {
        let mut ends = self.ends.lock().unwrap();
        ends.side = ids.iter().map(|id| (*id, 1)).collect();
    }

    pub fn heal(&self) {
        let mut ends = self.ends.lock().unwrap();
        ends.side.clear();
        ends.loss = 0.0;
        ends.delay = Duration::ZERO;
    }

    pub fn disturb(&self, loss: f64, delay: Duration) {
        let mut ends = self.ends.lock().unwrap();
        ends.loss = loss;
        ends.delay = delay;
    }

    /// Stops in order: a leader hands over.
    pub async fn stop(&self, id: u64) {
        let node = self.node(id).unwrap();
        node.shutdown().await;
        self.ends.lock().unwrap().nodes.remove(&id);
    }

    /// From this moment nobody hears of it: as far as the others can tell it was killed. Then its directory is freed.
    pub async fn kill(&self, id: u64) {
        let node = {
            let mut ends = self.ends.lock().unwrap();
            ends.dead.insert(id);
            ends.nodes.remove(&id)
        };
        if let Some(node) = node {
            node.shutdown().await;
        }
    }

    /// As [`Self::kill`], without waiting for the directory.
    pub fn silence(&self, id: u64) {
        self.ends.lock().unwrap().dead.insert(id);
    }

    pub async fn stop_all(&self) {
        let nodes: Vec<Node> = self.ends.lock().unwrap().nodes.values().cloned().collect();
        futures::future::join_all(nodes.iter().map(|node| node.shutdown())).await;
        self.ends.lock().unwrap().nodes.clear();
    }

    /// A group with voters 1 to `count`.
    pub async fn group(&self, count: u64) -> BTreeMap<u64, (Node, Pairs)> {
        let mut nodes = BTreeMap::new();
        for id in 1..=count {
            nodes.insert(id, self.start(id).await);
        }
        let leader = nodes[&1].0.clone();
        for id in 2..=count {
            add_voter(&leader, id).await;
        }
        let complete = |status: &Status| status.membership.voters.len() as u64 == count && !status.membership.changing;
        for (node, _) in nodes.values() {
            wait(node, "all voters", complete).await;
        }
        nodes
    }
}

pub fn member(id: u64) -> Member {
    Member { id, address: format!("node-{id}") }
}

pub async fn add_voter(leader: &Node, id: u64) {
    leader.add_learner(member(id), PATIENCE).await.unwrap();
    let caught_up = |status: &Status| status.matched.get(&id).is_some_and(|upto| *upto >= status.last_applied);
    wait(leader, "learner caught up", caught_up).await;
    leader.promote(id, PATIENCE).await.unwrap();
}

/// The node that leads with a quorum.
pub async fn leader_of(nodes: &BTreeMap<u64, (Node, Pairs)>) -> u64 {
    let begun = Instant::now();
    loop {
        let leads = |(_, (node, _)): &(&u64, &(Node, Pairs))| node.status().borrow().leads();
        if let Some((id, _)) = nodes.iter().find(leads) {
            return *id;
        }
        assert!(begun.elapsed() < PATIENCE, "no leader");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Writes through whoever leads; answers who that is and where the entry went.
pub async fn put_somewhere(nodes: &BTreeMap<u64, (Node, Pairs)>, key: &str, value: &str) -> (u64, u64) {
    let begun = Instant::now();
    loop {
        let id = leader_of(nodes).await;
        let entry = Bytes::from(format!("{key}={value}"));
        match nodes[&id].0.propose(entry, Duration::from_secs(2)).await {
            Ok(done) => return (id, done.index),
            Err(error @ ProposeError::Storage(_)) => panic!("{error}"),
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// All have applied the entry at `index`.
pub async fn all_applied(nodes: &BTreeMap<u64, (Node, Pairs)>, index: u64) {
    for (node, _) in nodes.values() {
        wait(node, "applied", |status| status.last_applied >= Some(index)).await;
    }
}
