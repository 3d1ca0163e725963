//! The authority: what it signs and what it refuses.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use skep_proto::id::{ClusterId, NodeId};

use crate::ca::{BACKDATE, CaError, MIN_NODE_VALIDITY, NodeGrant, ROOT_VALIDITY, RootCa};
use crate::testing::{DAY, HOUR, cluster, grant, member, now};
use crate::{Credentials, NodeKey, PeerIdentity, Role, peer, pem};

fn request() -> Vec<u8> {
    NodeKey::generate().unwrap().signing_request().unwrap()
}

#[test]
fn a_certificate_says_what_the_grant_says() {
    let ca = cluster(7);
    for role in [Role::Worker, Role::Manager] {
        let issued = ca.issue(&request(), &grant(42, role), now()).unwrap();
        let der = pem::certificates(&issued.chain_pem).unwrap().remove(0);
        let identity = PeerIdentity::read(&der).unwrap();
        assert_eq!(identity.node_id, NodeId::new(42));
        assert_eq!(identity.role, role);
        assert_eq!(identity.cluster_id, ClusterId::new(7));
        assert_eq!(identity.not_after, issued.not_after);
        let cert = peer::parse(&der).unwrap();
        assert!(!cert.is_ca());
        let names = cert.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        assert_eq!(names, [format!("DNSName({})", NodeId::new(42)), format!("DNSName({})", role.certificate_name())]);
    }
}

#[test]
fn validity_is_backdated_and_cut_at_the_roots_end() {
    let at = now();
    let ca = RootCa::generate(ClusterId::new(1), at).unwrap();
    let key = NodeKey::generate().unwrap();
    let issued = ca.issue(&key.signing_request().unwrap(), &grant(1, Role::Worker), at).unwrap();
    assert_eq!(issued.not_after, at + DAY);
    let credentials = Credentials::new(key, &issued.chain_pem, ca.bundle()).unwrap();
    assert_eq!(credentials.not_before(), at - BACKDATE);

    let late = at + ROOT_VALIDITY - 2 * HOUR;
    assert_eq!(ca.issue(&request(), &grant(1, Role::Worker), late).unwrap().not_after, at + ROOT_VALIDITY);
    let too_late = at + ROOT_VALIDITY - Duration::from_secs(10);
    assert!(matches!(ca.issue(&request(), &grant(1, Role::Worker), too_late), Err(CaError::RootExpired)));
    let after = at + ROOT_VALIDITY + DAY;
    assert!(matches!(ca.issue(&request(), &grant(1, Role::Worker), after), Err(CaError::RootExpired)));
}

#[test]
fn too_short_a_validity_is_refused() {
    let ca = cluster(1);
    let short = NodeGrant { validity: MIN_NODE_VALIDITY - Duration::from_secs(1), ..grant(1, Role::Worker) };
    assert!(matches!(ca.issue(&request(), &short, now()), Err(CaError::Validity(_))));
    let least = NodeGrant { validity: MIN_NODE_VALIDITY, ..grant(1, Role::Worker) };
    ca.issue(&request(), &least, now()).unwrap();
}

#[test]
fn the_requests_own_wishes_are_ignored() {
    let ca = cluster(1);
    let key = KeyPair::generate().unwrap();
    let mut wishes = CertificateParams::new(vec!["skep-manager".to_owned(), "evil.example".to_owned()]).unwrap();
    wishes.distinguished_name.push(DnType::CommonName, NodeId::new(99).to_string());
    wishes.distinguished_name.push(DnType::OrganizationalUnitName, "skep-manager");
    wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let request = wishes.serialize_request(&key).unwrap();
    let issued = ca.issue(request.der(), &grant(42, Role::Worker), now()).unwrap();
    assert_eq!(
        ca.issue(request.pem().unwrap().as_bytes(), &grant(42, Role::Worker), now()).unwrap().not_after,
        issued.not_after
    );
    let der = pem::certificates(&issued.chain_pem).unwrap().remove(0);
    let identity = PeerIdentity::read(&der).unwrap();
    assert_eq!((identity.node_id, identity.role), (NodeId::new(42), Role::Worker));
    let cert = peer::parse(&der).unwrap();
    assert!(!cert.is_ca());
    let names = &cert.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert!(!names.iter().any(|name| name.to_string().contains("evil") || name.to_string().contains("manager")));
}

