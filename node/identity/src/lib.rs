//! Who a node is, and how it proves it: the certificate authority, join tokens, credentials on disk, mutual TLS with
//! renewal and denial, the transport under tonic, and image tickets.
//!
//! Used by the manager, the worker, the node and the CLI. It decides who is at the other end of a connection, never what
//! they may do there. Keys and token secrets are never logged; nothing here trusts a certificate that `chain.rs` did not
//! check.

pub mod ca;
mod chain;
mod client;
mod credentials;
mod deny;
#[doc(hidden)]
pub mod fuzzing;
mod join;
mod key;
mod mesh;
mod peer;
mod pem;
mod returning;
mod role;
mod roots;
mod rotation;
mod seal;
mod store;
pub mod ticket;
mod tls;
mod token;
pub mod transport;
mod unlock;
mod verify;

#[cfg(test)]
mod ca_test;
#[cfg(test)]
mod chain_test;
#[cfg(test)]
mod rotation_test;
#[cfg(test)]
mod seal_test;
#[cfg(test)]
mod store_test;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod ticket_test;

pub use ca::{CaError, ClientGrant, IssuedCertificate, NodeGrant, RootCa};
pub use chain::CLOCK_TOLERANCE;
pub use client::{ClientCredentials, ClientCredentialsError, ClientIdentity, ClientKey};
pub use credentials::{Credentials, CredentialsError, LiveCredentials, Validity, renewal_at};
pub use deny::{ConnectionId, Denied, DenyList};
pub use join::{JoinError, join_channel};
pub use key::{KeyError, NodeKey};
pub use mesh::{MESH_KEY_FILE, MeshKey};
pub use peer::{PeerError, PeerIdentity};
pub use returning::{ReturnError, Returned, verify_return};
pub use role::{Role, RoleError};
pub use roots::{RootBundle, RootCert, RootError};
pub use rotation::{GivenError, NextRoot};
pub use seal::{PAIR_FILE, other_keys, reseal, settle};
pub use store::{CERT_FILE, KEY_FILE, ROOT_FILE, StoreError, sweep};
pub use tls::{Anonymous, ClientTls, Expected, ServerTls};
pub use token::{JoinToken, RootDigest, RootMismatch, TokenError, TokenSecret};
pub use transport::Caller;
pub use unlock::{NotAnUnlockKey, UnlockKey};
