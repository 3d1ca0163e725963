//! This host's `skep netd`: started where none runs, told who this host is, ended with the membership.
//!
//! It outlives the daemon, so that no packet waits for one: a daemon that starts finds it by its socket. Without it the
//! host has no networks of the swarm, and everything else goes on. Never ends a netd for being of another version.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use skep_identity::MeshKey;
use skep_identity::transport::connect_unix;
use skep_proto::id::NodeId;
use skep_proto::v1::netd_client::NetdClient;
use skep_proto::v1::{ConfigureRequest, FabricEndpoint, NetdShutdownRequest, NetdStateRequest, NetdStateResponse};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::backoff::{Backoff, words};
use crate::config::{Config, WIREGUARD_PORT};
use crate::sealing::Sealing;

/// From its start to its first answer, on a busy machine.
const START: Duration = Duration::from_secs(30);
/// Between two looks whether a new one listens already.
const LOOK: Duration = Duration::from_millis(10);
/// For an answer to a call that changes little.
const ANSWER: Duration = Duration::from_secs(10);
/// For taking down all networks of a host.
const TAKE_DOWN: Duration = Duration::from_secs(60);
/// One that ran so long and ended is started again at once.
const RAN_WELL: Duration = Duration::from_secs(60);

/// Where a host's netd lies, running or not.
#[derive(Clone, Debug)]
pub(crate) struct Netd {
    /// To the one that runs and knows this host. `None`: there is none.
    channel: watch::Sender<Option<Channel>>,
    /// `None`: none is started here.
    program: Option<PathBuf>,
    /// Its own folder beside the daemon's socket: gone with a reboot, as everything that it makes.
    dir: PathBuf,
    sandboxes: PathBuf,
    log: PathBuf,
    cgroup_parent: PathBuf,
}

/// Who this host is to the others.
pub(crate) struct Place {
    pub(crate) node: NodeId,
    /// Where the other hosts reach it.
    pub(crate) address: IpAddr,
    /// Has its key.
    pub(crate) sealing: Sealing,
}

/// One that runs and knows this host.
#[derive(Debug)]
struct Running {
    channel: Channel,
    endpoint: FabricEndpoint,
    /// Ends when it does.
    watch: UnixStream,
}

