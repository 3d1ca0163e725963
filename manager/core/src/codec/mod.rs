//! Between the managers' types and the wire: what the log and snapshots hold (`proto/v1/store.proto`), and what the API
//! and the sessions show. Reading never panics and never guesses: what this build does not know is an error that says
//! so, because a manager that skipped it would differ from the others.

mod entry;
mod error;
mod objects;
mod parcels;
mod snapshot;

#[cfg(test)]
mod codec_prop_test;

pub(crate) use entry::group_to_wire;
pub use entry::{EntryWriter, decode_entry, encode_entry, transaction_size, transaction_to_wire};
pub use error::{DecodeError, SnapshotError};
pub use objects::{
    addresses_to_wire, client_from_wire, client_to_wire, cluster_from_wire, cluster_to_api, cluster_to_wire,
    credential_from_wire, credential_to_wire, image_name_from_wire, image_name_to_wire, network_from_wire,
    network_to_wire, node_from_wire, node_to_wire, revision_from_wire, revision_key_to_wire, revision_to_wire,
    service_from_wire, service_to_wire, task_from_wire, task_to_wire,
};
pub use parcels::{config_to_wire, payload_key_to_wire, payload_to_wire, secret_to_wire};
pub use snapshot::{read_snapshot, write_snapshot};
