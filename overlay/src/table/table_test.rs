//! Following the managers' messages, whole and in differences.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use skep_proto::id::{NetworkId, NodeId, ServiceId, TaskId};
use skep_proto::v1;

use super::{EndpointState, FollowedTable, TableError};

const NETWORK: NetworkId = NetworkId::new(1);

fn endpoint(id: u128, last: u8) -> v1::NetworkEndpoint {
    v1::NetworkEndpoint {
        task_id: TaskId::new(id).to_vec(),
        node_id: NodeId::new(1).to_vec(),
        service_id: ServiceId::new(1).to_vec(),
        addresses: vec![vec![10, 0, 1, last]],
        ..v1::NetworkEndpoint::default()
    }
}

fn whole(version: u64, endpoints: Vec<v1::NetworkEndpoint>) -> v1::NetworkTable {
    v1::NetworkTable {
        complete: true,
        version,
        end: true,
        network: Some(v1::Network::default()),
        put_endpoints: endpoints,
        ..v1::NetworkTable::default()
    }
}

fn difference(applies_to: u64, version: u64) -> v1::NetworkTable {
    v1::NetworkTable { applies_to, version, end: true, ..v1::NetworkTable::default() }
}

#[test]
fn a_table_in_several_messages_counts_when_it_is_whole() {
    let mut table = FollowedTable::default();
    let first = v1::NetworkTable { end: false, ..whole(5, vec![endpoint(1, 1)]) };
    assert_eq!(table.take(NETWORK, &first), Ok(false));
    assert_eq!(table.current().version, 0);
    let last = v1::NetworkTable { network: None, ..whole(5, vec![endpoint(2, 2)]) };
    assert_eq!(table.take(NETWORK, &last), Ok(true));
    let change = table.current().all();
    assert_eq!((change.network, change.endpoints.len()), (true, 2));
    assert_eq!((table.current().version, table.current().endpoints.len()), (5, 2));
}

#[test]
fn a_last_resort_serves_for_those_who_do_not_know_such_rows() {
    let mut row = endpoint(1, 1);
    row.set_state(v1::EndpointState::Serving);
    row.last_resort = true;
    let mut table = FollowedTable::default();
    table.take(NETWORK, &whole(5, vec![row.clone()])).unwrap();
    assert_eq!(table.current().endpoints[&TaskId::new(1)].state, EndpointState::LastResort);
    assert_eq!(table.current().message(NETWORK).put_endpoints, [row]);
}

#[test]
fn half_a_table_is_dropped_when_another_version_begins() {
    let mut table = FollowedTable::default();
    table.take(NETWORK, &whole(5, vec![endpoint(1, 1)])).unwrap();
    let half = v1::NetworkTable { end: false, put_endpoints: vec![endpoint(2, 2)], ..difference(5, 6) };
    table.take(NETWORK, &half).unwrap();
    let before = table.current().clone();
    assert_eq!(table.take(NETWORK, &whole(7, vec![endpoint(1, 1)])), Ok(true));
    let change = table.current().since(&before);
    assert!(change.is_empty(), "{change:?}");
    assert_eq!(table.current().version, 7);
}

/// The manager was lost in the middle of a difference; the next one tells all, and calls it the same.
#[test]
fn half_a_difference_is_dropped_when_the_whole_of_its_version_begins() {
    let mut table = FollowedTable::default();
    table.take(NETWORK, &whole(5, vec![endpoint(1, 1), endpoint(2, 2)])).unwrap();
    let half = v1::NetworkTable { end: false, put_endpoints: vec![endpoint(3, 3)], ..difference(5, 6) };
    table.take(NETWORK, &half).unwrap();
    let first = v1::NetworkTable { end: false, ..whole(6, vec![endpoint(1, 1)]) };
    assert_eq!(table.take(NETWORK, &first), Ok(false));
    let last = v1::NetworkTable { network: None, ..whole(6, vec![endpoint(3, 3)]) };
    table.take(NETWORK, &last).unwrap();
    let tasks: Vec<_> = table.current().endpoints.keys().copied().collect();
    assert_eq!(tasks, [TaskId::new(1), TaskId::new(3)]);
}

