//! A sandbox's side of its networks: devices, addresses, routes, and the sockets of its name server.
//!
//! Driven by [`crate::netd`], on threads that may block. A new sandbox is made in one visit of its namespace; one that is
//! there is looked at, and what is missing is made. When making a new one fails, nothing is left of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use skep_netlink::link::LinkChange;
use skep_netlink::nft::Nft;
use skep_netlink::route::Route;
use skep_netlink::sysctl::{Scope, Sysctl};
use skep_netlink::{Changes, Inside, MacAddress, Namespace, NetlinkError, Prefix};

/// Where a sandbox's name server listens.
pub const NAME_SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11)), 53);

/// Puts a device of a name into a namespace.
pub type Plug<'a> = Box<dyn Fn(&str, &Namespace) -> Result<(), NetlinkError> + Send + Sync + 'a>;
/// Takes such a device away.
pub type Unplug<'a> = Box<dyn Fn() -> Result<(), NetlinkError> + Send + Sync + 'a>;

/// An endpoint of a sandbox.
pub struct Wanted<'a> {
    /// Its addresses with their subnets.
    pub addresses: Vec<Prefix>,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// The gateways, where there is a way out by this network.
    pub gateways: Vec<IpAddr>,
    /// Puts the device of this name into the namespace.
    pub plug: Plug<'a>,
    /// Takes away what a half-made one left outside of the sandbox.
    pub unplug: Unplug<'a>,
}

/// What is open in a sandbox.
pub struct Opened {
    /// nftables in it.
    pub nft: Nft,
    /// Sockets at [`NAME_SERVER`].
    pub sockets: Option<(UdpSocket, TcpListener)>,
}

/// Makes a sandbox's namespace at `path` with these endpoints, or finds it and makes it right.
pub fn ensure(path: &Path, wanted: &[Wanted<'_>], name_server: bool) -> Result<Opened, NetlinkError> {
    if let Ok(namespace) = Namespace::open(path) {
        return namespace.enter(|inside| setup(inside, wanted, name_server, false));
    }
    let made = Namespace::create(path, |inside| setup(inside, wanted, name_server, true));
    match made {
        Ok((_, opened)) => Ok(opened),
        Err(error) => {
            for endpoint in wanted {
                // The first error is the one to tell; the devices go with their namespace in any case.
                let _ = (endpoint.unplug)();
            }
            Err(error)
        }
    }
}

fn setup(inside: &Inside, wanted: &[Wanted<'_>], name_server: bool, fresh: bool) -> Result<Opened, NetlinkError> {
    let rtnetlink = inside.rtnetlink()?;
    let (links, addresses) = match fresh {
        true => (Vec::new(), Vec::new()),
        false => (rtnetlink.links()?, rtnetlink.addresses()?),
    };
    if fresh {
        // As Docker has it: any program may serve a low port in a namespace of its own, and ping.
        let mut sysctls = vec![(Sysctl::UnprivilegedPortStart, "0"), (Sysctl::PingGroupRange, "0 2147483647")];
        let ipv6 = wanted.iter().flat_map(|endpoint| &endpoint.addresses).any(|prefix| prefix.address.is_ipv6());
        if !ipv6 {
            sysctls.push((Sysctl::DisableIpv6(Scope::Default), "1"));
        }
        inside.write_sysctls(&sysctls)?;
    }
    let mut routed = [false; 2];
    let mut changes = Changes::new();
    for (number, endpoint) in wanted.iter().enumerate() {
        let name = format!("eth{number}");
        let found = links.iter().find(|link| link.name == name);
        let index = match found {
            Some(link) if link.mac == Some(endpoint.mac) => link.index,
            found => {
                if found.is_some() {
                    crate::network::remove_link(&rtnetlink, &name)?;
                }
                if !fresh {
                    // Its other end may be left of a sandbox that was half made.
                    (endpoint.unplug)()?;
                }
                (endpoint.plug)(&name, inside.namespace())?;
                match rtnetlink.link(&name)? {
                    Some(link) => link.index,
                    None => {
                        let problem = "it is not there".to_owned();
                        return Err(NetlinkError::Invalid { action: format!("set up device {name}"), problem });
                    }
                }
            }
        };
        changes.change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() });
        for prefix in &endpoint.addresses {
            if !addresses.iter().any(|address| address.device == index && address.prefix == *prefix) {
                changes.add_address(index, *prefix);
            }
        }
        for gateway in &endpoint.gateways {
            let default = if gateway.is_ipv4() { Prefix::DEFAULT_V4 } else { Prefix::DEFAULT_V6 };
            let routed = &mut routed[usize::from(gateway.is_ipv6())];
            if !*routed {
                *routed = true;
                changes.replace_route(&Route::gateway(default, *gateway));
            }
        }
    }
    rtnetlink.apply(&changes)?;
    let sockets = match name_server {
        true => Some((inside.udp(NAME_SERVER)?, inside.tcp(NAME_SERVER)?)),
        false => None,
    };
    Ok(Opened { nft: inside.nft()?, sockets })
}
