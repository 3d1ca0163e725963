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
        if grant.validity < MIN_NODE_VALIDITY {
            return Err(CaError::Validity(grant.validity));
        }
        let key = RequestKey::read(request)?;
        let not_after = now.checked_add(grant.validity).ok_or(CaError::Clock)?.min(self.not_after);
        if not_after.duration_since(now).map_or(true, |left| left < MIN_NODE_VALIDITY) {
            return Err(CaError::RootExpired);
        }
        let mut params = base_params(now.checked_sub(BACKDATE).ok_or(CaError::Clock)?, not_after)?;
        params.distinguished_name.push(DnType::OrganizationName, self.cluster_id().to_string());
        params.distinguished_name.push(DnType::OrganizationalUnitName, UNIT);
        params.distinguished_name.push(DnType::CommonName, grant.client_id.to_string());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(self.cert.der(), self.key.pair()).map_err(CaError::Build)?;
        let cert = params.signed_by(&key, &issuer).map_err(CaError::Build)?;
        self.issued(&cert, &key, now, not_after)
    }
}
