//! What nodes need to be part of networks: a number in the fabric, and addresses of their own in the network of the routing
//! mesh. Called by the scheduler's driver, which also gives tasks their addresses: one writer, so that they do not race.

use std::sync::Arc;

use super::addresses::{Addresses, Cursors};
use super::all_managers_know;
use crate::change::{Change, Op, Plan};
use crate::object::Node;
use crate::store::State;

/// The highest number in the fabric: 22 bits of 100.64.0.0/10.
const LAST_NUMBER: u32 = (1 << 22) - 1;

/// Gives nodes with overlays what they lack, and takes addresses of a routing mesh that is gone. Stable. A mesh without a
/// free address leaves the node without: it takes part when one is free.
pub fn plan(state: &State, cursors: &mut Cursors) -> Plan {
    let mut plan = Plan::default();
    if !all_managers_know(state) {
        return plan;
    }
    let mesh = state.ingress_network().map(|network| network.id);
    let mut numbers = Numbers { state, last: state.last_fabric_number().max(cursors.fabric_number) };
    let mut addresses = Addresses::new(state, cursors);
    for node in state.nodes() {
        let has_overlays = node.description.as_ref().is_some_and(|description| description.fabric.is_some());
        let stale = node.ingress.is_some_and(|ingress| Some(ingress.network) != mesh);
        let lacks_address = has_overlays && mesh.is_some() && (stale || node.ingress.is_none());
        let lacks_number = has_overlays && node.fabric_number.is_none();
        if !stale && !lacks_address && !lacks_number {
            continue;
        }
        let mut changed = Node::clone(node);
        if stale {
            changed.ingress = None;
        }
        if lacks_number {
            changed.fabric_number = numbers.next();
        }
        if let Some(mesh) = mesh.filter(|_| lacks_address)
            && let Ok(found) = addresses.find(mesh, &[])
        {
            addresses.take(&found);
            changed.ingress = Some(found);
        }
        if changed != **node {
            plan.push(vec![Change::update(node.meta.version, Op::PutNode(changed))]);
        }
    }
    cursors.fabric_number = numbers.last;
    plan
}

/// Gives numbers in the fabric during one pass.
struct Numbers<'a> {
    state: &'a State,
    /// The one that was given last.
    last: u32,
}

impl Numbers<'_> {
    /// The one after the highest and after the last one given, so that a freed one rests; when there is none, the lowest that
    /// is free. `None`: all are taken.
    fn next(&mut self) -> Option<u32> {
        let state = self.state;
        let is_free = |number: &u32| state.node_by_fabric_number(*number).is_none();
        let after = (self.last + 1..=LAST_NUMBER).find(is_free);
        let number = match after {
            None if self.last >= state.last_fabric_number() => (1..=LAST_NUMBER).find(is_free),
            after => after,
        }?;
        self.last = number;
        Some(number)
    }
}

/// Whether a node's change may call for a plan.
pub fn concerns(before: Option<&Arc<Node>>, after: Option<&Arc<Node>>) -> bool {
    let parts = |node: &Arc<Node>| {
        let has_overlays = node.description.as_ref().is_some_and(|description| description.fabric.is_some());
        (has_overlays, node.fabric_number, node.ingress)
    };
    before.map(parts) != after.map(parts)
}
