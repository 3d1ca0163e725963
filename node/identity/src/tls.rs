//! TLS configurations: TLS 1.3 only, the ring provider passed explicitly, certificates and roots read anew at every
//! handshake. Used by the transport; `verify.rs` holds the decisions.
//!
//! Sessions are never resumed: a resumed session skips the certificate, and with it the deny list and the expiry.

use std::fmt;
use std::sync::Arc;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use skep_proto::id::NodeId;

use crate::chain::provider;
use crate::client::ClientCredentials;
use crate::verify::{BootstrapVerifier, ClientVerifier, ServerVerifier, Trust};
use crate::{DenyList, LiveCredentials, Role, RootBundle};

/// The protocol of every connection (RFC 7540 section 3.3).
const ALPN_H2: &[u8] = b"h2";

/// Whether a listener talks to others than nodes of the swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    /// Yes: a manager's port, where joining nodes ask for a certificate, and people call by theirs. Handlers see
    /// [`crate::Caller::Anonymous`] and [`crate::Caller::Client`].
    Allowed,
    /// No: the handshake fails.
    Refused,
}

/// Whom a client expects at the other end, besides a valid certificate of its own cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// `None`: either role.
    pub role: Option<Role>,
    /// `None`: any node.
    pub node_id: Option<NodeId>,
}

impl Expected {
    /// Any manager: sessions, control.
    pub const fn manager() -> Self {
        Self { role: Some(Role::Manager), node_id: None }
    }

    /// A certain manager: Raft.
    pub const fn manager_node(node_id: NodeId) -> Self {
        Self { role: Some(Role::Manager), node_id: Some(node_id) }
    }

    /// A certain node of either role: images.
    pub const fn node(node_id: NodeId) -> Self {
        Self { role: None, node_id: Some(node_id) }
    }
}

/// The server's side of mutual TLS. Cheap to clone.
#[derive(Clone)]
pub struct ServerTls {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) deny: DenyList,
}

impl ServerTls {
    /// Serves with the credentials of the moment; refuses foreign, expired and denied certificates at the handshake.
    pub fn new(credentials: &LiveCredentials, deny: &DenyList, anonymous: Anonymous) -> Self {
        let verifier = ClientVerifier::new(Trust::Live(credentials.clone()), deny.clone(), anonymous);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the ring provider has TLS 1.3")
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(CurrentCertificate(credentials.clone())));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Self { config: Arc::new(config), deny: deny.clone() }
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

/// The client's side. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
    /// `None` while joining and for people: they have no list, and no connections that a denial could end.
    pub(crate) deny: Option<DenyList>,
}

impl ClientTls {
    /// A member's connection: presents its own certificate and checks the other's chain, cluster, expiry, denial, role
    /// and id.
    pub fn member(credentials: &LiveCredentials, deny: &DenyList, expected: Expected) -> Self {
        let trust = Trust::Live(credentials.clone());
        let verifier = ServerVerifier::new(trust, Some(deny.clone()), expected);
        let config = client_builder(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(CurrentCertificate(credentials.clone())));
        Self::finish(config, Some(deny.clone()))
    }

    /// A joining node's second connection, over which it says its token: presents nothing, and speaks only to a manager
    /// whose certificate leads to the root that [`crate::JoinToken::check_root`] accepted.
    pub fn joining(roots: RootBundle) -> Self {
        let verifier = ServerVerifier::new(Trust::Fixed(roots), None, Expected::manager());
        Self::finish(client_builder(Arc::new(verifier)).with_no_client_auth(), None)
    }

    /// A joining node's first connection: believes anyone, so it may only fetch the root certificate, which
    /// [`crate::JoinToken::check_root`] then checks. Never say a secret over it, never believe another answer.
    pub fn bootstrap() -> Self {
        Self::finish(client_builder(Arc::new(BootstrapVerifier)).with_no_client_auth(), None)
    }

    /// A person's connection to any manager of his swarm.
    pub fn client(credentials: &ClientCredentials) -> Result<Self, rustls::Error> {
        let verifier = ServerVerifier::new(Trust::Fixed(credentials.roots.clone()), None, Expected::manager());
        let config = client_builder(Arc::new(verifier))
            .with_client_auth_cert(credentials.chain.clone(), credentials.key.to_rustls())?;
        Ok(Self::finish(config, None))
    }

    fn finish(mut config: ClientConfig, deny: Option<DenyList>) -> Self {
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        // The verifier goes by node id and role; the name would only tell listeners on the wire.
        config.enable_sni = false;
        let name = ServerName::try_from(Role::Manager.certificate_name()).expect("a valid DNS label");
        Self { config: Arc::new(config), name, deny }
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTls")
    }
}

fn client_builder(
    verifier: Arc<dyn rustls::client::danger::ServerCertVerifier>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    // "Dangerous" is rustls' word for a verifier of one's own; ours asks webpki for the chain.
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the ring provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
}

/// Presents the certificate in use at the moment of the handshake.
#[derive(Debug)]
struct CurrentCertificate(LiveCredentials);

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified())
    }
}

impl ResolvesClientCert for CurrentCertificate {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current().certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
