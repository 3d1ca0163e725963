//! `skep netd`: keeps this host's networks as the managers' tables say, for the agent that drives it over a unix socket.
//!
//! Whatever happens to it, packets go on: it makes the kernel do the work, and only a call of `Shutdown` takes anything
//! down. What it was told lies in its folder (tmpfs, [`keep`]), and one that starts there, after a kill or in place of another
//! ([`turn`]), is whole again without any agent ([`restore`]). Work on one network waits for that network only; the kernel is
//! talked to on threads that may block.

mod attach;
mod check;
mod define;
mod displace;
mod drain;
pub(crate) mod keep;
mod process;
mod recover;
pub(crate) mod request;
mod restore;
mod service;
mod state;
mod turn;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use skep_netlink::NetlinkError;
use skep_proto::id::{IdError, NetworkId, NodeId, TaskId};
use skep_proto::v1;
use tokio::sync::Notify;

use crate::host::{Host, PublishError};
use crate::mesh::{Mesh, MeshError};
use crate::network::{self, NetworkError};
use crate::plan::mtu::MtuError;
use crate::plan::out;
use crate::sandbox::{SandboxError, Sandboxes};
use crate::table::TableError;
use keep::Journal;
use state::NetworkState;

pub(crate) use service::text;

pub use crate::mesh::Choice;
pub use process::{Options, StartError, run};

/// Why something could not be done; the text is for a person.
#[derive(Debug, thiserror::Error)]
pub enum NetdError {
    /// The kernel refused something.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A network could not be made.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A sandbox could not be made or removed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A table could not be taken.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The network's MTU makes no sense here.
    #[error(transparent)]
    Mtu(#[from] MtuError),
    /// The mesh is not as it should be.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// A port of the host is not published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The name server cannot serve a sandbox.
    #[error(transparent)]
    Names(#[from] skep_dns::ServerError),
    /// An id in a request.
    #[error("the request names no {0}")]
    Id(&'static str, #[source] IdError),
    /// A network whose table was dropped here, or never came. It comes when managers know of the task.
    #[error("the table of network {0} has not come to this host yet")]
    NoTable(NetworkId),
    /// A request that makes no sense, or something that is missing here: a sentence.
    #[error("{0}")]
    Refused(String),
    /// A file of a sandbox.
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
}

/// Who this host is.
#[derive(Clone, Debug, Default)]
struct Config {
    node: Option<NodeId>,
    request: v1::ConfigureRequest,
}

/// What is attached, as it was asked for.
#[derive(Clone, Debug)]
struct Attached {
    request: v1::AttachRequest,
    /// `None`: not all of it was made.
    response: Option<v1::AttachResponse>,
    /// Networks that it is on, or may be.
    networks: Vec<NetworkId>,
    /// Its place in the order of those that were first asked for.
    number: u64,
    /// Managers gave its place to another task: it has ended.
    displaced: bool,
}

/// Everything that netd keeps. Locks are taken in the order of the fields, each network's own after all of them but
/// the host's.
struct Netd {
    dir: PathBuf,
    instance: String,
    sandboxes: Sandboxes,
    /// What the next netd is to know.
    kept: Sandboxes,
    /// What is published by sandboxes is not known yet.
    restoring: AtomicBool,
    names: skep_dns::Server,
    runtime: tokio::runtime::Handle,
    stop: Notify,
    /// Held by whoever works on a task.
    tasks: Mutex<BTreeMap<TaskId, Arc<Mutex<()>>>>,
    config: RwLock<Config>,
    attached: Mutex<BTreeMap<TaskId, Attached>>,
    /// How many sandboxes were asked for.
    asked: AtomicU64,
    networks: Mutex<BTreeMap<NetworkId, Arc<Mutex<NetworkState>>>>,
    /// Numbers of ways out that are taken.
    indices: Mutex<BTreeSet<u16>>,
    /// Addresses of sandboxes on the host's own bridge, by their last 16 bits.
    leases: Mutex<BTreeMap<TaskId, u16>>,
    host: Host,
    drain: drain::Drain,
    /// What an earlier netd had and this one has not. Nothing else is locked meanwhile.
    missing: Mutex<recover::Missing>,
    /// Locked after everything else.
    mesh: Mesh,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Netd {
    fn config(&self) -> Config {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn networks_dir(&self) -> PathBuf {
        self.dir.join("networks")
    }

    fn network_dir(&self, id: NetworkId) -> PathBuf {
        self.networks_dir().join(id.to_string())
    }

    /// The state of a network, made where there is none.
    fn network(&self, id: NetworkId) -> Arc<Mutex<NetworkState>> {
        let state = || Arc::new(Mutex::new(NetworkState::new(Journal::new(&self.tables_dir(), id), id)));
        Arc::clone(lock(&self.networks).entry(id).or_insert_with(state))
    }

    /// Forgets a network of which there is nothing to know.
    fn forget(&self, network: &Arc<Mutex<NetworkState>>, id: NetworkId) {
        let mut networks = lock(&self.networks);
        // Handles are only given out under this lock: with none but the map's and the caller's, nobody is about to use it.
        if Arc::strong_count(network) == 2 && lock(network).is_empty() {
            networks.remove(&id);
        }
    }

    /// All networks that it knows.
    fn all_networks(&self) -> Vec<Arc<Mutex<NetworkState>>> {
        lock(&self.networks).values().cloned().collect()
    }

    /// A number for a network's way out: the one it has had, or a free one.
    fn take_index(&self, id: NetworkId) -> Result<u16, NetdError> {
        if let Some(index) = network::index_of(&self.network_dir(id)) {
            lock(&self.indices).insert(index);
            return Ok(index);
        }
        let mut taken = lock(&self.indices);
        // Each instance on this machine begins elsewhere, and skips what another has.
        let start = self.instance.bytes().fold(0u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let mut free = None;
        for index in (0..out::INDICES).map(|step| start.wrapping_add(step) % out::INDICES) {
            if !out::is_reserved(index) && !taken.contains(&index) && !self.host.has_out(index)? {
                free = Some(index);
                break;
            }
        }
        let Some(index) = free else {
            return Err(NetdError::Refused("this host has no addresses left for ways out of networks".to_owned()));
        };
        taken.insert(index);
        Ok(index)
    }

    /// Finds what an earlier netd has left: numbers and addresses that must not be given again.
    fn find_taken(&self) {
        for entry in fs::read_dir(self.networks_dir()).into_iter().flatten().flatten() {
            lock(&self.indices).extend(network::index_of(&entry.path()));
        }
        self.find_leases();
    }
}
