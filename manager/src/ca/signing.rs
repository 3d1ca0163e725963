//! What the swarm's authority signs with, and whom it makes nodes trust: the root in force, or, while it changes, the next
//! one, whose certificates then come with that root as the one in force signed it. Read from the cluster object.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use skep_core::ca::RootLife;
use skep_core::object::Cluster;
use skep_identity::{CaError, ClientGrant, IssuedCertificate, NodeGrant, RootBundle, RootCa, RootDigest};
use skep_proto::time::UnixMs;

/// Keys and certificates of one state of the cluster object.
pub(crate) struct Signing {
    root: RootCa,
    /// Goes with every certificate; empty while the root does not change.
    cross_signed_pem: String,
    trusted: RootBundle,
    /// Of the root in force: join tokens carry it.
    token_root: RootDigest,
}

impl Signing {
    /// Reads it.
    pub(crate) fn of(cluster: &Cluster) -> Result<Self, CaError> {
        let trusted = RootBundle::from_pem(&cluster.trusted_roots_pem()).map_err(CaError::Root)?;
        let token_root = trusted.certs()[0].digest();
        let (root, cross_signed_pem) = match &cluster.root_rotation {
            None => (RootCa::from_pem(&cluster.root_cert_pem, &cluster.root_key_pem)?, String::new()),
            Some(next) => (RootCa::from_pem(&next.root_cert_pem, &next.root_key_pem)?, next.cross_signed_pem.clone()),
        };
        Ok(Self { root, cross_signed_pem, trusted, token_root })
    }

    /// Signs a request (PEM or DER); see [`RootCa::issue`].
    pub(crate) fn issue(&self, request: &[u8], grant: &NodeGrant) -> Result<IssuedCertificate, CaError> {
        let mut issued = self.root.issue(request, grant, SystemTime::now())?;
        issued.chain_pem.push_str(&self.cross_signed_pem);
        Ok(issued)
    }

    /// Signs a person's request; see [`RootCa::issue_client`].
    pub(crate) fn issue_client(&self, request: &[u8], grant: &ClientGrant) -> Result<IssuedCertificate, CaError> {
        let mut issued = self.root.issue_client(request, grant, SystemTime::now())?;
        issued.chain_pem.push_str(&self.cross_signed_pem);
        Ok(issued)
    }

    /// All roots that are trusted now.
    pub(crate) fn trusted(&self) -> &RootBundle {
        &self.trusted
    }

    /// The root that join tokens speak of.
    pub(crate) fn token_root(&self) -> RootDigest {
        self.token_root
    }
}

/// The life of a root certificate (PEM); `None`: it cannot be read.
pub(crate) fn life(root_pem: &str) -> Option<RootLife> {
    let unix_ms = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    };
    let roots = RootBundle::from_pem(root_pem).ok()?;
    let root = roots.certs().first()?;
    Some(RootLife { not_before: unix_ms(root.not_before()), not_after: unix_ms(root.not_after()) })
}

/// The life of the root that signs now.
pub(crate) fn life_of_signer(cluster: &Cluster) -> Option<RootLife> {
    life(cluster.root_rotation.as_ref().map_or(&cluster.root_cert_pem, |next| &next.root_cert_pem))
}

/// The authority as last read: its keys are not parsed for every certificate.
#[derive(Clone, Default)]
pub(crate) struct SigningCache(Arc<Mutex<Option<Read>>>);

/// The trusted roots (PEM) that it was read with, and the authority.
type Read = (String, Arc<Signing>);

impl SigningCache {
    /// The authority of this state.
    pub(crate) fn get(&self, cluster: &Cluster) -> Result<Arc<Signing>, CaError> {
        let roots = cluster.trusted_roots_pem();
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some((known, signing)) if *known == roots => Ok(Arc::clone(signing)),
            _ => {
                let signing = Arc::new(Signing::of(cluster)?);
                *cached = Some((roots, Arc::clone(&signing)));
                Ok(signing)
            }
        }
    }
}