#[test]
fn a_difference_to_another_version_is_refused_and_an_old_one_is_nothing_new() {
    let mut table = FollowedTable::default();
    let nothing_yet = table.take(NETWORK, &difference(0, 1)).unwrap_err();
    assert_eq!(nothing_yet, TableError::Gap { network: NETWORK, applies_to: 0, have: 0 });
    table.take(NETWORK, &whole(5, vec![endpoint(1, 1)])).unwrap();
    assert_eq!(table.take(NETWORK, &difference(3, 5)), Ok(false));
    assert!(matches!(table.take(NETWORK, &difference(6, 7)), Err(TableError::Gap { .. })));
    assert_eq!(table.current().version, 5);
}

#[test]
fn what_cannot_be_read_changes_nothing() {
    let mut table = FollowedTable::default();
    table.take(NETWORK, &whole(5, vec![endpoint(1, 1)])).unwrap();
    let strange = v1::NetworkEndpoint { addresses: vec![vec![1, 2, 3]], ..endpoint(2, 2) };
    let message = v1::NetworkTable { put_endpoints: vec![strange], ..difference(5, 6) };
    assert!(matches!(table.take(NETWORK, &message), Err(TableError::Malformed { .. })));
    assert_eq!((table.current().version, table.current().endpoints.len()), (5, 1));
    let without_network = v1::NetworkTable { network: None, ..whole(6, Vec::new()) };
    assert!(table.take(NETWORK, &without_network).is_err());
}

proptest! {
    /// What comes from outside: any octets, and tables with some of theirs changed.
    #[test]
    fn any_octets_can_be_taken(octets in prop::collection::vec(any::<u8>(), 0..200), changed in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        use prost::Message as _;
        let mut table = FollowedTable::default();
        table.take(NETWORK, &whole(5, vec![endpoint(1, 1), endpoint(2, 2)])).unwrap();
        let mut encoded = table.current().message(NETWORK).encode_to_vec();
        for (at, to) in changed {
            let at = at.index(encoded.len());
            encoded[at] = to;
        }
        for octets in [octets, encoded] {
            let Ok(message) = v1::NetworkTable::decode(octets.as_slice()) else { continue };
            let before = table.current().clone();
            if table.take(NETWORK, &message).is_err() {
                prop_assert_eq!(table.current(), &before);
            }
        }
    }

    /// Whatever rows come and go: the changes lead from one version to the next, and differences end where a whole
    /// table does.
    #[test]
    fn changes_lead_to_the_next_version(steps in prop::collection::vec((any::<bool>(), prop::collection::vec((0..8u128, 0..4u8), 0..6)), 1..12)) {
        let mut table = FollowedTable::default();
        table.take(NETWORK, &whole(1, Vec::new())).unwrap();
        for (version, (complete, rows)) in (2..).zip(steps) {
            let before = table.current().clone();
            // A last octet of 0 removes.
            let (put, gone): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(_, last)| *last != 0);
            let put = put.into_iter().map(|(id, last)| endpoint(id, last)).collect();
            let message = if complete { whole(version, put) } else {
                v1::NetworkTable {
                    put_endpoints: put,
                    remove_endpoints: gone.into_iter().map(|(id, _)| TaskId::new(id).to_vec()).collect(),
                    ..difference(version - 1, version)
                }
            };
            prop_assert_eq!(table.take(NETWORK, &message), Ok(true));
            let change = table.current().since(&before);
            let mut replayed = before.endpoints.clone();
            for (key, (was, is)) in change.endpoints {
                prop_assert_eq!(replayed.get(&key), was.as_ref());
                prop_assert_ne!(&was, &is);
                match is {
                    Some(is) => replayed.insert(key, is),
                    None => replayed.remove(&key),
                };
            }
            prop_assert_eq!(&replayed, &table.current().endpoints);
        }
    }
}
