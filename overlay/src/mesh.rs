//! The encrypted way to other hosts: the one fabric device of this host, the networks' ports on it, and its peers.
//!
//! Driven by [`crate::netd`] and [`crate::network`], under the lock of a network or none; it locks itself only, and calls
//! nobody back. The device lives in this process: while it is away, encrypted networks stand still, and each network is
//! connected again when it is made right by the next one.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use skep_fabric::tap::{Tap, TapError};
use skep_fabric::{
    Change, Config, Device, DeviceError, Forward, Key, Mac, Offload, PeerConfig, PortConfig, PrivateKey,
};
use skep_proto::id::NodeId;
use skep_proto::v1;

use crate::plan::mesh::{TablePeers, fabric_address, number, peers};
use crate::table::Table;

/// UDP port of VXLAN inside the mesh.
const VXLAN_PORT: u16 = 4790;
/// Threads each way, and queues of a network's TAP, at most: beyond that they only share the peers' locks.
const MOST_THREADS: usize = 4;
/// What the kernel makes TAPs with.
const TUN: &str = "/dev/net/tun";

/// Why the mesh cannot be as it should.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// Agent or tables have not told something yet.
    #[error("encrypted networks wait for {0}, which is not known yet")]
    Waits(&'static str),
    /// A key that is none.
    #[error("the {0} has {1} bytes instead of 32")]
    Key(&'static str, usize),
    /// An address that is none.
    #[error("{0:?} is no address and port for the mesh")]
    Address(String),
    /// A number that no host has.
    #[error("{0} is no number of a host in the mesh")]
    Number(u32),
    /// The device.
    #[error("the device of encrypted networks failed")]
    Device(#[from] DeviceError),
    /// A network's TAP.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The MTU does not fit its type.
    #[error("{0} is no MTU of an encrypted network")]
    Mtu(u32),
}

/// Who this host is in the mesh.
#[derive(Clone, Default)]
struct Settings {
    own: Option<NodeId>,
    /// Newest first; none: no encrypted networks.
    keys: Vec<PrivateKey>,
    listen: Option<SocketAddr>,
}

impl Settings {
    fn read(own: Option<NodeId>, request: &v1::ConfigureRequest) -> Result<Self, MeshError> {
        let read = |bytes: &[u8], name| {
            let bytes = <[u8; 32]>::try_from(bytes).map_err(|_| MeshError::Key(name, bytes.len()))?;
            Ok::<_, MeshError>(PrivateKey::from_bytes(bytes))
        };
        let mut keys = Vec::new();
        if !request.private_key.is_empty() {
            keys.push(read(&request.private_key, "private key")?);
            if !request.previous_private_key.is_empty() {
                keys.push(read(&request.previous_private_key, "previous private key")?);
            }
        }
        let listen = match request.wireguard_addr.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| MeshError::Address(text.to_owned()))?),
        };
        Ok(Self { own, keys, listen })
    }

    /// What a device starts with: its oldest key, and its address to listen at.
    fn complete(&self) -> Result<(&PrivateKey, SocketAddr), MeshError> {
        let key = self.keys.last().ok_or(MeshError::Waits("this host's key"))?;
        let listen = self.listen.ok_or(MeshError::Waits("this host's address in the mesh"))?;
        Ok((key, listen))
    }
}

/// The device, and where it listens.
struct Running {
    device: Device,
    listen: SocketAddr,
    address: IpAddr,
}

/// A network that uses the device.
#[derive(Default)]
struct Joined {
    /// It is attached.
    port: bool,
    /// Ethernet addresses that have entries.
    macs: HashSet<Mac>,
    peers: TablePeers,
}

#[derive(Default)]
struct Inner {
    settings: Settings,
    /// This host's number, as the tables say.
    number: Option<u32>,
    running: Option<Running>,
    /// Counts devices, so that networks see that theirs is another one.
    generation: u64,
    networks: BTreeMap<u32, Joined>,
    installed: BTreeMap<IpAddr, (NodeId, PeerConfig)>,
    /// What the kernel granted to the last TAP.
    granted: Option<Offload>,
}

/// This host's part of the mesh.
#[derive(Default)]
pub struct Mesh(Mutex<Inner>);

/// The threads that a device has each way.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS)
}

impl Inner {
    /// Starts the device where it should run and does not.
    fn start(&mut self) -> Result<u64, MeshError> {
        if self.running.is_some() {
            return Ok(self.generation);
        }
        let (key, listen) = self.settings.complete()?;
        let address = self.address()?;
        let device = Device::start(Config {
            private_key: key.clone(),
            listen: vec![listen],
            fabric_addresses: vec![address],
            vxlan_port: VXLAN_PORT,
            threads: threads(),
            offload: Offload::default(),
            timers: skep_fabric::TimerSettings::default(),
        })?;
        self.running = Some(Running { device, listen, address });
        self.generation += 1;
        self.rotate()?;
        self.sync_peers()?;
        Ok(self.generation)
    }

