//! The mesh by the kernel's WireGuard: a namespace with one device in it, on which networks' VXLAN devices send.
//!
//! The device is made in the host's namespace, where its UDP socket stays, and lies in a namespace of its own with nothing
//! but its address inside the mesh. So VXLAN's port is reached through the device only, and what comes from it has the
//! address of the peer that sealed it: WireGuard drops anything else. All of it lives on without netd.
//!
//! A device has one key. While this host has two, it keeps the one that it has, which all peers know, and takes the newer
//! one when it is the only one left; then it makes handshakes with all peers at once. What its peers do meanwhile is in
//! [`crate::plan::wireguard`]. Between a host's first packet under its new key and a peer's next look at its device, that
//! peer drops what comes from it: some milliseconds, in one direction.
//!
//! The device listens on all addresses of the host, as the kernel's cannot be bound to one.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use skep_fabric::{PeerConfig, PrivateKey};
use skep_netlink::link::{LinkChange, LinkKind, NewLink};
use skep_netlink::sysctl::{Scope, Sysctl};
use skep_netlink::wireguard::{DeviceSettings, Key, Peer, PeerSettings, Wireguard};
use skep_netlink::{Changes, Inside, Namespace, NetlinkError, Prefix, Rtnetlink};
use skep_proto::id::NodeId;
use skep_proto::v1;

use super::{Identity, MeshError};
use crate::plan::wireguard::{Told, step};
use crate::sandbox::Sandboxes;

/// The device.
const DEVICE: &str = "skep-mesh";
/// Its number: one that no device of the host and no network's VXLAN device has, as kernels before 6.14 take them for the
/// same one.
const INDEX: u32 = 0x4000_0001;
/// File of the namespace in the mesh's folder.
const NET: &str = "net";
/// Length of the mesh's prefix, 100.64.0.0/10.
const LENGTH: u8 = 10;
/// What VXLAN adds to a network's packets.
const VXLAN: u32 = 50;
/// What fits an Ethernet in WireGuard over IPv6; the device starts with it.
const MTU: u32 = 1420;
/// How long peers stay that an earlier netd had and no table names yet.
const ADOPTED: Duration = Duration::from_secs(60);

/// The device, and what it was told.
#[derive(Debug)]
pub(super) struct Kernel {
    rtnetlink: Rtnetlink,
    wireguard: Wireguard,
    /// Inside the mesh.
    address: IpAddr,
    told: Told,
    /// Found, not made; peers that nobody names stay until then.
    adopted: Option<Instant>,
    two_keys: bool,
}

/// Time since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Sysctls of its namespace: nothing passes through it, and IPv6 has no business there.
fn prepare(inside: &Inside) -> Result<(), NetlinkError> {
    inside.write_sysctls(&[
        (Sysctl::Ipv4Forward, "0"),
        (Sysctl::DisableIpv6(Scope::Default), "1"),
        (Sysctl::RpFilter(Scope::All), "0"),
        (Sysctl::RpFilter(Scope::Default), "0"),
    ])
}

/// Removes what an earlier netd left of the mesh in a folder. Idempotent.
pub(super) fn remove(dir: &Path) -> Result<(), MeshError> {
    let path = dir.join(NET);
    if let Ok(namespace) = Namespace::open(&path) {
        // Not left to the namespace's end: that comes later, and the UDP port would be taken until then.
        crate::link::remove(&namespace.enter(Inside::rtnetlink)?, DEVICE)?;
    }
    if dir.exists() {
        Namespace::remove(&path)?;
        Sandboxes::open(dir)?.close()?;
    }
    Ok(())
}

