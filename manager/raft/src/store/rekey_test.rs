//! A data key that is replaced: what is there afterwards, and what a crash at each step leaves.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::{CommittedLeaderId, EntryPayload};

use super::log::LogStore;
use super::rekey::{Rekeyed, Step, Wanted, rekey, rekey_seen};
use super::snapshots::{SnapshotStore, read_preface};
use super::{Store, record};
use crate::config::{Limits, Start};
use crate::crypto::KeyEncryptionKey;
use crate::disk;
use crate::error::StoreError;
use crate::keys;
use crate::state_machine::Snapshot;
use crate::types::{Command, Entry, LogId, SnapshotMeta, Vote};

const CACHE: u64 = 1 << 20;
const ENTRIES: u64 = 700;
const STATE: &[u8] = b"the state that was frozen";

struct Frozen;

impl Snapshot for Frozen {
    fn write(&self, to: &mut dyn Write) -> std::io::Result<()> {
        to.write_all(STATE)
    }
}

/// An open directory.
struct Opened {
    store: Arc<Store>,
    snapshots: SnapshotStore,
    log: LogStore,
}

fn id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1, 1), index)
}

fn entry(index: u64) -> Entry {
    // Some of them in several parts.
    let bytes = vec![u8::try_from(index % 251).unwrap(); 10 + usize::try_from(index * 41 % 9000).unwrap()];
    Entry { log_id: id(index), payload: EntryPayload::Normal(Command(bytes.into())) }
}

fn open(dir: &Path, keks: &[&KeyEncryptionKey]) -> Result<Opened, StoreError> {
    let start = if super::exists(dir) { Start::Existing } else { Start::Join };
    let (store, _) = Store::open(dir, 1, &start, keks, 0, &Limits::default())?;
    store.finish_creation()?;
    let store = Arc::new(store);
    let snapshots = SnapshotStore::open(Arc::clone(&store))?;
    let log = LogStore::open(Arc::clone(&store), &Limits::default())?;
    Ok(Opened { store, snapshots, log })
}

/// A log from 100 on, with a snapshot of what is before.
async fn filled(dir: &Path) -> Opened {
    let mut opened = open(dir, &[]).unwrap();
    opened.log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    opened.log.blocking_append((0..ENTRIES).map(entry)).await.unwrap();
    let meta =
        SnapshotMeta { last_log_id: Some(id(120)), snapshot_id: "1-120-x".to_owned(), ..SnapshotMeta::default() };
    opened.snapshots.write(meta, &Frozen).unwrap();
    opened.log.purge(id(99)).await.unwrap();
    opened
}

async fn check(opened: &mut Opened, entries: u64, what: &str) {
    let found = opened.log.try_get_log_entries(0..u64::MAX).await.unwrap();
    assert_eq!(found.len() as u64, entries - 100, "{what}");
    for (found, index) in found.iter().zip(100..) {
        assert_eq!(*found, entry(index), "{what}");
    }
    assert_eq!(opened.log.read_vote().await.unwrap(), Some(Vote::new_committed(1, 1)), "{what}");
    let mut from = opened.snapshots.current().unwrap().file.read().unwrap();
    read_preface(&mut from).unwrap();
    let mut state = Vec::new();
    from.read_to_end(&mut state).unwrap();
    assert_eq!(state, STATE, "{what}");
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// All bytes of all files below a folder.
fn bytes(dir: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        all.extend(if path.is_dir() { bytes(&path) } else { fs::read(path).unwrap() });
    }
    all
}

fn holds(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}

fn parts(dir: &Path) -> Vec<String> {
    let mut names = disk::names(dir).unwrap();
    names.retain(|name| name != "lock");
    names.sort();
    names
}

fn wanted(epoch: u64, key: Option<&KeyEncryptionKey>) -> Wanted {
    Wanted { epoch, key: key.map(KeyEncryptionKey::copy) }
}

