//! What a network's definition means on this host. Pure but for the question how large the underlay's packets are.

use std::net::{IpAddr, SocketAddr};

use skep_netlink::Prefix;
use skep_proto::id::NetworkId;
use skep_proto::v1;

use super::{Config, NetdError};
use crate::network::{OverlayPort, Wanted};
use crate::plan::mac_of;
use crate::plan::mtu::{Carrier, mtu};
use crate::table::Table;

/// The host's own bridge, which no manager knows: an id that no network has by chance.
pub(super) const LOCAL: NetworkId = NetworkId::new(1);
/// Its subnet. It lies in a namespace of its own, so it only hides addresses from its tasks.
pub(super) const LOCAL_SUBNET: &str = "172.29.0.0/16";
/// Largest packet of networks that have no underlay.
const ETHERNET: u32 = 1500;

/// A network's subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subnet {
    /// Address and length.
    pub(super) prefix: Prefix,
    /// Within it.
    pub(super) gateway: Option<IpAddr>,
}

/// The definition of the host's own bridge.
pub(super) fn local() -> v1::Network {
    let spec = v1::NetworkSpec { driver: v1::NetworkDriver::Bridge.into(), ..v1::NetworkSpec::default() };
    let subnet =
        v1::Subnet { subnet: LOCAL_SUBNET.to_owned(), gateway: "172.29.0.1".to_owned(), ..v1::Subnet::default() };
    v1::Network { id: LOCAL.to_vec(), spec: Some(spec), subnets: vec![subnet], ..v1::Network::default() }
}

/// Its subnets.
pub(super) fn subnets(network: &v1::Network) -> Result<Vec<Subnet>, NetdError> {
    let read = |subnet: &v1::Subnet| {
        let prefix = subnet.subnet.parse::<Prefix>();
        let prefix = prefix.map_err(|error| NetdError::Refused(format!("network {}: {error}", name(network))))?;
        Ok(Subnet { prefix, gateway: subnet.gateway.parse().ok() })
    };
    network.subnets.iter().map(read).collect()
}

/// Its name.
pub(super) fn name(network: &v1::Network) -> &str {
    network.spec.as_ref().map_or("", |spec| spec.name.as_str())
}

/// Whether it has no way out.
pub(super) fn internal(network: &v1::Network) -> bool {
    network.spec.as_ref().is_some_and(|spec| spec.internal)
}

/// Whether it is the routing mesh's.
pub(super) fn ingress(network: &v1::Network) -> bool {
    network.spec.as_ref().is_some_and(|spec| spec.ingress)
}

/// Whether each host has its own of it, apart from the others'.
pub(super) fn local_only(network: &v1::Network) -> bool {
    network.spec.as_ref().is_some_and(|spec| spec.driver() == v1::NetworkDriver::Bridge)
}

/// Whether it leads clients' connections on with their own addresses.
pub(super) fn keep_source(network: &v1::Network) -> bool {
    ingress(network) && option(network, "keep-source") == Some("true")
}

/// Its option of a name.
pub(super) fn option<'a>(network: &'a v1::Network, name: &str) -> Option<&'a str> {
    network.spec.as_ref()?.options.get(name).map(String::as_str)
}

/// Whether its packets are sealed between hosts: overlays are, unless they were made otherwise.
pub(super) fn encrypted(network: &v1::Network) -> bool {
    let driver = network.spec.as_ref().map_or(v1::NetworkDriver::Overlay, v1::NetworkSpec::driver);
    driver == v1::NetworkDriver::Overlay && option(network, "encrypted") != Some("false")
}

/// The prefix that an address has on it, and its gateway.
pub(super) fn place(subnets: &[Subnet], address: IpAddr) -> Option<(Prefix, Option<IpAddr>)> {
    let subnet = subnets.iter().find(|subnet| {
        let length = subnet.prefix.length;
        Prefix::new(address, length).is_some_and(|prefix| {
            address.is_ipv4() == subnet.prefix.address.is_ipv4() && prefix.network() == subnet.prefix.network()
        })
    })?;
    Some((Prefix { address, length: subnet.prefix.length }, subnet.gateway))
}

/// This host's own addresses on the network, where it is the routing mesh's.
pub(super) fn own_ingress<'a>(network: &v1::Network, table: &'a Table, config: &Config) -> &'a [IpAddr] {
    table.peer(config.node).filter(|_| ingress(network)).map_or(&[], |own| &own.addresses)
}

/// What the network's namespace is to be. `underlay`: the largest packet of the device with an address. `sealed`: the way
/// that a network of a number has through the mesh, whose device runs then.
pub(super) fn wanted(
    network: &v1::Network,
    table: &Table,
    config: &Config,
    short: String,
    out: Option<u16>,
    underlay: impl Fn(IpAddr) -> Result<u32, NetdError>,
    sealed: impl Fn(u32) -> Result<OverlayPort, NetdError>,
) -> Result<Wanted, NetdError> {
    let subnets = subnets(network)?;
    let host: Option<IpAddr> = config.request.vxlan_addr.parse().ok();
    let driver = network.spec.as_ref().map_or(v1::NetworkDriver::Overlay, v1::NetworkSpec::driver);
    let (port, carrier, largest) = match (driver, host) {
        (v1::NetworkDriver::Overlay, _) if encrypted(network) => {
            let port = sealed(network.vni)?;
            let underlay = match config.request.wireguard_addr.parse::<SocketAddr>() {
                Ok(listen) => underlay(listen.ip())?,
                Err(_) => ETHERNET,
            };
            (port, Carrier::Encrypted, underlay)
        }
        (v1::NetworkDriver::Overlay, None) => {
            return Err(NetdError::Refused(format!(
                "network {} waits for this host's address, which its agent has not told yet",
                name(network)
            )));
        }
        (v1::NetworkDriver::Overlay, Some(local)) => {
            let port = OverlayPort::Vxlan { vni: network.vni, local, port: table.data_path_port.0 };
            (port, Carrier::Plain(local), underlay(local)?)
        }
        (_, Some(host)) => (OverlayPort::Local, Carrier::Local, underlay(host)?.min(ETHERNET)),
        (_, None) => (OverlayPort::Local, Carrier::Local, ETHERNET),
    };
    // The routing mesh answers from the host's own address, so that comes first, and gives the bridge its Ethernet address.
    let own = own_ingress(network, table, config).iter().copied();
    let gateways = subnets.iter().filter_map(|subnet| subnet.gateway);
    let addresses: Vec<IpAddr> = own.chain(gateways).collect();
    let Some(mac) = mac_of(&addresses) else {
        return Err(NetdError::Refused(format!("network {} has no gateway", name(network))));
    };
    let addresses = addresses.into_iter().filter_map(|address| place(&subnets, address)).map(|(prefix, _)| prefix);
    let ipv6 = subnets.iter().any(|subnet| subnet.prefix.address.is_ipv6());
    let mtu = mtu(largest, carrier, option(network, "mtu"), ipv6)?;
    Ok(Wanted { short, addresses: addresses.collect(), mac, mtu, port, out })
}