impl Kernel {
    /// Makes the device, or finds it, with this host's key, port and address.
    pub(super) fn start(dir: &Path, host: &Rtnetlink, identity: &Identity) -> Result<Self, MeshError> {
        Sandboxes::open(dir)?;
        let path = dir.join(NET);
        let open = |inside: &Inside| Ok::<_, NetlinkError>((inside.rtnetlink()?, inside.wireguard()?));
        let (namespace, (rtnetlink, wireguard)) = match Namespace::open(&path) {
            Ok(namespace) => {
                let handles = namespace.enter(open)?;
                (namespace, handles)
            }
            Err(_) => Namespace::create(&path, |inside| {
                prepare(inside)?;
                open(inside)
            })?,
        };
        let found = rtnetlink.link(DEVICE)?.is_some();
        if !found {
            let kind = LinkKind::Wireguard;
            let mut changes = Changes::new();
            changes.add_link(&NewLink {
                index: Some(INDEX),
                mtu: Some(MTU),
                namespace: Some(namespace.as_fd()),
                ..NewLink::new(DEVICE, kind)
            });
            host.apply(&changes)?;
        }
        let adopted = found.then(|| Instant::now() + ADOPTED);
        let address = identity.address;
        let mut this = Self { rtnetlink, wireguard, address, told: Told::new(), adopted, two_keys: false };
        this.follow(identity)?;
        Ok(this)
    }

    /// Makes the device's key, port and address those of the host.
    pub(super) fn follow(&mut self, identity: &Identity) -> Result<(), MeshError> {
        let Identity { keys, listen, address } = identity;
        let found = self.wireguard.device(DEVICE)?;
        let before = found.public_key.map(|key| key.0);
        let key = choose(before, keys);
        let port = listen.port();
        if key.is_some() || found.port != port {
            let private_key = key.map(|key| Key(key.to_bytes()));
            self.tell(DeviceSettings { private_key, port: Some(port), ..DeviceSettings::default() })?;
        }
        let link = self.rtnetlink.link(DEVICE)?;
        let mut changes = Changes::new();
        if link.is_some_and(|link| !link.up) {
            changes.change_link(INDEX, &LinkChange { up: Some(true), ..LinkChange::default() });
        }
        let wanted = Prefix { address: *address, length: LENGTH };
        let addresses = self.rtnetlink.addresses()?;
        let mut there = false;
        for other in addresses.iter().filter(|found| found.device == INDEX) {
            if other.prefix == wanted {
                there = true;
            } else {
                changes.delete_address(INDEX, other.prefix);
            }
        }
        if !there {
            changes.add_address(INDEX, wanted);
        }
        self.rtnetlink.apply(&changes)?;
        self.address = *address;
        if key.is_some() && before.is_some() {
            self.shake_hands(&found.peers)?;
        }
        Ok(())
    }

    /// This host's address inside the mesh.
    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// Makes handshakes with all peers at once: an interval that is set anew makes the kernel send something.
    fn shake_hands(&self, peers: &[Peer]) -> Result<(), MeshError> {
        for zero in [true, false] {
            let of = |peer: &Peer| PeerSettings {
                keepalive: Some(if zero { Duration::ZERO } else { peer.keepalive }),
                ..PeerSettings::new(peer.public_key, peer.allowed.clone())
            };
            let peers = peers.iter().filter(|peer| !peer.keepalive.is_zero()).map(of).collect();
            self.tell(DeviceSettings { peers, ..DeviceSettings::default() })?;
        }
        Ok(())
    }

    fn tell(&self, settings: DeviceSettings) -> Result<(), MeshError> {
        Ok(self.wireguard.configure(DEVICE, &settings)?)
    }

