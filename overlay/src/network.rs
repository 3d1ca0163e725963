//! A network on this host: a namespace with a bridge, the way to other hosts (a VXLAN device, or a TAP of the mesh's), and the
//! way out (a pair of
//! devices to the host).
//!
//! Driven by [`crate::netd`], under the network's own lock, on threads that may block. What is there already is left as it
//! is, and what is wrong is made right, so that a netd that was killed anywhere goes on. Never touches sandboxes.

mod check;
pub mod plug;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use skep_fabric::tap;
use skep_netlink::link::{Bridge, Link, LinkChange, LinkKind, NewLink, Vxlan, VxlanLink};
use skep_netlink::neighbour::{Neighbour, NeighbourChange};
use skep_netlink::nft::{
    BaseChain, ChainType, ConnectionState, Element, Family, Hook, Nft, Rule, Selector, Set, Table, Transaction,
    Transport, Value, Verdict,
};
use skep_netlink::route::Route;
use skep_netlink::sysctl::{Scope, Sysctl};
use skep_netlink::{Changes, Inside, MacAddress, Namespace, NetlinkError, Prefix, Rtnetlink};

use crate::host::Host;
use crate::link;
use crate::mesh::{self, Mesh, MeshError};
use crate::plan;
use crate::plan::ingress::Port;
use crate::plan::out;

/// The bridge's number in its namespace.
pub const BRIDGE: u32 = 2;
/// The number of the overlay's port: one that no device of the host has, as kernels before 6.14 take that for the same one.
pub const PORT: u32 = 0x4000_0000;
/// The number of the way out.
const OUT: u32 = 4;
/// File of the namespace in the network's folder.
const NET: &str = "net";
/// File with the network's index on this host.
const INDEX: &str = "index";
/// Device of the way to other hosts.
const OVERLAY: &str = "overlay";
/// What a way out carries at least.
const ETHERNET: u32 = 1500;
/// Why a network cannot be made or changed on this host.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused something.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The mesh does not take it.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// A file of netd's folder.
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

/// How frames of a network reach other hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverlayPort {
    /// A VXLAN device on the underlay.
    Vxlan {
        /// The network's number.
        vni: u32,
        /// This host's address.
        local: IpAddr,
        /// UDP port on all hosts.
        port: u16,
    },
    /// A VXLAN device on the kernel's device of the mesh.
    Sealed {
        /// The network's number.
        vni: u32,
        /// This host's address inside the mesh.
        local: IpAddr,
    },
    /// A TAP of skep's own device of the mesh.
    Fabric {
        /// The network's number.
        vni: u32,
        /// Which of this process's devices it is.
        device: u64,
    },
    /// Not at all: each host has its own.
    Local,
}

impl OverlayPort {
    /// The network's number, where it is in the mesh.
    pub fn in_mesh(self) -> Option<u32> {
        match self {
            Self::Sealed { vni, .. } | Self::Fabric { vni, .. } => Some(vni),
            Self::Vxlan { .. } | Self::Local => None,
        }
    }
}

/// What a network is to be on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Names its devices in the host's namespace: 12 characters at most, of no other network.
    pub short: String,
    /// Addresses of the bridge with their subnets; the first is the one that it sends from.
    pub addresses: Vec<Prefix>,
    /// The bridge's Ethernet address.
    pub mac: MacAddress,
    /// Largest packet.
    pub mtu: u32,
    /// The way to other hosts.
    pub port: OverlayPort,
    /// The number of its way out; `None`: internal.
    pub out: Option<u16>,
}

impl Wanted {
    /// Whether it has IPv6.
    pub fn ipv6(&self) -> bool {
        self.addresses.iter().any(|prefix| prefix.address.is_ipv6())
    }
}

/// A network's namespace with what is open in it.
#[derive(Debug)]
pub struct LiveNetwork {
    dir: PathBuf,
    wanted: Wanted,
    namespace: Namespace,
    rtnetlink: Rtnetlink,
    nft: Arc<Nft>,
    /// Its bridge forwards to other hosts: it has since it was first seen to.
    way_forwards: AtomicBool,
}

/// The name of a network's device in the host's namespace.
pub fn out_name(short: &str) -> String {
    format!("{}{short}", out::DEVICES)
}

/// The index that a network in the folder has had, if it has one.
pub fn index_of(dir: &Path) -> Option<u16> {
    fs::read_to_string(dir.join(INDEX)).ok()?.trim().parse().ok()
}

