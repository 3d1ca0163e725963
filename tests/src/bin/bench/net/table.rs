//! Tables as a manager sends them, made by hand: networks, tasks, services and hosts by number.

use std::net::{IpAddr, Ipv4Addr};

use skep_fabric::PrivateKey;
use skep_proto::cidr::address_to_wire;
use skep_proto::id::{NetworkId, NodeId, ServiceId, TaskId};
use skep_proto::v1;

use super::underlay;

/// The one service of a table.
pub(super) const SERVICE: ServiceId = ServiceId::new(9);

/// A host's key.
pub(super) fn key(host: u8) -> PrivateKey {
    PrivateKey::from_bytes([host; 32])
}

pub(super) fn node(host: u8) -> NodeId {
    NodeId::new(u128::from(host))
}

/// An id whose first characters differ.
pub(super) fn task(number: u32) -> TaskId {
    TaskId::new((u128::from(number) << 100) | u128::from(number))
}

/// A task on a host.
pub(super) struct Row {
    pub(super) host: u8,
    pub(super) task: u32,
    pub(super) serving: bool,
}

impl Row {
    pub(super) fn serving(host: u8, task: u32) -> Self {
        Self { host, task, serving: true }
    }
}

/// A network, 10.`number`.0.0/16.
#[derive(Clone)]
pub(super) struct Network {
    number: u8,
    wire: v1::Network,
}

impl Network {
    pub(super) fn new(number: u8, encrypted: bool) -> Self {
        let mut spec = v1::NetworkSpec { name: format!("net{number}"), ..v1::NetworkSpec::default() };
        spec.options.insert("encrypted".to_owned(), encrypted.to_string());
        let (subnet, gateway) = (format!("10.{number}.0.0/16"), format!("10.{number}.0.1"));
        let wire = v1::Network {
            id: NetworkId::new((u128::from(number) << 120) | 7).to_vec(),
            spec: Some(spec),
            subnets: vec![v1::Subnet { subnet, gateway, ..v1::Subnet::default() }],
            vni: 4096 + u32::from(number),
            ..v1::Network::default()
        };
        Self { number, wire }
    }

    /// The address of a task.
    pub(super) fn address(&self, task: u32) -> IpAddr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, self.number, 16, 0)) + task).into()
    }

    /// The virtual address of its service.
    pub(super) fn vip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 0, 2)
    }

    /// A whole table with these hosts and tasks, those that serve behind [`Self::vip`].
    pub(super) fn whole(&self, version: u64, hosts: &[u8], tasks: impl Iterator<Item = Row>) -> v1::NetworkTable {
        let service = v1::NetworkService {
            service_id: SERVICE.to_vec(),
            names: vec!["web".to_owned()],
            virtual_addresses: vec![self.vip().octets().to_vec()],
            ports: Vec::new(),
        };
        v1::NetworkTable {
            network_id: self.wire.id.clone(),
            complete: true,
            version,
            end: true,
            network: Some(self.wire.clone()),
            put_endpoints: tasks.map(|row| self.endpoint(&row)).collect(),
            put_services: vec![service],
            put_peers: hosts.iter().map(|host| peer(*host)).collect(),
            ..v1::NetworkTable::default()
        }
    }

    /// A difference to the version before: one task comes, serves, or serves no more.
    pub(super) fn change(&self, version: u64, row: &Row) -> v1::NetworkTable {
        v1::NetworkTable {
            network_id: self.wire.id.clone(),
            applies_to: version - 1,
            version,
            end: true,
            put_endpoints: vec![self.endpoint(row)],
            ..v1::NetworkTable::default()
        }
    }

    fn endpoint(&self, row: &Row) -> v1::NetworkEndpoint {
        v1::NetworkEndpoint {
            task_id: task(row.task).to_vec(),
            node_id: node(row.host).to_vec(),
            service_id: SERVICE.to_vec(),
            addresses: vec![address_to_wire(self.address(row.task))],
            names: vec![format!("task{}", row.task)],
            state: i32::from(row.serving),
            last_resort: false,
        }
    }

    /// A task with an end on this network.
    pub(super) fn attach(&self, number: u32) -> v1::AttachRequest {
        let addresses = vec![address_to_wire(self.address(number))];
        let end = v1::SandboxEndpoint { network_id: self.wire.id.clone(), addresses };
        v1::AttachRequest { task_id: task(number).to_vec(), endpoints: vec![end], ..v1::AttachRequest::default() }
    }
}

fn peer(host: u8) -> v1::NetworkPeer {
    let endpoint = v1::FabricEndpoint {
        public_key: key(host).public().to_vec(),
        previous_public_key: Vec::new(),
        wireguard_addr: format!("{}:51820", underlay::address(host)),
        vxlan_addr: underlay::address(host).to_string(),
    };
    v1::NetworkPeer {
        node_id: node(host).to_vec(),
        endpoint: Some(endpoint),
        fabric_number: host.into(),
        addresses: Vec::new(),
    }
}

/// Who a host is.
pub(super) fn identity(host: u8) -> v1::ConfigureRequest {
    v1::ConfigureRequest {
        node_id: node(host).to_vec(),
        private_key: key(host).to_bytes().to_vec(),
        wireguard_addr: format!("{}:51820", underlay::address(host)),
        vxlan_addr: underlay::address(host).to_string(),
        previous_private_key: Vec::new(),
    }
}
