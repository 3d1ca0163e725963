//! A node of one voter: what it promises while it runs and over restarts.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Answer, Node, PATIENCE, put, put_many, start, start_with, try_start, wait};
use skep_raft::{
    BarrierError, Config, Consensus, KeyEncryptionKey, Limits, Member, MembershipError, ProposeError, Role, Start,
    StartError, StoreError,
};

#[tokio::test]
async fn proposals_are_answered_in_order_with_the_machines_own_type() {
    let dir = tempfile::tempdir().unwrap();
    let (node, pairs) = start(dir.path()).await;
    let answers: Vec<_> = (0..100).map(|i| node.propose(Bytes::from(format!("key={i}")), PATIENCE)).collect();
    let mut last = 0;
    for (i, answer) in answers.into_iter().enumerate() {
        let done = answer.await.unwrap();
        let before = i.checked_sub(1).map(|i| i.to_string());
        assert_eq!(done.response, Answer { index: done.index, before });
        assert!(done.index > last, "entry {i} at {} after {last}", done.index);
        last = done.index;
    }
    assert_eq!(pairs.get("key").unwrap(), "99");
    assert!(node.read_barrier(PATIENCE).await.unwrap() >= last);
    node.shutdown().await;
}

#[tokio::test]
async fn a_dropped_answer_does_not_take_the_proposal_back() {
    let dir = tempfile::tempdir().unwrap();
    let (node, pairs) = start(dir.path()).await;
    drop(node.propose(Bytes::from_static(b"a=1"), PATIENCE));
    put(&node, "b", "2").await;
    assert_eq!(pairs.get("a").unwrap(), "1");
    node.shutdown().await;
}

#[tokio::test]
async fn a_start_leads_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let (node, _) = try_start(Config::new(dir.path(), 1, common::new_group())).await.unwrap();
    assert!(node.status().borrow().is_leader());
    let first = begun.elapsed();
    node.shutdown().await;
    let begun = Instant::now();
    let (node, _) = try_start(Config::new(dir.path(), 1, Start::Existing)).await.unwrap();
    let opened = begun.elapsed();
    wait(&node, "leads", |status| status.is_leader()).await;
    let leads = begun.elapsed();
    node.read_barrier(PATIENCE).await.unwrap();
    eprintln!(
        "new group leads after {first:?}; restart: opened {opened:?}, leads {leads:?}, serves {:?}",
        begun.elapsed()
    );
    // openraft's own timer would take at least 150 ms from the opening.
    assert!(leads - opened < Duration::from_millis(100), "{:?} from opening to leading", leads - opened);
    node.shutdown().await;
}

#[tokio::test]
async fn restarts_keep_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..4 {
        let (node, pairs) = start(dir.path()).await;
        for before in 0..round {
            assert_eq!(pairs.get(&format!("round{before}")).unwrap(), "done");
        }
        put_many(&node, 50, &round.to_string()).await;
        put(&node, &format!("round{round}"), "done").await;
        assert_eq!(pairs.get("k49").unwrap(), round.to_string());
        node.shutdown().await;
    }
}

#[tokio::test]
async fn snapshot_purge_and_restart_keep_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let small = |config: &mut Config| {
        config.limits = Limits { snapshot_after_changes: 200, keep_entries: 10, ..Limits::default() };
    };
    let (node, _) = start_with(dir.path(), small).await;
    put_many(&node, 1000, "first").await;
    let status = wait(&node, "snapshot and purge", |status| {
        status.snapshot.as_ref().is_some_and(|snapshot| snapshot.index > 100 && status.first_log > 50)
    })
    .await;
    let snapshot = status.snapshot.unwrap();
    assert!(snapshot.digest.is_some() && snapshot.bytes > 0);
    assert!(status.first_log + 10 >= snapshot.index, "{} entries kept", snapshot.index - status.first_log);
    put(&node, "after", "snapshot").await;
    node.shutdown().await;

    let (node, pairs) = start_with(dir.path(), small).await;
    assert_eq!((pairs.len(), pairs.get("k0").unwrap().as_str()), (1001, "first"));
    assert_eq!(pairs.get("after").unwrap(), "snapshot");
    let names = std::fs::read_dir(dir.path().join("snapshots")).unwrap().count();
    assert_eq!(names, 1, "only the newest snapshot stays");
    node.shutdown().await;
}

#[tokio::test]
async fn bytes_make_a_snapshot_too_and_one_can_be_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start_with(dir.path(), |config| config.limits.snapshot_after_bytes = 1 << 20).await;
    node.snapshot_now().await.unwrap();
    let first = wait(&node, "snapshot asked for", |status| status.snapshot.is_some()).await.snapshot.unwrap().index;
    let value = "x".repeat(100_000);
    for i in 0..12 {
        put(&node, &format!("k{i}"), &value).await;
    }
    wait(&node, "snapshot by bytes", |status| status.snapshot.as_ref().unwrap().index > first).await;
    node.shutdown().await;
}

#[tokio::test]
async fn large_entries_are_stored_in_pieces_and_larger_ones_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(dir.path()).await;
    let value: String = (0..3_000_000).map(|i| char::from(b'a' + (i % 23) as u8)).collect();
    put(&node, "large", &value).await;
    for i in 0..5 {
        put(&node, &format!("mid{i}"), &value[..200_000]).await;
    }
    let too_large = node.propose(vec![b'='; (4 << 20) + 1].into(), PATIENCE).await;
    assert_eq!(too_large, Err(ProposeError::TooLarge { bytes: (4 << 20) + 1, limit: 4 << 20 }));
    node.shutdown().await;
    // sled keeps large values in files that it never syncs; none may come into being.
    assert_eq!(std::fs::read_dir(dir.path().join("db/blobs")).unwrap().count(), 0);
    let (node, pairs) = start(dir.path()).await;
    assert_eq!(pairs.get("large").unwrap(), value);
    assert_eq!(pairs.get("mid4").unwrap(), value[..200_000]);
    node.shutdown().await;
}

