//! The next root: who believes whom while it takes the place of the last, and what is no root. And the way back.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use rcgen::string::PrintableString;
use rcgen::{BasicConstraints, CertificateParams, DnType, DnValue, IsCa, KeyPair, KeyUsagePurpose};
use skep_proto::id::ClusterId;

use crate::ca::RootCa;
use crate::rotation::{GivenError, NextRoot};
use crate::testing::{DAY, HOUR, cluster, grant, member, member_since, now};
use crate::{Credentials, NodeKey, ReturnError, Role, RootBundle, chain, verify_return};

/// A member of the next root, as managers make it.
fn renewed(next: &NextRoot, node: u128, trusted: RootBundle) -> Credentials {
    let key = NodeKey::generate().unwrap();
    let issued = next.root.issue(&key.signing_request().unwrap(), &grant(node, Role::Worker), now()).unwrap();
    Credentials::new(key, &format!("{}{}", issued.chain_pem, next.cross_signed_pem), trusted).unwrap()
}

fn both(old: &RootCa, next: &NextRoot) -> RootBundle {
    RootBundle::new([old.cert().clone(), next.root.cert().clone()]).unwrap()
}

/// Whether a host that trusts `roots` lets the member in.
fn believes(roots: &RootBundle, member: &Credentials) -> bool {
    let (leaf, others) = member.chain().split_first().unwrap();
    chain::verify(roots, leaf, others, now()).is_ok()
}

#[test]
fn while_roots_change_everybody_believes_everybody_and_afterwards_the_new_ones_only() {
    let old = cluster(7);
    let next = NextRoot::generate(&old, now()).unwrap();
    let (all, late) = (both(&old, &next), old.bundle());
    let before = member(&old, 1, Role::Worker);
    let after = renewed(&next, 2, all.clone());
    for roots in [&all, &late] {
        assert!(believes(roots, &before) && believes(roots, &after), "{roots:?}");
    }
    let last = next.root.bundle();
    assert!(believes(&last, &after));
    assert!(!believes(&last, &before));
    assert_eq!(after.facts().issuer, next.root.cert().digest().as_bytes());
    assert_eq!(before.facts().issuer, old.cert().digest().as_bytes());
    // Its own certificate has to be of a root that stays.
    assert_eq!(after.with_roots(last.clone()).unwrap().roots().certs().len(), 1);
    assert!(before.with_roots(last).is_err());

    // Who missed a rotation that was replaced by another one is still believed.
    let other = NextRoot::generate(&old, now()).unwrap();
    let again = both(&old, &other);
    assert!(believes(&again, &after) && believes(&late, &renewed(&other, 3, again.clone())));
    assert_eq!(after.with_roots(again).unwrap().facts().issuer, Vec::<u8>::new(), "none of them signed it");
}

#[test]
fn many_changes_in_a_row_lead_from_root_to_root() {
    let mut current = cluster(7);
    for _ in 0..3 {
        let next = NextRoot::generate(&current, now()).unwrap();
        assert!(believes(&current.bundle(), &renewed(&next, 1, both(&current, &next))));
        assert_ne!(next.root.cert().digest(), current.cert().digest());
        current = next.root;
    }
}

/// A certificate of a PKI outside, and its key.
fn outside(change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CountryName, DnValue::PrintableString(PrintableString::try_from("CH").unwrap()));
    params.distinguished_name.push(DnType::OrganizationName, ClusterId::new(7).to_string());
    params.distinguished_name.push(DnType::CommonName, "Köhler & Söhne");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    change(&mut params);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn given(change: impl FnOnce(&mut CertificateParams)) -> Result<NextRoot, GivenError> {
    let (cert, key) = outside(change);
    NextRoot::given(&cluster(7), &cert, &key, DAY, now())
}

#[test]
fn a_root_can_come_from_outside() {
    let old = cluster(7);
    let (cert, key) = outside(|_| {});
    let next = NextRoot::given(&old, &cert, &key, DAY, now()).unwrap();
    assert!(believes(&old.bundle(), &renewed(&next, 1, both(&old, &next))));
    assert!(believes(&next.root.bundle(), &renewed(&next, 1, both(&old, &next))));
    // And another one after it.
    let own = NextRoot::generate(&next.root, now()).unwrap();
    assert!(believes(&next.root.bundle(), &renewed(&own, 1, both(&next.root, &own))));
}

#[test]
fn a_root_that_is_about_to_end_or_has_ended_is_replaced() {
    for end in [now() + 2 * HOUR, now() + HOUR / 2, now() - DAY] {
        let (cert, key) = outside(|params| params.not_after = end.into());
        let old = RootCa::from_pem(&cert, &key).unwrap();
        let next = NextRoot::generate(&old, now()).unwrap();
        let last = next.root.bundle();
        assert!(believes(&last, &renewed(&next, 1, last.clone())), "{end:?}");
        // Who trusts both believes it, whatever became of the former one.
        assert!(believes(&both(&old, &next), &renewed(&next, 1, both(&old, &next))), "{end:?}");
        let key = NodeKey::generate().unwrap();
        let issued = next.root.issue(&key.signing_request().unwrap(), &grant(1, Role::Worker), now()).unwrap();
        let chain_pem = format!("{}{}", issued.chain_pem, next.cross_signed_pem);
        let chain = crate::pem::certificates(&chain_pem).unwrap();
        assert_eq!(chain::verify(&old.bundle(), &chain[0], &chain[1..], now()).is_ok(), end > now(), "{end:?}");
        let (cert, key) = outside(|_| {});
        NextRoot::given(&old, &cert, &key, DAY, now()).unwrap();
    }
}

