//! What the agent asks of netd for a sandbox: read, and put on its networks. Pure; takes whatever it is given.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use skep_netlink::{MacAddress, Prefix};
use skep_proto::cidr::address_from_wire;
use skep_proto::id::{NetworkId, TaskId};
use skep_proto::v1;

use super::NetdError;
use super::define::{self, LOCAL};
use crate::plan::ingress::Port;
use crate::plan::mac_of;

/// Port of name servers.
const DNS: u16 = 53;

/// An endpoint that is asked for.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) network: NetworkId,
    pub(crate) addresses: Vec<IpAddr>,
}

/// An endpoint's place on its network.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) addresses: Vec<Prefix>,
    /// Of the ways out.
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) mac: MacAddress,
}

/// The task that a request is about.
pub(crate) fn task_of(request: &v1::AttachRequest) -> Result<TaskId, NetdError> {
    TaskId::from_wire(&request.task_id).map_err(|source| NetdError::Id("task", source))
}

/// The endpoints, each on another network. The host's own bridge is asked for otherwise.
pub(crate) fn ends(request: &v1::AttachRequest) -> Result<Vec<End>, NetdError> {
    let mut networks = BTreeSet::from([LOCAL]);
    let read = |endpoint: &v1::SandboxEndpoint| {
        let network = NetworkId::from_wire(&endpoint.network_id).map_err(|source| NetdError::Id("network", source))?;
        if !networks.insert(network) {
            return Err(NetdError::Refused(format!("a task has one endpoint on network {network}, not two")));
        }
        let address = |bytes: &Vec<u8>| {
            let problem = || NetdError::Refused(format!("an address of {} bytes on network {network}", bytes.len()));
            address_from_wire(bytes).ok_or_else(problem)
        };
        let addresses = endpoint.addresses.iter().map(address).collect::<Result<_, _>>()?;
        Ok(End { network, addresses })
    };
    request.endpoints.iter().map(read).collect()
}

/// Whether two tasks are to have the same address of a network, or the same port of the host: one of them has ended.
pub(crate) fn clash(one: &v1::AttachRequest, other: &v1::AttachRequest) -> bool {
    let same_end = |one: &v1::SandboxEndpoint, other: &v1::SandboxEndpoint| {
        one.network_id == other.network_id && one.addresses.iter().any(|address| other.addresses.contains(address))
    };
    let place = |port: Port| (port.transport, port.published);
    let mut ports = one.host_ports.iter().filter_map(Port::of).map(place);
    one.endpoints.iter().any(|one| other.endpoints.iter().any(|other| same_end(one, other)))
        || ports.any(|one| other.host_ports.iter().filter_map(Port::of).any(|other| place(other) == one))
}

/// Where these addresses are on a network.
pub(crate) fn place(definition: &v1::Network, list: &[IpAddr]) -> Result<Place, NetdError> {
    let subnets = define::subnets(definition)?;
    let network = define::name(definition);
    let (mut addresses, mut gateways) = (Vec::new(), Vec::new());
    for address in list {
        let Some((prefix, gateway)) = define::place(&subnets, *address) else {
            return Err(NetdError::Refused(format!("{address} is in no subnet of network {network}")));
        };
        addresses.push(prefix);
        gateways.extend(gateway.filter(|_| !define::internal(definition)));
    }
    let Some(mac) = mac_of(list) else {
        return Err(NetdError::Refused(format!("the task has no address on network {network}")));
    };
    Ok(Place { addresses, gateways, mac })
}

/// The name servers of the task's own, as far as they are addresses.
pub(crate) fn name_servers(dns: &v1::DnsSpec) -> Vec<SocketAddr> {
    let servers = dns.nameservers.iter().filter_map(|server| server.parse::<IpAddr>().ok());
    servers.map(|server| SocketAddr::new(server, DNS)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn asked(networks: &[NetworkId], address: &[u8]) -> v1::AttachRequest {
        let end = |id: &NetworkId| v1::SandboxEndpoint { network_id: id.to_vec(), addresses: vec![address.to_vec()] };
        v1::AttachRequest { endpoints: networks.iter().map(end).collect(), ..v1::AttachRequest::default() }
    }

    #[test]
    fn a_network_is_named_once_and_the_hosts_own_bridge_never() {
        let [front, back] = [NetworkId::new(7), NetworkId::new(8)];
        let ends = ends(&asked(&[front, back], &[10, 1, 0, 7])).unwrap();
        assert_eq!(ends.iter().map(|end| end.network).collect::<Vec<_>>(), [front, back]);
        for wrong in [vec![front, front], vec![LOCAL]] {
            let error = super::ends(&asked(&wrong, &[10, 1, 0, 7])).unwrap_err().to_string();
            assert!(error.contains("one endpoint"), "{error}");
        }
        assert!(super::ends(&asked(&[front], &[10, 1, 0])).unwrap_err().to_string().contains("3 bytes"));
    }

    #[test]
    fn tasks_clash_by_an_address_or_a_port_of_the_host() {
        let [front, back] = [NetworkId::new(7), NetworkId::new(8)];
        let one = asked(&[front], &[10, 1, 0, 7]);
        assert!(clash(&one, &asked(&[back, front], &[10, 1, 0, 7])));
        assert!(!clash(&one, &asked(&[back], &[10, 1, 0, 7])) && !clash(&one, &asked(&[front], &[10, 1, 0, 8])));
        let published = |published_port, protocol: v1::Protocol| {
            let protocol = protocol.into();
            let port = v1::PortSpec { published_port, target_port: 80, protocol, ..v1::PortSpec::default() };
            v1::AttachRequest { host_ports: vec![port], ..v1::AttachRequest::default() }
        };
        let web = published(80, v1::Protocol::Tcp);
        assert!(clash(&web, &published(80, v1::Protocol::Tcp)));
        assert!(!clash(&web, &published(80, v1::Protocol::Udp)) && !clash(&web, &published(81, v1::Protocol::Tcp)));
        assert!(!clash(&published(0, v1::Protocol::Tcp), &published(0, v1::Protocol::Tcp)), "it is none yet");
    }

    #[test]
    fn addresses_lie_in_the_networks_subnets() {
        let network = define::local();
        let placed = place(&network, &["172.29.0.7".parse().unwrap()]).unwrap();
        assert_eq!(placed.addresses[0].to_string(), "172.29.0.7/16");
        assert_eq!(placed.gateways, ["172.29.0.1".parse::<IpAddr>().unwrap()]);
        assert!(place(&network, &["10.0.0.7".parse().unwrap()]).unwrap_err().to_string().contains("no subnet"));
        assert!(place(&network, &[]).unwrap_err().to_string().contains("no address"));
    }
}
