//! Keys are replaced while Raft goes on: nothing acknowledged is lost, the lead stays, and the pause is short.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{PATIENCE, put_many, start, start_with, try_start};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use skep_raft::{Config, Consensus, KeyEncryptionKey, Start, StartError, StoreError, Wanted};

/// Rounds of the test under load.
const ROUNDS: u64 = 6;

#[tokio::test(flavor = "multi_thread")]
async fn entries_flow_while_the_data_key_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (node, pairs) = start_with(dir.path(), |config| config.limits.snapshot_after_changes = 500).await;
    put_many(&node, 2_000, &"x".repeat(500)).await;
    let term = node.status().borrow().term;
    let writer = tokio::spawn({
        let node = node.clone();
        async move {
            let (mut acknowledged, mut next, mut longest) = (0_u64, 0_u64, Duration::ZERO);
            let mut answers = FuturesOrdered::new();
            let begun = std::time::Instant::now();
            while begun.elapsed() < PATIENCE {
                while answers.len() < 16 {
                    answers.push_back(node.propose(Bytes::from(format!("n{next}={next}")), PATIENCE));
                    next += 1;
                }
                let asked = std::time::Instant::now();
                answers.next().await.unwrap().unwrap();
                longest = longest.max(asked.elapsed());
                acknowledged += 1;
                if node.keys().unwrap().0 >= ROUNDS {
                    break;
                }
            }
            while let Some(answer) = answers.next().await {
                answer.unwrap();
                acknowledged += 1;
            }
            (acknowledged, longest)
        }
    });
    for epoch in 1..=ROUNDS {
        let done = node.rekey(Wanted { epoch, key: None }).await.unwrap();
        assert!(done.data_key && !done.wrapped, "{done:?}");
        eprintln!("epoch {epoch}: {} bytes, nobody could write for {:?}", done.bytes, done.pause);
        assert!(done.pause < Duration::from_secs(2), "{done:?}");
    }
    let (acknowledged, longest) = writer.await.unwrap();
    eprintln!("{acknowledged} entries meanwhile, the longest wait was {longest:?}");
    assert!(acknowledged > 20);
    assert_eq!(node.status().borrow().term, term, "the lead stayed");
    assert_eq!(pairs.len() as u64, 2_000 + acknowledged);
    node.shutdown().await;
    let (node, pairs) = start(dir.path()).await;
    assert_eq!(pairs.len() as u64, 2_000 + acknowledged);
    assert_eq!(node.keys(), Some((ROUNDS, false)));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_node_is_locked_and_unlocked() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(dir.path()).await;
    let key = |byte| Some(KeyEncryptionKey::new([byte; 32]));
    put_many(&node, 10, "before").await;
    for byte in [1, 2] {
        node.rekey(Wanted { epoch: 0, key: key(byte) }).await.unwrap();
    }
    assert_eq!(node.keys(), Some((0, true)));
    node.shutdown().await;
    let error = try_start(Config::new(dir.path(), 1, Start::Existing)).await.err().unwrap();
    assert!(matches!(error, StartError::Store(StoreError::Locked { .. })), "{error}");
    let with = |key, other: Option<KeyEncryptionKey>| {
        move |config: &mut Config| {
            (config.key_encryption_key, config.other_keys) = (key, other.into_iter().collect());
        }
    };
    // The key of before and the present one, as when a change was cut short.
    let (node, pairs) = start_with(dir.path(), with(key(1), key(2))).await;
    assert_eq!(pairs.len(), 10);
    node.rekey(Wanted { epoch: 1, key: None }).await.unwrap();
    node.shutdown().await;
    assert!(node.rekey(Wanted { epoch: 2, key: None }).await.is_err(), "it has stopped");
    let (node, pairs) = start(dir.path()).await;
    assert_eq!((pairs.len(), node.keys()), (10, Some((1, false))));
    node.shutdown().await;
}