    /// Its address inside.
    fn address(&self) -> Result<IpAddr, MeshError> {
        let number = self.number.ok_or(MeshError::Waits("this host's number in the mesh"))?;
        fabric_address(number).ok_or(MeshError::Number(number))
    }

    /// Looks whether the device is what it should be, and starts it where it is not.
    fn follow(&mut self) -> Result<(), MeshError> {
        if let Some(own) = self.settings.own
            && let Some(number) = number(own, self.networks.values().map(|network| &network.peers))
        {
            self.number = Some(number);
        }
        let (listen, address) = (self.settings.listen, self.address().ok());
        let other = |running: &Running| Some(running.listen) != listen || Some(running.address) != address;
        if self.running.as_ref().is_some_and(|running| self.settings.keys.is_empty() || other(running)) {
            self.stop();
        }
        match self.start() {
            Err(MeshError::Waits(_)) => return Ok(()),
            started => started?,
        };
        self.rotate()?;
        self.sync_peers()
    }

    /// Stops it; networks have to be attached again to the next one.
    fn stop(&mut self) {
        self.running = None;
        self.installed.clear();
        for network in self.networks.values_mut() {
            network.port = false;
            network.macs.clear();
        }
    }

    /// Makes the device's keys those that were told.
    fn rotate(&mut self) -> Result<(), MeshError> {
        let Some(Running { device, .. }) = &self.running else { return Ok(()) };
        let wanted: Vec<Key> = self.settings.keys.iter().map(PrivateKey::public).collect();
        if device.public_keys() == wanted {
            return Ok(());
        }
        for key in self.settings.keys.iter().rev() {
            // One that is valid already needs no second life, which would end its sessions.
            if !device.public_keys().contains(&key.public()) || Some(&key.public()) == wanted.first() {
                device.rotate(key.clone())?;
            }
        }
        if wanted.len() == 1 {
            device.retire()?;
        }
        Ok(())
    }

    /// Tells the device of peers that came, changed or went.
    fn sync_peers(&mut self) -> Result<(), MeshError> {
        let (Some(Running { device, .. }), Some(own)) = (&self.running, self.settings.own) else { return Ok(()) };
        let wanted = peers(own, self.networks.values().map(|network| &network.peers));
        let config = |(address, (_, config)): (&IpAddr, &(NodeId, PeerConfig))| {
            let before = self.installed.get(address).map(|(_, before)| before);
            (before != Some(config)).then(|| config.clone())
        };
        let put: Vec<PeerConfig> = wanted.iter().filter_map(config).collect();
        let remove: Vec<IpAddr> =
            self.installed.keys().filter(|address| !wanted.contains_key(address)).copied().collect();
        if !put.is_empty() || !remove.is_empty() {
            device.peers(Change { put, remove })?;
        }
        self.installed = wanted;
        Ok(())
    }
}

impl Mesh {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes who this host is, and makes the device follow. Returns the public key; `None` without one. A device that
    /// cannot be started is no error here: it is tried again with each network that needs it.
    ///
    /// # Errors
    /// [`MeshError`] where the request makes no sense; nothing changed then.
    pub fn configure(&self, own: Option<NodeId>, request: &v1::ConfigureRequest) -> Result<Option<Key>, MeshError> {
        let settings = Settings::read(own, request)?;
        let mut inner = self.lock();
        if inner.settings.own != settings.own {
            inner.number = None;
        }
        inner.settings = settings;
        if let Err(error) = inner.follow() {
            tracing::warn!("{}", crate::netd::text(&error));
        }
        Ok(inner.settings.keys.first().map(PrivateKey::public))
    }

    /// The number of its device among those of this process.
    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Makes sure that the device runs. Returns its number among the devices of this process.
    ///
    /// # Errors
    /// [`MeshError::Waits`], [`MeshError::Device`].
    pub fn start(&self) -> Result<u64, MeshError> {
        self.lock().start()
    }

    /// Ends the device.
    pub fn stop(&self) {
        let mut inner = self.lock();
        inner.stop();
        inner.networks.clear();
    }

    /// Whether a network is attached.
    pub fn is_attached(&self, vni: u32) -> bool {
        self.lock().networks.get(&vni).is_some_and(|network| network.port)
    }

    /// Attaches a network by a TAP, which `open` makes or finds: with so many queues and these offloads.
    ///
    /// # Errors
    /// [`MeshError`], or what `open` fails with.
    pub fn attach<E: From<MeshError>>(
        &self,
        vni: u32,
        mtu: u32,
        open: impl FnOnce(usize, Offload) -> Result<Tap, E>,
    ) -> Result<(), E> {
        let length = u16::try_from(mtu).map_err(|_| MeshError::Mtu(mtu))?;
        let mut inner = self.lock();
        inner.start()?;
        let Some(Running { device, .. }) = &inner.running else { return Err(MeshError::Waits("the device").into()) };
        let tap = open(threads(), Offload::default())?;
        let port = PortConfig { vni, queues: tap.queues, mtu: length, uso: tap.offload.tap_uso, flood: false };
        device.attach(port).map_err(MeshError::Device)?;
        inner.granted = Some(tap.offload);
        let network = inner.networks.entry(vni).or_default();
        network.port = true;
        network.macs.clear();
        Ok(())
    }

