//! Nodes on one thread with disks in memory (feature `sim`): they work, survive crashes, and a disk that lies is noticed.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use common::{Node, PATIENCE, Pairs, new_group, put_many, wait};
use futures::FutureExt;
use futures::future::BoxFuture;
use skep_raft::sim::{self, SimDisk};
use skep_raft::{Config, Consensus, Member, MessageKind, RaftNode, Start, Transport, TransportError};

type Table = Arc<Mutex<BTreeMap<u64, Node>>>;

struct Here(Table);

impl Transport for Here {
    fn call(
        &self,
        target: Member,
        kind: MessageKind,
        message: Bytes,
        _timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let node = self.0.lock().unwrap().get(&target.id).cloned();
        async move {
            let failed = |reason: String| TransportError::Failed { id: target.id, address: String::new(), reason };
            let node = node.ok_or_else(|| failed("nobody is there".to_owned()))?;
            node.handle(kind, message).await.map_err(|error| failed(error.to_string()))
        }
        .boxed()
    }
}

async fn start(table: &Table, id: u64, disk: &SimDisk, snapshot_after: u64) -> (Node, Pairs) {
    let start = match (disk.holds_a_node(), id) {
        (true, _) => Start::Existing,
        (false, 1) => new_group(),
        (false, _) => Start::Join,
    };
    let mut config = Config::new("/nowhere", id, start);
    config.sim_disk = Some(disk.clone());
    config.limits.snapshot_after_changes = snapshot_after;
    config.limits.keep_entries = 10;
    let pairs = Pairs::default();
    let node = RaftNode::start_here(config, pairs.clone(), Arc::new(Here(Arc::clone(table)))).await.unwrap();
    table.lock().unwrap().insert(id, node.clone());
    (node, pairs)
}

async fn stop(table: &Table) {
    let nodes: Vec<Node> = std::mem::take(&mut *table.lock().unwrap()).into_values().collect();
    futures::future::join_all(nodes.iter().map(|node| node.shutdown())).await;
}

async fn leader(table: &Table) -> Node {
    loop {
        let nodes: Vec<Node> = table.lock().unwrap().values().cloned().collect();
        if let Some(leader) = nodes.iter().find(|node| node.status().borrow().leads()) {
            return leader.clone();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Writes, stops all, lets `meanwhile` happen to the disks, starts all, and answers how many of 100 writes are there.
async fn survivors(snapshot_after: u64, meanwhile: impl FnOnce(&[SimDisk])) -> usize {
    sim::seed(7);
    let table = Table::default();
    let disks: Vec<SimDisk> = (0..3).map(|_| SimDisk::new()).collect();
    for disk in &disks {
        disk.set_flush_delay(Duration::from_millis(1));
    }
    let (first, _) = start(&table, 1, &disks[0], snapshot_after).await;
    for id in 2..=3 {
        start(&table, id, &disks[id as usize - 1], snapshot_after).await;
        first.add_learner(Member { id, address: id.to_string() }, PATIENCE).await.unwrap();
        wait(&first, "caught up", |now| now.matched.get(&id).is_some_and(|upto| *upto >= now.last_applied)).await;
        first.promote(id, PATIENCE).await.unwrap();
    }
    put_many(&first, 100, "kept").await;
    stop(&table).await;
    drop(first);
    meanwhile(&disks);
    let mut back = Vec::new();
    for id in 1..=3 {
        back.push(start(&table, id, &disks[id as usize - 1], snapshot_after).await);
    }
    let leader = leader(&table).await;
    leader.read_barrier(PATIENCE).await.unwrap();
    let id = leader.status().borrow().id;
    let count = back[id as usize - 1].1.len();
    stop(&table).await;
    count
}

#[tokio::test]
async fn crashes_lose_nothing_and_a_disk_that_forgets_is_noticed() {
    assert_eq!(survivors(40, |_| {}).await, 100);
    let lost = survivors(1000, |disks| disks.iter().for_each(|disk| disk.forget(20))).await;
    assert!(lost < 100, "{lost}");
}
