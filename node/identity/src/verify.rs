//! The decisions of a TLS handshake: whose certificate is accepted. Private to `tls.rs`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use skep_proto::id::NodeId;

use crate::chain::{self, provider};
use crate::client;
use crate::peer::PeerIdentity;
use crate::tls::{Anonymous, Expected};
use crate::{DenyList, LiveCredentials, Role, RootBundle};

/// A valid certificate of the cluster, but of another node or role than was called.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unexpected {
    #[error("expected a {expected} there, but node {node} is a {found}")]
    Role { expected: Role, found: Role, node: NodeId },
    #[error("expected node {expected} there, but node {found} answered")]
    Node { expected: NodeId, found: NodeId },
}

/// A person's certificate on a port that is for nodes alone.
#[derive(Debug, thiserror::Error)]
#[error("people call managers, not nodes")]
struct PeopleElsewhere;

/// Where the trusted roots come from.
#[derive(Debug)]
pub(crate) enum Trust {
    /// The member's credentials of the moment.
    Live(LiveCredentials),
    /// A root that a joining node checked by digest.
    Fixed(RootBundle),
}

impl Trust {
    fn roots(&self) -> RootBundle {
        match self {
            Self::Live(credentials) => credentials.current().roots().clone(),
            Self::Fixed(roots) => roots.clone(),
        }
    }

    fn verify(
        &self,
        deny: Option<&DenyList>,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<PeerIdentity, Error> {
        let now: SystemTime = UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let peer = chain::verify(&self.roots(), leaf, intermediates, now)?.identity;
        match deny {
            // The alert `certificate_revoked` lets a removed node say what happened to it.
            Some(deny) if deny.is_denied(peer.node_id) => Err(Error::InvalidCertificate(CertificateError::Revoked)),
            _ => Ok(peer),
        }
    }
}

/// The server's decision about a client's certificate.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    trust: Trust,
    deny: DenyList,
    anonymous: Anonymous,
}

impl ClientVerifier {
    pub(crate) fn new(trust: Trust, deny: DenyList, anonymous: Anonymous) -> Self {
        Self { trust, deny, anonymous }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.anonymous == Anonymous::Refused
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: a node has one certificate, and presents it.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if client::is_client(leaf) {
            if self.anonymous == Anonymous::Refused {
                return Err(chain::refused(PeopleElsewhere));
            }
            let now = UNIX_EPOCH + Duration::from_secs(now.as_secs());
            chain::verify_client(&self.trust.roots(), leaf, intermediates, now)?;
        } else {
            self.trust.verify(Some(&self.deny), leaf, intermediates, now)?;
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// The client's decision about a server's certificate.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    trust: Trust,
    deny: Option<DenyList>,
    expected: Expected,
}

impl ServerVerifier {
    pub(crate) fn new(trust: Trust, deny: Option<DenyList>, expected: Expected) -> Self {
        Self { trust, deny, expected }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let peer = self.trust.verify(self.deny.as_ref(), leaf, intermediates, now)?;
        if let Some(expected) = self.expected.role
            && expected != peer.role
        {
            return Err(chain::refused(Unexpected::Role { expected, found: peer.role, node: peer.node_id }));
        }
        if let Some(expected) = self.expected.node_id
            && expected != peer.node_id
        {
            return Err(chain::refused(Unexpected::Node { expected, found: peer.node_id }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Accepts any server, for the one fetch of the root certificate whose digest the join token knows.
#[derive(Debug)]
pub(crate) struct BootstrapVerifier;

impl ServerCertVerifier for BootstrapVerifier {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

fn verify_signature(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    rustls::crypto::verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
}

fn schemes() -> Vec<SignatureScheme> {
    provider().signature_verification_algorithms.supported_schemes()
}

/// Unreachable by configuration, and refused all the same.
fn tls12() -> Error {
    Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered)
}
