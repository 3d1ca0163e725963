//! Kills, partitions, losses and hand-overs at random, with an oracle: no acknowledged write is ever missing, no index is
//! acknowledged twice, no term has two leaders, and the group heals.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;
#[path = "common/wires.rs"]
mod wires;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Node, PATIENCE, Pairs};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use skep_raft::Consensus;
use wires::{Wires, all_applied, put_somewhere};

type Nodes = Arc<Mutex<BTreeMap<u64, (Node, Pairs)>>>;

/// What was acknowledged.
#[derive(Default)]
struct Oracle {
    /// Key by index.
    at: BTreeMap<u64, String>,
    /// Leader by term.
    leaders: BTreeMap<u64, u64>,
}

/// Writes distinct keys through whoever believes to lead, as fast as answers come.
async fn writer(name: usize, nodes: Nodes, oracle: Arc<Mutex<Oracle>>, end: Arc<AtomicBool>) {
    for number in 0.. {
        if end.load(Ordering::Relaxed) {
            return;
        }
        let leaders: Vec<(u64, Node)> = {
            let nodes = nodes.lock().unwrap();
            let leads = |node: &Node| node.status().borrow().is_leader();
            nodes.iter().filter(|(_, (node, _))| leads(node)).map(|(id, (node, _))| (*id, node.clone())).collect()
        };
        if leaders.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for (id, node) in leaders {
            let key = format!("w{name}-{number}-{id}");
            let entry = Bytes::from(format!("{key}=1"));
            if let Ok(done) = node.propose(entry, Duration::from_millis(700)).await {
                let mut oracle = oracle.lock().unwrap();
                let twice = oracle.at.insert(done.index, key.clone());
                assert_eq!(twice, None, "index {} was acknowledged for {key} too", done.index);
                let leader = *oracle.leaders.entry(done.term).or_insert(id);
                assert_eq!(leader, id, "two leaders acknowledged in term {}", done.term);
            } else {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

async fn trouble(wires: &Wires, nodes: &Nodes, count: u64, rng: &mut StdRng) {
    let minority = || -> Vec<u64> { (1..=count.div_ceil(2) - 1).collect() };
    let pick = |rng: &mut StdRng| rng.gen_range(1..=count);
    match rng.gen_range(0..6) {
        0 | 1 => {
            let id = pick(rng);
            nodes.lock().unwrap().remove(&id);
            wires.kill(id).await;
            tokio::time::sleep(Duration::from_millis(rng.gen_range(0..1500))).await;
            let node = wires.start(id).await;
            nodes.lock().unwrap().insert(id, node);
        }
        2 => {
            let shift = pick(rng);
            wires.cut(&minority().iter().map(|id| (id + shift) % count + 1).collect::<Vec<_>>());
            tokio::time::sleep(Duration::from_millis(rng.gen_range(200..2000))).await;
            wires.heal();
        }
        3 => {
            wires.disturb(rng.gen_range(0.0..0.3), Duration::from_millis(rng.gen_range(1..80)));
            tokio::time::sleep(Duration::from_millis(rng.gen_range(200..2000))).await;
            wires.heal();
        }
        4 => {
            let leader = {
                let nodes = nodes.lock().unwrap();
                nodes.values().find(|(node, _)| node.status().borrow().leads()).map(|(node, _)| node.clone())
            };
            if let Some(leader) = leader {
                // It may fail for any reason in this weather; nothing may be lost by it.
                let _ = leader.transfer_leadership(None, Duration::from_secs(1)).await;
            }
        }
        _ => tokio::time::sleep(Duration::from_millis(rng.gen_range(0..500))).await,
    }
}

async fn storm(count: u64, seed: u64, time: Duration) {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::new(dir.path(), |config| {
        config.limits.snapshot_after_changes = 200;
        config.limits.keep_entries = 20;
        config.limits.snapshot_chunk_bytes = 2000;
        config.limits.digest_every = 64;
    });
    let nodes: Nodes = Arc::new(Mutex::new(wires.group(count).await));
    let (oracle, end) = (Arc::<Mutex<Oracle>>::default(), Arc::<AtomicBool>::default());
    let writers: Vec<_> = (0..3)
        .map(|name| tokio::spawn(writer(name, Arc::clone(&nodes), Arc::clone(&oracle), Arc::clone(&end))))
        .collect();
    let mut rng = StdRng::seed_from_u64(seed);
    let begun = Instant::now();
    while begun.elapsed() < time {
        trouble(&wires, &nodes, count, &mut rng).await;
    }
    wires.heal();
    end.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let nodes = nodes.lock().unwrap().clone();
    let healing = Instant::now();
    let (_, index) = put_somewhere(&nodes, "healed", "1").await;
    all_applied(&nodes, index).await;
    assert!(healing.elapsed() < PATIENCE / 2, "healed after {:?}", healing.elapsed());
    let oracle = std::mem::take(&mut *oracle.lock().unwrap());
    println!("{count} voters, seed {seed}: {} acknowledged, {} terms", oracle.at.len(), oracle.leaders.len());
    assert!(oracle.at.len() > 100, "hardly anything was written");
    for (id, (node, pairs)) in &nodes {
        assert_eq!(node.status().borrow().stopped, None);
        for (index, key) in &oracle.at {
            assert!(pairs.get(key).is_some(), "node {id} has lost {key}, acknowledged at {index} (seed {seed})");
        }
    }
    let first = nodes.values().next().unwrap().1.0.lock().unwrap().clone();
    assert!(nodes.values().all(|(_, pairs)| *pairs.0.lock().unwrap() == first), "states differ (seed {seed})");
    wires.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_voters_in_a_storm_lose_nothing() {
    storm(3, rand::random(), Duration::from_secs(12)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_voters_in_a_storm_lose_nothing() {
    storm(5, rand::random(), Duration::from_secs(12)).await;
}
