//! The certificates that a node trusts. Used by joining nodes (digest against token), credentials, verifiers, tickets.
//!
//! During a rotation of the root a bundle holds the old and the new one; all of a bundle belong to one cluster.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use skep_proto::id::ClusterId;

use crate::peer::{self, PeerError};
use crate::pem;
use crate::token::RootDigest;

/// Why bytes are no root, or no bundle of roots.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The text is damaged PEM.
    #[error("the root certificate is damaged PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// The text holds no certificate.
    #[error("there is no certificate in the root bundle")]
    Empty,
    /// A certificate cannot be read, or lacks the cluster id.
    #[error("the root certificate cannot be used")]
    Certificate(#[source] PeerError),
    /// A certificate is not marked as an authority.
    #[error("the root certificate is not a certificate authority")]
    NotAuthority,
    /// The bundle holds roots of two clusters.
    #[error("the root bundle mixes the clusters {0} and {1}")]
    MixedClusters(ClusterId, ClusterId),
    /// The TLS library refuses the certificate as an anchor.
    #[error("the root certificate cannot anchor trust")]
    Anchor(#[source] rustls::Error),
}

/// One root certificate: public, safe to show and to send.
#[derive(Clone, PartialEq, Eq)]
pub struct RootCert {
    der: CertificateDer<'static>,
    cluster_id: ClusterId,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl RootCert {
    /// Reads a DER root certificate: it must be an authority and carry a cluster id as its organisation.
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, RootError> {
        let (cluster_id, not_before, not_after) = {
            let cert = peer::parse(&der).map_err(RootError::Certificate)?;
            if !cert.is_ca() {
                return Err(RootError::NotAuthority);
            }
            let organisation = peer::only(cert.subject().iter_organization(), "O").map_err(RootError::Certificate)?;
            let cluster_id = organisation.parse();
            let cluster_id =
                cluster_id.map_err(|_| RootError::Certificate(PeerError::ClusterId(organisation.to_owned())))?;
            let time = |time| peer::system_time(time).map_err(RootError::Certificate);
            (cluster_id, time(cert.validity().not_before)?, time(cert.validity().not_after)?)
        };
        Ok(Self { der, cluster_id, not_before, not_after })
    }

    /// The cluster that this root signs for.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    /// Its start.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Its end.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// SHA-256 of the DER form, as join tokens carry it.
    pub fn digest(&self) -> RootDigest {
        RootDigest::new(Sha256::digest(&self.der).into())
    }

    /// The DER form.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The PEM form.
    pub fn to_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.der)
    }
}

impl fmt::Debug for RootCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootCert({} of cluster {})", self.digest(), self.cluster_id)
    }
}

/// The roots that a node trusts: at least one, all of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct RootBundle {
    certs: Arc<[RootCert]>,
    store: Arc<RootCertStore>,
}

impl RootBundle {
    /// Builds a bundle. Refuses an empty one and one of several clusters.
    pub fn new(certs: impl IntoIterator<Item = RootCert>) -> Result<Self, RootError> {
        let certs: Arc<[RootCert]> = certs.into_iter().collect();
        let first = certs.first().ok_or(RootError::Empty)?;
        if let Some(other) = certs.iter().find(|cert| cert.cluster_id != first.cluster_id) {
            return Err(RootError::MixedClusters(first.cluster_id, other.cluster_id));
        }
        let mut store = RootCertStore::empty();
        for cert in certs.iter() {
            store.add(cert.der.clone()).map_err(RootError::Anchor)?;
        }
        Ok(Self { certs, store: Arc::new(store) })
    }

    /// Reads one or more PEM certificates.
    pub fn from_pem(text: &str) -> Result<Self, RootError> {
        let certs = pem::certificates(text).map_err(RootError::Pem)?;
        Self::new(certs.into_iter().map(RootCert::from_der).collect::<Result<Vec<_>, _>>()?)
    }

    /// All roots as PEM, in order.
    pub fn to_pem(&self) -> String {
        self.certs.iter().map(RootCert::to_pem).collect()
    }

    /// The cluster that every root here signs for.
    pub fn cluster_id(&self) -> ClusterId {
        self.certs[0].cluster_id
    }

    /// The roots, in order.
    pub fn certs(&self) -> &[RootCert] {
        &self.certs
    }

    pub(crate) fn store(&self) -> &RootCertStore {
        &self.store
    }

    pub(crate) fn shared_store(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.store)
    }
}

impl From<RootCert> for RootBundle {
    fn from(cert: RootCert) -> Self {
        Self::new([cert]).expect("a readable authority certificate anchors trust")
    }
}

impl fmt::Debug for RootBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.certs.iter()).finish()
    }
}
