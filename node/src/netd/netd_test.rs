//! Against a netd of the test's own: it hears who the host is, whenever one comes, and is asked to end.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use skep_identity::transport::{bind_unix, unix_incoming};
use skep_proto::v1;
use skep_proto::v1::netd_server::{Netd as Calls, NetdServer};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

/// What the test's netd was told.
#[derive(Clone, Default)]
struct Fake {
    configured: Arc<Mutex<Vec<ConfigureRequest>>>,
    end: Arc<Notify>,
}

impl Fake {
    /// Listens until it is told to end, as netd does.
    fn listen(&self, netd: &Netd) -> JoinHandle<()> {
        fs::create_dir_all(&netd.dir).unwrap();
        let socket = netd.socket();
        let (service, end) = (NetdServer::new(self.clone()), Arc::clone(&self.end));
        let server = tonic::transport::Server::builder().add_service(service);
        // With a runtime of its own, all its connections end when it does.
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = unix_incoming(bind_unix(&socket).unwrap());
                let told = Arc::new(Notify::new());
                let hears = Arc::clone(&told);
                let stop = async move {
                    end.notified().await;
                    hears.notify_one();
                };
                let serving = tokio::spawn(server.serve_with_incoming_shutdown(listener, stop));
                told.notified().await;
                // As netd does: the last answers go out, connections that rest are cut.
                let _ = tokio::time::timeout(Duration::from_millis(200), serving).await;
            });
        })
    }
}

#[tonic::async_trait]
impl Calls for Fake {
    async fn state(&self, _: Request<NetdStateRequest>) -> Result<Response<NetdStateResponse>, Status> {
        Ok(Response::new(NetdStateResponse::default()))
    }

    async fn configure(&self, request: Request<ConfigureRequest>) -> Result<Response<v1::ConfigureResponse>, Status> {
        self.configured.lock().unwrap().push(request.into_inner());
        Ok(Response::new(Default::default()))
    }

    async fn shutdown(&self, _: Request<NetdShutdownRequest>) -> Result<Response<v1::NetdShutdownResponse>, Status> {
        self.end.notify_one();
        Ok(Response::new(Default::default()))
    }

    async fn apply(&self, _: Request<v1::ApplyTablesRequest>) -> Result<Response<v1::ApplyTablesResponse>, Status> {
        Err(Status::unimplemented("the daemon's part asks for none"))
    }

    async fn attach(&self, _: Request<v1::AttachRequest>) -> Result<Response<v1::AttachResponse>, Status> {
        Err(Status::unimplemented("the daemon's part asks for none"))
    }

    async fn detach(&self, _: Request<v1::DetachRequest>) -> Result<Response<v1::DetachResponse>, Status> {
        Err(Status::unimplemented("the daemon's part asks for none"))
    }

    async fn mesh(&self, _: Request<v1::MeshRequest>) -> Result<Response<v1::MeshResponse>, Status> {
        Err(Status::unimplemented("the daemon's part asks for none"))
    }

    async fn check(&self, _: Request<v1::CheckRequest>) -> Result<Response<v1::CheckResponse>, Status> {
        Err(Status::unimplemented("the daemon's part asks for none"))
    }
}

/// A netd in a folder of the test, and this host's place.
fn here(dir: &Path, program: &str) -> (Netd, Place) {
    let netd = Netd {
        channel: watch::channel(None).0,
        program: Some(program.into()),
        dir: dir.join("skep.netd"),
        sandboxes: dir.join("sandboxes"),
        log: dir.join("netd.log"),
        // Of no use: these programs end by themselves.
        cgroup_parent: PathBuf::from(format!("skep-netd-test-{}", dir.file_name().unwrap().display())),
    };
    let address = "192.0.2.7".parse().unwrap();
    (netd, Place { node: NodeId::new(7), address, sealing: Sealing::new(dir.join("identity"), None, Vec::new()) })
}