    /// Detaches a network's TAP. Idempotent.
    pub fn detach(&self, vni: u32) {
        let mut inner = self.lock();
        let Inner { running, networks, .. } = &mut *inner;
        if let Some(network) = networks.get_mut(&vni).filter(|network| network.port)
            && let Some(Running { device, .. }) = running
        {
            // Only a network that is not attached is refused, and that is what is wanted.
            let _ = device.detach(vni);
            network.port = false;
            network.macs.clear();
        }
    }

    /// Forgets a network, and the peers that only it had.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    pub fn leave(&self, vni: u32) -> Result<(), MeshError> {
        self.detach(vni);
        let mut inner = self.lock();
        match inner.networks.remove(&vni) {
            Some(_) => inner.sync_peers(),
            None => Ok(()),
        }
    }

    /// Follows the peers of a network's table. Where this host's own row has another number, another device runs then, to
    /// which all networks have to be attached.
    ///
    /// # Errors
    /// [`MeshError::Device`], [`MeshError::Number`].
    pub fn follow_peers(&self, vni: u32, table: &Table) -> Result<(), MeshError> {
        let mut inner = self.lock();
        inner.networks.entry(vni).or_default().peers = TablePeers::of(table);
        inner.follow()
    }

    /// Changes a network's entries.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    pub fn forward(&self, vni: u32, change: Change<Forward, Mac>) -> Result<(), MeshError> {
        let mut inner = self.lock();
        let Inner { running, networks, .. } = &mut *inner;
        let (Some(Running { device, .. }), Some(network)) = (running, networks.get_mut(&vni)) else { return Ok(()) };
        if change.put.is_empty() && change.remove.is_empty() {
            return Ok(());
        }
        for mac in &change.remove {
            network.macs.remove(mac);
        }
        network.macs.extend(change.put.iter().map(|forward| forward.mac));
        Ok(device.forward(vni, change)?)
    }

    /// Makes a network's entries these.
    ///
    /// # Errors
    /// [`MeshError::Device`].
    pub fn sync_forwards(&self, vni: u32, wanted: Vec<Forward>) -> Result<(), MeshError> {
        let new: HashSet<Mac> = wanted.iter().map(|forward| forward.mac).collect();
        let gone = match self.lock().networks.get(&vni) {
            Some(network) => network.macs.difference(&new).copied().collect(),
            None => Vec::new(),
        };
        self.forward(vni, Change { put: wanted, remove: gone })
    }

    /// How it is.
    pub fn status(&self) -> v1::MeshResponse {
        let inner = self.lock();
        let Some(Running { device, .. }) = &inner.running else {
            return v1::MeshResponse { device: "none".to_owned(), peers: Vec::new() };
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let peer = |peer: &skep_fabric::PeerStatistics| {
            let (node, _) = inner.installed.get(&peer.fabric_address)?;
            let made = peer.last_handshake.map(|age| now.saturating_sub(age).as_millis());
            Some(v1::MeshPeer {
                node_id: node.to_vec(),
                endpoint: peer.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
                last_handshake_ms: made.and_then(|made| i64::try_from(made).ok()).unwrap_or_default(),
                received_bytes: peer.received.bytes,
                sent_bytes: peer.sent.bytes,
            })
        };
        let peers = device.statistics().peers.iter().filter_map(peer).collect();
        v1::MeshResponse { device: "userspace".to_owned(), peers }
    }

    /// What the kernel lacks for encrypted networks and what is done instead, a sentence each.
    pub fn notes(&self, kernel_wireguard: bool) -> Vec<String> {
        let mut notes = vec![match kernel_wireguard {
            true => {
                "not supported yet: WireGuard in the kernel; encrypted networks go through skep's own device".to_owned()
            }
            false => "the kernel has no WireGuard; encrypted networks go through skep's own device".to_owned(),
        }];
        if !Path::new(TUN).exists() {
            notes.push(format!("there is no {TUN}, so encrypted networks cannot work: load the module tun"));
        }
        match self.lock().granted {
            Some(granted) if !granted.tap_tso => {
                notes.push("the kernel's TAPs give no large frames; encrypted networks are slower".to_owned());
            }
            Some(granted) if !granted.tap_uso => {
                notes
                    .push("the kernel's TAPs give no large UDP frames (Linux 6.2 does); UDP is sent singly".to_owned());
            }
            _ => {}
        }
        notes
    }
}
