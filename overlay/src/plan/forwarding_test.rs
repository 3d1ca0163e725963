//! What a bridge knows of a network's tasks, whole and by differences: the same in the end.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;
use skep_proto::id::ServiceId;
use skep_proto::v1;

use super::*;
use crate::table::{Endpoint, EndpointState, Peer};

fn endpoint(node: u128, last: u8) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        node: NodeId::new(node),
        service: ServiceId::new(1),
        addresses: vec![[10, 0, 0, last].into()],
        names: Vec::new(),
        state: EndpointState::Serving,
    })
}

fn peer(last: u8) -> Arc<Peer> {
    let endpoint = v1::FabricEndpoint { vxlan_addr: format!("192.0.2.{last}"), ..v1::FabricEndpoint::default() };
    Arc::new(Peer { endpoint, fabric_number: last.into(), addresses: vec![[10, 0, 1, last].into()] })
}

/// Entries as the kernel has them after changes, in order.
fn carry_out(kernel: &mut HashSet<Neighbour>, changes: &[NeighbourChange]) {
    for change in changes {
        let same = |a: &Neighbour, b: &Neighbour| match (a, b) {
            (Neighbour::Host { address: a, .. }, Neighbour::Host { address: b, .. }) => a == b,
            (Neighbour::Tunnel { mac: a, .. }, Neighbour::Tunnel { mac: b, .. }) => a == b,
            _ => false,
        };
        match change {
            NeighbourChange::Put(entry) => {
                kernel.retain(|other| !same(other, entry));
                kernel.insert(*entry);
            }
            NeighbourChange::Delete(entry) => assert!(kernel.remove(entry), "{entry}"),
        }
    }
}

proptest! {
    /// Whatever the order of changes, the kernel has what the last table asks for, and nothing of this host's own.
    #[test]
    fn changes_lead_to_what_the_table_says(
        steps in proptest::collection::vec((0u8..3, 0u128..6, 1u128..4, 1u8..6), 1..40)
    ) {
        let mut table = Table::default();
        let mut forwarding = Forwarding::new(NodeId::new(1), Way::Underlay);
        let mut mesh = Forwarding::new(NodeId::new(1), Way::Mesh);
        let mut device = HashMap::new();
        let mut kernel = HashSet::new();
        for (kind, key, node, last) in steps {
            let mut next = table.clone();
            match kind {
                0 => { next.endpoints.insert(TaskId::new(key), endpoint(node, last)); }
                1 => { next.endpoints.remove(&TaskId::new(key)); }
                _ if last > 2 => { next.peers.insert(NodeId::new(node), peer(last)); }
                _ => { next.peers.remove(&NodeId::new(node)); }
            }
            let change = next.since(&table);
            table = next;
            carry_out(&mut kernel, &forwarding.change(&table, &change, 3));
            let forwards = mesh.change_forwards(&table, &change);
            device.retain(|mac, _| !forwards.remove.contains(mac));
            device.extend(forwards.put.into_iter().map(|forward| (forward.mac, forward)));
            let mut afresh = Forwarding::new(NodeId::new(1), Way::Mesh);
            let _ = afresh.change_forwards(&table, &table.all());
            let whole = |of: &Forwarding| of.forwards().map(|forward| (forward.mac, forward)).collect::<HashMap<_, _>>();
            prop_assert_eq!(&device, &whole(&afresh));
            prop_assert_eq!(&device, &whole(&mesh));
            let mut afresh = Forwarding::new(NodeId::new(1), Way::Underlay);
            let mut other = HashSet::new();
            carry_out(&mut other, &afresh.change(&table, &table.all(), 3));
            prop_assert_eq!(&kernel, &other);
            prop_assert_eq!(&kernel, &forwarding.entries(3).collect::<HashSet<_>>());
            prop_assert!(difference(kernel.iter().copied(), forwarding.entries(3)).is_empty());
        }
    }
}

#[test]
fn a_remote_endpoint_is_behind_its_host() {
    let mut table = Table::default();
    table.peers.insert(NodeId::new(2), peer(9));
    table.endpoints.insert(TaskId::new(1), endpoint(2, 5));
    table.endpoints.insert(TaskId::new(2), endpoint(1, 6));
    let mut forwarding = Forwarding::new(NodeId::new(1), Way::Underlay);
    forwarding.change(&table, &table.all(), 3);
    let mut entries: Vec<String> = forwarding.entries(3).map(|entry| entry.to_string()).collect();
    entries.sort();
    assert_eq!(
        entries,
        [
            "02:42:0a:00:00:05 behind 192.0.2.9 on device number 3",
            "02:42:0a:00:01:09 behind 192.0.2.9 on device number 3",
            "10.0.0.5 at 02:42:0a:00:00:05 on device number 3",
            "10.0.1.9 at 02:42:0a:00:01:09 on device number 3",
        ]
    );
}
