//! The namespace of a network, looked at for a check. Changes nothing.

use skep_netlink::neighbour::{Neighbour, NeighbourChange};
use skep_netlink::{Inside, Namespace, NetlinkError};
use skep_proto::v1::NetworkFinding;

use super::{BRIDGE, LiveNetwork, OverlayPort, PORT, out_name, sysctls};
use crate::check::devices::{self, NetworkDevices};
use crate::check::{rules, settings};
use crate::host::Host;
use crate::plan;

impl LiveNetwork {
    /// Where it is.
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// What is wrong with it. `tasks`: names of the devices that tasks have; `entries`: what leads to other hosts.
    pub(crate) fn look(
        &self,
        name: &str,
        tasks: Vec<String>,
        entries: impl Iterator<Item = Neighbour>,
        host: &Host,
    ) -> Result<Vec<NetworkFinding>, NetlinkError> {
        let addresses = self.rtnetlink.addresses()?;
        let bridge = addresses.iter().filter(|address| address.device == BRIDGE).map(|address| address.prefix.address);
        let looked = NetworkDevices {
            links: self.rtnetlink.links()?,
            out: host.rtnetlink().link(&out_name(&self.wanted.short))?,
            bridge: bridge.collect(),
            tasks,
            entries: self.differing(entries)?,
        };
        let mut found = devices::of_network(name, &self.wanted, &looked);
        let (meant, there) = (self.nft.made(), self.nft.content("skep")?);
        let place = format!("network {name} on this host");
        let advice = "restart netd on that host (`kill` its process; the daemon starts it again and containers go on)";
        found.extend(rules::own(&place, &meant.tables, &there, advice));
        found.extend(rules::stray(&place, |name| name.starts_with("skep"), &meant.tables, &there));
        found.extend(settings::of_network(name, &self.dir.to_string_lossy(), &self.settings()?));
        Ok(found)
    }

    /// How many entries for other hosts are missing, and how many are nobody's. Those of the mesh are no kernel's.
    fn differing(&self, wanted: impl Iterator<Item = Neighbour>) -> Result<(usize, usize), NetlinkError> {
        if !matches!(self.wanted.port, OverlayPort::Vxlan { .. } | OverlayPort::Sealed { .. }) {
            return Ok((0, 0));
        }
        let of_port = |entry: &Neighbour| match *entry {
            Neighbour::Host { device, .. } | Neighbour::Tunnel { device, .. } => device == PORT,
            Neighbour::Port { .. } => false,
        };
        let found = self.rtnetlink.neighbours()?.into_iter().filter(of_port);
        let changes = plan::forwarding::difference(found, wanted);
        let missing = changes.iter().filter(|change| matches!(change, NeighbourChange::Put(_))).count();
        Ok((missing, changes.len() - missing))
    }

    fn settings(&self) -> Result<Vec<settings::Setting>, NetlinkError> {
        let wanted = sysctls(&self.wanted);
        self.namespace.enter(|inside: &Inside| {
            let setting = |(sysctl, wanted, reason)| {
                let value = inside.sysctl(&sysctl).ok();
                settings::Setting { sysctl, value, wanted, reason }
            };
            Ok::<_, NetlinkError>(wanted.into_iter().map(setting).collect())
        })
    }
}
