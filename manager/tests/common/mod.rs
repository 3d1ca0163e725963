//! What the tests with one manager and those with several share.

use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use skep_identity::ca::{DEFAULT_NODE_VALIDITY, NodeGrant, RootCa};
use skep_identity::{Credentials, NodeKey, Role};
use skep_manager::images::{Name, Registries, RemoteImage, ResolveError};
use skep_proto::id::NodeId;
use skep_proto::v1::RegistryAuth;

/// Fails the test instead of hanging it.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(30), future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within 30 s"),
    }
}

/// Registries that no test asks: a reference has to carry its digest.
pub(crate) struct NoRegistries;

impl Registries for NoRegistries {
    fn parse(&self, reference: &str) -> Result<Name, ResolveError> {
        match reference.split_once("@sha256:") {
            Some((name, digest)) => Ok(Name {
                canonical: format!("registry.example/{name}:latest"),
                registry: "registry.example".to_owned(),
                digest: Some(format!("sha256:{digest}")),
            }),
            None => Err(ResolveError::Invalid(reference.to_owned())),
        }
    }

    fn resolve(
        &self,
        reference: String,
        _auth: Option<RegistryAuth>,
    ) -> BoxFuture<'static, Result<RemoteImage, ResolveError>> {
        async move { Err(ResolveError::Unavailable(reference)) }.boxed()
    }
}

/// A node's credentials, as the swarm's authority makes them.
pub(crate) fn signed(ca: &RootCa, node_id: NodeId, role: Role) -> Credentials {
    let key = NodeKey::generate().unwrap();
    let grant = NodeGrant { node_id, role, validity: DEFAULT_NODE_VALIDITY };
    let issued = ca.issue(&key.signing_request().unwrap(), &grant, SystemTime::now()).unwrap();
    Credentials::new(key, &issued.chain_pem, ca.bundle()).unwrap()
}
