//! Join tokens, certificates, requests for them, and tickets.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use skep_identity::ca::{DEFAULT_NODE_VALIDITY, NodeGrant, RootCa};
use skep_identity::{Credentials, JoinToken, NodeKey, PeerIdentity, Role, RootBundle, UnlockKey, fuzzing, ticket};
use skep_proto::id::{ClusterId, NodeId};

use crate::{choose, text};

/// `skep swarm join --token`.
pub fn join_token(data: &[u8]) {
    if let Ok(token) = text(data).parse::<JoinToken>() {
        // White space around it is allowed.
        assert_eq!(token.to_string(), text(data).trim());
        let _ = token.check_root(text(data));
    }
}

/// A root bundle or a chain in PEM, a certificate in DER, a key.
pub fn certificates(data: &[u8]) {
    let _ = PeerIdentity::read(data);
    let _ = NodeKey::from_pkcs8_der(data);
    let bundle = RootBundle::from_pem(text(data));
    if let Ok(bundle) = &bundle {
        assert!(RootBundle::from_pem(&bundle.to_pem()).is_ok());
    }
    let roots = bundle.unwrap_or_else(|_| authority().bundle());
    if let Ok(key) = NodeKey::generate() {
        let _ = Credentials::new(key, text(data), roots);
    }
}

/// What a joining node asks to be signed. Who it is to be is the manager's word alone.
pub fn signing_request(data: &[u8]) {
    let grant = NodeGrant { node_id: NodeId::new(7), role: Role::Worker, validity: DEFAULT_NODE_VALIDITY };
    if let Ok(issued) = authority().issue(data, &grant, now()) {
        let chain = RootBundle::from_pem(&issued.chain_pem);
        assert!(chain.is_err(), "a node's certificate is no root");
        assert!(issued.not_after <= now() + DEFAULT_NODE_VALIDITY);
    }
}

/// A ticket for an image, shown by a node. None that a fuzzer makes is good.
pub fn image_ticket(data: &[u8]) {
    let shown = ticket::verify(data, &authority().bundle(), ClusterId::new(1), NodeId::new(7), now());
    assert!(shown.is_err(), "{shown:?}");
}

/// `skep swarm unlock`.
pub fn unlock_key(data: &[u8]) {
    if let Ok(key) = text(data).parse::<UnlockKey>() {
        // White space around it is allowed; nothing else has the same meaning.
        assert_eq!(key.to_text().as_str(), text(data).trim());
    }
}

/// A node's key, a host's WireGuard key, unlock keys of which one takes the place of another: open, and sealed.
pub fn key_files(data: &[u8]) {
    let (kind, rest) = choose(data);
    let unlock = unlock_key_of_files();
    match kind % 3 {
        0 => drop(fuzzing::node_keys(text(rest), &unlock)),
        1 => drop(fuzzing::mesh_key(text(rest), &unlock)),
        _ => assert!(fuzzing::other_keys(text(rest), &unlock) <= rest.len() / 32),
    }
}

/// What [`key_files`] are sealed with.
pub(crate) fn unlock_key_of_files() -> UnlockKey {
    UnlockKey::new([7; 32])
}

fn authority() -> &'static RootCa {
    static AUTHORITY: OnceLock<RootCa> = OnceLock::new();
    AUTHORITY.get_or_init(|| match RootCa::generate(ClusterId::new(1), now()) {
        Ok(authority) => authority,
        Err(error) => panic!("no authority can be made: {error}"),
    })
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}
