//! Transitions that fail leave nothing behind, a manager's state is not erased by accident, and what may pass is tried
//! again. On real ports and files; no container is started.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use skep_identity::UnlockKey;
use skep_proto::v1::{SwarmInitRequest, SwarmJoinRequest};

use super::*;
use crate::config::Config;
use crate::switch::Control;

const DEADLINE: Duration = Duration::from_secs(30);

/// The cgroups of a daemon's place, which shims would join: of its own, as tests run at the same time. Removed when dropped.
struct Parent(PathBuf);

impl Parent {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(format!("skep-membership-{}-{number}", std::process::id()).into())
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // One hierarchy (v2), or one in each folder.
        let top = PathBuf::from("/sys/fs/cgroup");
        let below = fs::read_dir(&top).into_iter().flatten().flatten().map(|entry| entry.path());
        let groups = below.chain([top.clone()]).map(|hierarchy| hierarchy.join(&self.0));
        for group in groups.filter(|group| group.is_dir()) {
            let folders = [group.join("shims"), group.join("containers"), group];
            let removed = folders.iter().filter(|folder| folder.is_dir()).try_for_each(fs::remove_dir);
            assert!(removed.is_ok() || std::thread::panicking(), "a cgroup is left behind: {removed:?}");
        }
    }
}

/// A daemon's place on its own directory, with `peer_port` for images. It was started and is outside of any swarm,
/// unless the directory says otherwise.
async fn place(dir: &Path, peer_port: u16) -> (Arc<Membership>, Parent) {
    let parent = Parent::new();
    let config = Config {
        data_dir: dir.to_owned(),
        socket: dir.join("skep.sock"),
        metrics_addr: None,
        group: None,
        peer_port,
        cgroup_parent: parent.0.clone(),
        hostname: Some("host".to_owned()),
        boot_id: Some("boot".to_owned()),
        advertise_addr: None,
        insecure_registries: Vec::new(),
        runtime: "skep".to_owned(),
        userns_remap: None,
        netd: None,
        labels: std::collections::BTreeMap::new(),
    };
    (begin(Arc::new(Host::open(config).await.unwrap())).await, parent)
}

/// What a start of the daemon does.
async fn begin(host: Arc<Host>) -> Arc<Membership> {
    let membership = Membership::new(host, ManagerRoutes::new(Control::Starting("starting".to_owned())));
    assert_eq!(membership.standing().state, SwarmState::Pending);
    membership.start();
    // A transition waits for the start.
    drop(membership.transition().await.unwrap());
    membership
}

