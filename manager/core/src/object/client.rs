//! People who may call the managers from anywhere by a certificate.

use skep_proto::id::ClientId;
use skep_proto::time::UnixMs;
use skep_proto::v1::ClientRole;

use super::Meta;

/// One of them. What its certificate allows is said here alone: who is removed here is out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The common name of its certificate.
    pub id: ClientId,
    pub meta: Meta,
    /// Unique among clients.
    pub name: String,
    pub role: ClientRole,
    /// When its certificate ends.
    pub cert_not_after: UnixMs,
}
