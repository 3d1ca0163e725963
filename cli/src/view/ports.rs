//! Published ports in tables, as Docker writes them.

use skep_proto::v1::{PortSpec, PublishMode};

use super::state;

/// `*:8080->80/tcp` for each.
pub(crate) fn each(ports: &[PortSpec]) -> String {
    let texts: Vec<String> = ports.iter().map(|port| Range::from(port).text()).collect();
    texts.join(",")
}

/// What the routing mesh publishes, neighbours as one range: `*:8080-8081->80-81/tcp, *:53->53/udp`.
pub(crate) fn of_the_mesh(ports: &[PortSpec]) -> String {
    let mut ports: Vec<&PortSpec> = ports.iter().filter(|port| port.mode() == PublishMode::Ingress).collect();
    ports.sort_by_key(|port| (port.protocol, port.published_port, port.target_port));
    let mut ranges: Vec<Range> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some(last) if last.takes(port) => {
                (last.published.1, last.target.1) = (port.published_port, port.target_port);
            }
            _ => ranges.push(Range::from(port)),
        }
    }
    let texts: Vec<String> = ranges.iter().map(Range::text).collect();
    texts.join(", ")
}

/// Ports one after the other, first and last.
struct Range {
    published: (u32, u32),
    target: (u32, u32),
    protocol: &'static str,
}

impl From<&PortSpec> for Range {
    fn from(port: &PortSpec) -> Self {
        Self {
            published: (port.published_port, port.published_port),
            target: (port.target_port, port.target_port),
            protocol: state::protocol(port.protocol()),
        }
    }
}

impl Range {
    /// Whether the port goes on where this ends: with the next target port, or with the only one so far.
    fn takes(&self, port: &PortSpec) -> bool {
        let length = |(first, last): (u32, u32)| last - first;
        let target = match port.target_port.checked_sub(self.target.1) {
            Some(0) => length(self.target) == 0,
            Some(1) => length(self.target) == length(self.published),
            _ => false,
        };
        let published = port.published_port.checked_sub(self.published.1) == Some(1);
        self.protocol == state::protocol(port.protocol()) && published && target
    }

    fn text(&self) -> String {
        let text =
            |(first, last): (u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
        format!("*:{}->{}/{}", text(self.published), text(self.target), self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use skep_proto::v1::Protocol;

    use super::*;

    fn ports(list: &[(u32, u32, Protocol, PublishMode)]) -> Vec<PortSpec> {
        let port = |&(published_port, target_port, protocol, mode): &(u32, u32, Protocol, PublishMode)| PortSpec {
            published_port,
            target_port,
            protocol: protocol.into(),
            mode: mode.into(),
        };
        list.iter().map(port).collect()
    }

    #[test]
    fn services_show_the_mesh() {
        use Protocol::{Tcp, Udp};
        use PublishMode::{Host, Ingress};
        for (list, text) in [
            (&[][..], ""),
            (&[(8080, 80, Tcp, Ingress)], "*:8080->80/tcp"),
            (&[(8080, 80, Tcp, Host)], ""),
            (
                &[(53, 53, Udp, Ingress), (8081, 81, Tcp, Ingress), (8080, 80, Tcp, Ingress)],
                "*:8080-8081->80-81/tcp, *:53->53/udp",
            ),
            (&[(8080, 80, Tcp, Ingress), (8081, 80, Tcp, Ingress), (8082, 80, Tcp, Ingress)], "*:8080-8082->80/tcp"),
            (
                &[(8080, 80, Tcp, Ingress), (8081, 80, Tcp, Ingress), (8082, 81, Tcp, Ingress)],
                "*:8080-8081->80/tcp, *:8082->81/tcp",
            ),
            (&[(8080, 80, Tcp, Ingress), (8082, 81, Tcp, Ingress)], "*:8080->80/tcp, *:8082->81/tcp"),
            (&[(8080, 81, Tcp, Ingress), (8081, 80, Tcp, Ingress)], "*:8080->81/tcp, *:8081->80/tcp"),
        ] {
            assert_eq!(of_the_mesh(&ports(list)), text);
        }
    }

    #[test]
    fn tasks_show_each() {
        let list =
            ports(&[(8080, 80, Protocol::Tcp, PublishMode::Host), (8081, 81, Protocol::Udp, PublishMode::Ingress)]);
        assert_eq!(each(&list), "*:8080->80/tcp,*:8081->81/udp");
    }
}