/// Whether there is a namespace of a network in the folder.
pub fn is_there(dir: &Path) -> bool {
    Namespace::open(&dir.join(NET)).is_ok()
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetworkError {
    let path = path.to_owned();
    move |source| NetworkError::File { action, path, source }
}

impl LiveNetwork {
    /// Makes the network, or finds it and makes it right. When it fails, what was newly made is gone again.
    pub fn ensure(dir: &Path, wanted: &Wanted, host: &Host, mesh: &Mesh) -> Result<Self, NetworkError> {
        fs::create_dir_all(dir).map_err(file("make", dir))?;
        if let Some(index) = wanted.out {
            let path = dir.join(INDEX);
            fs::write(&path, index.to_string()).map_err(file("write", &path))?;
        }
        let path = dir.join(NET);
        let open =
            |inside: &Inside| Ok::<_, NetlinkError>((inside.rtnetlink()?, Arc::new(inside.nft()?.remembering())));
        let (namespace, (rtnetlink, nft), fresh) = match Namespace::open(&path) {
            Ok(namespace) => {
                let handles = namespace.enter(open)?;
                (namespace, handles, false)
            }
            Err(_) => {
                let setup = |inside: &Inside| {
                    prepare(inside, wanted)?;
                    open(inside)
                };
                let (namespace, handles) = Namespace::create(&path, setup)?;
                (namespace, handles, true)
            }
        };
        let this = Self {
            dir: dir.to_owned(),
            wanted: wanted.clone(),
            namespace,
            rtnetlink,
            nft,
            way_forwards: AtomicBool::new(false),
        };
        match this.complete(host, mesh) {
            Ok(()) => Ok(this),
            Err(error) => {
                if fresh {
                    if let Some(vni) = wanted.port.in_mesh() {
                        let _ = mesh.leave(vni);
                    }
                    // The first error is the one to tell.
                    let _ = this.remove();
                }
                Err(error)
            }
        }
    }

    /// Adds what is missing, and replaces what is wrong.
    fn complete(&self, host: &Host, mesh: &Mesh) -> Result<(), NetworkError> {
        let wanted = &self.wanted;
        let links = self.rtnetlink.links()?;
        let find = |name: &str| links.iter().find(|link| link.name == name);
        let mut changes = Changes::new();
        let bridge = find("br0");
        if bridge.is_none() {
            let kind = LinkKind::Bridge(Bridge::default());
            changes.add_link(&NewLink {
                index: Some(BRIDGE),
                mtu: Some(wanted.mtu),
                mac: Some(wanted.mac),
                up: true,
                ..NewLink::new("br0", kind)
            });
        } else if bridge.is_some_and(|link| link.mac != Some(wanted.mac) || link.mtu != wanted.mtu || !link.up) {
            let mac = Some(wanted.mac);
            changes.change_link(
                BRIDGE,
                &LinkChange { mac, mtu: Some(wanted.mtu), up: Some(true), ..LinkChange::default() },
            );
        }
        let found = match bridge {
            Some(_) => self.rtnetlink.addresses()?,
            None => Vec::new(),
        };
        let ours = || found.iter().filter(|address| address.device == BRIDGE && !is_link_local(address.prefix.address));
        let there: Vec<Prefix> = ours().map(|address| address.prefix).collect();
        if there != wanted.addresses {
            // The first of a subnet last: the kernel takes the others away with it.
            for prefix in there.iter().rev() {
                changes.delete_address(BRIDGE, *prefix);
            }
            for prefix in &wanted.addresses {
                changes.add_address(BRIDGE, *prefix);
            }
        }
        self.rtnetlink.apply(&changes)?;
        let port = find(OVERLAY);
        match wanted.port {
            OverlayPort::Vxlan { vni, local, port: number } => {
                let vxlan = Vxlan { local: Some(local), proxy: true, ..Vxlan::new(vni, number) };
                self.complete_vxlan(host.rtnetlink(), vxlan, port)?;
            }
            OverlayPort::Sealed { vni, local } => {
                let vxlan = Vxlan { local: Some(local), proxy: true, ..Vxlan::new(vni, mesh::VXLAN_PORT) };
                let make = |inside: &Rtnetlink| Ok::<_, NetworkError>(self.complete_vxlan(inside, vxlan, port)?);
                mesh.carry(wanted.mtu, make)?;
            }
            OverlayPort::Fabric { vni, .. } => self.complete_tap(mesh, vni, port)?,
            OverlayPort::Local => {}
        }
        if let Some(index) = wanted.out {
            self.complete_out(host, index, find("out0").is_some())?;
        }
        self.nft.commit(&self.rules())?;
        Ok(())
    }

    /// The device is made in the namespace of `underlay`, where its tunnel stays, and lies in the network's.
    fn complete_vxlan(&self, underlay: &Rtnetlink, vxlan: Vxlan, found: Option<&Link>) -> Result<(), NetlinkError> {
        let right = Some(VxlanLink { id: vxlan.id, port: vxlan.port, local: vxlan.local });
        if found.is_some_and(|link| {
            let here = link.index == PORT && link.master.is_some();
            here && link.vxlan == right && link.mtu == self.wanted.mtu
        }) {
            return Ok(());
        }
        if found.is_some() {
            link::remove(&self.rtnetlink, OVERLAY)?;
        }
        let mut changes = Changes::new();
        changes.add_link(&NewLink {
            index: Some(PORT),
            mtu: Some(self.wanted.mtu),
            namespace: Some(self.namespace.as_fd()),
            ..NewLink::new(OVERLAY, LinkKind::Vxlan(vxlan))
        });
        underlay.apply(&changes)?;
        let mut changes = Changes::new();
        changes.change_link(PORT, &LinkChange { master: Some(BRIDGE), up: Some(true), ..LinkChange::default() });
        self.rtnetlink.apply(&changes)
    }

    /// The TAP stays when netd ends, with its place in the bridge; it is opened again then.
    fn complete_tap(&self, mesh: &Mesh, vni: u32, found: Option<&Link>) -> Result<(), NetworkError> {
        let mtu = self.wanted.mtu;
        let is_tap = found.is_some_and(|link| link.kind.as_deref() == Some("tun"));
        if found.is_some() && !is_tap {
            link::remove(&self.rtnetlink, OVERLAY)?;
        }
        if !is_tap || found.is_some_and(|link| link.mtu != mtu) {
            mesh.detach(vni);
        }
        if !mesh.is_attached(vni) {
            mesh.attach(vni, mtu, |queues, offload| {
                let open =
                    |_: &Inside| Ok::<_, NetworkError>(tap::open(OVERLAY, queues, offload).map_err(MeshError::Tap)?);
                self.namespace.enter(open)
            })?;
        }
        let mut changes = Changes::new();
        let change = LinkChange { mtu: Some(mtu), master: Some(BRIDGE), up: Some(true), ..LinkChange::default() };
        changes.change_link(OVERLAY, &change);
        Ok(self.rtnetlink.apply(&changes)?)
    }

    fn complete_out(&self, host: &Host, index: u16, there: bool) -> Result<(), NetlinkError> {
        let name = out_name(&self.wanted.short);
        let pairs = out::pairs(index, self.wanted.ipv6());
        // Whatever the network carries comes as far as the host, which knows what lies behind.
        let mtu = self.wanted.mtu.max(ETHERNET);
        if !there {
            host.clear_out(&name, index)?;
            let namespace = Some(host.namespace().as_fd());
            let peer = NewLink { namespace, mtu: Some(mtu), ..NewLink::new(&name, LinkKind::Peer) };
            let mut changes = Changes::new();
            let kind = LinkKind::Veth(Box::new(peer));
            changes.add_link(&NewLink { index: Some(OUT), mtu: Some(mtu), up: true, ..NewLink::new("out0", kind) });
            self.rtnetlink.apply(&changes)?;
        }
        // Both ends live and die together; the addresses were given right after.
        let outer: Vec<Prefix> = pairs.iter().map(|(outer, _)| *outer).collect();
        host.ensure_addresses(&name, &outer, mtu)?;
        let found = self.rtnetlink.addresses()?;
        let mut changes = Changes::new();
        changes.change_link(OUT, &LinkChange { mtu: Some(mtu), ..LinkChange::default() });
        for (outer, inner) in &pairs {
            if !found.iter().any(|address| address.device == OUT && address.prefix == *inner) {
                changes.add_address(OUT, *inner);
            }
            let default = if inner.address.is_ipv4() { Prefix::DEFAULT_V4 } else { Prefix::DEFAULT_V6 };
            changes.replace_route(&Route::gateway(default, outer.address));
        }
        self.rtnetlink.apply(&changes)
    }

    /// The way out, and that nothing comes in but replies and what was published.
    fn rules(&self) -> Transaction {
        let mut transaction = Transaction::new();
        for family in self.families() {
            let table = Table::new(family, "skep");
            if self.wanted.out.is_none() {
                transaction.remove_table(&table);
                continue;
            }
            transaction.reset_table(&table);
            transaction.add_base_chain(&table, "out", BaseChain::new(ChainType::Nat, Hook::Postrouting, 100));
            transaction.add_base_chain(&table, "in", BaseChain::new(ChainType::Filter, Hook::Forward, 0));
            let rule = || Rule::new(family);
            transaction.add_rule(&table, "out", &rule().output_device("out0").masquerade());
            let known = ConnectionState::ESTABLISHED.or(ConnectionState::RELATED);
            let from_host = || rule().input_device("out0");
            transaction.add_rule(&table, "in", &from_host().state(known).verdict(Verdict::Accept));
            transaction.add_rule(&table, "in", &from_host().was_redirected().verdict(Verdict::Accept));
            transaction.add_rule(&table, "in", &from_host().verdict(Verdict::Drop));
            // Nobody listens here. Refused before it is a connection: a sender of datagrams would go on with that one when
            // the port is published again.
            transaction.add_base_chain(&table, "here", BaseChain::new(ChainType::Filter, Hook::Input, 0));
            let key = [Selector::Protocol];
            transaction.add_set(&table, &Set::new("listened", &key.map(Selector::field)));
            let transports = [Transport::Tcp, Transport::Udp].map(|each| Element::new(Value::new().protocol(each)));
            transaction.add_elements(&table, "listened", &transports);
            let asked = || from_host().in_set(&key, "listened");
            transaction.add_rule(&table, "here", &from_host().state(known).verdict(Verdict::Accept));
            transaction.add_rule(&table, "here", &asked().reset());
            transaction.add_rule(&table, "here", &asked().reject());
        }
        transaction
    }

    /// The families that it has.
    fn families(&self) -> impl Iterator<Item = Family> {
        [Family::Ip, Family::Ip6].into_iter().take(1 + usize::from(self.wanted.ipv6()))
    }

    /// Makes right what others may have changed meanwhile.
    pub fn check(&self) -> Result<(), NetlinkError> {
        self.namespace.enter(stay_out_of_the_bridge)
    }

    /// What it was made as.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// nftables in it.
    pub fn nft(&self) -> &Arc<Nft> {
        &self.nft
    }

    /// Changes entries for other hosts' endpoints.
    pub fn change_neighbours(&self, changes: &[NeighbourChange]) -> Result<(), NetlinkError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.rtnetlink.change_neighbours(changes)
    }

    /// Makes the entries for other hosts' endpoints these.
    pub fn sync_neighbours(&self, wanted: impl Iterator<Item = Neighbour>) -> Result<(), NetlinkError> {
        let of_port = |entry: &Neighbour| match *entry {
            Neighbour::Host { device, .. } | Neighbour::Tunnel { device, .. } => device == PORT,
            Neighbour::Port { .. } => false,
        };
        let found = self.rtnetlink.neighbours()?.into_iter().filter(of_port);
        self.change_neighbours(&plan::forwarding::difference(found, wanted))
    }

    /// Leads published ports of mode host on to their tasks; replaces what was said before.
    pub fn publish<'a>(&self, ports: impl Iterator<Item = (&'a Port, IpAddr)>) -> Result<(), NetlinkError> {
        let mut transaction = Transaction::new();
        let tables = self.families().map(|family| Table::new(family, "skep-ports"));
        let tables: Vec<Table> = tables.collect();
        for table in &tables {
            transaction.reset_table(table);
            transaction.add_base_chain(table, "in", BaseChain::new(ChainType::Nat, Hook::Prerouting, -100));
        }
        for (port, address) in ports {
            let Some(table) = tables.iter().find(|table| (table.family == Family::Ip6) == address.is_ipv6()) else {
                continue;
            };
            let rule = Rule::new(table.family).input_device("out0").local_destination();
            let rule = rule.destination_port(port.transport, port.published);
            transaction.add_rule(table, "in", &rule.destination_nat(address, Some(port.target)));
        }
        self.nft.commit(&transaction)
    }

    /// Leads replies of the routing mesh's backends back to this host, by its addresses there. `keep`: only those to the
    /// host itself and to its own tasks, whose addresses mean nothing elsewhere.
    pub fn source_ingress(&self, own: &[IpAddr], keep: bool) -> Result<(), NetlinkError> {
        let mut transaction = Transaction::new();
        for family in self.families() {
            let table = Table::new(family, "skep-source");
            transaction.reset_table(&table);
            transaction.add_base_chain(&table, "out", BaseChain::new(ChainType::Nat, Hook::Postrouting, 90));
            let rule = Rule::new(family).output_device("br0").was_redirected();
            let rule = if keep { rule.source(out::all(family == Family::Ip6)) } else { rule };
            let rule = match own.iter().find(|address| address.is_ipv6() == (family == Family::Ip6)) {
                Some(address) => rule.source_nat(*address),
                None => rule.masquerade(),
            };
            transaction.add_rule(&table, "out", &rule);
        }
        self.nft.commit(&transaction)
    }

    /// Removes it with all that is in it.
    pub fn remove(&self) -> Result<(), NetworkError> {
        // Not left to the namespace's end: that comes later, and a VXLAN's number would be taken until then.
        for name in [OVERLAY, "out0", "br0"] {
            link::remove(&self.rtnetlink, name)?;
        }
        remove_dir(&self.dir)
    }
}