/// Stops it and starts it again.
async fn restart(membership: Arc<Membership>, meanwhile: impl FnOnce()) -> Arc<Membership> {
    membership.shutdown().await;
    meanwhile();
    begin(Arc::clone(&membership.host)).await
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn init_at(addr: SocketAddr) -> SwarmInitRequest {
    SwarmInitRequest { listen_addr: addr.to_string(), advertise_addr: addr.to_string(), ..SwarmInitRequest::default() }
}

async fn fails<T>(outcome: impl Future<Output = anyhow::Result<T>>) -> String {
    format!("{:#}", outcome.await.err().unwrap())
}

async fn wait_until(what: &str, membership: &Membership, is_so: impl Fn(&Standing) -> bool) {
    let begun = Instant::now();
    while !is_so(&membership.standing()) {
        assert!(begun.elapsed() < DEADLINE, "not in time: {what}; {:?}", membership.standing());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_init_frees_its_port_and_its_files() {
    let dir = tempfile::tempdir().unwrap();
    // Another program has the image port.
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let (membership, _parent) = place(dir.path(), taken.local_addr().unwrap().port()).await;
    let free = free_port();
    for _ in 0..2 {
        let error = fails(membership.init(init_at(free))).await;
        assert!(error.contains("--peer-port"), "{error}");
        assert_eq!(membership.standing().state, SwarmState::Inactive);
        assert!(!membership.host.raft_dir().exists());
        drop(TcpListener::bind(free).unwrap());
    }
    // And the managers' port.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (membership, _parent) = place(dir.path(), 0).await;
    let error = fails(membership.init(init_at(taken.local_addr().unwrap()))).await;
    assert!(error.contains("cannot listen on"), "{error}");
    assert_eq!(membership.standing().state, SwarmState::Inactive);
    assert!(!membership.host.swarm_file().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_swarm_left_is_refused_and_deleted_by_force_only() {
    for left in ["raft", "agent"] {
        let dir = tempfile::tempdir().unwrap();
        let (membership, _parent) = place(dir.path(), 0).await;
        fs::create_dir_all(dir.path().join(left)).unwrap();
        fs::write(dir.path().join(left).join("precious"), "data").unwrap();
        let error = fails(membership.init(init_at(free_port()))).await;
        assert!(error.contains("earlier swarm") && error.contains("leave --force"), "{error}");
        let error = fails(membership.join(SwarmJoinRequest::default())).await;
        assert!(error.contains("earlier swarm"), "{error}");
        assert!(fails(membership.leave(false)).await.contains("not part of a swarm"));
        assert!(dir.path().join(left).join("precious").exists());
        membership.leave(true).await.unwrap();
        assert!(!dir.path().join(left).exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_tried_again_and_a_damaged_file_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let addr = free_port();
    let (membership, _parent) = place(dir.path(), 0).await;
    let node = membership.init(init_at(addr)).await.unwrap().node;
    assert!(membership.standing().control);
    assert!(fails(membership.leave(false)).await.contains("participating as a manager"));
    let mut other_program = None;
    let membership = restart(membership, || other_program = Some(TcpListener::bind(addr).unwrap())).await;
    wait_until("the taken port shows", &membership, |standing| standing.error.contains("cannot listen on")).await;
    assert_eq!((membership.standing().state, membership.standing().control), (SwarmState::Error, false));
    drop(other_program);
    wait_until("the manager is back", &membership, |standing| standing.control).await;
    assert_eq!((membership.standing().state, membership.standing().node), (SwarmState::Active, Some(node)));
    let file = membership.host.swarm_file();
    let membership = restart(membership, || fs::write(file, "{").unwrap()).await;
    let standing = membership.standing();
    assert!(standing.state == SwarmState::Error && standing.error.contains("is damaged"), "{standing:?}");
    let error = fails(membership.leave(false)).await;
    assert!(error.contains("--force"), "{error}");
    assert!(membership.host.raft_dir().exists());
    membership.leave(true).await.unwrap();
    assert_eq!(membership.standing().state, SwarmState::Inactive);
    assert!(!membership.host.raft_dir().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_manager_answers_its_key_only() {
    let dir = tempfile::tempdir().unwrap();
    let addr = free_port();
    let (membership, _parent) = place(dir.path(), 0).await;
    assert!(fails(membership.unlock("x")).await.contains("not part of a swarm"));
    let founded = membership.init(SwarmInitRequest { autolock: true, ..init_at(addr) }).await.unwrap();
    let key = founded.unlock_key.unwrap().to_text();
    assert!(fails(membership.unlock(&key)).await.contains("swarm is not locked"));
    assert!(!dir.path().join("raft/kek").exists(), "it was never open");
    let sealed = fs::read_to_string(dir.path().join("identity/node.key")).unwrap();
    assert!(sealed.starts_with("-----BEGIN SKEP SEALED PRIVATE KEY-----") && sealed.matches("BEGIN").count() == 1);

    let membership = restart(membership, || {}).await;
    let standing = membership.standing();
    assert_eq!((standing.state, standing.control), (SwarmState::Locked, false));
    assert_eq!((standing.node, standing.error.as_str()), (Some(founded.node), ""));
    drop(TcpListener::bind(addr).unwrap());
    assert_eq!(fails(membership.init(init_at(addr))).await, LOCKED);
    let recovery = SwarmInitRequest { force_new_cluster: true, ..SwarmInitRequest::default() };
    assert_eq!(fails(membership.init(recovery)).await, LOCKED);
    assert_eq!(fails(membership.join(SwarmJoinRequest::default())).await, LOCKED);
    assert_eq!(fails(membership.leave(false)).await, LOCKED);
    let wrong = UnlockKey::generate().to_text();
    for text in [wrong.as_str(), "", "SWMKEY-1-x"] {
        assert!(fails(membership.unlock(text)).await.contains("invalid key"), "{text}");
        assert_eq!(membership.standing().state, SwarmState::Locked);
    }
    let (one, other) = tokio::join!(membership.unlock(&key), membership.unlock(&key));
    let mut outcomes = [one.err(), other.err()].map(|error| error.map(|error| error.to_string()));
    outcomes.sort();
    assert_eq!(outcomes, [None, Some("swarm is not locked".to_owned())], "of two at once one does it");
    wait_until("the manager is back", &membership, |standing| standing.control).await;
    assert_eq!(membership.standing().state, SwarmState::Active);

    // Locked again, it can still be given up.
    let membership = restart(membership, || {}).await;
    assert_eq!(membership.standing().state, SwarmState::Locked);
    membership.leave(true).await.unwrap();
    assert_eq!(membership.standing().state, SwarmState::Inactive);
    assert!(!dir.path().join("raft").exists() && !dir.path().join("identity/node.key").exists());
}

#[tokio::test]
async fn no_transition_begins_while_the_daemon_stops() {
    let dir = tempfile::tempdir().unwrap();
    let (membership, _parent) = place(dir.path(), 0).await;
    membership.shutdown().await;
    let error = fails(membership.init(SwarmInitRequest::default())).await;
    assert!(error.contains("stopping"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_is_forced_on_a_managers_state_only() {
    let dir = tempfile::tempdir().unwrap();
    let (membership, _parent) = place(dir.path(), 0).await;
    let force = SwarmInitRequest { force_new_cluster: true, ..SwarmInitRequest::default() };
    let error = fails(membership.init(force.clone())).await;
    assert!(error.contains("holds no manager's state"), "{error}");
    let error = fails(membership.init(SwarmInitRequest { task_history_limit: 3, ..force })).await;
    assert!(error.contains("--advertise-addr only"), "{error}");
    assert_eq!(membership.standing().state, SwarmState::Inactive);
}

/// A file system of its own, as small as wanted; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`, with a printed reason: not root, so that nothing can be mounted.
    fn new(mib: u32) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root to mount a small disk");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        Some(Self(dir))
    }

    /// Fills it to the last block.
    fn fill(&self) {
        let mut filler = fs::File::options().create(true).append(true).open(self.0.path().join("filler")).unwrap();
        let block = vec![1_u8; 64 << 10];
        for size in [block.len(), 4096, 1] {
            while std::io::Write::write_all(&mut filler, &block[..size]).is_ok() {}
        }
    }

    fn empty(&self) {
        fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn init_on_a_full_disk_says_so_and_leaves_nothing() {
    let Some(disk) = SmallDisk::new(48) else { return };
    let (membership, _parent) = place(disk.0.path(), 0).await;
    disk.fill();
    let error = fails(membership.init(init_at(free_port()))).await;
    assert!(error.contains("No space left") || error.contains("disk"), "{error}");
    assert_eq!(membership.standing().state, SwarmState::Inactive);
    for left in [membership.host.swarm_file(), membership.host.raft_dir(), membership.host.agent_dir()] {
        assert!(!left.exists(), "{}", left.display());
    }
    disk.empty();
    membership.init(init_at(free_port())).await.unwrap();
    membership.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_manager_says_that_its_disk_is_full_and_goes_on_by_itself() {
    let Some(disk) = SmallDisk::new(48) else { return };
    let (membership, _parent) = place(disk.0.path(), 0).await;
    membership.init(init_at(free_port())).await.unwrap();
    disk.fill();
    wait_until("the full disk shows", &membership, |standing| standing.error.contains("disk is full")).await;
    disk.empty();
    wait_until("nothing troubles it", &membership, |standing| standing.error.is_empty() && standing.control).await;
    membership.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_whose_disk_was_full_at_the_start_comes_back_by_itself() {
    let Some(disk) = SmallDisk::new(48) else { return };
    let (membership, _parent) = place(disk.0.path(), 0).await;
    membership.init(init_at(free_port())).await.unwrap();
    let membership = restart(membership, || disk.fill()).await;
    wait_until("the full disk shows", &membership, |standing| standing.error.contains("disk is full")).await;
    disk.empty();
    wait_until("the manager is back", &membership, |standing| standing.control).await;
    membership.shutdown().await;
}
