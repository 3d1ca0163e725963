//! How many entries a second one voter commits, with an fsync for each: `cargo run --example propose [folder] [entries]`.
//!
//! openraft syncs once for each entry of its log, so a batch is one Raft entry that carries many, as the manager's
//! sequencer packs them. The folder should lie on the disk in question; a memory file system shows only the CPU's part.
#![allow(clippy::print_stdout)]

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use skep_raft::{Config, Consensus, FatalError, NoPeers, RaftNode, Snapshot, Start, StateMachine};

const ENTRY_BYTES: usize = 256;
const TIMEOUT: Duration = Duration::from_secs(30);

/// Counts bytes.
#[derive(Debug, Clone, Default)]
struct Counter(u64);

impl StateMachine for Counter {
    type Response = u64;
    type Snapshot = Counter;

    fn apply(&mut self, _index: u64, entry: &[u8]) -> Result<u64, FatalError> {
        self.0 += entry.len() as u64;
        Ok(self.0)
    }

    fn freeze(&self) -> Counter {
        self.clone()
    }

    fn restore(&mut self, _index: u64, from: &mut dyn Read) -> Result<(), FatalError> {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes).map_err(FatalError::new)?;
        self.0 = u64::from_be_bytes(bytes);
        Ok(())
    }
}

impl Snapshot for Counter {
    fn write(&self, to: &mut dyn Write) -> std::io::Result<()> {
        to.write_all(&self.0.to_be_bytes())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let parent = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let entries: usize = args.next().map_or(Ok(5_000), |count| count.parse())?;
    let dir = tempfile::tempdir_in(&parent)?;
    let config = Config::new(dir.path(), 1, Start::Bootstrap { address: String::new() });
    let begun = Instant::now();
    let node = RaftNode::start(config, Counter::default(), Arc::new(NoPeers)).await?;
    println!("new group leads after {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    for (batch, in_flight) in [(1, 1), (1, 4), (64, 1), (64, 4), (2_000, 2)] {
        run(&node, entries * batch.min(16), batch, in_flight).await?;
    }
    node.shutdown().await;
    let begun = Instant::now();
    let config = Config::new(dir.path(), 1, Start::Existing);
    let node = RaftNode::start(config, Counter::default(), Arc::new(NoPeers)).await?;
    node.status().wait_for(|status| status.is_leader()).await?;
    node.read_barrier(TIMEOUT).await?;
    let status = node.status().borrow().clone();
    let entries = status.last_log.unwrap_or(0).saturating_sub(status.first_log);
    println!("restart with {entries} entries in the log: serves after {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    node.shutdown().await;
    Ok(())
}

/// Commits about `entries` entries of 256 bytes, `batch` in one proposal.
async fn run(
    node: &RaftNode<Counter>,
    entries: usize,
    batch: usize,
    in_flight: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let proposals = (entries / batch).max(1);
    // Random-looking content, so that nothing on the way can compress it.
    let entry: Vec<u8> = (0..batch * ENTRY_BYTES).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let entry = Bytes::from(entry);
    let mut latencies = Vec::with_capacity(proposals);
    let mut answers = FuturesOrdered::new();
    let begun = Instant::now();
    for _ in 0..proposals {
        if answers.len() == in_flight {
            latencies.push(answers.next().await.ok_or("no proposal in flight")??);
        }
        let started = Instant::now();
        let answer = node.propose(entry.clone(), TIMEOUT);
        answers.push_back(async move { answer.await.map(|_| started.elapsed()) });
    }
    while let Some(latency) = answers.next().await {
        latencies.push(latency?);
    }
    let seconds = begun.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let percentile = |of: usize| latencies[(latencies.len() - 1) * of / 100].as_micros();
    println!(
        "batch {batch:>4}, {in_flight} in flight: {:>7.0} entries/s, {:>6.0} proposals/s, p50 {} µs, p99 {} µs",
        (proposals * batch) as f64 / seconds,
        proposals as f64 / seconds,
        percentile(50),
        percentile(99),
    );
    Ok(())
}
