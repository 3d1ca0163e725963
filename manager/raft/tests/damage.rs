//! Damaged, foreign and missing files: the node does not start, and says which file and what to do.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{files, put, put_many, refused, start, start_with, try_start, wait};
use skep_raft::{Config, Consensus, Start};

const MARK: &str = "plain-text-of-a-secret";

/// A directory with a snapshot and a log behind it, closed.
async fn example(dir: &Path) {
    let (node, _) = start(dir).await;
    put_many(&node, 20, MARK).await;
    node.snapshot_now().await.unwrap();
    wait(&node, "snapshot", |status| status.snapshot.is_some()).await;
    put_many(&node, 20, MARK).await;
    node.shutdown().await;
}

fn database(dir: &Path) -> sled::Db {
    sled::Config::new().path(dir.join("db")).flush_every_ms(None).open().unwrap()
}

fn snapshot(dir: &Path) -> PathBuf {
    let mut found = files(&dir.join("snapshots"));
    assert_eq!(found.len(), 1);
    found.remove(0)
}

fn names(message: &str, what: &[&str]) {
    for part in what {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[tokio::test]
async fn no_plain_text_reaches_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    example(dir.path()).await;
    let holds_mark = |path: &PathBuf| {
        let content = fs::read(path).unwrap();
        content.windows(MARK.len()).any(|window| window == MARK.as_bytes())
    };
    let all = files(dir.path());
    assert!(all.len() >= 7, "{all:?}");
    let plain: Vec<_> = all.iter().filter(|path| holds_mark(path)).collect();
    assert!(plain.is_empty(), "plain text in {plain:?}");
    // The search finds the mark where it is: in sled without encryption, and in a plain file.
    let control = tempfile::tempdir().unwrap();
    let db = database(control.path());
    db.insert("key", MARK).unwrap();
    db.flush().unwrap();
    fs::write(control.path().join("file"), format!("..{MARK}..")).unwrap();
    assert_eq!(files(control.path()).iter().filter(|path| holds_mark(path)).count(), 2);
}

#[tokio::test]
async fn an_altered_log_entry_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    example(dir.path()).await;
    let entries: Vec<_> = {
        let db = database(dir.path());
        db.scan_prefix(b"e").map(Result::unwrap).collect()
    };
    assert!(entries.len() > 30);
    for (key, value) in entries.iter().step_by(13) {
        for at in [0, 1, 5, 12, value.len() / 2, value.len() - 1] {
            let mut altered = value.to_vec();
            altered[at] ^= 0x40;
            replace(dir.path(), key, Some(&altered));
            names(&refused(dir.path()).await, &["db", "is damaged", "log entry", "join the cluster again"]);
        }
        replace(dir.path(), key, Some(value));
    }
    let (node, _) = start(dir.path()).await;
    node.shutdown().await;
}

fn replace(dir: &Path, key: &[u8], value: Option<&[u8]>) {
    let db = database(dir);
    match value {
        Some(value) => drop(db.insert(key, value).unwrap()),
        None => drop(db.remove(key).unwrap()),
    }
    db.flush().unwrap();
}

#[tokio::test]
async fn swapped_missing_and_rolled_back_records_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    example(dir.path()).await;
    let db = database(dir.path());
    let entries: Vec<_> = db.scan_prefix(b"e").map(Result::unwrap).collect();
    let progress = db.get("mprogress").unwrap().unwrap();
    let vote = db.get("mvote").unwrap().unwrap();
    drop(db);
    let (early, late) = (&entries[3], &entries[30]);

    replace(dir.path(), &early.0, Some(&late.1));
    names(&refused(dir.path()).await, &["is damaged", "log entry"]);
    replace(dir.path(), &early.0, None);
    names(&refused(dir.path()).await, &["is damaged", "missing"]);
    replace(dir.path(), &early.0, Some(&early.1));

    let last = entries.last().unwrap();
    replace(dir.path(), &last.0, None);
    names(&refused(dir.path()).await, &["is damaged", "the log ends at entry"]);
    replace(dir.path(), &last.0, Some(&last.1));

    for mark in ["mprogress", "mvote", "msnapshot", "midentity"] {
        let good = {
            let db = database(dir.path());
            db.get(mark).unwrap().unwrap()
        };
        let mut bad = good.to_vec();
        *bad.last_mut().unwrap() ^= 1;
        replace(dir.path(), mark.as_bytes(), Some(&bad));
        names(&refused(dir.path()).await, &["db", "is damaged", &format!("mark {:?}", &mark[1..])]);
        // One mark in another's place.
        let other = if mark == "mvote" { &progress } else { &vote };
        replace(dir.path(), mark.as_bytes(), Some(other));
        names(&refused(dir.path()).await, &["is damaged"]);
        replace(dir.path(), mark.as_bytes(), Some(&good));
    }
    replace(dir.path(), b"mvote", None);
    names(&refused(dir.path()).await, &["is damaged", "no vote"]);
    replace(dir.path(), b"mvote", Some(&vote));
    let (node, _) = start(dir.path()).await;
    node.shutdown().await;
}

#[tokio::test]
async fn an_entry_cut_off_behind_the_last_flush_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    example(dir.path()).await;
    // An entry of two parts of which only the first was written: never flushed, so never acknowledged.
    let (last, format) = {
        let db = database(dir.path());
        let (key, value) = db.scan_prefix(b"e").last().unwrap().unwrap();
        (u64::from_be_bytes(key[1..9].try_into().unwrap()), value[0])
    };
    let mut part = vec![format, 0, 2];
    part.extend(5000_u32.to_be_bytes());
    part.resize(4096, 0xaa);
    let mut key = b"e".to_vec();
    key.extend((last + 1).to_be_bytes());
    key.extend([0, 0]);
    replace(dir.path(), &key, Some(&part));
    let (node, pairs) = start(dir.path()).await;
    assert_eq!(pairs.len(), 20);
    let index = put(&node, "next", "1").await;
    assert!(index > last);
    node.shutdown().await;
    let (node, pairs) = start(dir.path()).await;
    assert_eq!(pairs.get("next").unwrap(), "1");
    node.shutdown().await;
}

