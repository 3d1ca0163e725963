//! What nodes need to be part of networks: a number in the fabric, and addresses of their own in the network of the routing
//! mesh. Called by the scheduler's driver, which also gives tasks their addresses: one writer, so that they do not race.

use std::sync::Arc;

use super::addresses::{Addresses, Cursors};
use super::all_managers_know;
use crate::change::{Change, Op, Plan};
use crate::object::Node;
use crate::store::State;

/// Gives nodes with overlays what they lack, and takes addresses of a routing mesh that is gone. Stable. A mesh without a
/// free address leaves the node without: it takes part when one is free.
pub fn plan(state: &State, cursors: &mut Cursors) -> Plan {
    let mut plan = Plan::default();
    if !all_managers_know(state) {
        return plan;
    }
    let mesh = state.ingress_network().map(|network| network.id);
    let mut addresses = Addresses::new(state, cursors);
    let mut last_number = state.last_fabric_number();
    for node in state.nodes() {
        let has_overlays = node.description.as_ref().is_some_and(|description| description.fabric.is_some());
        let mut changed = Node::clone(node);
        if node.ingress.is_some_and(|ingress| Some(ingress.network) != mesh) {
            changed.ingress = None;
        }
        if has_overlays && changed.fabric_number.is_none() {
            last_number += 1;
            changed.fabric_number = Some(last_number);
        }
        if let Some(mesh) = mesh.filter(|_| has_overlays && changed.ingress.is_none())
            && let Ok(found) = addresses.find(mesh, &[])
        {
            addresses.take(&found);
            changed.ingress = Some(found);
        }
        if changed != **node {
            plan.push(vec![Change::update(node.meta.version, Op::PutNode(changed))]);
        }
    }
    plan
}

/// Whether a node's change may call for a plan.
pub fn concerns(before: Option<&Arc<Node>>, after: Option<&Arc<Node>>) -> bool {
    let parts = |node: &Arc<Node>| {
        let has_overlays = node.description.as_ref().is_some_and(|description| description.fabric.is_some());
        (has_overlays, node.fabric_number, node.ingress)
    };
    before.map(parts) != after.map(parts)
}
