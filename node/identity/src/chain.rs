//! Checks a certificate chain against the trusted roots. The one place that decides whether a certificate is believed;
//! the TLS verifiers, the loading of credentials and tickets all go through it. Pure: time is passed in.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, Error, OtherError};
use skep_proto::id::ClusterId;

use crate::client::ClientFacts;
use crate::peer::{CertificateFacts, PeerError};
use crate::roots::RootBundle;

/// How far two hosts' clocks may be apart: a certificate is accepted this long before its start and after its end (its
/// start is backdated by [`crate::ca::BACKDATE`] on top). Whoever forgets a denied node waits for its certificate's end
/// plus this.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(3600);

/// A certificate of a trusted root that names another cluster.
#[derive(Debug, thiserror::Error)]
#[error("the certificate belongs to cluster {found}, not to {expected}")]
pub(crate) struct OtherCluster {
    pub(crate) expected: ClusterId,
    pub(crate) found: ClusterId,
}

/// The cryptography of every connection, passed explicitly: skep never installs a process default.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    Arc::clone(&PROVIDER)
}

/// Verifies that `leaf` is a node certificate signed (through `intermediates`) by a root of `roots`, valid at `now`
/// within [`CLOCK_TOLERANCE`], of the roots' cluster; says whose it is.
pub(crate) fn verify(
    roots: &RootBundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<CertificateFacts, Error> {
    // The chain comes first: of a stranger's certificate nothing but "unknown issuer" is said.
    let facts = CertificateFacts::read(leaf);
    let at = match &facts {
        Ok(facts) => tolerant(now, facts.not_before, facts.identity.not_after),
        Err(_) => now,
    };
    let parsed = ParsedCertificate::try_from(leaf)?;
    let since_epoch = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    // Node certificates are for both directions, so checking one extended key usage is enough.
    rustls::client::verify_server_cert_signed_by_trust_anchor(
        &parsed,
        roots.store(),
        intermediates,
        UnixTime::since_unix_epoch(since_epoch),
        provider().signature_verification_algorithms.all,
    )?;
    let facts = facts.map_err(refused::<PeerError>)?;
    let (expected, found) = (roots.cluster_id(), facts.identity.cluster_id);
    if expected == found { Ok(facts) } else { Err(refused(OtherCluster { expected, found })) }
}

/// The same for a person's certificate, which is good for the client's side of a connection only.
pub(crate) fn verify_client(
    roots: &RootBundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<ClientFacts, Error> {
    let facts = ClientFacts::read(leaf);
    let at = match &facts {
        Ok(facts) => tolerant(now, facts.not_before, facts.identity.not_after),
        Err(_) => now,
    };
    let since_epoch = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.shared_store(), provider())
        .build()
        .map_err(|error| refused(BadRoots(error.to_string())))?;
    verifier.verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(since_epoch))?;
    let facts = facts.map_err(refused::<PeerError>)?;
    let (expected, found) = (roots.cluster_id(), facts.identity.cluster_id);
    if expected == found { Ok(facts) } else { Err(refused(OtherCluster { expected, found })) }
}

/// Roots that the library cannot verify clients by.
#[derive(Debug, thiserror::Error)]
#[error("the roots cannot be used: {0}")]
struct BadRoots(String);

/// Wraps a reason of ours for rustls; the peer only sees the alert `certificate_unknown`.
pub(crate) fn refused<E: std::error::Error + Send + Sync + 'static>(reason: E) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
}

/// `now`, or the nearer end of the validity if `now` misses it by no more than the tolerance.
fn tolerant(now: SystemTime, not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    let nearest = now.max(not_before).min(not_after);
    let missed = now.duration_since(nearest).unwrap_or_else(|early| early.duration());
    if missed <= CLOCK_TOLERANCE { nearest } else { now }
}
