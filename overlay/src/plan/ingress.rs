//! The ports that the routing mesh publishes: which connections each service takes, on every host.

use skep_netlink::nft::{Frontend, Transport};
use skep_proto::v1;

use crate::table::Service;

/// A published port of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// TCP or UDP.
    pub transport: Transport,
    /// Its number on the host.
    pub published: u16,
    /// Where the container listens.
    pub target: u16,
}

impl Port {
    /// `None` where it is not resolved or makes no sense.
    pub fn of(spec: &v1::PortSpec) -> Option<Self> {
        let number = |port: u32| u16::try_from(port).ok().filter(|port| *port > 0);
        let transport = match spec.protocol() {
            v1::Protocol::Tcp => Transport::Tcp,
            v1::Protocol::Udp => Transport::Udp,
        };
        Some(Self { transport, published: number(spec.published_port)?, target: number(spec.target_port)? })
    }

    /// A name for what belongs to it, that no other port has.
    pub fn name(&self) -> String {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        format!("{transport}_{}", self.published)
    }

    /// Connections to it.
    pub fn frontend(&self) -> Frontend {
        Frontend::Published(self.transport, self.published)
    }
}

/// The ports of a service, sorted; of two with one number, the last.
pub fn ports(service: &Service) -> Vec<Port> {
    let mut ports: Vec<Port> = service.ports.iter().filter_map(Port::of).collect();
    ports.reverse();
    ports.sort_by_key(|port| (port.transport, port.published));
    ports.dedup_by_key(|port| (port.transport, port.published));
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_make_sense_count() {
        let port = |published_port, target_port, protocol| v1::PortSpec {
            published_port,
            target_port,
            protocol,
            ..v1::PortSpec::default()
        };
        let rows = vec![port(80, 8080, 0), port(80, 53, 1), port(0, 1, 0), port(70_000, 1, 0), port(9, 0, 0)];
        let service = Service { names: Vec::new(), virtual_addresses: Vec::new(), ports: rows };
        let names: Vec<String> = ports(&service).iter().map(Port::name).collect();
        assert_eq!(names, ["tcp_80", "udp_80"]);
        assert_eq!(ports(&service)[0].target, 8080);
    }
}
