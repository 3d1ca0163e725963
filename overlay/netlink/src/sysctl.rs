//! The sysctls of a network namespace that skep reads or writes, by name (Documentation/networking/ip-sysctl.rst).
//!
//! Read and written through [`crate::namespace::Inside`], as /proc shows each thread those of its namespace.

use std::fmt;
use std::path::PathBuf;

use crate::error::NetlinkError;

/// Which devices a `conf` sysctl is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Those that exist (what it does besides differs from one sysctl to the other).
    All,
    /// Those that will be made.
    Default,
    /// One, by its name.
    Device(String),
}

/// One sysctl.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sysctl {
    /// `net.ipv4.ip_forward`
    Ipv4Forward,
    /// `net.ipv6.conf.all.forwarding`
    Ipv6Forward,
    /// `net.ipv4.conf.*.rp_filter`: 0 none, 1 strict, 2 loose. The larger of the device's and `all`'s counts.
    RpFilter(Scope),
    /// `net.ipv4.conf.*.route_localnet`: 127.0.0.0/8 may be routed.
    RouteLocalnet(Scope),
    /// `net.ipv4.conf.*.arp_notify`
    ArpNotify(Scope),
    /// `net.ipv4.ip_unprivileged_port_start`
    UnprivilegedPortStart,
    /// `net.ipv4.ping_group_range`
    PingGroupRange,
    /// `net.bridge.bridge-nf-call-iptables`: nftables sees bridged IPv4 packets, twice when they are routed too.
    BridgeCallIptables,
    /// `net.bridge.bridge-nf-call-ip6tables`
    BridgeCallIp6tables,
    /// `net.ipv6.conf.*.disable_ipv6`
    DisableIpv6(Scope),
    /// `net.ipv6.conf.*.accept_dad`: 0 makes addresses usable at once.
    AcceptDad(Scope),
    /// `net.ipv6.conf.*.accept_ra`
    AcceptRa(Scope),
    /// `net.ipv6.conf.*.addr_gen_mode`: 1 makes no link-local address.
    AddrGenMode(Scope),
    /// `net.netfilter.nf_conntrack_max`. Only the host's can be written.
    ConntrackMax,
    /// `net.netfilter.nf_conntrack_count`
    ConntrackCount,
    /// Any other below `net`, its parts separated by `/`: what a container's own settings name.
    Other(String),
}

impl Sysctl {
    /// Its file.
    pub(crate) fn path(&self) -> Result<PathBuf, NetlinkError> {
        let relative = self.relative();
        let good = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        if !relative.split('/').all(good) {
            let problem = "this is no name of one".to_owned();
            return Err(NetlinkError::Invalid { action: format!("find sysctl {self}"), problem });
        }
        Ok(PathBuf::from("/proc/sys/net").join(relative))
    }

    fn relative(&self) -> String {
        let conf = |family: &str, scope: &Scope, name: &str| {
            let device = match scope {
                Scope::All => "all",
                Scope::Default => "default",
                // A device's name has no slash; one that does is no device's, and must not lead elsewhere.
                Scope::Device(name) if name.contains('/') => "",
                Scope::Device(name) => name,
            };
            format!("{family}/conf/{device}/{name}")
        };
        match self {
            Self::Ipv4Forward => "ipv4/ip_forward".to_owned(),
            Self::Ipv6Forward => "ipv6/conf/all/forwarding".to_owned(),
            Self::RpFilter(scope) => conf("ipv4", scope, "rp_filter"),
            Self::RouteLocalnet(scope) => conf("ipv4", scope, "route_localnet"),
            Self::ArpNotify(scope) => conf("ipv4", scope, "arp_notify"),
            Self::UnprivilegedPortStart => "ipv4/ip_unprivileged_port_start".to_owned(),
            Self::PingGroupRange => "ipv4/ping_group_range".to_owned(),
            Self::BridgeCallIptables => "bridge/bridge-nf-call-iptables".to_owned(),
            Self::BridgeCallIp6tables => "bridge/bridge-nf-call-ip6tables".to_owned(),
            Self::DisableIpv6(scope) => conf("ipv6", scope, "disable_ipv6"),
            Self::AcceptDad(scope) => conf("ipv6", scope, "accept_dad"),
            Self::AcceptRa(scope) => conf("ipv6", scope, "accept_ra"),
            Self::AddrGenMode(scope) => conf("ipv6", scope, "addr_gen_mode"),
            Self::ConntrackMax => "netfilter/nf_conntrack_max".to_owned(),
            Self::ConntrackCount => "netfilter/nf_conntrack_count".to_owned(),
            Self::Other(name) => name.clone(),
        }
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net/{}", self.relative())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_stay_below_net() {
        let path = |sysctl: Sysctl| sysctl.path().unwrap().display().to_string();
        assert_eq!(path(Sysctl::Ipv4Forward), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(path(Sysctl::RpFilter(Scope::Device("a.b".into()))), "/proc/sys/net/ipv4/conf/a.b/rp_filter");
        assert_eq!(path(Sysctl::AcceptDad(Scope::All)), "/proc/sys/net/ipv6/conf/all/accept_dad");
        for wrong in ["", "../kernel/hostname", "ipv4//x", "/etc/passwd", "a/./b", "a\0b"] {
            assert!(Sysctl::Other(wrong.into()).path().is_err(), "{wrong:?}");
            assert!(Sysctl::DisableIpv6(Scope::Device(wrong.into())).path().is_err() || wrong == "x", "{wrong:?}");
        }
    }
}
