//! Ports of the host that lead to one network: of the routing mesh where there are backends, of mode host to a task here.
//!
//! Under the network's own lock.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use skep_netlink::nft::Frontend;
use skep_proto::id::TaskId;

use super::NetworkState;
use crate::host::{PublishError, Published, Taken};
use crate::netd::{Netd, NetdError};
use crate::plan::ingress::Port;

impl NetworkState {
    /// Hands published ports that have backends to the mesh, but for those that a process of the host has.
    pub(super) fn serve(&mut self, netd: &Netd) -> Result<(), NetdError> {
        let Some(index) = self.index.filter(|_| !self.ingress.is_empty()) else { return Ok(()) };
        let served = self.ingress.iter().flat_map(|balance| {
            balance.served().filter_map(|frontend| match frontend {
                Frontend::Published(transport, port) => Some(Published { ipv6: balance.ipv6(), transport, port }),
                _ => None,
            })
        });
        let served: BTreeSet<Published> = served.collect();
        let put: Vec<_> = served.iter().map(|port| (*port, index)).collect();
        let gone: Vec<_> = self.served.difference(&served).map(|port| (*port, index)).collect();
        netd.publish(&put, &gone, Taken::LeaveOut)?;
        self.served = served;
        Ok(())
    }

    /// Publishes ports of a task on this host, all or none of them. `taken`: what happens where a process of the host has
    /// one.
    pub(in crate::netd) fn join_ports(
        &mut self,
        netd: &Netd,
        task: TaskId,
        ports: Vec<(Port, IpAddr)>,
        taken: Taken,
    ) -> Result<(), NetdError> {
        let old = self.host_ports.remove(&task).unwrap_or_default();
        if old.is_empty() && ports.is_empty() {
            return Ok(());
        }
        let gone: Vec<_> = old.iter().map(on_host).collect();
        if !ports.is_empty() {
            self.host_ports.insert(task, ports);
        }
        // Inside first: what the host hands on must be known there.
        let published = self.publish_host_ports(netd, taken);
        if matches!(published, Err(NetdError::Publish(PublishError::Taken(_)))) {
            self.host_ports.remove(&task);
            self.publish_host_ports(netd, Taken::Insist)?;
        }
        let kept = self.on_host();
        let gone = gone.into_iter().filter(|port| !kept.contains(port));
        let gone: Vec<_> = gone.filter_map(|port| Some((port, self.index?))).collect();
        netd.publish(&[], &gone, Taken::LeaveOut)?;
        if let (Some(live), Some(index)) = (&self.live, self.index) {
            netd.end_host_ports(live, index, &old);
        }
        published
    }

    /// Those of mode host.
    pub(super) fn on_host(&self) -> BTreeSet<Published> {
        self.host_ports.values().flatten().map(on_host).collect()
    }

    pub(super) fn publish_host_ports(&self, netd: &Netd, taken: Taken) -> Result<(), NetdError> {
        let (Some(live), Some(index)) = (&self.live, self.index) else { return Ok(()) };
        if netd.restoring.load(Ordering::SeqCst) {
            // Some of them would be away until all are known again.
            return Ok(());
        }
        live.publish(self.host_ports.values().flatten().map(|(port, address)| (port, *address)))?;
        let put: Vec<_> = self.on_host().into_iter().map(|port| (port, index)).collect();
        netd.publish(&put, &[], taken)?;
        Ok(())
    }
}

/// A port of mode host with its task's address, on the host.
fn on_host((port, address): &(Port, IpAddr)) -> Published {
    Published { ipv6: address.is_ipv6(), transport: port.transport, port: port.published }
}
