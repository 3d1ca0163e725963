//! The process: one of its kind on a host, listening on a socket that only root may open. SIGTERM ends it, and leaves all
//! that the kernel does as it is.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use skep_netlink::NetlinkError;
use skep_proto::v1::netd_server::NetdServer;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_stream::wrappers::UnixListenerStream;

use super::service::Service;
use super::{Netd, define, drain, turn};
use crate::host::Host;
use crate::mesh::{Choice, Mesh};
use crate::sandbox::{SandboxError, Sandboxes};

/// Bytes of a request at most: a table of ten thousands of endpoints in one message.
const LARGEST_REQUEST: usize = 64 << 20;
/// Threads that talk to the kernel: more would only wait for each other there.
const BLOCKING_THREADS: usize = 64;

/// Files that may be open, at least: the kernel's own limit is 4,096, that of most hosts is above half a million.
const OPEN_FILES: u64 = 1 << 18;

/// How long calls under way may take when it is to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often it looks whether others changed what it made: a firewall that is loaded afresh flushes everything.
const CHECK_PERIOD: Duration = Duration::from_secs(5);
/// How often that is tried again which could not be done.
const RETRY: Duration = Duration::from_secs(2);

/// What netd is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of what it keeps while it and its networks live: networks' namespaces and its lock.
    pub dir: PathBuf,
    /// Socket file to listen on.
    pub socket: PathBuf,
    /// Folder of the sandboxes, as the agent knows it.
    pub sandboxes: PathBuf,
    /// The host's name servers.
    pub resolv_conf: PathBuf,
    /// Which device seals encrypted networks.
    pub mesh: Choice,
}

/// Why netd did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another one works in this folder, and does not end.
    #[error("another netd runs in {} and does not end", .0.display())]
    Taken(PathBuf),
    /// A file or the socket.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A folder of namespaces.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The kernel's networking.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The process itself.
    #[error("cannot {0}")]
    Process(&'static str, #[source] io::Error),
    /// The server.
    #[error("the server failed")]
    Server(#[from] tonic::transport::Error),
}

pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_owned();
    move |source| StartError::File { action, path, source }
}

/// Runs until SIGTERM, or until it was told to take everything down.
///
/// # Errors
/// [`StartError`]; then nothing was changed.
pub fn run(options: Options) -> Result<(), StartError> {
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(|error| StartError::Process("start threads", error))?;
    let result = runtime.block_on(serve(options, runtime.handle().clone()));
    runtime.shutdown_background();
    result
}

async fn serve(options: Options, runtime: tokio::runtime::Handle) -> Result<(), StartError> {
    let Options { dir, socket, sandboxes, resolv_conf, mesh } = options;
    fs::create_dir_all(&dir).map_err(file("make", &dir))?;
    let dir = dir.canonicalize().map_err(file("find", &dir))?;
    turn::take(&dir, &socket)?;
    // In memory, and shared, as sandboxes are.
    Sandboxes::open(&dir.join("networks"))?;
    let instance = instance(&dir);
    let netd = Arc::new(Netd {
        instance: instance.clone(),
        sandboxes: Sandboxes::open(&sandboxes)?,
        kept: Sandboxes::open(&dir.join("kept"))?,
        restoring: AtomicBool::new(false),
        names: skep_dns::Server::new(runtime.clone(), resolv_conf),
        runtime,
        stop: Notify::new(),
        tasks: Mutex::default(),
        config: RwLock::default(),
        attached: Mutex::default(),
        asked: AtomicU64::new(0),
        missing: Mutex::default(),
        networks: Mutex::default(),
        indices: Mutex::default(),
        leases: Mutex::default(),
        host: Host::open(&instance)?,
        drain: drain::Drain::start().map_err(|error| StartError::Process("start threads", error))?,
        mesh: Mesh::open(&dir.join("fabric"), mesh)?,
        dir,
    });
    for kept in [netd.tables_dir(), netd.kept.dir("host")] {
        fs::create_dir_all(&kept).map_err(file("make", &kept))?;
    }
    netd.find_taken();
    let restoring = Arc::clone(&netd);
    // A panic was said already, and what is not restored is told again.
    let _ = tokio::task::spawn_blocking(move || restoring.restore()).await;
    let listener = listen(&socket)?;
    let mut term = signal(SignalKind::terminate()).map_err(|error| StartError::Process("wait for signals", error))?;
    let ended = Arc::clone(&netd);
    let (told, mut stopping) = tokio::sync::watch::channel(false);
    let stop = async move {
        tokio::select! {
            _ = term.recv() => {}
            () = ended.stop.notified() => {}
        }
        told.send_replace(true);
    };
    // Calls under way are finished; who only keeps a connection open is not waited for.
    let patience = async move {
        // Without a sender the server has ended already.
        let _ = stopping.wait_for(|stopping| *stopping).await;
        tokio::time::sleep(PATIENCE).await;
    };
    tokio::spawn(try_again(Arc::clone(&netd)));
    tracing::info!(pid = std::process::id(), bridge = define::LOCAL_SUBNET, "netd listens on {}", socket.display());
    let looked_at = Arc::clone(&netd);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(CHECK_PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let netd = Arc::clone(&looked_at);
            // It only fails where it panics, which the runtime tells.
            let _ = tokio::task::spawn_blocking(move || netd.check()).await;
        }
    });
    let calls = NetdServer::new(Service(netd)).max_decoding_message_size(LARGEST_REQUEST);
    let server = tonic::transport::Server::builder()
        .add_service(calls)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop);
    tokio::select! {
        served = server => served?,
        () = patience => {}
    }
    let _ = fs::remove_file(&socket);
    Ok(())
}

/// Tries again what could not be done, now and then.
async fn try_again(netd: Arc<Netd>) {
    let mut ticks = tokio::time::interval(RETRY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let netd = Arc::clone(&netd);
        // A panic is said by the thread that it happens in.
        let _ = tokio::task::spawn_blocking(move || netd.try_again()).await;
    }
}

/// Listens on a socket of mode 0600, in place of one that a dead netd left: the lock says that nobody else listens.
fn listen(path: &Path) -> Result<UnixListener, StartError> {
    let hidden = path.with_extension("new");
    let _ = fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).map_err(file("listen on", path))?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600)).map_err(file("protect", path))?;
    fs::rename(&hidden, path).map_err(file("put in place", path))?;
    Ok(listener)
}

/// A short name that no other netd on this machine has: of its folder (FNV-1a).
fn instance(dir: &Path) -> String {
    let hash = dir
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{:012x}", hash & 0xffff_ffff_ffff)
}

/// Each sandbox has some: sockets of netlink and of its name server. Each published port has one for each family.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let enough = hard.max(OPEN_FILES);
        let raised = setrlimit(Resource::RLIMIT_NOFILE, enough, enough);
        // Where it is refused, the limit is what it was.
        let _ = raised.or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    }
}
