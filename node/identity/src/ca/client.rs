//! Certificates for people: for the client's side of a connection only, and without a word about their rights.

use super::*;
use crate::client::UNIT;
use skep_proto::id::ClientId;

/// What the manager decided about a person's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientGrant {
    /// The client, as its common name.
    pub client_id: ClientId,
    /// From `now`; at least [`MIN_NODE_VALIDITY`]; cut at the root's own end.
    pub validity: Duration,
}

impl RootCa {
    /// Signs the key of a request (PKCS#10, DER or PEM) into a person's certificate, as [`RootCa::issue`] does for nodes.
    pub fn issue_client(
        &self,
        request: &[u8],
        grant: &ClientGrant,
        now: SystemTime,
    ) -> Result<IssuedCertificate, CaError> {
        self.sign(request, grant.validity, now, |params| {
            params.distinguished_name.push(DnType::OrganizationalUnitName, UNIT);
            params.distinguished_name.push(DnType::CommonName, grant.client_id.to_string());
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }
}
