//! The host's own namespace, looked at for a check. Changes nothing.

use std::net::IpAddr;

use skep_netlink::link::Link;
use skep_netlink::sysctl::Sysctl;
use skep_netlink::{Inside, NetlinkError};
use skep_proto::v1::NetworkFinding;

use super::Host;
use crate::check::{rules, settings};

impl Host {
    /// What is wrong with rules and sysctls. `forwards`: a network with a way out is there.
    pub(crate) fn look(&self, forwards: bool) -> Result<Vec<NetworkFinding>, NetlinkError> {
        let (meant, there) = {
            // No port is published between the two.
            let _state = self.lock();
            (self.nft.made(), self.nft.content("skep-")?)
        };
        let advice = "restart netd on that host (`kill` its process; the daemon starts it again and containers go on)";
        // What all instances share is nobody's leftover.
        let own = format!("skep-{}", self.instance);
        let mut found = rules::own("this host", &meant.tables, &there, advice);
        found.extend(rules::stray(
            "this host",
            |name| name.starts_with("skep-") && name != own && name != "skep-forward",
            &meant.tables,
            &there,
        ));
        found.extend(self.port_findings());
        if forwards {
            found.extend(rules::forwarding(&there));
            let read = |inside: &Inside| Ok::<_, NetlinkError>(inside.sysctl(&Sysctl::Ipv4Forward).ok());
            let value = self.namespace.enter(read)?;
            let reason = "tasks do not get out, and published ports do not lead in";
            found.extend(settings::of_host(&[settings::Setting {
                sysctl: Sysctl::Ipv4Forward,
                value,
                wanted: "1",
                reason,
            }]));
        }
        let number = |inside: &Inside, sysctl| inside.sysctl(&sysctl).ok()?.parse::<u64>().ok();
        let connections = |inside: &Inside| {
            let (count, most) = (number(inside, Sysctl::ConntrackCount), number(inside, Sysctl::ConntrackMax));
            Ok::<_, NetlinkError>(count.zip(most))
        };
        if let Some((count, most)) = self.namespace.enter(connections)? {
            found.extend(settings::connections(count, most));
        }
        Ok(found)
    }

    /// All its devices.
    pub(crate) fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.rtnetlink.links()
    }

    /// The device that has an address: its name, and its largest packet.
    pub(crate) fn device_of(&self, address: IpAddr) -> Result<Option<(String, u32)>, NetlinkError> {
        let addresses = self.rtnetlink.addresses()?;
        let Some(found) = addresses.iter().find(|found| found.prefix.address == address) else { return Ok(None) };
        let link = self.rtnetlink.links()?.into_iter().find(|link| link.index == found.device);
        Ok(link.map(|link| (link.name, link.mtu)))
    }
}