/// Every record of a directory is sealed with this key.
fn check_sealed_by(opened: &Opened, id: u32) {
    let vault = opened.store.vault();
    assert_eq!(vault.ring.current(), id);
    let marks = record::mark_key("")..b"n".to_vec();
    let mut seen = 0;
    for item in vault.db.range(marks) {
        assert_eq!(item.unwrap().1[..4], id.to_be_bytes());
        seen += 1;
    }
    for item in vault.db.range(record::entry_range(0, None)) {
        let (key, value) = item.unwrap();
        // Behind format, part count and length.
        if record::parse_entry_key(&key).unwrap().1 == 0 {
            assert_eq!(value[7..11], id.to_be_bytes());
        }
    }
    assert!(seen >= 4, "identity, vote, progress, snapshot");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_each_step_leaves_the_old_files_or_the_new_ones() {
    let (dir, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let kek = KeyEncryptionKey::generate();
    // To a key file, to the caller's key, and to his next.
    for (round, key) in [(1, None), (2, Some(&kek)), (3, Some(&kek))] {
        let before: Vec<&KeyEncryptionKey> = if round == 3 { vec![&kek] } else { vec![] };
        let mut opened = if round == 1 { filled(dir.path()).await } else { open(dir.path(), &before).unwrap() };
        let mut steps = Vec::new();
        let done = rekey_seen(&opened.store, &opened.snapshots, &wanted(round, key), CACHE, &mut |step| {
            copy_dir(dir.path(), &copies.path().join(format!("{round}-{step:?}")));
            steps.push(step);
        });
        let done = done.unwrap();
        assert!(done.data_key && done.bytes > 1 << 20, "{done:?}");
        check(&mut opened, ENTRIES, "while it runs").await;
        check_sealed_by(&opened, u32::try_from(round).unwrap() + 1);
        assert_eq!(steps.len(), 11, "{steps:?}");
        drop(opened);

        for step in steps {
            let at = copies.path().join(format!("{round}-{step:?}"));
            let what = format!("round {round}, {step:?}");
            let is_new =
                matches!(step, Step::Committed | Step::Swapped | Step::KeyFile | Step::OldDatabase | Step::OldSnapshot);
            let after: Vec<&KeyEncryptionKey> = key.into_iter().collect();
            let mut found =
                open(&at, if is_new { &after } else { &before }).unwrap_or_else(|error| panic!("{what}: {error}"));
            check(&mut found, ENTRIES, &what).await;
            let number = round + u64::from(is_new);
            check_sealed_by(&found, u32::try_from(number).unwrap());
            // Nothing else is left, and it can be done again.
            let name = |part: &str| if number == 1 { part.to_owned() } else { format!("{part}-{number}") };
            let mut expected = vec![name("db"), name("floor"), "keys".to_owned(), "snapshots".to_owned()];
            if number < 3 {
                expected.push(name("kek"));
            }
            expected.sort();
            assert_eq!(parts(&at), expected, "{what}");
            assert_eq!(parts(&at.join("snapshots")).len(), 1, "{what}");
            if matches!(step, Step::Moved | Step::Committed) {
                assert!(rekey(&found.store, &found.snapshots, &wanted(9, key), CACHE).unwrap().data_key);
                check(&mut found, ENTRIES, &what).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_during_the_copy_is_there_and_what_was_cut_off_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = filled(dir.path()).await;
    let handle = tokio::runtime::Handle::current();
    let mut log = opened.log.clone();
    let (store, snapshots) = (Arc::clone(&opened.store), opened.snapshots);
    let (snapshots, done) = tokio::task::spawn_blocking(move || {
        let done = rekey_seen(&store, &snapshots, &wanted(1, None), CACHE, &mut |step| match step {
            // After it was copied: cut off, written again, and more.
            Step::Log => handle.block_on(async {
                log.truncate(id(500)).await.unwrap();
                log.blocking_append((500..ENTRIES + 200).map(entry)).await.unwrap();
            }),
            Step::Snapshot => handle.block_on(async {
                log.truncate(id(ENTRIES + 100)).await.unwrap();
            }),
            _ => {}
        });
        (snapshots, done.unwrap())
    })
    .await
    .unwrap();
    opened.snapshots = snapshots;
    assert!(done.data_key);
    check(&mut opened, ENTRIES + 100, "at once").await;
    drop(opened);
    check(&mut open(dir.path(), &[]).unwrap(), ENTRIES + 100, "after a restart").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_begun_with_the_old_key_becomes_one_of_the_new_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = filled(dir.path()).await;
    // One that comes from another manager, half there; and one that was given up.
    let meta =
        SnapshotMeta { last_log_id: Some(id(300)), snapshot_id: "1-300-y".to_owned(), ..SnapshotMeta::default() };
    let preface = opened.snapshots.current().unwrap().preface;
    let mut abandoned = opened.snapshots.receive("1-200-z").unwrap();
    // More than a chunk, so that some of it is on the disk.
    abandoned.put(&vec![7; 300 << 10]).unwrap();
    let whole = {
        let mut part = opened.snapshots.receive("1-300-y").unwrap();
        let mut from = opened.snapshots.current().unwrap().file.read().unwrap();
        std::io::copy(&mut from, &mut part).unwrap();
        part.finish().unwrap()
    };
    rekey(&opened.store, &opened.snapshots, &wanted(1, None), CACHE).unwrap();
    assert_eq!(parts(&dir.path().join("snapshots")).len(), 1, "what the old key sealed is gone");
    let preface = super::snapshots::Preface { meta, ..preface };
    let now = opened.snapshots.make_current(preface, &whole).unwrap();
    assert_eq!(now.info().unwrap().index, 300);
    check_sealed_by(&opened, 2);
    drop(abandoned);
    check(&mut opened, ENTRIES, "with the newer snapshot").await;
    assert_eq!(parts(&dir.path().join("snapshots")).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_directory_gives_nothing_away_and_other_keys_take_over() {
    let dir = tempfile::tempdir().unwrap();
    let opened = filled(dir.path()).await;
    let kek_file = fs::read_to_string(dir.path().join("kek")).unwrap();
    let kek = kek_file.lines().nth(1).unwrap().to_owned();
    let old_keys = fs::read(dir.path().join("keys")).unwrap();
    assert!(holds(&bytes(dir.path()), kek.as_bytes()), "the search can find it");
    let (first, second) = (KeyEncryptionKey::generate(), KeyEncryptionKey::generate());
    let change = |wanted: Wanted| rekey(&opened.store, &opened.snapshots, &wanted, CACHE).unwrap();
    let done = change(wanted(0, Some(&first)));
    assert!(done.data_key && done.wrapped, "what lay open gets another data key: {done:?}");
    let all = bytes(dir.path());
    assert!(!holds(&all, kek.as_bytes()) && !holds(&all, &old_keys) && !dir.path().join("kek").exists());
    assert_eq!(change(wanted(0, Some(&first))), Rekeyed::default(), "nothing to do");
    assert_eq!(change(wanted(0, Some(&second))), Rekeyed { wrapped: true, ..Rekeyed::default() });
    assert!(change(wanted(4, Some(&second))).data_key);
    drop(opened);
    assert!(matches!(open(dir.path(), &[]), Err(StoreError::Locked { .. })));
    assert!(matches!(open(dir.path(), &[&first]), Err(StoreError::WrongKey { .. })));
    let mut opened = open(dir.path(), &[&first, &second]).unwrap();
    check(&mut opened, ENTRIES, "unlocked").await;
    let done = rekey(&opened.store, &opened.snapshots, &wanted(4, None), CACHE).unwrap();
    assert_eq!(done, Rekeyed { wrapped: true, ..Rekeyed::default() });
    drop(opened);
    check(&mut open(dir.path(), &[]).unwrap(), ENTRIES, "open again").await;
    assert!(keys::open(dir.path(), &[]).unwrap().held.epoch == 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_of_a_snapshot_that_is_replaced_meanwhile_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = filled(dir.path()).await;
    let mut newer = (130..).take(1);
    rekey_seen(&opened.store, &opened.snapshots, &wanted(1, None), CACHE, &mut |step| {
        if matches!(step, Step::Snapshot)
            && let Some(index) = newer.next()
        {
            let (last_log_id, snapshot_id) = (Some(id(index)), format!("1-{index}-x"));
            let meta = SnapshotMeta { last_log_id, snapshot_id, ..SnapshotMeta::default() };
            opened.snapshots.write(meta, &Frozen).unwrap();
        }
    })
    .unwrap();
    assert_eq!(newer.next(), None, "it was replaced");
    check_sealed_by(&opened, 2);
    check(&mut opened, ENTRIES, "with the newer snapshot").await;
    assert_eq!(parts(&dir.path().join("snapshots")).len(), 1);
}