impl Netd {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            channel: watch::channel(None).0,
            program: config.netd.clone(),
            dir: config.socket.with_extension("netd"),
            sandboxes: skep_worker::sandboxes_dir(&config.data_dir),
            log: config.data_dir.join("netd.log"),
            cgroup_parent: config.cgroup_parent.clone(),
        }
    }

    /// The connection to the one that runs, now and later.
    pub(crate) fn channel(&self) -> watch::Receiver<Option<Channel>> {
        self.channel.subscribe()
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("netd.sock")
    }

    /// Keeps one running until it is cancelled; `ready` hears how other hosts reach it, each time one is. Call it when
    /// the sandboxes' folder is there.
    pub(crate) async fn keep(self, place: Place, ready: impl Fn(FabricEndpoint)) {
        if self.program.is_none() {
            return;
        }
        let mut backoff = Backoff::default();
        loop {
            match self.bring_up(&place).await {
                Ok(found) => {
                    ready(found.endpoint);
                    self.channel.send_replace(Some(found.channel));
                    let since = Instant::now();
                    closed(found.watch).await;
                    self.channel.send_replace(None);
                    warn!("netd has ended; it is started again, and until then networks stay as they are");
                    if since.elapsed() > RAN_WELL {
                        backoff.reset();
                    }
                }
                Err(error) => {
                    warn!(error = %words(&error), "this host has no networks of the swarm: netd does not run")
                }
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Finds or starts one, and tells it who this host is.
    async fn bring_up(&self, place: &Place) -> anyhow::Result<Running> {
        let sealing = place.sealing.clone();
        let key = tokio::task::spawn_blocking(move || sealing.mesh_key()).await??;
        let channel = match self.find().await? {
            Some(channel) => channel,
            None => self.start().await?,
        };
        let mut client = NetdClient::new(channel.clone());
        let socket = self.socket();
        let watch = UnixStream::connect(&socket).await.with_context(|| format!("cannot open {}", socket.display()))?;
        let state = answered(client.state(NetdStateRequest {})).await?;
        note(&state);
        let request = configuration(place, &key);
        let endpoint = FabricEndpoint {
            public_key: key.public().to_vec(),
            previous_public_key: Vec::new(),
            wireguard_addr: request.wireguard_addr.clone(),
            vxlan_addr: request.vxlan_addr.clone(),
        };
        answered(client.configure(request)).await.context("netd does not take this host's place")?;
        info!(pid = state.pid, "netd knows this host");
        Ok(Running { channel, endpoint, watch })
    }

    /// The one that runs, if any.
    async fn find(&self) -> anyhow::Result<Option<Channel>> {
        match connect_unix(&self.socket()).await {
            Ok(channel) => Ok(Some(channel)),
            Err(error) if nobody_listens(&error) => Ok(None),
            Err(error) => Err(error).context("cannot reach netd"),
        }
    }

    async fn start(&self) -> anyhow::Result<Channel> {
        let mut child = self.spawn()?;
        let pid = child.id().unwrap_or_default();
        let deadline = Instant::now() + START;
        loop {
            if let Some(channel) = self.find().await? {
                info!(pid, log = %self.log.display(), "netd is started");
                // What it leaves when it ends is waited for by the runtime.
                return Ok(channel);
            }
            let ended: Option<ExitStatus> = child.try_wait()?;
            if let Some(status) = ended {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                bail!("it ended at its start ({status}): {}", log.lines().last().unwrap_or("it said nothing"));
            }
            if Instant::now() > deadline {
                bail!("it does not listen after {} s; see {}", START.as_secs(), self.log.display());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let program = self.program.as_ref().context("this daemon does not know its own program")?;
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        let log = new_log(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = Command::new(program);
        command.arg0("skep").arg("netd").arg("--dir").arg(&self.dir).arg("--socket").arg(self.socket());
        command.arg("--sandboxes").arg(&self.sandboxes).current_dir("/");
        // A file of its own: whoever reads the daemon's output must not wait for this process.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // SAFETY: setsid(2) is async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?));
        }
        let child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        // Out of the daemon's group, so that a service manager that stops the daemon leaves it alone. Where that is
        // refused it stays there.
        for file in skep_worker::monitors_cgroup(&self.cgroup_parent) {
            let _ = fs::write(file, child.id().unwrap_or_default().to_string());
        }
        Ok(child)
    }

    /// Takes down all networks of this host and ends netd; does nothing where none runs.
    pub(crate) async fn shutdown(&self) {
        self.channel.send_replace(None);
        if let Err(error) = self.try_shutdown().await {
            warn!(error = %words(&error), "netd or networks of this host are still there");
        }
    }

    async fn try_shutdown(&self) -> anyhow::Result<()> {
        let found = match self.find().await? {
            // One that ended left its networks: packets still go to ports that the swarm has no more. The next one finds
            // them there, and takes them down.
            None if self.program.is_some() && self.dir.exists() => Some(self.start().await?),
            found => found,
        };
        if let Some(channel) = found {
            let watch = UnixStream::connect(self.socket()).await?;
            let mut client = NetdClient::new(channel);
            let request = client.shutdown(NetdShutdownRequest {});
            tokio::time::timeout(TAKE_DOWN, request).await.context("netd does not answer")??;
            tokio::time::timeout(ANSWER, closed(watch)).await.context("netd does not end")?;
        }
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }
}

fn configuration(place: &Place, key: &MeshKey) -> ConfigureRequest {
    ConfigureRequest {
        node_id: place.node.to_vec(),
        private_key: key.secret().to_vec(),
        wireguard_addr: SocketAddr::new(place.address, WIREGUARD_PORT).to_string(),
        vxlan_addr: place.address.to_string(),
        ..ConfigureRequest::default()
    }
}

fn note(state: &NetdStateResponse) {
    let (own, pid) = (env!("CARGO_PKG_VERSION"), state.pid);
    if state.engine_version != own {
        info!(pid, netd = %state.engine_version, daemon = own, "netd is of another version; it stays until the host's next boot");
    }
    for text in &state.notes {
        info!(pid, "netd: {text}");
    }
}

async fn answered<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> anyhow::Result<T> {
    Ok(tokio::time::timeout(ANSWER, call).await.context("netd does not answer")??.into_inner())
}

/// Returns when the other end is closed.
async fn closed(mut stream: UnixStream) {
    let mut bytes = [0; 256];
    while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
}

/// Whether there is no socket, or one that a dead process left.
fn nobody_listens(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
        }
        next = error.source();
    }
    false
}

/// A log for one run; that of the run before is kept beside it.
fn new_log(path: &Path) -> io::Result<File> {
    match fs::rename(path, path.with_extension("log.old")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Appends, so that netd itself can begin it anew where it grows too long.
    File::options().append(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod netd_test;