#[test]
fn another_kind_of_key_is_refused() {
    let ca = cluster(1);
    for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        assert!(matches!(ca.issue(request.der(), &grant(1, Role::Worker), now()), Err(CaError::RequestAlgorithm)));
    }
}

#[test]
fn a_request_for_anothers_key_is_refused() {
    let ca = cluster(1);
    let (mine, theirs) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let mut request = mine.signing_request().unwrap();
    let point = theirs.public_point();
    let at = request.windows(point.len()).position(|window| window == mine.public_point()).unwrap();
    request[at..at + point.len()].copy_from_slice(point);
    assert!(matches!(ca.issue(&request, &grant(1, Role::Worker), now()), Err(CaError::RequestSignature)));
}

#[test]
fn a_root_survives_storage_and_still_signs_for_its_members() {
    let ca = cluster(5);
    let loaded = RootCa::from_pem(&ca.cert().to_pem(), &ca.key_pem()).unwrap();
    assert_eq!(loaded.cert(), ca.cert());
    let key = NodeKey::generate().unwrap();
    let issued = loaded.issue(&key.signing_request().unwrap(), &grant(1, Role::Manager), now()).unwrap();
    Credentials::new(key, &issued.chain_pem, ca.bundle()).unwrap();
}

#[test]
fn a_root_with_anothers_key_is_refused() {
    let (one, two) = (cluster(1), cluster(1));
    assert!(matches!(RootCa::from_pem(&one.cert().to_pem(), &two.key_pem()), Err(CaError::KeyMismatch)));
    assert!(RootCa::from_pem("", &two.key_pem()).is_err());
    assert!(RootCa::from_pem(&one.cert().to_pem(), "").is_err());
}

#[test]
fn a_node_certificate_is_no_root() {
    let ca = cluster(1);
    let node = member(&ca, 1, Role::Manager);
    assert!(matches!(crate::RootBundle::from_pem(&node.chain_pem()), Err(crate::RootError::NotAuthority)));
    assert!(matches!(crate::RootBundle::from_pem(""), Err(crate::RootError::Empty)));
    let mixed = format!("{}{}", ca.cert().to_pem(), cluster(2).cert().to_pem());
    assert!(matches!(crate::RootBundle::from_pem(&mixed), Err(crate::RootError::MixedClusters(..))));
}

#[test]
fn debug_shows_no_key() {
    let ca = cluster(1);
    let secret: String = ca.key_pem().lines().nth(1).unwrap().chars().take(20).collect();
    let node = member(&ca, 1, Role::Worker);
    for shown in [format!("{ca:?}"), format!("{node:?}"), format!("{:?}", node.key())] {
        assert!(!shown.contains("PRIVATE") && !shown.contains(&secret), "{shown}");
    }
}

proptest! {
    #[test]
    fn damaged_requests_never_certify_another_key(at in 0usize..230, bit in 0u8..8, cut in 0usize..230) {
        let ca = cluster(1);
        let key = NodeKey::generate().unwrap();
        let whole = key.signing_request().unwrap();
        let mut flipped = whole.clone();
        let at = at % flipped.len();
        flipped[at] ^= 1 << bit;
        // Some bits are outside of what is signed and say nothing (an absent parameter's type); the key is inside.
        if let Ok(issued) = ca.issue(&flipped, &grant(1, Role::Worker), now()) {
            prop_assert!(Credentials::new(key, &issued.chain_pem, ca.bundle()).is_ok());
        }
        prop_assert!(ca.issue(&whole[..cut % whole.len()], &grant(1, Role::Worker), now()).is_err());
    }
}
