//! What connection tracking must forget when backends are gone for good: their connections would go on to nobody, and a
//! sender of datagrams that keeps its port would never be balanced anew.
//!
//! A backend that only serves no longer keeps its connections: they end by themselves, or with its row.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use skep_netlink::conntrack::Filter;
use skep_proto::id::ServiceId;

use crate::table::{Table, TableChange};

/// The connections that must end after a change that led to `table`, wherever they are balanced.
pub fn ended(table: &Table, change: &TableChange) -> Vec<Filter> {
    let mut filters = BTreeSet::new();
    // An address that went may have come again with the same change.
    let mut come: BTreeMap<IpAddr, ServiceId> = BTreeMap::new();
    for (_, new) in change.endpoints.values() {
        come.extend(new.iter().flat_map(|row| row.addresses.iter().map(|address| (*address, row.service))));
    }
    for (old, new) in change.endpoints.values() {
        let Some(old) = old else { continue };
        let kept = new.as_ref().map_or(&[][..], |row| &row.addresses);
        for address in old.addresses.iter().filter(|address| !kept.contains(address)) {
            let from = Filter { reply_source: Some(*address), ..Filter::default() };
            match come.get(address) {
                None => drop(filters.insert(from)),
                // Its connections now reach another task of the same service, which is right for datagrams and ends the rest.
                Some(service) if *service == old.service => {}
                Some(_) => {
                    let before = change.services.get(&old.service).and_then(|(before, _)| before.as_ref());
                    let row = table.services.get(&old.service).or(before);
                    let virtual_addresses = row.into_iter().flat_map(|row| &row.virtual_addresses);
                    filters.extend(virtual_addresses.map(|vip| Filter { destination: Some(*vip), ..from }));
                }
            }
        }
    }
    // Whoever sent to a virtual address before it was one goes on with that otherwise.
    for (old, new) in change.services.values() {
        let had = old.as_ref().map_or(&[][..], |row| &row.virtual_addresses);
        let has = new.as_ref().map_or(&[][..], |row| &row.virtual_addresses);
        let fresh = has.iter().filter(|vip| !had.contains(vip));
        filters.extend(fresh.map(|vip| Filter {
            destination: Some(*vip),
            reply_source: Some(*vip),
            ..Filter::default()
        }));
    }
    filters.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use skep_proto::id::{NodeId, TaskId};

    use super::*;
    use crate::table::{Endpoint, EndpointState, Service};

    fn row(service: u128, last: u8, serving: bool) -> Arc<Endpoint> {
        let addresses = vec![[10, 0, 0, last].into()];
        let (node, service) = (NodeId::new(1), ServiceId::new(service));
        let state = if serving { EndpointState::Serving } else { EndpointState::Quiet };
        Arc::new(Endpoint { node, service, addresses, names: Vec::new(), state })
    }

    fn vip(last: u8) -> IpAddr {
        [10, 0, 9, last].into()
    }

    /// Two services, each with its virtual address and a task of the same number.
    fn table() -> Table {
        let mut table = Table::default();
        for number in [1, 2] {
            let virtual_addresses = vec![vip(number)];
            let service = Service { names: Vec::new(), virtual_addresses, ports: Vec::new() };
            table.services.insert(ServiceId::new(number.into()), Arc::new(service));
            table.endpoints.insert(TaskId::new(number.into()), row(number.into(), number, true));
        }
        table
    }

    fn after(change: impl FnOnce(&mut Table)) -> Vec<Filter> {
        let before = table();
        let mut after = before.clone();
        change(&mut after);
        ended(&after, &after.since(&before))
    }

    fn from(last: u8) -> Filter {
        Filter { reply_source: Some([10, 0, 0, last].into()), ..Filter::default() }
    }

    #[test]
    fn what_drains_keeps_its_connections_and_what_is_gone_loses_them() {
        let one = TaskId::new(1);
        assert_eq!(after(|table| drop(table.endpoints.insert(one, row(1, 1, false)))), []);
        assert_eq!(after(|table| drop(table.endpoints.remove(&one))), [from(1)]);
        assert_eq!(after(|table| drop(table.endpoints.insert(one, row(1, 7, true)))), [from(1)]);
    }

    #[test]
    fn an_address_that_another_task_has_at_once() {
        let again = |table: &mut Table, service| {
            table.endpoints.remove(&TaskId::new(1));
            table.endpoints.insert(TaskId::new(9), row(service, 1, true));
        };
        assert_eq!(after(|table| again(table, 1)), []);
        assert_eq!(after(|table| again(table, 2)), [Filter { destination: Some(vip(1)), ..from(1) }]);
        let without_service = after(|table| {
            again(table, 2);
            table.services.remove(&ServiceId::new(1));
        });
        assert_eq!(without_service, [Filter { destination: Some(vip(1)), ..from(1) }]);
    }

    #[test]
    fn who_sent_to_a_virtual_address_before_it_was_one() {
        let table = table();
        let all = ended(&table, &table.all());
        let both = [1, 2].map(|last| Filter {
            destination: Some(vip(last)),
            reply_source: Some(vip(last)),
            ..Filter::default()
        });
        assert_eq!(all, both);
    }
}