#[tokio::test]
async fn damaged_and_missing_snapshots_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    example(dir.path()).await;
    let path = snapshot(dir.path());
    let good = fs::read(&path).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    for at in [0, 9, 12, 25, 37, 60, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        names(&refused(dir.path()).await, &[name]);
    }
    for len in [0, 10, 40, good.len() - 1] {
        fs::write(&path, &good[..len]).unwrap();
        names(&refused(dir.path()).await, &[name, "is damaged", "bytes"]);
    }
    fs::remove_file(&path).unwrap();
    names(&refused(dir.path()).await, &[name, "is missing", "restore"]);
    fs::write(&path, &good).unwrap();
    // A leftover of a crash goes; the snapshot that counts stays.
    fs::write(dir.path().join("snapshots/9-9-9.snap"), "x").unwrap();
    fs::write(dir.path().join("snapshots/9-9-9.part"), "x").unwrap();
    let (node, _) = start(dir.path()).await;
    assert_eq!(snapshot(dir.path()), path);
    node.shutdown().await;
}

#[tokio::test]
async fn files_of_another_directory_are_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    example(dir.path()).await;
    example(other.path()).await;
    let steal = |name: &str| {
        let (from, to) = (other.path().join(name), dir.path().join(name));
        let kept = fs::read(&to).unwrap();
        fs::copy(from, &to).unwrap();
        kept
    };
    for (name, says) in [("kek", "does not open"), ("keys", "does not open")] {
        let kept = steal(name);
        names(&refused(dir.path()).await, &["keys", says]);
        fs::write(dir.path().join(name), kept).unwrap();
    }
    // Both: the keys open, and then fit nothing.
    let kept = (steal("kek"), steal("keys"));
    names(&refused(dir.path()).await, &["floor", "is damaged", "can be read with the keys of this directory"]);
    fs::write(dir.path().join("kek"), kept.0).unwrap();
    fs::write(dir.path().join("keys"), kept.1).unwrap();
    let kept = steal("floor");
    names(&refused(dir.path()).await, &["floor", "is damaged"]);
    fs::write(dir.path().join("floor"), kept).unwrap();
    // Another node's snapshot, made fit in name and length.
    let path = snapshot(dir.path());
    let good = fs::read(&path).unwrap();
    fs::copy(snapshot(other.path()), &path).unwrap();
    names(&refused(dir.path()).await, &["snap"]);
    fs::write(&path, good).unwrap();
    let (node, _) = start(dir.path()).await;
    node.shutdown().await;
}

#[tokio::test]
async fn missing_parts_are_named() {
    let dir = tempfile::tempdir().unwrap();
    example(dir.path()).await;
    let away = tempfile::tempdir().unwrap();
    for name in ["keys", "kek", "floor", "db", "snapshots", "db/db"] {
        let kept = away.path().join("kept");
        fs::rename(dir.path().join(name), &kept).unwrap();
        let message = refused(dir.path()).await;
        names(&message, &[name.rsplit('/').next().unwrap(), "is missing"]);
        fs::rename(&kept, dir.path().join(name)).unwrap();
    }
    let (node, pairs) = start(dir.path()).await;
    assert_eq!(pairs.len(), 20);
    node.shutdown().await;
}

#[tokio::test]
async fn an_older_copy_of_the_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    example(dir.path()).await;
    let old: Vec<_> = files(&dir.path().join("db")).into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
    let (node, _) = start(dir.path()).await;
    put(&node, "newer", "1").await;
    node.shutdown().await;
    fs::remove_dir_all(dir.path().join("db")).unwrap();
    fs::create_dir(dir.path().join("db")).unwrap();
    fs::create_dir(dir.path().join("db/blobs")).unwrap();
    for (content, path) in old {
        fs::write(path, content).unwrap();
    }
    names(&refused(dir.path()).await, &["db", "is damaged", "but it once ended at entry"]);
}

#[tokio::test]
async fn a_database_file_with_altered_bytes_never_loses_an_acknowledged_entry_silently() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start_with(dir.path(), |_| {}).await;
    put_many(&node, 300, "value").await;
    node.shutdown().await;
    let path = dir.path().join("db/db");
    let good =
        files(&dir.path().join("db")).into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect::<Vec<_>>();
    let content = fs::read(&path).unwrap();
    let used = content.iter().rposition(|byte| *byte != 0).unwrap();
    let (mut refusals, mut rounds) = (0, 0);
    for at in (64..used).step_by(used / 40) {
        let mut bad = content.clone();
        for byte in &mut bad[at..(at + 16).min(used)] {
            *byte ^= 0xff;
        }
        let cut = &content[..at];
        for variant in [&bad[..], cut] {
            for (content, path) in &good {
                fs::write(path, content).unwrap();
            }
            fs::write(&path, variant).unwrap();
            rounds += 1;
            match try_start(Config::new(dir.path(), 1, Start::Existing)).await {
                Err(error) => {
                    names(&error.to_string(), &["db"]);
                    refusals += 1;
                }
                Ok((node, pairs)) => {
                    node.read_barrier(common::PATIENCE).await.unwrap();
                    assert_eq!(pairs.len(), 300, "at byte {at} of {used}, {} bytes left", variant.len());
                    node.shutdown().await;
                }
            }
        }
    }
    eprintln!("{refusals} of {rounds} altered databases refused, the others complete");
    assert!(refusals > 0);
}
