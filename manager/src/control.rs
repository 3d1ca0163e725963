//! The managers' API (`control.proto`), one file per resource. Every handler checks its caller, reads a snapshot,
//! decides, and writes through the store; none keeps state of its own.

mod clusters;
mod error;
mod image_names;
mod nodes;
mod read;
mod services;
mod summary;
mod tasks;
mod watch;

use std::sync::Arc;

use skep_proto::id::NodeId;

use crate::images::Registries;
use crate::store::Store;

/// Serves every resource of the control API.
#[derive(Clone)]
pub(crate) struct Control {
    store: Store,
    registries: Arc<dyn Registries>,
    /// The answering manager's own node.
    node: NodeId,
}

impl Control {
    /// `registries` resolves image references at `service create`; `node` is what `self` means.
    pub(crate) fn new(store: Store, registries: Arc<dyn Registries>, node: NodeId) -> Self {
        Self { store, registries, node }
    }
}
