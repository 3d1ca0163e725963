//! A change of the root: the next one made or taken from outside, checked, and signed by the one in force.
//!
//! Used by the manager's control API. A given certificate becomes the swarm's anchor as it is: self-signed or an
//! intermediate of somebody's PKI, whose upper levels are then neither asked for nor trusted. It has to name the swarm (its
//! organisation is the cluster id), so that no other swarm of the same PKI is taken for this one.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, DistinguishedName, DnType, DnValue, IsCa, Issuer, KeyUsagePurpose, SubjectPublicKeyInfo,
    string::PrintableString,
};
use rustls::pki_types::CertificateDer;
use skep_proto::id::{ClusterId, NodeId};
use x509_parser::asn1_rs::Tag;

use crate::ca::{self, BACKDATE, CaError, NodeGrant, RootCa};
use crate::key::NodeKey;
use crate::roots::{RootBundle, RootCert};
use crate::{Credentials, CredentialsError, Role, peer, pem};

/// Why a certificate and a key that somebody gave cannot be the swarm's root.
#[derive(Debug, thiserror::Error)]
pub enum GivenError {
    /// Not one certificate.
    #[error("the CA certificate file holds {0} certificates, and one is needed: the one whose key is given")]
    Count(usize),
    /// Unreadable certificate or key, or they do not belong together.
    #[error(
        "the CA certificate and key cannot be used (an ECDSA P-256 key in PKCS#8 form is needed; \
             `openssl pkcs8 -topk8 -nocrypt` makes it from others of that curve)"
    )]
    Unusable(#[source] CaError),
    /// It is for another swarm, or for none.
    #[error("the CA certificate has to name this swarm: its organisation (O) must be {0}")]
    Cluster(ClusterId),
    /// It may not sign certificates.
    #[error("the CA certificate may not sign certificates: its key usage lacks keyCertSign")]
    Usage,
    /// Not valid now.
    #[error("the CA certificate is not valid now")]
    Time,
    /// Ends too early.
    #[error("the CA certificate ends before node certificates that it signs now: they live for {} h", .0.as_secs() / 3600)]
    Short(Duration),
    /// A certificate that it signs would not be believed.
    #[error(
        "certificates that the CA certificate signs would not be believed (name constraints, or a subject of an \
             unusual form?)"
    )]
    Probe(#[source] CredentialsError),
    /// It cannot be signed by the root in force.
    #[error("the CA certificate cannot be signed by the swarm's root")]
    CrossSign(#[source] CaError),
}

/// The next root, ready to be put in place.
#[derive(Debug)]
pub struct NextRoot {
    /// The authority.
    pub root: RootCa,
    /// Its name and key, signed by the root in force, PEM.
    pub cross_signed_pem: String,
}

impl NextRoot {
    /// A new root of the same cluster.
    pub fn generate(current: &RootCa, now: SystemTime) -> Result<Self, GivenError> {
        let root = RootCa::generate(current.cluster_id(), now).map_err(GivenError::Unusable)?;
        Self::checked(current, root, now)
    }

    /// A root that was given: `validity` is the life of the certificates that it will sign.
    pub fn given(
        current: &RootCa,
        cert_pem: &str,
        key_pem: &str,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Self, GivenError> {
        let certs = pem::certificates(cert_pem)
            .map_err(|error| GivenError::Unusable(CaError::Root(crate::RootError::Pem(error))))?;
        let [cert] = certs.as_slice() else { return Err(GivenError::Count(certs.len())) };
        check(cert, current.cluster_id(), validity, now)?;
        let root = RootCa::from_pem(cert_pem, key_pem).map_err(GivenError::Unusable)?;
        Self::checked(current, root, now)
    }

    /// Signs a certificate for nobody and looks whether everybody would believe it. Who trusts the root in force alone believes
    /// it by what that root signs, which ends with it: a root that is about to end, or has ended, leads nobody any further, and
    /// is no reason against the next one.
    fn checked(current: &RootCa, root: RootCa, now: SystemTime) -> Result<Self, GivenError> {
        let cross_signed = current.cross_sign(root.cert(), now).map_err(GivenError::CrossSign)?;
        let cross_signed_pem = pem::encode_certificates(&[cross_signed]);
        let grant = NodeGrant { node_id: NodeId::new(0), role: Role::Worker, validity: ca::MIN_NODE_VALIDITY };
        let leads_on = current.not_after() >= now + grant.validity;
        for trusted in leads_on.then(|| current.bundle()).into_iter().chain([root.bundle()]) {
            let key = NodeKey::generate().map_err(|error| GivenError::Unusable(CaError::Key(error)))?;
            let request = key.signing_request().map_err(|error| GivenError::Unusable(CaError::Key(error)))?;
            let leaf = root.issue(&request, &grant, now).map_err(GivenError::Unusable)?;
            let chain = format!("{}{cross_signed_pem}", leaf.chain_pem);
            Credentials::new(key, &chain, trusted).map_err(GivenError::Probe)?;
        }
        Ok(Self { root, cross_signed_pem })
    }
}

/// What can be said of a given certificate before its key is looked at.
fn check(der: &CertificateDer<'_>, cluster: ClusterId, validity: Duration, now: SystemTime) -> Result<(), GivenError> {
    let cert =
        peer::parse(der).map_err(|error| GivenError::Unusable(CaError::Root(crate::RootError::Certificate(error))))?;
    let named = peer::only(cert.subject().iter_organization(), "O").ok().and_then(|name| name.parse().ok());
    if named != Some(cluster) {
        return Err(GivenError::Cluster(cluster));
    }
    if cert.key_usage().ok().flatten().is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(GivenError::Usage);
    }
    let time = |time| peer::system_time(time).map_err(|_| GivenError::Time);
    let (not_before, not_after) = (time(cert.validity().not_before)?, time(cert.validity().not_after)?);
    if now < not_before || now >= not_after {
        return Err(GivenError::Time);
    }
    if now + validity > not_after {
        return Err(GivenError::Short(validity));
    }
    Ok(())
}

impl RootCa {
    /// The same name and key as `next` has, signed by this authority: who trusts this one believes the other's certificates.
    fn cross_sign(&self, next: &RootCert, now: SystemTime) -> Result<CertificateDer<'static>, CaError> {
        let unreadable = |error| CaError::Root(crate::RootError::Certificate(error));
        let parsed = peer::parse(next.der()).map_err(unreadable)?;
        let end = peer::system_time(parsed.validity().not_after).map_err(|_| CaError::Clock)?;
        let end = end.min(self.not_after());
        let start = now.min(end).checked_sub(BACKDATE).ok_or(CaError::Clock)?;
        let mut params = ca::base_params(start, end)?;
        params.distinguished_name = name_of(parsed.subject()).ok_or(CaError::Subject)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        let key = SubjectPublicKeyInfo::from_der(parsed.public_key().raw).map_err(CaError::Build)?;
        let issuer = Issuer::from_ca_cert_der(self.cert().der(), self.key().pair()).map_err(CaError::Build)?;
        let signed = params.signed_by(&key, &issuer).map_err(CaError::Build)?.der().clone();
        // A chain is put together by names, byte for byte.
        let same = peer::parse(&signed).map_err(unreadable)?.subject().as_raw() == parsed.subject().as_raw();
        if same { Ok(signed) } else { Err(CaError::Subject) }
    }
}

/// A name for the library that writes certificates; `None`: of a kind that it cannot write again.
fn name_of(name: &x509_parser::x509::X509Name<'_>) -> Option<DistinguishedName> {
    let mut out = DistinguishedName::new();
    for attribute in name.iter_attributes() {
        let kind = DnType::from_oid(&attribute.attr_type().iter()?.collect::<Vec<u64>>());
        let text = attribute.as_str().ok()?;
        let value = match attribute.attr_value().tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => DnValue::PrintableString(PrintableString::try_from(text).ok()?),
            _ => return None,
        };
        out.push(kind, value);
    }
    Some(out)
}

/// The root of a bundle that signed a certificate itself.
pub(crate) fn issuer_of(roots: &RootBundle, leaf: &CertificateDer<'_>, at: SystemTime) -> Option<RootCert> {
    let signed = |root: &&RootCert| crate::chain::verify(&RootBundle::from((*root).clone()), leaf, &[], at).is_ok();
    roots.certs().iter().find(signed).cloned()
}
