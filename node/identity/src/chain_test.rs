//! What certificates are believed, and when; odd certificates.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use skep_proto::id::{ClusterId, NodeId};

use crate::chain::{self, CLOCK_TOLERANCE};
use crate::peer::PeerError;
use crate::testing::{DAY, HOUR, cluster, member, member_since, now};
use crate::{Credentials, CredentialsError, NodeKey, PeerIdentity, Role, RootBundle, Validity, renewal_at};

const SECOND: Duration = Duration::from_secs(1);
const COMMON_NAME: &[u64] = &[2, 5, 4, 3];

fn believed(credentials: &Credentials, at: SystemTime) -> bool {
    chain::verify(credentials.roots(), &credentials.chain()[0], &[], at).is_ok()
}

#[test]
fn clocks_may_differ_by_an_hour_and_no_more() {
    let at = now();
    let node = member_since(&cluster(1), 1, Role::Worker, at, HOUR);
    let (start, end) = (node.not_before(), node.not_after());
    assert_eq!((start, end), (at - HOUR, at + HOUR));
    for (moment, expected, validity) in [
        (start - CLOCK_TOLERANCE - SECOND, false, Validity::NotYetValid),
        (start - CLOCK_TOLERANCE, true, Validity::Valid),
        (at, true, Validity::Valid),
        (end, true, Validity::Valid),
        (end + SECOND, true, Validity::InGrace),
        (end + CLOCK_TOLERANCE, true, Validity::InGrace),
        (end + CLOCK_TOLERANCE + SECOND, false, Validity::Expired),
    ] {
        assert_eq!(believed(&node, moment), expected, "at {moment:?}");
        assert_eq!(node.validity(moment), validity, "at {moment:?}");
    }
}

#[test]
fn another_root_of_the_same_cluster_id_is_not_believed() {
    let (ours, forged) = (cluster(1), cluster(1));
    let node = member(&forged, 1, Role::Manager);
    assert!(chain::verify(&ours.bundle(), &node.chain()[0], &[], now()).is_err());
    // During a rotation both are.
    let both = RootBundle::new([ours.cert().clone(), forged.cert().clone()]).unwrap();
    assert!(chain::verify(&both, &node.chain()[0], &[], now()).is_ok());
}

#[test]
fn a_member_cannot_sign_certificates() {
    let ca = cluster(1);
    let manager = member(&ca, 1, Role::Manager);
    // The manager's own certificate, used as an authority for a worker's.
    let key = NodeKey::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(2, "skep-manager", 1);
    let issuer = rcgen::Issuer::from_ca_cert_der(&manager.chain()[0], manager.key().pair()).unwrap();
    let forged = params.signed_by(key.pair(), &issuer).unwrap();
    let intermediates = [manager.chain()[0].clone()];
    assert!(chain::verify(&ca.bundle(), forged.der(), &intermediates, now()).is_err());
}

#[test]
fn credentials_that_do_not_fit_together_are_refused() {
    let (ca, other) = (cluster(1), cluster(2));
    let node = member(&ca, 1, Role::Worker);
    let stranger = NodeKey::generate().unwrap();
    let refused = Credentials::new(stranger, &node.chain_pem(), ca.bundle());
    assert!(matches!(refused, Err(CredentialsError::KeyMismatch)));
    let refused = Credentials::new(NodeKey::generate().unwrap(), &node.chain_pem(), other.bundle());
    assert!(matches!(refused, Err(CredentialsError::Chain(_))));
    let refused = Credentials::new(NodeKey::generate().unwrap(), "", ca.bundle());
    assert!(matches!(refused, Err(CredentialsError::Empty)));
    let refused = Credentials::new(NodeKey::generate().unwrap(), &ca.cert().to_pem(), ca.bundle());
    assert!(matches!(refused, Err(CredentialsError::Chain(_))));
}

fn subject(node: u128, unit: &str, cluster: u128) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, ClusterId::new(cluster).to_string());
    name.push(DnType::OrganizationalUnitName, unit);
    name.push(DnType::CommonName, NodeId::new(node).to_string());
    name
}

fn self_signed(name: DistinguishedName) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

#[test]
fn odd_subjects_name_no_node() {
    assert!(PeerIdentity::read(&self_signed(subject(1, "skep-worker", 1))).is_ok());

    let mut twice = subject(1, "skep-worker", 1);
    twice.push(DnType::CustomDnType(COMMON_NAME.to_vec()), NodeId::new(2).to_string());
    assert_eq!(PeerIdentity::read(&self_signed(twice)), Err(PeerError::Attribute { attribute: "CN" }));

    let mut none = subject(1, "skep-worker", 1);
    none.remove(DnType::OrganizationName);
    assert_eq!(PeerIdentity::read(&self_signed(none)), Err(PeerError::Attribute { attribute: "O" }));

    let docker = self_signed(subject(1, "swarm-manager", 1));
    assert_eq!(PeerIdentity::read(&docker), Err(PeerError::Role("swarm-manager".to_owned())));

    let mut upper = subject(1, "skep-worker", 1);
    upper.push(DnType::CommonName, "NOT-AN-ID");
    assert_eq!(PeerIdentity::read(&self_signed(upper)), Err(PeerError::NodeId("NOT-AN-ID".to_owned())));

    let mut trailing = self_signed(subject(1, "skep-worker", 1));
    trailing.push(0);
    assert_eq!(PeerIdentity::read(&trailing), Err(PeerError::Malformed));
    assert_eq!(PeerIdentity::read(&[]), Err(PeerError::Malformed));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_without_panic(bytes: Vec<u8>) {
        let _ = PeerIdentity::read(&bytes);
        let roots = cluster(1).bundle();
        prop_assert!(chain::verify(&roots, &bytes.into(), &[], now()).is_err());
    }

    #[test]
    fn a_changed_certificate_is_not_believed(at in 0usize..600, bit in 0u8..8) {
        let node = member(&cluster(1), 1, Role::Worker);
        let mut der = node.chain()[0].to_vec();
        let at = at % der.len();
        der[at] ^= 1 << bit;
        prop_assert!(chain::verify(node.roots(), &der.into(), &[], now()).is_err());
    }

    #[test]
    fn renewal_lies_between_half_and_four_fifths(start in 0u64..4_000_000_000, days in 1u32..3650, random: f64) {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(start);
        let lifetime = DAY * days;
        let at = renewal_at(start, start + lifetime, random).duration_since(start).unwrap();
        prop_assert!(at >= lifetime / 2 && at <= lifetime * 4 / 5 + SECOND);
    }
}

#[test]
fn renewal_spreads_with_the_random_number() {
    let (start, end) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + DAY * 100);
    let at = |random| renewal_at(start, end, random).duration_since(start).unwrap().as_secs() / DAY.as_secs();
    assert_eq!((at(0.0), at(0.5), at(1.0)), (50, 65, 80));
    assert_eq!(renewal_at(end, start, 0.5), end, "a certificate that ends before it starts is due at once");
}
