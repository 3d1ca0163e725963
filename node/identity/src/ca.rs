//! The cluster's certificate authority: a root made at `swarm init` that signs the nodes' requests.
//!
//! Used by the manager's CA service. Time is passed in. The key is replicated by the managers (encrypted at rest there)
//! and never printed. `rotation.rs` makes the next root.

mod client;

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::RngCore as _;
use rand::rngs::OsRng;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SerialNumber, SignatureAlgorithm,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use skep_proto::id::{ClusterId, NodeId};
use skep_proto::v1::NodeCertificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::OID_SIG_ECDSA_WITH_SHA256;
use x509_parser::prelude::FromDer as _;

use crate::key::{KeyError, NodeKey};
use crate::returning::key_digest;
use crate::roots::{RootBundle, RootCert, RootError};
use crate::{Role, peer};

pub use client::ClientGrant;

/// How long a root is valid: longer than any cluster lives without a rotation.
pub const ROOT_VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// A node certificate's validity unless the cluster's spec says otherwise.
pub const DEFAULT_NODE_VALIDITY: Duration = Duration::from_secs(90 * 24 * 3600);
/// The shortest validity that leaves time to renew through an outage of the managers.
pub const MIN_NODE_VALIDITY: Duration = Duration::from_secs(3600);
/// Certificates begin this much before they are made, so that a host whose clock is behind accepts them.
pub const BACKDATE: Duration = Duration::from_secs(3600);

/// Why the authority cannot do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The request is not a PKCS#10 request.
    #[error("the certificate request is malformed")]
    MalformedRequest,
    /// The request's key is not ECDSA P-256.
    #[error("the certificate request's key is not an ECDSA P-256 key")]
    RequestAlgorithm,
    /// The request was not signed by the key in it.
    #[error("the certificate request is not signed by its own key")]
    RequestSignature,
    /// The asked validity is too short to renew in.
    #[error("a node certificate's validity is at least 1 h, not {} s", .0.as_secs())]
    Validity(Duration),
    /// The root itself has ended or ends within the hour.
    #[error(
        "the swarm's root certificate has ended, or ends within the hour, and signs nothing any more: give the swarm another \
         with `skep swarm ca --rotate` on a manager; where the managers have no quorum, run `skep swarm init \
         --force-new-cluster` on one of them first"
    )]
    RootExpired,
    /// The subject of a root is of a form that cannot be written again.
    #[error("the root's subject is of an unusual form: write it in UTF8String or PrintableString, each attribute once")]
    Subject,
    /// The clock is before 1970 or beyond the calendar.
    #[error("the clock is out of range")]
    Clock,
    /// The stored root cannot be read.
    #[error("the authority's certificate cannot be read")]
    Root(#[source] RootError),
    /// The stored root does not belong to the stored key.
    #[error("the authority's key does not belong to its certificate")]
    KeyMismatch,
    /// The key cannot be made, read or used.
    #[error("the authority's key cannot be used")]
    Key(#[source] KeyError),
    /// The library refuses to build the certificate.
    #[error("cannot build the certificate")]
    Build(#[source] rcgen::Error),
}

/// What the manager decided about a request: the request itself has no say in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeGrant {
    /// The node, as its common name and an alternative name.
    pub node_id: NodeId,
    /// The role that token or spec allow.
    pub role: Role,
    /// From `now`; at least [`MIN_NODE_VALIDITY`]; cut at the root's own end.
    pub validity: Duration,
}

/// A signed node certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// The certificate, then intermediates if any (not the root).
    pub chain_pem: String,
    /// Its end.
    pub not_after: SystemTime,
    /// What its holder would say of it.
    pub facts: NodeCertificate,
}

/// The root certificate with its key.
pub struct RootCa {
    cert: RootCert,
    key: NodeKey,
    not_after: SystemTime,
}

impl RootCa {
    /// Makes a new root for a cluster.
    pub fn generate(cluster_id: ClusterId, now: SystemTime) -> Result<Self, CaError> {
        let key = NodeKey::generate().map_err(CaError::Key)?;
        let mut params = base_params(now.checked_sub(BACKDATE).ok_or(CaError::Clock)?, now + ROOT_VALIDITY)?;
        params.distinguished_name.push(DnType::OrganizationName, cluster_id.to_string());
        // Another name than any other root's, so that a chain leads to one of them.
        params.distinguished_name.push(DnType::CommonName, format!("skep-root-{:08x}", OsRng.next_u32()));
        // One intermediate may stand between: the next root, cross-signed by this one.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let der = params.self_signed(key.pair()).map_err(CaError::Build)?.der().clone();
        Self::new(der, key)
    }

