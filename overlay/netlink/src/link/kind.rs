//! The kinds of devices, with their settings (include/uapi/linux/if_link.h).

use std::net::IpAddr;

use super::NewLink;
use crate::kernel::*;
use crate::message::Writer;

/// What a device is.
#[derive(Debug, Clone)]
pub enum LinkKind<'a> {
    /// A switch.
    Bridge(Bridge),
    /// A tunnel of Ethernet frames in UDP (RFC 7348).
    Vxlan(Vxlan),
    /// One end of a pair; the other one with all that belongs to it, of kind [`LinkKind::Peer`].
    ///
    /// The kernel makes the peer first, and ignores its master, and refuses that it is up. So the end on a bridge is
    /// the one to be made, the container's is its peer, and is set up together with its addresses.
    Veth(Box<NewLink<'a>>),
    /// The other end of a pair; only within [`LinkKind::Veth`].
    Peer,
    /// A second Ethernet address on another device.
    Macvlan(Macvlan),
    /// A device that sends to nowhere.
    Dummy,
    /// Kernel WireGuard, configured by [`crate::wireguard`].
    Wireguard,
}

/// Settings of a bridge. No spanning tree, no VLANs, nothing for nftables to see.
///
/// The last one holds only if the namespace's [`crate::sysctl::Sysctl::BridgeCallIptables`] (and
/// `BridgeCallIp6tables`) are 0 too: the kernel looks at bridged packets when either asks for it, and the namespace's
/// is 1 by default. A published port's connections from the bridge's own network then get lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bridge {
    /// Whether it looks into multicast to forward less of it. Off: no queries, no surprises in small networks.
    pub multicast_snooping: bool,
}

/// Settings of a VXLAN device. What is not here is off: learning, group policy, metadata mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    /// The network's number, 24 bits.
    pub id: u32,
    /// Where tunnelled packets come from.
    pub local: Option<IpAddr>,
    /// The device through which they are sent, in the namespace of the handle; `None`: as the routes say. It says
    /// nothing about where they may come in: the port is open on every device, and to refuse others takes a rule.
    pub device: Option<u32>,
    /// UDP port on all hosts.
    pub port: u16,
    /// Answers ARP and ND from its neighbour entries.
    pub proxy: bool,
    /// Whether the outer UDP has a checksum: over IPv4, and over IPv6, where leaving it away is an exception (RFC
    /// 6935).
    pub udp_checksum: bool,
    /// Outer time to live; `None`: the host's default.
    pub ttl: Option<u8>,
    /// Outer "don't fragment".
    pub fragment: VxlanFragment,
}

impl Vxlan {
    /// A network between hosts, without encapsulation options.
    pub fn new(id: u32, port: u16) -> Self {
        let fragment = VxlanFragment::Allowed;
        Self { id, local: None, device: None, port, proxy: false, udp_checksum: false, ttl: None, fragment }
    }
}

/// Whether routers may fragment what is tunnelled (IPv4 outside).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VxlanFragment {
    /// They may.
    #[default]
    Allowed,
    /// They must not.
    Forbidden,
    /// As the inner packet says.
    Inherit,
}

/// Settings of a macvlan device. All on one parent reach each other (mode bridge), but not the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Macvlan {
    /// The number of the device that it is on, in the namespace of the handle.
    pub parent: u32,
}

impl LinkKind<'_> {
    /// As the kernel and ip-link(8) call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bridge(_) => "bridge",
            Self::Vxlan(_) => "vxlan",
            Self::Veth(_) | Self::Peer => "veth",
            Self::Macvlan(_) => "macvlan",
            Self::Dummy => "dummy",
            Self::Wireguard => "wireguard",
        }
    }

    pub(super) fn write(&self, message: &mut Writer<'_>) {
        if let Self::Macvlan(Macvlan { parent }) = self {
            message.u32(IFLA_LINK, *parent);
        }
        message.nested(IFLA_LINKINFO, |info| {
            info.string(IFLA_INFO_KIND, self.name());
            match self {
                Self::Bridge(bridge) => info.nested(IFLA_INFO_DATA, |data| bridge.write(data)),
                Self::Vxlan(vxlan) => info.nested(IFLA_INFO_DATA, |data| vxlan.write(data)),
                Self::Veth(peer) => {
                    info.nested(IFLA_INFO_DATA, |data| data.nested(VETH_INFO_PEER, |inner| peer.write(inner)));
                }
                Self::Macvlan(_) => {
                    info.nested(IFLA_INFO_DATA, |data| data.u32(IFLA_MACVLAN_MODE, MACVLAN_MODE_BRIDGE));
                }
                Self::Peer | Self::Dummy | Self::Wireguard => {}
            }
        });
    }
}

impl Bridge {
    fn write(self, data: &mut Writer<'_>) {
        // No spanning tree and no forwarding delay: a port forwards as soon as it is up.
        data.u32(IFLA_BR_STP_STATE, 0);
        data.u32(IFLA_BR_FORWARD_DELAY, 0);
        // VLANs are off already, and kernels without them refuse to be told so.
        data.u8(IFLA_BR_MCAST_SNOOPING, u8::from(self.multicast_snooping));
        // Bridged packets that nftables sees twice are balanced twice.
        data.u8(IFLA_BR_NF_CALL_IPTABLES, 0);
        data.u8(IFLA_BR_NF_CALL_IP6TABLES, 0);
        data.u8(IFLA_BR_NF_CALL_ARPTABLES, 0);
    }
}

impl Vxlan {
    fn write(self, data: &mut Writer<'_>) {
        data.u32(IFLA_VXLAN_ID, self.id);
        match self.local {
            Some(IpAddr::V4(local)) => data.bytes(IFLA_VXLAN_LOCAL, &local.octets()),
            Some(IpAddr::V6(local)) => data.bytes(IFLA_VXLAN_LOCAL6, &local.octets()),
            None => {}
        }
        if let Some(device) = self.device {
            data.u32(IFLA_VXLAN_LINK, device);
        }
        data.be16(IFLA_VXLAN_PORT, self.port);
        data.u8(IFLA_VXLAN_LEARNING, 0);
        data.u8(IFLA_VXLAN_PROXY, u8::from(self.proxy));
        data.u8(IFLA_VXLAN_UDP_CSUM, u8::from(self.udp_checksum));
        data.u8(IFLA_VXLAN_UDP_ZERO_CSUM6_TX, u8::from(!self.udp_checksum));
        data.u8(IFLA_VXLAN_UDP_ZERO_CSUM6_RX, u8::from(!self.udp_checksum));
        if let Some(ttl) = self.ttl {
            data.u8(IFLA_VXLAN_TTL, ttl);
        }
        match self.fragment {
            // Not even mentioned, as kernels before 4.20 do not know it.
            VxlanFragment::Allowed => {}
            VxlanFragment::Forbidden => data.u8(IFLA_VXLAN_DF, 1),
            VxlanFragment::Inherit => data.u8(IFLA_VXLAN_DF, 2),
        }
    }
}
