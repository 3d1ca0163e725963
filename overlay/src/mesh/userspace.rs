//! The mesh by skep's own device, which lives in this process: networks are attached to it by TAPs, which stay when the
//! process ends, and are opened again by the next one.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use skep_fabric::tap::Tap;
use skep_fabric::{Change, Config, Device, Forward, Key, Mac, Offload, PeerConfig, PortConfig, PrivateKey};
use skep_proto::id::NodeId;
use skep_proto::v1;

use super::{Identity, MeshError, VXLAN_PORT};

/// Threads each way, and queues of a network's TAP, at most: beyond that they only share the peers' locks.
const MOST_THREADS: usize = 4;

/// The device, and what it was told.
pub(super) struct Userspace {
    device: Device,
    listen: SocketAddr,
    address: IpAddr,
    peers: BTreeMap<IpAddr, PeerConfig>,
    /// Attached networks, with the Ethernet addresses that have entries.
    ports: BTreeMap<u32, HashSet<Mac>>,
    /// What the kernel granted to the last TAP.
    granted: Option<Offload>,
}

/// The threads that a device has each way.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS)
}

impl Userspace {
    /// Starts the device.
    pub(super) fn start(identity: &Identity) -> Result<Self, MeshError> {
        let Identity { keys, listen, address } = identity;
        // Which all peers know.
        let key = keys.last().ok_or(MeshError::Waits("this host's key"))?;
        let device = Device::start(Config {
            private_key: key.clone(),
            listen: vec![*listen],
            fabric_addresses: vec![*address],
            vxlan_port: VXLAN_PORT,
            threads: threads(),
            offload: Offload::default(),
            timers: skep_fabric::TimerSettings::default(),
        })?;
        let (peers, ports) = (BTreeMap::new(), BTreeMap::new());
        let this = Self { device, listen: *listen, address: *address, peers, ports, granted: None };
        this.rotate(keys)?;
        Ok(this)
    }

    /// Whether another device is needed: its addresses are for life.
    pub(super) fn is_outdated(&self, identity: &Identity) -> bool {
        self.listen != identity.listen || self.address != identity.address
    }

    /// Makes the device's keys those that were told, newest first.
    pub(super) fn rotate(&self, keys: &[PrivateKey]) -> Result<(), MeshError> {
        let wanted: Vec<Key> = keys.iter().map(PrivateKey::public).collect();
        if self.device.public_keys() == wanted {
            return Ok(());
        }
        for key in keys.iter().rev() {
            // One that is valid already needs no second life, which would end its sessions.
            if !self.device.public_keys().contains(&key.public()) || Some(&key.public()) == wanted.first() {
                self.device.rotate(key.clone())?;
            }
        }
        if wanted.len() == 1 {
            self.device.retire()?;
        }
        Ok(())
    }

    /// Makes its peers these: tells it of those that came, changed or went.
    pub(super) fn sync<'a>(&mut self, wanted: impl Iterator<Item = &'a PeerConfig>) -> Result<(), MeshError> {
        let wanted: BTreeMap<IpAddr, PeerConfig> =
            wanted.map(|config| (config.fabric_address, config.clone())).collect();
        let changed = |(address, config): &(&IpAddr, &PeerConfig)| self.peers.get(address) != Some(config);
        let put: Vec<PeerConfig> = wanted.iter().filter(changed).map(|(_, config)| config.clone()).collect();
        let remove: Vec<IpAddr> = self.peers.keys().filter(|address| !wanted.contains_key(address)).copied().collect();
        if !put.is_empty() || !remove.is_empty() {
            self.device.peers(Change { put, remove })?;
        }
        self.peers = wanted;
        Ok(())
    }

    /// Whether a network is attached.
    pub(super) fn is_attached(&self, vni: u32) -> bool {
        self.ports.contains_key(&vni)
    }

    /// Attaches a network by a TAP, which `open` makes or finds: with so many queues and these offloads.
    pub(super) fn attach<E: From<MeshError>>(
        &mut self,
        vni: u32,
        mtu: u32,
        open: impl FnOnce(usize, Offload) -> Result<Tap, E>,
    ) -> Result<(), E> {
        let length = u16::try_from(mtu).map_err(|_| MeshError::Mtu(mtu))?;
        let tap = open(threads(), Offload::default())?;
        let port = PortConfig { vni, queues: tap.queues, mtu: length, uso: tap.offload.tap_uso, flood: false };
        self.device.attach(port).map_err(MeshError::Device)?;
        self.granted = Some(tap.offload);
        self.ports.insert(vni, HashSet::new());
        Ok(())
    }

    /// Detaches a network's TAP. Idempotent.
    pub(super) fn detach(&mut self, vni: u32) {
        if self.ports.remove(&vni).is_some() {
            // Only a network that is not attached is refused, and that is what is wanted.
            let _ = self.device.detach(vni);
        }
    }

    /// Changes a network's entries.
    pub(super) fn forward(&mut self, vni: u32, change: Change<Forward, Mac>) -> Result<(), MeshError> {
        let Some(macs) = self.ports.get_mut(&vni) else { return Ok(()) };
        if change.put.is_empty() && change.remove.is_empty() {
            return Ok(());
        }
        for mac in &change.remove {
            macs.remove(mac);
        }
        macs.extend(change.put.iter().map(|forward| forward.mac));
        Ok(self.device.forward(vni, change)?)
    }

    /// Makes a network's entries these.
    pub(super) fn sync_forwards(&mut self, vni: u32, wanted: Vec<Forward>) -> Result<(), MeshError> {
        let new: HashSet<Mac> = wanted.iter().map(|forward| forward.mac).collect();
        let gone = self.ports.get(&vni).map(|macs| macs.difference(&new).copied().collect());
        self.forward(vni, Change { put: wanted, remove: gone.unwrap_or_default() })
    }

    /// How each host is reached.
    pub(super) fn status(&self, installed: &BTreeMap<IpAddr, (NodeId, PeerConfig)>) -> Vec<v1::MeshPeer> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let peer = |peer: &skep_fabric::PeerStatistics| {
            let (node, _) = installed.get(&peer.fabric_address)?;
            let made = peer.last_handshake.map(|age| now.saturating_sub(age).as_millis());
            Some(v1::MeshPeer {
                node_id: node.to_vec(),
                endpoint: peer.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
                last_handshake_ms: made.and_then(|made| i64::try_from(made).ok()).unwrap_or_default(),
                received_bytes: peer.received.bytes,
                sent_bytes: peer.sent.bytes,
            })
        };
        self.device.statistics().peers.iter().filter_map(peer).collect()
    }

    /// What the kernel's TAPs lack, a sentence.
    pub(super) fn note(&self) -> Option<&'static str> {
        match self.granted {
            Some(granted) if !granted.tap_tso => {
                Some("the kernel's TAPs give no large frames; encrypted networks are slower")
            }
            Some(granted) if !granted.tap_uso => {
                Some("the kernel's TAPs give no large UDP frames (Linux 6.2 does); UDP is sent singly")
            }
            _ => None,
        }
    }
}