    /// Reads what [`Self::cert`] and [`Self::key_pem`] gave, and checks that they belong together.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let der = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|error| CaError::Root(RootError::Pem(error)))?;
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|_| CaError::Key(KeyError::Algorithm))?;
        Self::new(der, NodeKey::from_pkcs8_der(key.secret_pkcs8_der()).map_err(CaError::Key)?)
    }

    fn new(der: CertificateDer<'static>, key: NodeKey) -> Result<Self, CaError> {
        let (not_after, matches) = {
            let parsed = peer::parse(&der).map_err(|error| CaError::Root(RootError::Certificate(error)))?;
            let not_after = peer::system_time(parsed.validity().not_after).map_err(|_| CaError::Clock)?;
            (not_after, parsed.public_key().subject_public_key.data.as_ref() == key.public_point())
        };
        if !matches {
            return Err(CaError::KeyMismatch);
        }
        Ok(Self { cert: RootCert::from_der(der).map_err(CaError::Root)?, key, not_after })
    }

    /// The public half.
    pub fn cert(&self) -> &RootCert {
        &self.cert
    }

    /// The public half as the bundle that nodes trust.
    pub fn bundle(&self) -> RootBundle {
        self.cert.clone().into()
    }

    /// The cluster that this root signs for.
    pub fn cluster_id(&self) -> ClusterId {
        self.cert.cluster_id()
    }

    pub(crate) fn key(&self) -> &NodeKey {
        &self.key
    }

    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The private key as PEM, to store it encrypted. Never log it.
    pub fn key_pem(&self) -> String {
        self.key.to_pem(None).as_str().to_owned()
    }

    /// Signs the key of a request (PKCS#10, DER or PEM) into a node certificate that says what `grant` says. Subject and
    /// extensions of the request are ignored; its own signature is checked, so nobody gets a certificate for another's key.
    pub fn issue(&self, request: &[u8], grant: &NodeGrant, now: SystemTime) -> Result<IssuedCertificate, CaError> {
        let (id, role) = (grant.node_id.to_string(), grant.role.certificate_name());
        let names = CertificateParams::new(vec![id.clone(), role.to_owned()]).map_err(CaError::Build)?;
        self.sign(request, grant.validity, now, |params| {
            params.subject_alt_names = names.subject_alt_names;
            params.distinguished_name.push(DnType::OrganizationalUnitName, role);
            params.distinguished_name.push(DnType::CommonName, id);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        })
    }

    /// What all certificates have in common; `specify` says whose this one is and what for.
    fn sign(
        &self,
        request: &[u8],
        validity: Duration,
        now: SystemTime,
        specify: impl FnOnce(&mut CertificateParams),
    ) -> Result<IssuedCertificate, CaError> {
        if validity < MIN_NODE_VALIDITY {
            return Err(CaError::Validity(validity));
        }
        let key = RequestKey::read(request)?;
        let not_after = now.checked_add(validity).ok_or(CaError::Clock)?.min(self.not_after);
        if not_after.duration_since(now).map_or(true, |left| left < MIN_NODE_VALIDITY) {
            return Err(CaError::RootExpired);
        }
        let not_before = now.checked_sub(BACKDATE).ok_or(CaError::Clock)?;
        let mut params = base_params(not_before, not_after)?;
        params.distinguished_name.push(DnType::OrganizationName, self.cluster_id().to_string());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        specify(&mut params);
        let issuer = Issuer::from_ca_cert_der(self.cert.der(), self.key.pair()).map_err(CaError::Build)?;
        let cert = params.signed_by(&key, &issuer).map_err(CaError::Build)?;
        let not_after = whole_seconds(not_after)?;
        let facts = NodeCertificate {
            issuer: self.cert.digest().as_bytes().to_vec(),
            not_before_ms: unix_ms(not_before),
            not_after_ms: unix_ms(not_after),
            key: key_digest(&key.0).to_vec(),
        };
        Ok(IssuedCertificate { chain_pem: cert.pem(), not_after, facts })
    }
}

impl fmt::Debug for RootCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootCa").field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// The public key of a request whose self-signature was verified.
struct RequestKey(Vec<u8>);

impl RequestKey {
    fn read(request: &[u8]) -> Result<Self, CaError> {
        let from_pem;
        let der = if request.starts_with(b"-----BEGIN") {
            from_pem = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(request)
                .map_err(|_| CaError::MalformedRequest)?;
            &from_pem[..]
        } else {
            request
        };
        let (rest, parsed) = X509CertificationRequest::from_der(der).map_err(|_| CaError::MalformedRequest)?;
        if !rest.is_empty() {
            return Err(CaError::MalformedRequest);
        }
        let info = &parsed.certification_request_info;
        let spki =
            rcgen::SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| CaError::RequestAlgorithm)?;
        if spki.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::RequestAlgorithm);
        }
        let claimed = &parsed.signature_algorithm;
        if claimed.algorithm != OID_SIG_ECDSA_WITH_SHA256 || parsed.signature_value.unused_bits != 0 {
            return Err(CaError::RequestAlgorithm);
        }
        ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_ASN1, spki.der_bytes())
            .verify(info.raw, &parsed.signature_value.data)
            .map_err(|_| CaError::RequestSignature)?;
        Ok(Self(spki.der_bytes().to_vec()))
    }
}

impl PublicKeyData for RequestKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// Validity and a random serial number (RFC 5280 section 4.1.2.2: at most 20 octets, positive).
pub(crate) fn base_params(not_before: SystemTime, not_after: SystemTime) -> Result<CertificateParams, CaError> {
    let mut serial = [0u8; 16];
    OsRng.fill_bytes(&mut serial);
    serial[0] = serial[0] & 0x7f | 0x40;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = epoch + since_epoch(not_before)?;
    params.not_after = epoch + since_epoch(not_after)?;
    Ok(params)
}

/// Whole seconds since 1970, up to the year 9000: certificates know no fractions and no five-digit years.
fn since_epoch(time: SystemTime) -> Result<Duration, CaError> {
    const YEAR_9000_SECONDS: u64 = 221_845_392_000;
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) if since.as_secs() < YEAR_9000_SECONDS => Ok(Duration::from_secs(since.as_secs())),
        _ => Err(CaError::Clock),
    }
}

/// Milliseconds since 1970, in whole seconds, as certificates hold it; 0 before it.
pub(crate) fn unix_ms(time: SystemTime) -> i64 {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX / 1_000).saturating_mul(1_000)
}

fn whole_seconds(time: SystemTime) -> Result<SystemTime, CaError> {
    Ok(UNIX_EPOCH + since_epoch(time)?)
}
