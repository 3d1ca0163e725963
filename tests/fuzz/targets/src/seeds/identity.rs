//! Tokens, certificates, keys, and what a person's context holds.

use std::time::{Duration, SystemTime};

use serde_json::json;
use skep_identity::ca::{DEFAULT_NODE_VALIDITY, NodeGrant, RootCa};
use skep_identity::{ClientGrant, ClientKey, Credentials, JoinToken, NodeKey, Role, TokenSecret, ticket};
use skep_proto::id::{ClientId, ClusterId, NodeId};

use super::{Add, chosen};
use crate::identity::unlock_key_of_files;

pub(super) fn add(add: &mut Add<'_>) {
    let now = SystemTime::now();
    let authority = RootCa::generate(ClusterId::new(1), now).unwrap();
    let token = JoinToken::new(authority.cert().digest(), TokenSecret::new([7; 16]));
    add("join_token", vec![token.to_string().into_bytes(), b"SWMTKN-1-".to_vec()]);
    let key = NodeKey::generate().unwrap();
    let request = key.signing_request().unwrap();
    let grant = NodeGrant { node_id: NodeId::new(7), role: Role::Manager, validity: DEFAULT_NODE_VALIDITY };
    let issued = authority.issue(&request, &grant, now).unwrap();
    let root = authority.cert().der().to_vec();
    let bundle = authority.bundle();
    add("certificates", vec![authority.cert().to_pem().into_bytes(), issued.chain_pem.clone().into_bytes(), root]);
    add("signing_request", vec![request]);
    let credentials = Credentials::new(key, &issued.chain_pem, bundle).unwrap();
    let digest = format!("sha256:{}", "0".repeat(64));
    add(
        "image_ticket",
        vec![ticket::issue(&credentials, NodeId::new(7), &digest, now + Duration::from_secs(60)).unwrap()],
    );
    let files = skep_identity::fuzzing::key_files(&unlock_key_of_files());
    add("key_files", files.into_iter().map(|(kind, text)| chosen(kind, text.as_bytes())).collect());
    add("contexts", contexts(&authority));
}

/// Addresses, a whole context, a name.
fn contexts(authority: &RootCa) -> Vec<Vec<u8>> {
    let key = ClientKey::generate().unwrap();
    let grant = ClientGrant { client_id: ClientId::new(7), validity: Duration::from_secs(86_400) };
    let request = key.signing_request_pem().unwrap();
    let issued = authority.issue_client(request.as_bytes(), &grant, SystemTime::now()).unwrap();
    let bundle = json!({
        "format": 1, "client": "alice", "role": "operator", "hosts": ["a:2377", "[fd00::1]:2377"],
        "ca": authority.cert().to_pem(), "cert": issued.chain_pem, "key": key.to_pem().as_str(),
    });
    vec![
        chosen(0, b"tcp://a:2377,b, [fd00::1]:99"),
        chosen(1, bundle.to_string().as_bytes()),
        chosen(1, br#"{"format": 2, "what": "is not known yet"}"#),
        chosen(2, b"prod"),
    ]
}
