//! A follower far behind catches up by a snapshot while writes go on, in bounded memory. `SKEP_RAFT_CATCH_UP_MB` sets how
//! far; 500 is the design's figure, the default is small enough for every run.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{PATIENCE, new_group};
use futures::FutureExt;
use futures::future::BoxFuture;
use skep_raft::{
    Config, Consensus, FatalError, Member, MessageKind, RaftNode, Snapshot, Start, StateMachine, Status, Transport,
    TransportError,
};

/// Counts bytes; its snapshot is as long as what it counted.
#[derive(Clone, Default)]
struct Ballast(Arc<AtomicU64>);

struct Frozen(u64);

const BLOCK: usize = 64 << 10;

impl StateMachine for Ballast {
    type Response = ();
    type Snapshot = Frozen;

    fn apply(&mut self, _index: u64, entry: &[u8]) -> Result<(), FatalError> {
        self.0.fetch_add(entry.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn freeze(&self) -> Frozen {
        Frozen(self.0.load(Ordering::Relaxed))
    }

    fn restore(&mut self, _index: u64, from: &mut dyn Read) -> Result<(), FatalError> {
        let (mut block, mut total) = (vec![0; BLOCK], 0);
        loop {
            let count = from.read(&mut block).map_err(FatalError::new)?;
            if count == 0 {
                self.0.store(total, Ordering::Relaxed);
                return Ok(());
            }
            total += count as u64;
        }
    }
}

impl Snapshot for Frozen {
    fn write(&self, to: &mut dyn Write) -> std::io::Result<()> {
        let block = vec![7; BLOCK];
        let mut left = self.0;
        while left > 0 {
            let count = left.min(BLOCK as u64);
            to.write_all(&block[..count as usize])?;
            left -= count;
        }
        Ok(())
    }
}

type Node = RaftNode<Ballast>;

#[derive(Clone, Default)]
struct Here {
    nodes: Arc<Mutex<BTreeMap<u64, Node>>>,
    cut: Arc<AtomicBool>,
}

impl Transport for Here {
    fn call(
        &self,
        target: Member,
        kind: MessageKind,
        message: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let node = self.nodes.lock().unwrap().get(&target.id).cloned();
        let node = node.filter(|_| target.id != 3 || !self.cut.load(Ordering::Relaxed));
        assert!(message.len() <= skep_raft::Limits::default().message_bytes(), "{} bytes", message.len());
        async move {
            let failed = |reason: String| TransportError::Failed { id: target.id, address: String::new(), reason };
            let node = node.ok_or_else(|| failed("cut off".to_owned()))?;
            let answer = tokio::time::timeout(timeout, node.handle(kind, message)).await;
            answer.map_err(|_| failed("timeout".to_owned()))?.map_err(|error| failed(error.to_string()))
        }
        .boxed()
    }
}

async fn wait(node: &Node, what: &str, until: impl FnMut(&Status) -> bool) -> Status {
    let mut status = node.status();
    let found = tokio::time::timeout(PATIENCE * 10, status.wait_for(until)).await;
    found.unwrap_or_else(|_| panic!("waited for: {what}; {:?}", node.status().borrow())).unwrap().clone()
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_far_behind_catches_up_while_writes_go_on() {
    let megabytes = std::env::var("SKEP_RAFT_CATCH_UP_MB").map_or(48, |text| text.parse::<usize>().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let here = Here::default();
    let mut nodes = Vec::new();
    for id in 1..=3_u64 {
        let start = if id == 1 { new_group() } else { Start::Join };
        let mut config = Config::new(dir.path().join(id.to_string()), id, start);
        config.limits.snapshot_after_bytes = 200 << 20;
        let node = RaftNode::start(config, Ballast::default(), Arc::new(here.clone())).await.unwrap();
        here.nodes.lock().unwrap().insert(id, node.clone());
        nodes.push(node);
    }
    let leader = &nodes[0];
    for id in 2..=3 {
        leader.add_learner(Member { id, address: id.to_string() }, PATIENCE).await.unwrap();
        wait(leader, "caught up", |now| now.matched.get(&id).is_some_and(|upto| *upto >= now.last_applied)).await;
        leader.promote(id, PATIENCE).await.unwrap();
    }
    let term = leader.status().borrow().term;
    here.cut.store(true, Ordering::Relaxed);
    let entry = Bytes::from(vec![1; 1 << 20]);
    let begun = Instant::now();
    for _ in 0..megabytes {
        leader.propose(entry.clone(), PATIENCE).await.unwrap();
    }
    println!("{megabytes} MB written in {:?}, resident {} MB", begun.elapsed(), resident_bytes() >> 20);
    let upto = leader.status().borrow().last_applied;
    let asked = Instant::now();
    loop {
        // One that is being made already is not up to date, and keeps another from beginning.
        leader.snapshot_now().await.unwrap();
        let now = leader.status().borrow().clone();
        if now.snapshot.is_some_and(|snapshot| Some(snapshot.index) >= upto) && now.first_log > megabytes as u64 / 2 {
            break;
        }
        assert!(asked.elapsed() < PATIENCE * 5, "no snapshot: {:?}", leader.status().borrow());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let before = resident_bytes();
    here.cut.store(false, Ordering::Relaxed);
    let begun = Instant::now();
    let (mut slowest, mut written, mut peak) = (Duration::ZERO, 0, before);
    let small = Bytes::from(vec![2; 1000]);
    while nodes[2].status().borrow().last_applied < upto {
        let one = Instant::now();
        leader.propose(small.clone(), PATIENCE).await.unwrap();
        slowest = slowest.max(one.elapsed());
        written += 1;
        peak = peak.max(resident_bytes());
        assert!(begun.elapsed() < PATIENCE * 10, "{:?}", nodes[2].status().borrow());
    }
    println!(
        "caught up after {:?}; meanwhile {written} writes, the slowest {slowest:?}; resident {} MB before, {} MB at most",
        begun.elapsed(),
        before >> 20,
        peak >> 20
    );
    let index = leader.propose(small, PATIENCE).await.unwrap().index;
    let status = wait(&nodes[2], "all of it", |now| now.last_applied >= Some(index)).await;
    assert_eq!(status.term, term, "no election");
    assert!(peak < before + (200 << 20), "memory grew by {} MB", (peak - before) >> 20);
    for node in &nodes {
        node.shutdown().await;
    }
}
