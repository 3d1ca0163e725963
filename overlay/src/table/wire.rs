//! Rows as they come from the managers, checked.

use std::net::IpAddr;
use std::sync::Arc;

use skep_proto::cidr::address_to_wire;
use skep_proto::id::{IdError, NetworkId, NodeId, ServiceId, TaskId};
use skep_proto::v1;

use super::{DataPathPort, Endpoint, EndpointState, Peer, Service, Table};

/// What cannot be in a table.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum MalformedTable {
    /// A row without a valid id.
    #[error("{field} is no id")]
    Id {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: IdError,
    },
    /// An address has 4 or 16 bytes.
    #[error("an address of {0} bytes")]
    Address(usize),
    /// A port has 16 bits.
    #[error("{0} is no UDP port")]
    Port(u32),
    /// A whole table says first what network it is of.
    #[error("the network itself is missing")]
    NoNetwork,
}

/// Puts the message's rows into the table, and takes out what it removes.
pub(super) fn merge(table: &mut Table, message: &v1::NetworkTable) -> Result<(), MalformedTable> {
    if let Some(network) = &message.network {
        table.network = Some(Arc::new(network.clone()));
        table.data_path_port = match message.data_path_port {
            0 => DataPathPort::default(),
            port => DataPathPort(u16::try_from(port).map_err(|_| MalformedTable::Port(port))?),
        };
    }
    if table.network.is_none() {
        return Err(MalformedTable::NoNetwork);
    }
    for row in &message.put_endpoints {
        table.endpoints.insert(id(&row.task_id, "task_id", TaskId::from_wire)?, Arc::new(endpoint(row)?));
    }
    for row in &message.put_services {
        table.services.insert(id(&row.service_id, "service_id", ServiceId::from_wire)?, Arc::new(service(row)?));
    }
    for row in &message.put_peers {
        let peer = Peer {
            endpoint: row.endpoint.clone().unwrap_or_default(),
            fabric_number: row.fabric_number,
            addresses: addresses(&row.addresses)?,
        };
        table.peers.insert(id(&row.node_id, "node_id", NodeId::from_wire)?, Arc::new(peer));
    }
    for gone in &message.remove_endpoints {
        table.endpoints.remove(&id(gone, "task_id", TaskId::from_wire)?);
    }
    for gone in &message.remove_services {
        table.services.remove(&id(gone, "service_id", ServiceId::from_wire)?);
    }
    for gone in &message.remove_peers {
        table.peers.remove(&id(gone, "node_id", NodeId::from_wire)?);
    }
    Ok(())
}

/// A table as a whole, in one message.
pub(super) fn whole(network: NetworkId, table: &Table) -> v1::NetworkTable {
    let all = |addresses: &[IpAddr]| addresses.iter().map(|address| address_to_wire(*address)).collect();
    let endpoint = |(id, row): (&TaskId, &Arc<Endpoint>)| v1::NetworkEndpoint {
        task_id: id.to_vec(),
        node_id: row.node.to_vec(),
        service_id: row.service.to_vec(),
        addresses: all(&row.addresses),
        names: row.names.clone(),
        state: match row.state {
            EndpointState::Quiet => v1::EndpointState::Quiet,
            EndpointState::LastResort | EndpointState::Serving => v1::EndpointState::Serving,
        }
        .into(),
        last_resort: row.state == EndpointState::LastResort,
    };
    let service = |(id, row): (&ServiceId, &Arc<Service>)| v1::NetworkService {
        service_id: id.to_vec(),
        names: row.names.clone(),
        virtual_addresses: all(&row.virtual_addresses),
        ports: row.ports.clone(),
    };
    let peer = |(id, row): (&NodeId, &Arc<Peer>)| v1::NetworkPeer {
        node_id: id.to_vec(),
        endpoint: Some(row.endpoint.clone()),
        fabric_number: row.fabric_number,
        addresses: all(&row.addresses),
    };
    v1::NetworkTable {
        network_id: network.to_vec(),
        complete: true,
        version: table.version,
        end: true,
        network: table.network.as_deref().cloned(),
        data_path_port: table.data_path_port.0.into(),
        put_endpoints: table.endpoints.iter().map(endpoint).collect(),
        put_services: table.services.iter().map(service).collect(),
        put_peers: table.peers.iter().map(peer).collect(),
        ..v1::NetworkTable::default()
    }
}

fn endpoint(row: &v1::NetworkEndpoint) -> Result<Endpoint, MalformedTable> {
    Ok(Endpoint {
        node: id(&row.node_id, "node_id", NodeId::from_wire)?,
        service: id(&row.service_id, "service_id", ServiceId::from_wire)?,
        addresses: addresses(&row.addresses)?,
        names: row.names.clone(),
        state: match (row.state(), row.last_resort) {
            (v1::EndpointState::Quiet, _) => EndpointState::Quiet,
            (v1::EndpointState::Serving, true) => EndpointState::LastResort,
            (v1::EndpointState::Serving, false) => EndpointState::Serving,
        },
    })
}

fn service(row: &v1::NetworkService) -> Result<Service, MalformedTable> {
    let virtual_addresses = addresses(&row.virtual_addresses)?;
    Ok(Service { names: row.names.clone(), virtual_addresses, ports: row.ports.clone() })
}

/// Addresses of 4 or 16 bytes each.
pub(super) fn addresses(wire: &[Vec<u8>]) -> Result<Vec<IpAddr>, MalformedTable> {
    wire.iter().map(|bytes| address(bytes)).collect()
}

fn address(bytes: &[u8]) -> Result<IpAddr, MalformedTable> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).map(IpAddr::from).map_err(|_| MalformedTable::Address(bytes.len()))
}

fn id<T>(bytes: &[u8], field: &'static str, read: impl Fn(&[u8]) -> Result<T, IdError>) -> Result<T, MalformedTable> {
    read(bytes).map_err(|source| MalformedTable::Id { field, source })
}
