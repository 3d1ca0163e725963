//! A sandbox's side of its networks: devices, addresses, routes, and the sockets of its name server.
//!
//! Driven by [`crate::netd`], on threads that may block. A new sandbox is made in one visit of its namespace; one that is
//! there is looked at, and what is missing is made. When making a new one fails, nothing is left of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use skep_netlink::link::LinkChange;
use skep_netlink::nft::Nft;
use skep_netlink::route::Route;
use skep_netlink::sysctl::{Scope, Sysctl};
use skep_netlink::{Changes, Inside, MacAddress, Namespace, NetlinkError, Prefix, Rtnetlink};

use crate::plan::keep::End;

/// Where a sandbox's name server listens.
pub const NAME_SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11)), 53);

/// The kernel makes one device at a time, and who waits for that lock (`rtnl_lock`) spins: here they wait asleep.
static DEVICES: Mutex<()> = Mutex::new(());

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
    /// Connections come from clients' own addresses, and are answered through the host that they came by.
    pub keep_source: bool,
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
        if wanted.iter().any(|endpoint| endpoint.keep_source) {
            sysctls.extend(keep_sysctls(ipv6));
        }
        inside.write_sysctls(&sysctls)?;
    }
    // Where the default routes lead, by family.
    let mut routed: [Option<usize>; 2] = [None; 2];
    let mut kept = None;
    let mut changes = Changes::new();
    let turn = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    for (number, endpoint) in wanted.iter().enumerate() {
        let name = format!("eth{number}");
        let found = links.iter().find(|link| link.name == name);
        let index = match found {
            Some(link) if link.mac == Some(endpoint.mac) => link.index,
            found => {
                if found.is_some() {
                    crate::link::remove(&rtnetlink, &name)?;
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
        if endpoint.keep_source {
            kept = Some((number, name.clone(), index));
        }
        changes.change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() });
        for prefix in &endpoint.addresses {
            if !addresses.iter().any(|address| address.device == index && address.prefix == *prefix) {
                changes.add_address(index, *prefix);
            }
        }
        for gateway in &endpoint.gateways {
            let default = if gateway.is_ipv4() { Prefix::DEFAULT_V4 } else { Prefix::DEFAULT_V6 };
            let routed = &mut routed[usize::from(gateway.is_ipv6())];
            if routed.is_none() {
                *routed = Some(number);
                changes.replace_route(&Route::gateway(default, *gateway));
            }
        }
    }
    rtnetlink.apply(&changes)?;
    drop(turn);
    let nft = inside.nft()?;
    if let Some((number, device, index)) = kept {
        keep(&rtnetlink, &nft, wanted, number, (device, index), routed)?;
    }
    let sockets = match name_server {
        true => Some((inside.udp(NAME_SERVER)?, inside.tcp(NAME_SERVER)?)),
        false => None,
    };
    Ok(Opened { nft, sockets })
}

/// Packets of clients come by a device that does not lead to them, and what is marked is routed by its mark: also the
/// answers of the kernel itself, and of connections that are accepted.
fn keep_sysctls(ipv6: bool) -> Vec<(Sysctl, &'static str)> {
    let other = |name: &str| Sysctl::Other(name.to_owned());
    let mut sysctls = vec![
        (Sysctl::RpFilter(Scope::All), "0"),
        (Sysctl::RpFilter(Scope::Default), "0"),
        (other("ipv4/tcp_fwmark_accept"), "1"),
        (other("ipv4/fwmark_reflect"), "1"),
    ];
    if ipv6 {
        sysctls.push((other("ipv6/fwmark_reflect"), "1"));
    }
    sysctls
}

/// Makes the end `number` answer clients through the hosts that they came by.
fn keep(
    rtnetlink: &Rtnetlink,
    nft: &Nft,
    wanted: &[Wanted<'_>],
    number: usize,
    (device, index): (String, u32),
    routed: [Option<usize>; 2],
) -> Result<(), NetlinkError> {
    let of_family = |ipv6: bool| {
        let other = routed[usize::from(ipv6)].filter(|other| *other != number)?;
        let addresses = wanted[other].addresses.iter().map(|prefix| prefix.address);
        addresses.into_iter().find(|address| address.is_ipv6() == ipv6)
    };
    let Wanted { addresses, gateways, .. } = &wanted[number];
    let answers_from = [false, true].into_iter().filter_map(of_family).collect();
    let end = End { device, index, addresses: addresses.clone(), gateways: gateways.clone(), answers_from };
    let found = rtnetlink.rules()?;
    let mut changes = Changes::new();
    for (rule, route) in end.routes() {
        changes.replace_route(&route);
        if !found.contains(&rule) {
            changes.add_rule(&rule);
        }
    }
    rtnetlink.apply(&changes)?;
    nft.commit(&end.rules()).map_err(|error| match error.errno() {
        Some(nix::errno::Errno::EOPNOTSUPP) => NetlinkError::Invalid {
            action: "keep the addresses of clients".to_owned(),
            problem:
                "this kernel cannot: option keep-source of the routing mesh's network takes Linux 5.16 or newer, with \
                      CONFIG_NETFILTER_EGRESS"
                    .to_owned(),
        },
        _ => error,
    })
}