/// Removes the network in a folder, whatever it was.
pub fn remove(dir: &Path) -> Result<(), NetworkError> {
    if let Ok(namespace) = Namespace::open(&dir.join(NET)) {
        let rtnetlink = namespace.enter(Inside::rtnetlink)?;
        for name in [OVERLAY, "out0", "br0"] {
            link::remove(&rtnetlink, name)?;
        }
    }
    remove_dir(dir)
}

fn remove_dir(dir: &Path) -> Result<(), NetworkError> {
    Namespace::remove(&dir.join(NET))?;
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", dir)(error)),
        _ => Ok(()),
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// The sysctls of a new network's namespace.
fn prepare(inside: &Inside, wanted: &Wanted) -> Result<(), NetlinkError> {
    let kept = sysctls(wanted).into_iter().filter(|(sysctl, ..)| !is_bridged(sysctl));
    let mut sysctls: Vec<(Sysctl, &str)> = kept.map(|(sysctl, value, _)| (sysctl, value)).collect();
    sysctls.push(match wanted.ipv6() {
        false => (Sysctl::DisableIpv6(Scope::Default), "1"),
        // Nobody else has its addresses: not to be waited for.
        true => (Sysctl::AcceptDad(Scope::Default), "0"),
    });
    inside.write_sysctls(&sysctls)?;
    stay_out_of_the_bridge(inside)
}

/// Where a kernel has br_netfilter, nftables would see each packet twice. It may be loaded at any time, and is on then, in
/// all namespaces.
fn stay_out_of_the_bridge(inside: &Inside) -> Result<(), NetlinkError> {
    for sysctl in [Sysctl::BridgeCallIptables, Sysctl::BridgeCallIp6tables] {
        if inside.sysctl(&sysctl).is_ok_and(|value| value != "0") {
            inside.write_sysctls(&[(sysctl, "0")])?;
        }
    }
    Ok(())
}

fn is_bridged(sysctl: &Sysctl) -> bool {
    matches!(sysctl, Sysctl::BridgeCallIptables | Sysctl::BridgeCallIp6tables)
}

/// What they are to be for as long as the network is there, and what goes wrong else.
fn sysctls(wanted: &Wanted) -> Vec<(Sysctl, &'static str, &'static str)> {
    let (forward, lost) = match wanted.out {
        Some(_) => ("1", "its tasks do not get out, and published ports do not lead in"),
        None => ("0", "it is internal, and must not lead anywhere"),
    };
    let reverse = "packets are dropped whose way back is another one";
    let twice = "rules see packets twice, and balance them wrongly";
    let mut all = vec![
        (Sysctl::Ipv4Forward, forward, lost),
        (Sysctl::RpFilter(Scope::All), "0", reverse),
        (Sysctl::RpFilter(Scope::Default), "0", reverse),
        (Sysctl::BridgeCallIptables, "0", twice),
        (Sysctl::BridgeCallIp6tables, "0", twice),
    ];
    if wanted.ipv6() {
        all.push((Sysctl::Ipv6Forward, forward, lost));
    }
    all
}