#[tokio::test]
async fn each_netd_that_comes_is_told_who_the_host_is() {
    let dir = tempfile::tempdir().unwrap();
    let (netd, place) = here(dir.path(), "/nonexistent/skep");
    let fake = Fake::default();
    let mut listening = fake.listen(&netd);
    let (told, mut endpoints) = mpsc::unbounded_channel();
    let keeping = tokio::spawn(netd.clone().keep(place, move |endpoint| told.send(endpoint).unwrap()));
    for round in 1..=2 {
        let endpoint = tokio::time::timeout(DEADLINE, endpoints.recv()).await.unwrap().unwrap();
        let configured = fake.configured.lock().unwrap().clone();
        assert_eq!(configured.len(), round);
        let request = &configured[round - 1];
        assert_eq!(request.node_id, NodeId::new(7).to_vec());
        assert_eq!((&*request.wireguard_addr, &*request.vxlan_addr), ("192.0.2.7:51820", "192.0.2.7"));
        let key = MeshKey::open(&dir.path().join("identity"), None, &[]).unwrap();
        assert_eq!(request.private_key, key.secret());
        assert_eq!(
            endpoint,
            FabricEndpoint {
                public_key: key.public().to_vec(),
                previous_public_key: Vec::new(),
                wireguard_addr: request.wireguard_addr.clone(),
                vxlan_addr: request.vxlan_addr.clone(),
            }
        );
        // It ends although this host's daemon watches it, and the next one is told again.
        fake.end.notify_one();
        tokio::time::timeout(DEADLINE, listening).await.unwrap().unwrap();
        listening = fake.listen(&netd);
    }
    let listens = async {
        while UnixStream::connect(netd.socket()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, listens).await.unwrap();
    keeping.abort();
    assert!(keeping.await.unwrap_err().is_cancelled());
    netd.try_shutdown().await.unwrap();
    tokio::time::timeout(DEADLINE, listening).await.unwrap().unwrap();
    assert!(!netd.dir.exists());
    netd.try_shutdown().await.unwrap();
}

/// What it made in the kernel is still there, and only a netd knows how to take it down.
#[tokio::test]
async fn a_netd_that_is_away_is_started_to_take_its_networks_down() {
    let dir = tempfile::tempdir().unwrap();
    let (program, started) = (dir.path().join("program"), dir.path().join("started"));
    fs::write(&program, format!("#!/bin/sh\ntouch {}\nexit 3\n", started.display())).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (netd, _) = here(dir.path(), &program.display().to_string());
    // Where none ever ran there is nothing to do.
    netd.try_shutdown().await.unwrap();
    assert!(!started.exists() && !netd.dir.exists());
    fs::create_dir_all(netd.dir.join("networks")).unwrap();
    let group = skep_worker::monitors_cgroup(&netd.cgroup_parent);
    let error = words(&netd.try_shutdown().await.unwrap_err());
    for file in group {
        let shims = file.parent().unwrap();
        fs::remove_dir(shims).and_then(|()| fs::remove_dir(shims.parent().unwrap())).unwrap();
    }
    assert!(started.exists() && error.contains("exit status: 3"), "{error}");
    assert!(netd.dir.join("networks").exists(), "what says that something is left");
}

#[tokio::test]
async fn a_netd_that_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    // In a process of its own; told where to be.
    fs::write(&program, "#!/bin/sh\necho \"no networks for $*\" >&2\nexit 3\n").unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (netd, place) = here(dir.path(), &program.display().to_string());
    let group = skep_worker::monitors_cgroup(&netd.cgroup_parent);
    let error = words(&netd.bring_up(&place).await.unwrap_err());
    for file in group {
        let shims = file.parent().unwrap();
        fs::remove_dir(shims).and_then(|()| fs::remove_dir(shims.parent().unwrap())).unwrap();
    }
    assert!(error.contains("exit status: 3"), "{error}");
    let sandboxes = dir.path().join("sandboxes");
    assert!(error.contains(&format!("--sandboxes {}", sandboxes.display())), "{error}");
    assert!(error.contains("no networks for netd --dir"), "{error}");
}
