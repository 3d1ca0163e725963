//! The managers' API (`control.proto`), one file per resource. Who may call what is the gate's (`callers.rs`); a handler reads
//! a snapshot, decides, and writes through the store; none keeps state of its own.

mod clients;
mod clusters;
mod configs;
mod doctor;
mod error;
mod image_names;
mod networks;
mod nodes;
mod parcels;
pub(crate) mod read;
mod roots;
mod secrets;
mod services;
mod summary;
mod tasks;
mod watch;

use std::sync::Arc;

use skep_core::store::State;
use skep_proto::id::NodeId;
use tokio::sync::watch::Receiver;

use crate::ca::CertificateAuthority;
use crate::dispatch::Dispatcher;
use crate::images::Registries;
use crate::keys;
use crate::roles::Seen;
use crate::store::Store;

/// How often a write that asks for no version is made again when another one came between.
const ATTEMPTS: u32 = 8;

/// Serves every resource of the control API.
#[derive(Clone)]
pub(crate) struct Control {
    store: Store,
    registries: Arc<dyn Registries>,
    /// The answering manager's own node.
    node: NodeId,
    raft: Receiver<skep_raft::Status>,
    /// Asks nodes; a simulated manager has none.
    dispatcher: Option<Dispatcher>,
    /// How far the answering manager is with its keys on disk; a simulated manager has none.
    keys: Option<keys::Board>,
    /// Signs clients' certificates; a simulated manager has none.
    authority: Option<CertificateAuthority>,
}

impl Control {
    /// `registries` resolves image references at `service create`; `node` is what `self` means; `raft` tells who is a
    /// manager.
    pub(crate) fn new(
        store: Store,
        registries: Arc<dyn Registries>,
        node: NodeId,
        raft: Receiver<skep_raft::Status>,
    ) -> Self {
        Self { store, registries, node, raft, dispatcher: None, keys: None, authority: None }
    }

    /// Asks nodes by the sessions of this dispatcher.
    pub(crate) fn with_nodes(self, dispatcher: Dispatcher) -> Self {
        Self { dispatcher: Some(dispatcher), ..self }
    }

    /// Says, and waits for, what becomes of the managers' keys on disk.
    pub(crate) fn with_keys(self, keys: keys::Board) -> Self {
        Self { keys: Some(keys), ..self }
    }

    /// Has clients' certificates signed by this authority.
    pub(crate) fn with_authority(self, authority: CertificateAuthority) -> Self {
        Self { authority: Some(authority), ..self }
    }

    /// The managers as this one sees them. Looks at every node.
    fn seen(&self, state: &State) -> Seen {
        Seen::of(&self.raft.borrow(), state)
    }
}
