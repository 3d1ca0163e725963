//! Networks of driver bridge: each host has its own, so its names and virtual addresses lead to tasks on the same host only.

use skep_proto::id::NodeId;

use crate::table::{Table, TableChange};

/// A table without the tasks on other hosts.
pub fn table(whole: &Table, own: Option<NodeId>) -> Table {
    let here = whole.endpoints.iter().filter(|(_, row)| Some(row.node) == own);
    let endpoints = here.map(|(id, row)| (*id, std::sync::Arc::clone(row))).collect();
    Table { endpoints, ..whole.clone() }
}

/// A change without the tasks on other hosts.
pub fn change(whole: &TableChange, own: Option<NodeId>) -> TableChange {
    let mut change = whole.clone();
    for rows in change.endpoints.values_mut() {
        for row in [&mut rows.0, &mut rows.1] {
            *row = row.take().filter(|row| Some(row.node) == own);
        }
    }
    change.endpoints.retain(|_, (old, new)| old != new);
    change
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use skep_proto::id::{ServiceId, TaskId};

    use super::*;
    use crate::table::{Endpoint, EndpointState};

    fn row(node: u128, serving: bool) -> Arc<Endpoint> {
        let (node, service) = (NodeId::new(node), ServiceId::new(1));
        let state = if serving { EndpointState::Serving } else { EndpointState::Quiet };
        Arc::new(Endpoint { node, service, addresses: Vec::new(), names: Vec::new(), state })
    }

    proptest! {
        /// The change of what is seen is what is seen of the change.
        #[test]
        fn a_change_leads_from_one_view_to_the_next(
            steps in prop::collection::vec((0u128..6, prop::option::of((1u128..3, any::<bool>()))), 1..30)
        ) {
            let own = Some(NodeId::new(1));
            let mut before = Table::default();
            for (task, step) in steps {
                let mut after = before.clone();
                match step {
                    Some((node, serving)) => after.endpoints.insert(TaskId::new(task), row(node, serving)),
                    None => after.endpoints.remove(&TaskId::new(task)),
                };
                let seen = change(&after.since(&before), own);
                prop_assert_eq!(seen, table(&after, own).since(&table(&before, own)));
                before = after;
            }
            prop_assert!(table(&before, None).endpoints.is_empty());
        }
    }
}
