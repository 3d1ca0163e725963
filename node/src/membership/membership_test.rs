//! Transitions that fail leave nothing behind, and a manager's state is not erased by accident. On real ports and files;
//! no agent is started.

#![allow(clippy::unwrap_used)]

use std::net::TcpListener;

use super::*;
use crate::config::Config;

/// A daemon's place on its own directory, with `peer_port` for images.
async fn place(dir: &Path, peer_port: u16) -> Membership {
    let config = Config {
        data_dir: dir.to_owned(),
        socket: dir.join("skep.sock"),
        peer_port,
        cgroup_parent: "skep-test".into(),
        hostname: Some("host".to_owned()),
        boot_id: Some("boot".to_owned()),
        advertise_addr: None,
        insecure_registries: Vec::new(),
        runtime: "libcontainer".to_owned(),
        labels: std::collections::BTreeMap::new(),
    };
    let host = Arc::new(Host::open(config).await.unwrap());
    Membership::new(host, ManagerRoutes::none("starting"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_init_frees_its_port_and_its_files() {
    let dir = tempfile::tempdir().unwrap();
    // Another program has the image port: init fails after the manager has started.
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let membership = place(dir.path(), taken.local_addr().unwrap().port()).await;
    let request = SwarmInitRequest {
        listen_addr: free.to_string(),
        advertise_addr: free.to_string(),
        ..SwarmInitRequest::default()
    };
    for _ in 0..2 {
        let error = format!("{:#}", membership.init(request.clone()).await.unwrap_err());
        assert!(error.contains("--peer-port"), "{error}");
        assert_eq!(membership.standing().state, SwarmState::Inactive);
        assert!(!membership.host.raft_dir().exists());
        drop(TcpListener::bind(free).unwrap());
    }
}

#[tokio::test]
async fn a_manager_that_could_not_start_is_not_erased_without_force() {
    let dir = tempfile::tempdir().unwrap();
    let membership = place(dir.path(), 0).await;
    fs::create_dir_all(membership.host.raft_dir()).unwrap();
    membership.failed(&anyhow::anyhow!("cannot listen"));
    let error = membership.leave(false).await.unwrap_err().to_string();
    assert!(error.contains("--force"), "{error}");
    assert!(membership.host.raft_dir().exists());
    assert_eq!(membership.standing().state, SwarmState::Error);
}

#[tokio::test]
async fn no_transition_begins_while_the_daemon_stops() {
    let dir = tempfile::tempdir().unwrap();
    let membership = place(dir.path(), 0).await;
    membership.shutdown().await;
    let error = membership.init(SwarmInitRequest::default()).await.unwrap_err().to_string();
    assert!(error.contains("stopping"), "{error}");
}
