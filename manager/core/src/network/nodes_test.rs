//! What nodes get: numbers in the fabric, addresses in the routing mesh.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;

use skep_proto::id::NodeId;
use skep_proto::v1::FabricEndpoint;

use super::testing::{Leader, MESH};
use super::*;
use crate::change::{Change, Group, Op, Plan};
use crate::object::Node;

#[test]
fn numbers_in_the_fabric_rest_and_are_given_again_when_all_were() {
    let mut leader = Leader::new("10.1.0.0/24");
    let last = (1 << 22) - 1;
    for (number, fabric_number) in [(1, Some(last)), (2, Some(2)), (3, None), (4, None)] {
        let mut node = crate::example::node(number).build();
        node.fabric_number = fabric_number;
        Arc::make_mut(node.description.as_mut().unwrap()).fabric = Some(FabricEndpoint::default());
        leader.state.put(node);
    }
    let plan = plan_nodes(&leader.state, &mut leader.cursors);
    leader.run(plan);
    let numbers: Vec<_> = leader.state.nodes().map(|node| node.fabric_number.unwrap()).collect();
    assert_eq!(numbers, [last, 2, 1, 3]);
    assert_eq!(plan_nodes(&leader.state, &mut leader.cursors), Plan::default(), "stable");
}

#[test]
fn the_number_of_a_node_that_is_gone_rests() {
    let mut leader = Leader::new("10.1.0.0/24");
    let add = |leader: &mut Leader, number| {
        let mut node = crate::example::node(number).build();
        Arc::make_mut(node.description.as_mut().unwrap()).fabric = Some(FabricEndpoint::default());
        leader.state.put(node);
        let plan = plan_nodes(&leader.state, &mut leader.cursors);
        leader.run(plan);
        leader.state.node(NodeId::new(number)).unwrap().fabric_number
    };
    let first = add(&mut leader, 50).unwrap();
    leader.apply(vec![Group(vec![Change::any(Op::RemoveNode(NodeId::new(50)))])]);
    assert_eq!(leader.state.node_by_fabric_number(first), None);
    assert_eq!(add(&mut leader, 51), Some(first + 1));
}

#[test]
fn nodes_with_overlays_get_numbers_and_addresses() {
    let mut leader = Leader::new("10.1.0.0/24");
    assert_eq!(plan_nodes(&leader.state, &mut leader.cursors), Plan::default());
    for number in 1..=2 {
        let mut node = Node::clone(leader.state.node(NodeId::new(number)).unwrap());
        Arc::make_mut(node.description.as_mut().unwrap()).fabric = Some(FabricEndpoint::default());
        leader.state.put(node);
    }
    let plan = plan_nodes(&leader.state, &mut leader.cursors);
    leader.run(plan);
    assert_eq!(plan_nodes(&leader.state, &mut leader.cursors), Plan::default(), "stable");
    let nodes: Vec<_> = leader.state.nodes().map(|node| (node.fabric_number, node.ingress.unwrap().v4)).collect();
    assert_eq!(nodes.iter().collect::<BTreeSet<_>>().len(), 2);
    assert_eq!(leader.state.node(NodeId::new(2)).unwrap().fabric_address().unwrap().to_string(), "100.64.0.2");
    // Another mesh, other addresses.
    leader.apply(vec![Group(vec![Change::any(Op::RemoveNetwork(MESH))])]);
    let plan = plan_nodes(&leader.state, &mut leader.cursors);
    leader.run(plan);
    assert!(leader.state.nodes().all(|node| node.ingress.is_none() && node.fabric_number.is_some()));
    leader.check();
}
