//! A full disk, on a small file system of the test's own (needs root): refused early, taken up again, nothing lost.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use common::{PATIENCE, put, start, try_start, wait};
use skep_raft::{Config, Consensus, ProposeError, Start, StopCause};

/// A tmpfs that goes with the test.
struct Small {
    path: PathBuf,
    _parent: tempfile::TempDir,
}

impl Small {
    /// None, with the reason printed, where mounting is not permitted.
    fn mount(megabytes: u32) -> Option<Self> {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("small");
        std::fs::create_dir(&path).unwrap();
        let size = format!("size={megabytes}m,mode=700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "skep-raft-test"]).arg(&path).status();
        if !mounted.is_ok_and(|status| status.success()) {
            println!("skipped: mounting a tmpfs needs root");
            return None;
        }
        Some(Self { path, _parent: parent })
    }

    fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    fn free(&self) -> u64 {
        let found = nix::sys::statvfs::statvfs(&self.path).unwrap();
        found.blocks_available() * found.fragment_size()
    }

    /// Leaves about this many bytes free.
    fn fill(&self, leave: u64) {
        let mut file = std::fs::File::create(self.path.join("ballast")).unwrap();
        let chunk = vec![1; 1 << 16];
        while self.free() > leave + (1 << 16) {
            if file.write_all(&chunk).is_err() {
                break;
            }
        }
        if leave == 0 {
            while file.write_all(&chunk[..4096]).is_ok() {}
        }
    }

    fn clear(&self) {
        std::fs::remove_file(self.path.join("ballast")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

async fn refused(state: &Path) -> String {
    match try_start(Config::new(state, 1, Start::Existing)).await {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_refuses_before_the_disk_is_full_and_goes_on_when_there_is_space() {
    let Some(small) = Small::mount(64) else { return };
    let (node, _) = start(&small.state()).await;
    put(&node, "a", "1").await;
    small.fill(3 << 20);
    wait(&node, "notices", |status| status.disk_full).await;
    let full = node.propose(Bytes::from_static(b"b=1"), PATIENCE).await;
    assert!(
        matches!(full, Err(ProposeError::DiskFull { free_bytes, needed_bytes }) if free_bytes < needed_bytes),
        "{full:?}"
    );
    assert!(node.status().borrow().leads());
    node.read_barrier(PATIENCE).await.unwrap();
    small.clear();
    wait(&node, "goes on", |status| !status.disk_full).await;
    put(&node, "c", "1").await;
    node.shutdown().await;
}

/// Somebody else takes the last byte within an instant, and writes are under way.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_finds_no_space_stops_the_node_and_loses_nothing() {
    let Some(small) = Small::mount(48) else { return };
    let state = small.state();
    let (node, _) = common::start_with(&state, |config| config.limits.free_bytes = 0).await;
    put(&node, "a", "1").await;
    small.fill(0);
    let value = "v".repeat(20_000);
    let mut acknowledged = 0;
    let error = loop {
        match node.propose(Bytes::from(format!("k{acknowledged}={value}")), PATIENCE).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 100_000);
    };
    println!("{acknowledged} writes fitted, then: {error}");
    let status = wait(&node, "stopped", |status| status.stopped.is_some()).await;
    assert_eq!(status.stop_cause, Some(StopCause::DiskFull), "{:?}", status.stopped);
    let after = node.propose(Bytes::from_static(b"b=1"), PATIENCE).await;
    assert!(matches!(after, Err(ProposeError::Storage(_))), "{after:?}");
    node.shutdown().await;

    let why = refused(&state).await;
    assert!(why.contains("is full") && why.contains("make space"), "{why}");
    small.clear();
    let (node, pairs) = start(&state).await;
    assert_eq!(pairs.get("a").unwrap(), "1");
    for number in 0..acknowledged {
        assert_eq!(pairs.get(&format!("k{number}")).unwrap(), value, "k{number} of {acknowledged}");
    }
    put(&node, "z", "1").await;
    node.shutdown().await;
}