#[tokio::test]
async fn an_entry_that_cannot_be_applied_stops_the_node_with_its_message() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(dir.path()).await;
    put(&node, "a", "1").await;
    let answer = node.propose(Bytes::from_static(b"nonsense"), PATIENCE).await;
    assert!(matches!(answer, Err(ProposeError::ResultUnknown { .. })), "{answer:?}");
    let status = wait(&node, "stopped", |status| status.role == Role::Stopped).await;
    let reason = status.stopped.unwrap();
    assert!(reason.contains("cannot be applied: unknown kind of entry"), "{reason}");
    let after = node.propose(Bytes::from_static(b"b=2"), PATIENCE).await;
    assert_eq!(after, Err(ProposeError::Storage(reason.clone())));
    assert_eq!(node.read_barrier(PATIENCE).await, Err(BarrierError::Stopped { reason }));
    node.shutdown().await;
}

#[tokio::test]
async fn after_shutdown_everything_says_so_and_the_directory_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(dir.path()).await;
    put(&node, "a", "1").await;
    let pending: Vec<_> = (0..20).map(|i| node.propose(Bytes::from(format!("p={i}")), PATIENCE)).collect();
    tokio::join!(node.shutdown(), node.shutdown());
    for answer in pending {
        let answer = answer.await;
        assert!(matches!(answer, Ok(_) | Err(ProposeError::ResultUnknown { .. })), "{answer:?}");
    }
    let stopped = node.propose(Bytes::from_static(b"b=2"), PATIENCE).await;
    assert_eq!(stopped, Err(ProposeError::Stopped { reason: "shut down".into() }));
    assert!(node.read_barrier(PATIENCE).await.is_err());
    let (again, pairs) = start(dir.path()).await;
    assert_eq!(pairs.get("a").unwrap(), "1");
    again.shutdown().await;
}

#[tokio::test]
async fn a_node_alone_refuses_members_and_keeps_its_vote() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(dir.path()).await;
    let other = Member { id: 2, address: "h:1".to_owned() };
    let added = node.add_learner(other, PATIENCE).await;
    assert!(matches!(added, Err(MembershipError::NotSupported(_))), "{added:?}");
    for refused in [node.demote(1, PATIENCE).await, node.remove(1, PATIENCE).await] {
        assert!(matches!(refused, Err(MembershipError::Refused(_))), "{refused:?}");
    }
    put(&node, "a", "1").await;
    assert_eq!(node.status().borrow().millis_since_quorum_ack(Instant::now()), Some(0));
    node.shutdown().await;
}

#[tokio::test]
async fn a_directory_is_made_and_opened_only_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let start_as = |start, id| try_start(Config::new(&state, id, start));
    let fails = |result: Result<(Node, common::Pairs), StartError>| match result {
        Ok(_) => panic!("it started"),
        Err(StartError::Store(error)) => error,
        Err(other) => panic!("{other}"),
    };
    assert!(matches!(fails(start_as(Start::Existing, 1).await), StoreError::Empty { .. }));
    assert!(!state.exists(), "asking for state makes none");
    assert!(!Node::exists(&state));

    let (node, _) = start(&state).await;
    assert!(Node::exists(&state));
    let in_use = fails(start_as(Start::Existing, 1).await).to_string();
    assert!(in_use.contains(&format!("in use by another skep daemon (pid {})", std::process::id())), "{in_use}");
    node.shutdown().await;
    assert!(matches!(fails(start_as(common::new_group(), 1).await), StoreError::NotEmpty { .. }));
    assert!(matches!(fails(start_as(Start::Join, 1).await), StoreError::NotEmpty { .. }));
    assert!(matches!(fails(start_as(Start::Existing, 2).await), StoreError::OtherNode { found: 1, expected: 2, .. }));

    // A crash in the middle of making it: everything there is worthless.
    std::fs::write(state.join("initializing"), "").unwrap();
    assert!(!Node::exists(&state));
    assert!(matches!(fails(start_as(Start::Existing, 1).await), StoreError::Empty { .. }));
    let (node, pairs) = start(&state).await;
    assert_eq!(pairs.len(), 0);
    node.shutdown().await;
}

#[tokio::test]
async fn a_locked_node_opens_with_its_key_only() {
    let dir = tempfile::tempdir().unwrap();
    let key = || Some(KeyEncryptionKey::new([7; 32]));
    let (node, _) = start_with(dir.path(), |config| config.key_encryption_key = key()).await;
    put(&node, "a", "1").await;
    node.shutdown().await;
    let refused = common::refused(dir.path()).await;
    assert!(refused.contains("this manager is locked"), "{refused}");
    let mut config = Config::new(dir.path(), 1, Start::Existing);
    config.key_encryption_key = Some(KeyEncryptionKey::generate());
    let wrong = try_start(config).await.unwrap_err().to_string();
    assert!(wrong.contains("the key does not open") && wrong.contains("keys"), "{wrong}");
    let (node, pairs) = start_with(dir.path(), |config| config.key_encryption_key = key()).await;
    assert_eq!(pairs.get("a").unwrap(), "1");
    node.shutdown().await;
}

#[tokio::test]
async fn settings_out_of_range_touch_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let mut config = Config::new(&state, 1, common::new_group());
    config.timing.heartbeat = Duration::from_millis(400);
    let error = try_start(config).await.unwrap_err();
    assert!(matches!(error, StartError::Config(_)), "{error}");
    assert!(!state.exists());
}