    /// Makes the device's peers these.
    pub(super) fn sync<'a>(&mut self, wanted: impl Iterator<Item = &'a PeerConfig> + Clone) -> Result<(), MeshError> {
        self.adopted = self.adopted.filter(|until| Instant::now() < *until);
        let found = self.wireguard.device(DEVICE)?.peers;
        let step = step(&found, &self.told, wanted.clone(), self.adopted.is_some(), now());
        self.two_keys = step.two_keys;
        if !step.peers.is_empty() {
            self.tell(DeviceSettings { peers: step.peers, ..DeviceSettings::default() })?;
        }
        let keys = |config: &'a PeerConfig| config.public_keys.iter().map(|key| (Key(*key), config.endpoint));
        self.told = wanted.flat_map(keys).collect();
        Ok(())
    }

    /// Whether its peers have to be looked at again although no table changes, and whether soon.
    pub(super) fn is_unsettled(&self) -> Option<bool> {
        match (self.two_keys, self.adopted) {
            (true, _) => Some(true),
            (false, Some(_)) => Some(false),
            (false, None) => None,
        }
    }

    /// Where VXLAN devices of a network with such packets are to be made.
    pub(super) fn carry(&self, mtu: u32) -> Result<&Rtnetlink, MeshError> {
        let link = self.rtnetlink.link(DEVICE)?;
        if link.is_some_and(|link| link.mtu < mtu + VXLAN) {
            let mut changes = Changes::new();
            changes.change_link(INDEX, &LinkChange { mtu: Some(mtu + VXLAN), ..LinkChange::default() });
            self.rtnetlink.apply(&changes)?;
        }
        Ok(&self.rtnetlink)
    }

    /// How each host is reached.
    pub(super) fn status(
        &self,
        installed: &BTreeMap<IpAddr, (NodeId, PeerConfig)>,
    ) -> Result<Vec<v1::MeshPeer>, MeshError> {
        let found = self.wireguard.device(DEVICE)?.peers;
        let found: HashMap<[u8; 32], &Peer> = found.iter().map(|peer| (peer.public_key.0, peer)).collect();
        let of = |(node, config): &(NodeId, PeerConfig)| {
            let peers: Vec<&Peer> = config.public_keys.iter().filter_map(|key| found.get(key).copied()).collect();
            let active = peers.iter().find(|peer| !peer.allowed.is_empty());
            let made = peers.iter().filter_map(|peer| peer.last_handshake).max();
            v1::MeshPeer {
                node_id: node.to_vec(),
                endpoint: active
                    .and_then(|peer| peer.endpoint)
                    .map(|endpoint: SocketAddr| endpoint.to_string())
                    .unwrap_or_default(),
                last_handshake_ms: made.and_then(|made| i64::try_from(made.as_millis()).ok()).unwrap_or_default(),
                received_bytes: peers.iter().map(|peer| peer.rx_bytes).sum(),
                sent_bytes: peers.iter().map(|peer| peer.tx_bytes).sum(),
            }
        };
        Ok(installed.values().map(of).collect())
    }

    /// Removes the device. Networks' VXLAN devices stay, and send again through the next one.
    pub(super) fn stop(&self) -> Result<(), MeshError> {
        Ok(crate::link::remove(&self.rtnetlink, DEVICE)?)
    }
}

/// The key that the device has to be given; `None`: it has the right one. `keys`: newest first.
fn choose(has: Option<[u8; 32]>, keys: &[PrivateKey]) -> Option<&PrivateKey> {
    let oldest = keys.last()?;
    let right = has.is_some_and(|has| keys.iter().any(|key| key.public() == has));
    (!right).then_some(oldest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_changes_over_when_it_must() {
        let [old, new] = [1, 2].map(|byte| PrivateKey::from_bytes([byte; 32]));
        let chosen = |has: Option<&PrivateKey>, keys: &[&PrivateKey]| {
            let keys: Vec<PrivateKey> = keys.iter().map(|key| (*key).clone()).collect();
            choose(has.map(PrivateKey::public), &keys).map(PrivateKey::public)
        };
        assert_eq!(chosen(None, &[&new, &old]), Some(old.public()));
        assert_eq!(chosen(Some(&old), &[&new, &old]), None);
        assert_eq!(chosen(Some(&new), &[&new, &old]), None);
        assert_eq!(chosen(Some(&old), &[&new]), Some(new.public()));
    }
}
