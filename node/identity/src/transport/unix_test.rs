//! The local socket: modes, long paths, leftovers, the caller's user.
#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;

use crate::testing::{Who, ask};
use crate::transport::{ConnectError, Keepalive, bind_unix, connect_unix, server, unix_channel, unix_incoming};

fn serve(path: &Path) -> JoinHandle<()> {
    let listener = unix_incoming(bind_unix(path).unwrap());
    let who = Who { asked: Arc::new(Mutex::new(Vec::new())), root_pem: String::new() };
    tokio::spawn(async move {
        server(Keepalive::NODES).add_service(who).serve_with_incoming(listener).await.unwrap();
    })
}

fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").unwrap().uid()
}

#[tokio::test]
async fn a_local_caller_is_known_by_its_user() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("skep.sock");
    let task = serve(&path);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let answer = ask(&connect_unix(&path).await.unwrap(), "who").await.unwrap();
    assert_eq!(answer, format!("local {}", own_uid()));
    task.abort();
}

#[tokio::test]
async fn paths_longer_than_sun_path_work() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(120)).join("e".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    let path = deep.join("skep.sock");
    let task = serve(&path);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(ask(&unix_channel(&path), "who").await.unwrap().starts_with("local"));
    assert!(ask(&connect_unix(&path).await.unwrap(), "who").await.unwrap().starts_with("local"));
    let left: Vec<_> = std::fs::read_dir(&deep).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["skep.sock"]);
    task.abort();
}

#[tokio::test]
async fn a_socket_in_use_is_left_alone_and_a_dead_one_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("skep.sock");
    let first = bind_unix(&path).unwrap();
    assert_eq!(bind_unix(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
    drop(first);
    let refused = connect_unix(&path).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Io { source, .. } if source.kind() == ErrorKind::ConnectionRefused));
    let task = serve(&path);
    assert!(ask(&unix_channel(&path), "who").await.unwrap().starts_with("local"));
    task.abort();
}

#[tokio::test]
async fn other_files_are_never_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("skep.sock");
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(bind_unix(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let name = dir.path().join("n".repeat(200));
    assert_eq!(bind_unix(&name).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn no_daemon_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let missing = connect_unix(&dir.path().join("skep.sock")).await.unwrap_err();
    assert!(matches!(missing, ConnectError::Io { source, .. } if source.kind() == ErrorKind::NotFound));
}
