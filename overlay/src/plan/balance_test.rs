//! Who gets a service's connections, and what a change of its tasks changes in the rules.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use proptest::prelude::*;
use skep_netlink::nft::Transport;
use skep_proto::id::NodeId;
use skep_proto::v1;

use super::*;
use crate::table::Endpoint;

const STATES: [EndpointState; 3] = [EndpointState::Quiet, EndpointState::LastResort, EndpointState::Serving];

fn endpoint(service: u128, last: u8, state: EndpointState) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        node: NodeId::new(1),
        service: ServiceId::new(service),
        addresses: vec![[10, 0, 0, last].into()],
        names: Vec::new(),
        state,
    })
}

fn service(vip: u8) -> Arc<table::Service> {
    let port = v1::PortSpec { published_port: 8000 + u32::from(vip), target_port: 80, ..v1::PortSpec::default() };
    let virtual_addresses = if vip == 0 { Vec::new() } else { vec![[10, 0, 1, vip].into()] };
    Arc::new(table::Service { names: Vec::new(), virtual_addresses, ports: vec![port] })
}

/// What goes where, without the numbers of services and backends.
fn shown(balance: &Balance) -> BTreeMap<String, BTreeSet<Backend>> {
    let held = balance.held.values().flatten();
    held.map(|held| {
        let Service { name, frontends, ports, number: _ } = &held.service;
        (format!("{name} {frontends:?} {ports} {:?}", held.target), held.backends.list().iter().copied().collect())
    })
    .collect()
}

/// The numbers that services have in the kernel.
fn numbers(balance: &Balance) -> Vec<u16> {
    let mut numbers: Vec<u16> = balance.held.values().flatten().map(|held| held.service.number).collect();
    numbers.sort_unstable();
    numbers
}

proptest! {
    #[test]
    fn changes_lead_to_what_the_table_says(
        steps in proptest::collection::vec((0u8..4, 0u128..8, 1u128..4, 0u8..9, 0usize..3), 1..40)
    ) {
        let mut table = Table::default();
        for kind in [Kind::Addresses, Kind::Ports] {
            let mut balance = Balance::new(kind, "t", false);
            for (what, task, id, last, state) in &steps {
                let mut next = table.clone();
                match what {
                    0 => { next.endpoints.insert(TaskId::new(*task), endpoint(*id, *last, STATES[*state])); }
                    1 => { next.endpoints.remove(&TaskId::new(*task)); }
                    // Each service has numbers of its own, as the managers see to.
                    2 => { next.services.insert(ServiceId::new(*id), service(last / 3 * 3 + u8::try_from(*id).unwrap() % 3)); }
                    _ => { next.services.remove(&ServiceId::new(*id)); }
                }
                let change = next.since(&table);
                table = next;
                let transaction = balance.change(&table, &change);
                prop_assert!(!change.is_empty() || transaction.is_empty());
                let mut afresh = Balance::new(kind, "t", false);
                let _ = afresh.change(&table, &table.all());
                prop_assert_eq!(shown(&balance), shown(&afresh));
                prop_assert!(balance.numbers.iter().copied().eq(numbers(&balance)), "no two share one, none is kept");
            }
            table = Table::default();
        }
    }
}

#[test]
fn only_serving_tasks_get_connections() {
    let mut table = Table::default();
    table.services.insert(ServiceId::new(1), service(7));
    table.endpoints.insert(TaskId::new(1), endpoint(1, 5, EndpointState::Serving));
    table.endpoints.insert(TaskId::new(2), endpoint(1, 6, EndpointState::Quiet));
    let mut balance = Balance::new(Kind::Addresses, "t", false);
    let _ = balance.change(&table, &table.all());
    let backend = Backend { address: [10, 0, 0, 5].into(), port: None };
    assert_eq!(balance.backends_of(Frontend::Address([10, 0, 1, 7].into())), Some([backend].as_slice()));
    let mut ports = Balance::new(Kind::Ports, "t", false);
    let _ = ports.change(&table, &table.all());
    let published = Frontend::Published(Transport::Tcp, 8007);
    assert_eq!(ports.backends_of(published), Some([Backend { port: Some(80), ..backend }].as_slice()));
    assert_eq!(ports.served().collect::<Vec<_>>(), [published]);
}

#[test]
fn tasks_of_nodes_that_are_down_get_connections_where_no_other_does() {
    let mut table = Table::default();
    table.services.insert(ServiceId::new(1), service(7));
    table.endpoints.insert(TaskId::new(1), endpoint(1, 5, EndpointState::LastResort));
    table.endpoints.insert(TaskId::new(2), endpoint(1, 6, EndpointState::Serving));
    let mut balance = Balance::new(Kind::Addresses, "t", false);
    let _ = balance.change(&table, &table.all());
    let frontend = Frontend::Address([10, 0, 1, 7].into());
    let backend = |last: u8| Backend { address: [10, 0, 0, last].into(), port: None };
    assert_eq!(balance.backends_of(frontend), Some([backend(6)].as_slice()));
    let before = table.clone();
    table.endpoints.insert(TaskId::new(2), endpoint(1, 6, EndpointState::Quiet));
    let _ = balance.change(&table, &table.since(&before));
    assert_eq!(balance.backends_of(frontend), Some([backend(5)].as_slice()));
}
