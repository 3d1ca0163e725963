//! What a node proves its identity with: key, certificate chain and trusted roots. Made at init and join, replaced at
//! renewal; `store.rs` keeps it on disk. Used by every TLS configuration through [`LiveCredentials`], so that a renewal
//! needs no restart.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use skep_proto::id::{ClusterId, NodeId};
use skep_proto::v1::NodeCertificate;
use tokio::sync::watch;

use crate::ca::unix_ms;
use crate::chain::{self, CLOCK_TOLERANCE};
use crate::key::{KeyError, NodeKey};
use crate::peer::{CertificateFacts, PeerIdentity};
use crate::returning::key_digest;
use crate::roots::{RootBundle, RootError};
use crate::rotation::issuer_of;
use crate::{Role, pem};

/// A node renews no sooner than this share of its certificate's lifetime.
const RENEW_EARLIEST: f64 = 0.5;
/// And no later than this share: the rest is for managers that are away.
const RENEW_LATEST: f64 = 0.8;

/// Why key, chain and roots make no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The chain is damaged PEM.
    #[error("the node certificate is damaged PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// The chain is empty.
    #[error("there is no certificate in the node's certificate chain")]
    Empty,
    /// The roots cannot be read.
    #[error("the trusted roots cannot be read")]
    Roots(#[source] RootError),
    /// The certificate is not signed by a trusted root, or names no node of its cluster.
    #[error("the node certificate is not valid in this cluster")]
    Chain(#[source] rustls::Error),
    /// The certificate is for another key.
    #[error("the node key does not belong to the node certificate")]
    KeyMismatch,
    /// The key cannot be read again.
    #[error("the node key cannot be used")]
    Duplicate(#[source] KeyError),
    /// The TLS library refuses the key.
    #[error("the node key cannot be used for TLS")]
    Key(#[source] rustls::Error),
}

/// Where `now` lies in a certificate's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// The clock is further behind the certificate's start than peers accept.
    NotYetValid,
    /// In use.
    Valid,
    /// Past its end, but peers still accept it for the rest of [`CLOCK_TOLERANCE`].
    InGrace,
    /// Peers refuse it: the node has to join again.
    Expired,
}

/// A node's key with its certificate chain and the roots it trusts. Immutable; share it by `Arc`.
pub struct Credentials {
    key: NodeKey,
    chain: Vec<CertificateDer<'static>>,
    roots: RootBundle,
    identity: PeerIdentity,
    not_before: SystemTime,
    certified: Arc<CertifiedKey>,
}

impl Credentials {
    /// Joins key, chain (PEM, the node's certificate first) and roots. Checks that the key is the certificate's and that
    /// the chain leads to a root of the same cluster; the validity in time is [`Self::validity`]'s, so that an expired
    /// node can still say who it was.
    pub fn new(key: NodeKey, chain_pem: &str, roots: RootBundle) -> Result<Self, CredentialsError> {
        let chain = pem::certificates(chain_pem).map_err(CredentialsError::Pem)?;
        Self::from_parts(key, chain, roots)
    }

    pub(crate) fn from_parts(
        key: NodeKey,
        chain: Vec<CertificateDer<'static>>,
        roots: RootBundle,
    ) -> Result<Self, CredentialsError> {
        let (leaf, intermediates) = chain.split_first().ok_or(CredentialsError::Empty)?;
        let read = CertificateFacts::read(leaf).map_err(|error| CredentialsError::Chain(chain::refused(error)))?;
        let CertificateFacts { identity, not_before, public_key } =
            chain::verify(&roots, leaf, intermediates, read.identity.not_after).map_err(CredentialsError::Chain)?;
        if public_key != key.public_point() {
            return Err(CredentialsError::KeyMismatch);
        }
        let certified = CertifiedKey::from_der(chain.clone(), key.to_rustls(), &chain::provider())
            .map_err(CredentialsError::Key)?;
        Ok(Self { key, chain, roots, identity, not_before, certified: Arc::new(certified) })
    }

    /// This node.
    pub fn node_id(&self) -> NodeId {
        self.identity.node_id
    }

    /// The role that the certificate gives this node.
    pub fn role(&self) -> Role {
        self.identity.role
    }

    /// The cluster that this node is a member of.
    pub fn cluster_id(&self) -> ClusterId {
        self.identity.cluster_id
    }

    /// What peers see of this node.
    pub fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// The certificate's start.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The certificate's end.
    pub fn not_after(&self) -> SystemTime {
        self.identity.not_after
    }

    /// The roots this node trusts.
    pub fn roots(&self) -> &RootBundle {
        &self.roots
    }

    /// What this node says of its certificate.
    pub fn facts(&self) -> NodeCertificate {
        let issuer = issuer_of(&self.roots, &self.chain[0], self.not_after());
        NodeCertificate {
            issuer: issuer.map(|root| root.digest().as_bytes().to_vec()).unwrap_or_default(),
            not_before_ms: unix_ms(self.not_before),
            not_after_ms: unix_ms(self.not_after()),
            key: key_digest(self.key.public_point()).to_vec(),
        }
    }

    /// The same credentials with other trusted roots; an error if the certificate does not lead to one of them.
    pub fn with_roots(&self, roots: RootBundle) -> Result<Self, CredentialsError> {
        let key = self.key.duplicate().map_err(CredentialsError::Duplicate)?;
        Self::from_parts(key, self.chain.clone(), roots)
    }

    /// The chain as PEM, the node's certificate first.
    pub fn chain_pem(&self) -> String {
        pem::encode_certificates(&self.chain)
    }

    /// Whether peers accept the certificate at `now`.
    pub fn validity(&self, now: SystemTime) -> Validity {
        if now + CLOCK_TOLERANCE < self.not_before {
            Validity::NotYetValid
        } else if now <= self.not_after() {
            Validity::Valid
        } else if now <= self.not_after() + CLOCK_TOLERANCE {
            Validity::InGrace
        } else {
            Validity::Expired
        }
    }

    /// When to renew; `random` is uniform in 0..1, drawn once for each certificate.
    pub fn renewal_at(&self, random: f64) -> SystemTime {
        renewal_at(self.not_before, self.not_after(), random)
    }

    pub(crate) fn key(&self) -> &NodeKey {
        &self.key
    }

    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

/// A point between 50 % and 80 % of a certificate's lifetime: `random` (uniform in 0..1, others are clamped) spreads a
/// cluster's renewals, so that nodes that joined together do not renew together.
pub fn renewal_at(not_before: SystemTime, not_after: SystemTime, random: f64) -> SystemTime {
    let lifetime = not_after.duration_since(not_before).unwrap_or_default();
    let random = if random.is_nan() { 0.0 } else { random.clamp(0.0, 1.0) };
    not_before + lifetime.mul_f64(RENEW_EARLIEST + (RENEW_LATEST - RENEW_EARLIEST) * random)
}

/// The credentials in use, shared by all listeners and channels of a node: [`Self::replace`] takes effect at the next
/// handshake. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LiveCredentials(Arc<watch::Sender<Arc<Credentials>>>);

impl LiveCredentials {
    /// Starts with these.
    pub fn new(credentials: Credentials) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(credentials))))
    }

    /// The credentials of this moment. Take them anew for each use.
    pub fn current(&self) -> Arc<Credentials> {
        Arc::clone(&self.0.borrow())
    }

    /// Puts renewed credentials in use. Connections made with the old ones live on; where roots went, whoever keeps the
    /// connections closes those that led to them ([`crate::DenyList::untrusted`]).
    pub fn replace(&self, credentials: Credentials) {
        self.0.send_replace(Arc::new(credentials));
    }

    /// Sees every replacement: for the renewal timer and for role changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Credentials>> {
        self.0.subscribe()
    }
}
