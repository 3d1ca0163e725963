//! Rows of a table as the name server has them.

use skep_dns::{Endpoint, EndpointId, Service, ServiceId, Serving, Zone};

use crate::table::{self, EndpointState, Table, TableChange};

/// Brings a network's names up to date.
pub fn change(zone: &mut Zone, change: &TableChange) {
    for (id, (_, service)) in &change.services {
        let id = ServiceId(id.value().to_be_bytes());
        match service {
            Some(row) => zone.put_service(id, &service_row(row)),
            None => zone.remove_service(id),
        }
    }
    for (id, (_, endpoint)) in &change.endpoints {
        let id = EndpointId(id.value().to_be_bytes());
        match endpoint {
            Some(row) => zone.put_endpoint(id, &endpoint_row(row)),
            None => zone.remove_endpoint(id),
        }
    }
}

/// All names of a table.
pub fn whole(table: &Table) -> Zone {
    let mut zone = Zone::default();
    for (id, row) in &table.services {
        zone.put_service(ServiceId(id.value().to_be_bytes()), &service_row(row));
    }
    for (id, row) in &table.endpoints {
        zone.put_endpoint(EndpointId(id.value().to_be_bytes()), &endpoint_row(row));
    }
    zone
}

fn service_row(row: &table::Service) -> Service {
    Service { names: row.names.clone(), virtual_addresses: row.virtual_addresses.clone() }
}

fn endpoint_row(row: &table::Endpoint) -> Endpoint {
    Endpoint {
        service: Some(ServiceId(row.service.value().to_be_bytes())),
        addresses: row.addresses.clone(),
        names: row.names.clone(),
        serving: match row.state {
            EndpointState::Quiet => Serving::No,
            EndpointState::LastResort => Serving::LastResort,
            EndpointState::Serving => Serving::Yes,
        },
    }
}