#[test]
fn an_intermediate_of_somebody_is_a_root_of_its_own() {
    let upper_key = KeyPair::generate().unwrap();
    let mut upper = CertificateParams::default();
    upper.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    upper.distinguished_name.push(DnType::CommonName, "a company");
    let issuer = rcgen::Issuer::new(upper, upper_key);
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, ClusterId::new(7).to_string());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let cert = params.signed_by(&key, &issuer).unwrap().pem();
    let next = NextRoot::given(&cluster(7), &cert, &key.serialize_pem(), DAY, now()).unwrap();
    assert!(believes(&next.root.bundle(), &renewed(&next, 1, next.root.bundle())));
}

#[test]
fn what_is_no_root_is_refused_with_its_reason() {
    use GivenError as E;
    let other = |params: &mut CertificateParams| {
        params.distinguished_name.push(DnType::OrganizationName, ClusterId::new(8).to_string());
    };
    assert!(matches!(given(other), Err(E::Cluster(_))));
    assert!(matches!(given(|params| params.distinguished_name = rcgen::DistinguishedName::new()), Err(E::Cluster(_))));
    assert!(matches!(given(|params| params.is_ca = IsCa::ExplicitNoCa), Err(E::Unusable(_))));
    assert!(matches!(given(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]), Err(E::Usage)));
    assert!(matches!(given(|params| params.not_after = rcgen::date_time_ymd(2021, 1, 1)), Err(E::Time)));
    assert!(matches!(given(|params| params.not_before = rcgen::date_time_ymd(2119, 1, 1)), Err(E::Time)));
    let (cert, key) = outside(|_| {});
    let long = NextRoot::given(&cluster(7), &cert, &key, DAY * 365 * 200, now());
    assert!(matches!(long, Err(E::Short(_))));
    let (_, foreign) = outside(|_| {});
    assert!(matches!(NextRoot::given(&cluster(7), &cert, &foreign, DAY, now()), Err(E::Unusable(_))));
    let two = format!("{cert}{cert}");
    assert!(matches!(NextRoot::given(&cluster(7), &two, &key, DAY, now()), Err(E::Count(2))));
    let constrained = given(|params| {
        params.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.com".into())],
            excluded_subtrees: Vec::new(),
        });
    });
    assert!(matches!(constrained, Err(E::Probe(_))), "{constrained:?}");
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let refused = NextRoot::given(&cluster(7), &cert, &p384.serialize_pem(), DAY, now());
    assert!(matches!(refused, Err(E::Unusable(_))));
}

#[test]
fn a_node_proves_who_it_was_after_its_certificate_ran_out() {
    let ca = cluster(7);
    let ended = member_since(&ca, 5, Role::Worker, now() - 10 * HOUR, 2 * HOUR);
    let key = NodeKey::generate().unwrap();
    let request_pem = key.signing_request_pem().unwrap();
    let (chain_pem, signature) = ended.prove_return(&request_pem).unwrap();
    let returned = verify_return(&request_pem, &chain_pem, &signature, &ca.bundle()).unwrap();
    assert_eq!((&returned.identity, returned.is_trusted), (ended.identity(), true));
    assert_eq!(returned.key.to_vec(), ended.facts().key);
    // Its root is gone: only the key speaks for it.
    assert!(!verify_return(&request_pem, &chain_pem, &signature, &cluster(7).bundle()).unwrap().is_trusted);

    let another = NodeKey::generate().unwrap().signing_request_pem().unwrap();
    let refused = verify_return(&another, &chain_pem, &signature, &ca.bundle());
    assert!(matches!(refused, Err(ReturnError::Signature)), "a stolen proof is for its own request");
    let stranger = member(&ca, 5, Role::Worker).chain_pem();
    assert!(matches!(verify_return(&request_pem, &stranger, &signature, &ca.bundle()), Err(ReturnError::Signature)));
    assert!(matches!(verify_return(&request_pem, "", &signature, &ca.bundle()), Err(ReturnError::Chain)));
    assert!(matches!(verify_return("", &chain_pem, &signature, &ca.bundle()), Err(ReturnError::Request)));
}

proptest! {
    #[test]
    fn any_bytes_prove_nothing(chain in ".{0,200}", request in ".{0,200}", signature in proptest::collection::vec(any::<u8>(), 0..80)) {
        let ca = cluster(7);
        prop_assert!(verify_return(&request, &chain, &signature, &ca.bundle()).is_err());
        let real = member(&ca, 5, Role::Worker).chain_pem();
        let csr = NodeKey::generate().unwrap().signing_request_pem().unwrap();
        prop_assert!(verify_return(&csr, &real, &signature, &ca.bundle()).is_err());
        prop_assert!(NextRoot::given(&ca, &chain, &request, DAY, now()).is_err());
    }
}
