//! One network, looked at for a check, under its own lock. Changes nothing.

use std::net::IpAddr;
use std::sync::Arc;

use skep_netlink::nft::Content;
use skep_netlink::{Namespace, NetlinkError};
use skep_proto::id::{NodeId, TaskId};
use skep_proto::v1::{CheckArea, NetworkFinding};

use super::{NetworkState, define};
use crate::check::paths::{Path, Way};
use crate::check::probe::Outcome;
use crate::check::{About as _, devices, error, rules};
use crate::netd::{Netd, text};
use crate::network::{LiveNetwork, OverlayPort, PORT, out_name};
use crate::plan::mtu::{Carrier, cost};
use crate::table::{EndpointState, Peer};

/// Tasks of another host that are tried on one network.
const TRIED: usize = 2;

/// What was seen of a network, and what is still to be tried.
pub(in crate::netd) struct Looked {
    pub(in crate::netd) findings: Vec<NetworkFinding>,
    /// The device of its way out, in the host's namespace.
    pub(in crate::netd) out: Option<String>,
    pub(in crate::netd) is_live: bool,
    pub(in crate::netd) encrypted: bool,
    /// Other hosts on it.
    pub(in crate::netd) peers: Vec<(NodeId, Arc<Peer>)>,
    pub(in crate::netd) trial: Option<Trial>,
}

/// Packets that are to be sent.
pub(in crate::netd) struct Trial {
    /// Where they come from: a task of this host, or the network itself.
    pub(in crate::netd) namespace: Namespace,
    pub(in crate::netd) source: Option<IpAddr>,
    /// Without outcomes.
    pub(in crate::netd) paths: Vec<Path>,
}

impl NetworkState {
    /// Looks at it. `device` names the device that a task has on its bridge.
    pub(in crate::netd) fn look(&self, netd: &Netd, device: impl Fn(TaskId) -> String) -> Looked {
        let own = netd.config().node;
        let table = self.followed.current();
        let mut looked = Looked {
            findings: Vec::new(),
            out: self
                .live
                .as_ref()
                .filter(|live| live.wanted().out.is_some())
                .map(|live| out_name(&live.wanted().short)),
            is_live: self.live.is_some(),
            encrypted: matches!(self.port(), Some(OverlayPort::Fabric { .. } | OverlayPort::Sealed { .. })),
            peers: table
                .peers
                .iter()
                .filter(|(node, _)| Some(**node) != own)
                .map(|(id, row)| (*id, row.clone()))
                .collect(),
            trial: None,
        };
        let Some(definition) = &self.definition else { return looked };
        let name = if self.id == define::LOCAL { "bridge" } else { define::name(definition) };
        if let Some(fault) = &self.fault {
            let problem = format!("network {name} on this host is not as it should be: {fault}");
            let advice = "netd tries again with the network's next change; mend the cause, then restart netd there";
            looked.findings.push(error(CheckArea::Tables, problem, advice));
        }
        if let Some(live) = &self.live {
            let findings = self.look_at(live, netd, name, device).unwrap_or_else(|refused| {
                let problem = format!("network {name} on this host cannot be looked at: {}", text(&refused));
                vec![error(CheckArea::Devices, problem, "look at netd's log on that host")]
            });
            looked.findings.extend(findings);
            looked.trial = self.trial(live, netd, name, &looked.peers);
        }
        if self.id != define::LOCAL {
            looked.findings = looked.findings.into_iter().map(|finding| finding.of_network(self.id)).collect();
        }
        looked
    }

    fn look_at(
        &self,
        live: &LiveNetwork,
        netd: &Netd,
        name: &str,
        device: impl Fn(TaskId) -> String,
    ) -> Result<Vec<NetworkFinding>, NetlinkError> {
        let tasks = self.holders.iter().map(|task| device(*task)).collect();
        let entries = self.forwarding.iter().flat_map(|forwarding| forwarding.entries(PORT));
        let mut found = live.look(name, tasks, entries, &netd.host)?;
        found.extend(self.look_at_balancing(name)?);
        let config = netd.config().request;
        let (carrier, local) = match live.wanted().port {
            OverlayPort::Vxlan { local, .. } => (Carrier::Plain(local), Some(local)),
            OverlayPort::Fabric { .. } | OverlayPort::Sealed { .. } => {
                let listen = config.wireguard_addr.parse::<std::net::SocketAddr>();
                (Carrier::Encrypted, listen.ok().map(|listen| listen.ip()))
            }
            OverlayPort::Local => (Carrier::Local, None),
        };
        if let Some(local) = local
            && let Some((underlay, mtu)) = netd.host.device_of(local)?
        {
            found.extend(devices::underlay(name, live.wanted().mtu, cost(carrier), &underlay, mtu));
        }
        Ok(found)
    }

    /// The balancing in every sandbox.
    fn look_at_balancing(&self, name: &str) -> Result<Vec<NetworkFinding>, NetlinkError> {
        let mut meant = Content::default();
        for balance in &self.balances {
            meant.follow(&balance.whole(None));
        }
        let mut found = Vec::new();
        for (task, member) in &self.members {
            let there = member.nft.content(&format!("skep-{}", self.id))?;
            let place = format!("task {} on network {name}", task.short());
            let advice = "let the task be replaced (`skep service update --force`)";
            found.extend(rules::own(&place, &meant.tables, &there, advice));
        }
        Ok(found)
    }

    /// What is to be sent: from a task here to tasks there that serve; on the routing mesh from this host's own address to
    /// the others'.
    fn trial(&self, live: &LiveNetwork, netd: &Netd, name: &str, peers: &[(NodeId, Arc<Peer>)]) -> Option<Trial> {
        let way = match live.wanted().port {
            OverlayPort::Vxlan { port, .. } => Way::Plain(port),
            OverlayPort::Fabric { .. } | OverlayPort::Sealed { .. } => Way::Mesh,
            OverlayPort::Local => return None,
        };
        let definition = self.definition.as_ref()?;
        let path = |peer: NodeId, address: IpAddr| Path {
            network: self.id,
            name: name.to_owned(),
            peer,
            address,
            mtu: live.wanted().mtu,
            way,
            outcome: Outcome::default(),
        };
        let (namespace, source, paths): (_, _, Vec<Path>) = if define::ingress(definition) {
            let gateways = define::subnets(definition).ok()?;
            let own = live.wanted().addresses.first()?.address;
            if gateways.iter().any(|subnet| subnet.gateway == Some(own)) {
                return None;
            }
            let paths = peers.iter().filter_map(|(node, row)| Some(path(*node, *row.addresses.first()?))).collect();
            (live.namespace().try_clone().ok()?, Some(own), paths)
        } else {
            let task = self.members.keys().next()?;
            let namespace = Namespace::open(&netd.sandboxes.net(&task.to_string())).ok()?;
            let mut paths: Vec<Path> = Vec::new();
            for row in self.followed.current().endpoints.values().filter(|row| row.state == EndpointState::Serving) {
                let there = peers.iter().any(|(node, _)| *node == row.node);
                let tried = || paths.iter().filter(|path| path.peer == row.node).count();
                if let Some(address) = row.addresses.first().filter(|_| there && tried() < TRIED) {
                    paths.push(path(row.node, *address));
                }
            }
            (namespace, None, paths)
        };
        (!paths.is_empty()).then_some(Trial { namespace, source, paths })
    }
}
