//! What the daemon is told at start. Checked before anything is opened; the command line fills it in.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Settings of one daemon.
#[derive(Clone, Debug)]
pub struct Config {
    /// Everything that survives a restart.
    pub data_dir: PathBuf,
    /// Where figures are served to Prometheus, by plain http. `None`: nowhere.
    pub metrics_addr: Option<SocketAddr>,
    /// Unix socket of the local API.
    pub socket: PathBuf,
    /// Group whose members may use the socket, by number; they have all rights of this host's root over skep. `None`: root
    /// alone.
    pub group: Option<u32>,
    /// Cgroup under which everything of this node lies, relative to each hierarchy's root.
    pub cgroup_parent: PathBuf,
    /// Name of this host. Default: the kernel's.
    pub hostname: Option<String>,
    /// Stands in for the kernel's boot id (`skep lab`).
    pub boot_id: Option<String>,
    /// Address told to others where `swarm init` and `join` name none. Default: the only one there is.
    pub advertise_addr: Option<IpAddr>,
    /// Port where other nodes fetch images.
    pub peer_port: u16,
    /// Registries spoken to without verified TLS.
    pub insecure_registries: Vec<String>,
    /// `skep` (built in), `crun`, `runc`, or a path.
    pub runtime: String,
    /// The ids of containers, where they are not the host's own.
    pub userns_remap: Option<skep_worker::Remap>,
    /// The program whose `netd` command keeps this host's networks, this very one. `None`: none is started.
    pub netd: Option<PathBuf>,
    /// Labels of the engine, for constraints.
    pub labels: BTreeMap<String, String>,
}

/// Port of the managers' API.
pub const MANAGER_PORT: u16 = 2377;
/// Port of the hosts' WireGuard devices (UDP).
pub(crate) const WIREGUARD_PORT: u16 = 51820;
/// Port where nodes serve images to each other.
pub const PEER_PORT: u16 = 2378;
