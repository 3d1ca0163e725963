//! Who a person's certificate says its holder is, and the person's side of a connection. Used by the managers' port and by
//! the command line's contexts.
//!
//! The certificate names a client of the swarm and nothing of what he may do: that is in the managers' state, so that it
//! can change without another certificate. It is for the client's side of a connection only (extended key usage), so that
//! its holder cannot pass for a manager.

use std::fmt;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use skep_proto::id::{ClientId, ClusterId};
use zeroize::Zeroizing;

use crate::chain;
use crate::key::{KeyError, NodeKey};
use crate::peer::{self, PeerError};
use crate::pem;
use crate::roots::{RootBundle, RootError};

/// The organisational unit of people's certificates; nodes have their roles there.
pub(crate) const UNIT: &str = "skep-client";

/// The holder of a person's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The common name.
    pub client_id: ClientId,
    /// The organisation.
    pub cluster_id: ClusterId,
    /// When the certificate ends. A connection made with it is closed then.
    pub not_after: SystemTime,
}

/// What [`ClientIdentity::read`] is made from, with what a check of the chain needs.
#[derive(Debug, Clone)]
pub(crate) struct ClientFacts {
    pub(crate) identity: ClientIdentity,
    pub(crate) not_before: SystemTime,
    pub(crate) public_key: Vec<u8>,
}

impl ClientIdentity {
    /// Reads a DER certificate's subject and end, without judging its chain.
    pub fn read(der: &[u8]) -> Result<Self, PeerError> {
        ClientFacts::read(der).map(|facts| facts.identity)
    }
}

impl ClientFacts {
    pub(crate) fn read(der: &[u8]) -> Result<Self, PeerError> {
        let cert = peer::parse(der)?;
        let subject = cert.subject();
        let unit = peer::only(subject.iter_organizational_unit(), "OU")?;
        if unit != UNIT {
            return Err(PeerError::Role(unit.to_owned()));
        }
        let common_name = peer::only(subject.iter_common_name(), "CN")?;
        let organisation = peer::only(subject.iter_organization(), "O")?;
        Ok(Self {
            identity: ClientIdentity {
                client_id: common_name.parse().map_err(|_| PeerError::ClientId(common_name.to_owned()))?,
                cluster_id: organisation.parse().map_err(|_| PeerError::ClusterId(organisation.to_owned()))?,
                not_after: peer::system_time(cert.validity().not_after)?,
            },
            not_before: peer::system_time(cert.validity().not_before)?,
            public_key: cert.public_key().subject_public_key.data.to_vec(),
        })
    }
}

/// Whether a certificate says that it is a person's. Reading it so is not believing it.
pub(crate) fn is_client(der: &[u8]) -> bool {
    peer::parse(der)
        .is_ok_and(|cert| peer::only(cert.subject().iter_organizational_unit(), "OU").is_ok_and(|unit| unit == UNIT))
}

/// Why key, chain and roots are not those of a client.
#[derive(Debug, thiserror::Error)]
pub enum ClientCredentialsError {
    /// The chain is damaged PEM.
    #[error("the client certificate is damaged PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// The chain is empty.
    #[error("there is no client certificate")]
    Empty,
    /// The roots cannot be read.
    #[error("the swarm's root certificate cannot be read")]
    Roots(#[source] RootError),
    /// The key cannot be read.
    #[error("the client's private key cannot be read")]
    Key(#[source] KeyError),
    /// There is no private key in the text.
    #[error("there is no private key (PKCS#8, ECDSA P-256)")]
    NoKey,
    /// The certificate is not signed by the root, or no client's of its cluster.
    #[error("the client certificate is not one of this swarm")]
    Chain(#[source] rustls::Error),
    /// The certificate is for another key.
    #[error("the private key does not belong to the client certificate")]
    KeyMismatch,
    /// The TLS library refuses the key.
    #[error("the private key cannot be used for TLS")]
    Tls(#[source] rustls::Error),
}

/// A person's key with its certificate chain and the roots of the swarm.
pub struct ClientCredentials {
    pub(crate) key: NodeKey,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) roots: RootBundle,
    identity: ClientIdentity,
}

impl ClientCredentials {
    /// Joins PEM texts: the swarm's root certificates, the client's certificate (first) with any others of its chain, and
    /// its private key. Whether the certificate has ended is not judged: the managers say so.
    pub fn from_pem(roots: &str, chain: &str, key: &str) -> Result<Self, ClientCredentialsError> {
        let roots = RootBundle::from_pem(roots).map_err(ClientCredentialsError::Roots)?;
        let chain = pem::certificates(chain).map_err(ClientCredentialsError::Pem)?;
        let (leaf, intermediates) = chain.split_first().ok_or(ClientCredentialsError::Empty)?;
        let key = key_from_pem(key)?;
        let read =
            ClientFacts::read(leaf).map_err(|error| ClientCredentialsError::Chain(chain::refused(error)))?.identity;
        let facts =
            chain::verify_client(&roots, leaf, intermediates, read.not_after).map_err(ClientCredentialsError::Chain)?;
        if facts.public_key != key.public_point() {
            return Err(ClientCredentialsError::KeyMismatch);
        }
        Ok(Self { key, chain, roots, identity: facts.identity })
    }

    /// Who the certificate says that it is.
    pub fn identity(&self) -> &ClientIdentity {
        &self.identity
    }

    /// The roots that are trusted.
    pub fn roots(&self) -> &RootBundle {
        &self.roots
    }
}

fn key_from_pem(text: &str) -> Result<NodeKey, ClientCredentialsError> {
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::pki_types::pem::PemObject as _;
    let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| ClientCredentialsError::NoKey)?;
    NodeKey::from_pkcs8_der(key.secret_pkcs8_der()).map_err(ClientCredentialsError::Key)
}

impl fmt::Debug for ClientCredentials {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentials")
            .field("identity", &self.identity)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

/// A private key that is made where its person is. Only its request leaves.
pub struct ClientKey(NodeKey);

impl ClientKey {
    /// Makes a new key from the system's random source.
    pub fn generate() -> Result<Self, KeyError> {
        NodeKey::generate().map(Self)
    }

    /// A request (PKCS#10, PEM) that proves possession of the key, for [`crate::RootCa::issue_client`].
    pub fn signing_request_pem(&self) -> Result<String, KeyError> {
        self.0.signing_request_pem()
    }

    /// The secret as PEM: for a file of mode 0600, nothing else.
    pub fn to_pem(&self) -> Zeroizing<String> {
        self.0.to_pem(None)
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientKey(hidden)")
    }
}
