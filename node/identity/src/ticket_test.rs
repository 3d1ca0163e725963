//! Image tickets: who may show which, and hostile bytes.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use proptest::prelude::*;
use skep_proto::id::{ClusterId, NodeId};

use crate::chain::CLOCK_TOLERANCE;
use crate::testing::{DAY, HOUR, cluster, member, member_since, now};
use crate::ticket::{self, TicketError};
use crate::{Role, RootCa};

const BEARER: NodeId = NodeId::new(7);
const CLUSTER: ClusterId = ClusterId::new(1);

fn digest() -> String {
    format!("sha256:{}", "0a".repeat(32))
}

fn issued(ca: &RootCa) -> Vec<u8> {
    ticket::issue(&member(ca, 1, Role::Manager), BEARER, &digest(), now() + HOUR).unwrap()
}

#[test]
fn a_ticket_holds_for_its_bearer_until_its_end() {
    let ca = cluster(1);
    let bytes = issued(&ca);
    assert!(bytes.len() < 1024, "{} bytes", bytes.len());
    let at = now();
    let ticket = ticket::verify(&bytes, &ca.bundle(), CLUSTER, BEARER, at).unwrap();
    assert_eq!((ticket.bearer, ticket.digest.as_str()), (BEARER, digest().as_str()));
    assert_eq!((ticket.signer.node_id, ticket.signer.role), (NodeId::new(1), Role::Manager));
    let end = ticket.not_after + CLOCK_TOLERANCE;
    ticket::verify(&bytes, &ca.bundle(), CLUSTER, BEARER, end).unwrap();
    let late = ticket::verify(&bytes, &ca.bundle(), CLUSTER, BEARER, end + Duration::from_millis(1));
    assert!(matches!(late, Err(TicketError::Expired)));
}

#[test]
fn others_tickets_do_not_hold() {
    let ca = cluster(1);
    let bytes = issued(&ca);
    let verify = |bytes: &[u8], ca: &RootCa, cluster, node| ticket::verify(bytes, &ca.bundle(), cluster, node, now());
    let stolen = verify(&bytes, &ca, CLUSTER, NodeId::new(8));
    assert!(matches!(stolen, Err(TicketError::Bearer { .. })));
    assert!(matches!(verify(&bytes, &cluster(1), CLUSTER, BEARER), Err(TicketError::Chain(_))));
    assert!(matches!(verify(&bytes, &ca, ClusterId::new(2), BEARER), Err(TicketError::Cluster { .. })));
}

#[test]
fn a_worker_cannot_issue() {
    let ca = cluster(1);
    let worker = member(&ca, 2, Role::Worker);
    let refused = ticket::issue(&worker, BEARER, &digest(), now() + HOUR);
    assert!(matches!(refused, Err(TicketError::Signer(node)) if node == NodeId::new(2)));

    // Nor by putting its own chain and signature under a manager's words.
    let words = [b"skep image ticket v1\0".as_slice(), &[1]].concat();
    let mut forged = words;
    forged.extend(BEARER.value().to_be_bytes());
    forged.extend(u64::MAX.to_be_bytes().map(|byte| byte >> 4));
    forged.push(71);
    forged.extend(digest().as_bytes());
    forged.push(1);
    forged.extend(u16::try_from(worker.chain()[0].len()).unwrap().to_be_bytes());
    forged.extend_from_slice(&worker.chain()[0]);
    let signature = worker.key().sign(&forged).unwrap();
    let mut forged = forged.split_off(21);
    forged.extend(signature);
    let refused = ticket::verify(&forged, &ca.bundle(), CLUSTER, BEARER, now());
    assert!(matches!(refused, Err(TicketError::Signer(node)) if node == NodeId::new(2)), "{refused:?}");
}

#[test]
fn an_expired_managers_ticket_does_not_hold() {
    let ca = cluster(1);
    let manager = member_since(&ca, 1, Role::Manager, now() - 4 * HOUR, HOUR);
    let bytes = ticket::issue(&manager, BEARER, &digest(), now() + DAY).unwrap();
    let refused = ticket::verify(&bytes, &ca.bundle(), CLUSTER, BEARER, now());
    assert!(matches!(refused, Err(TicketError::Chain(_))));
}

#[test]
fn only_digests_are_signed() {
    let manager = member(&cluster(1), 1, Role::Manager);
    let long = format!("sha512:{}", "f".repeat(128));
    ticket::issue(&manager, BEARER, &long, now()).unwrap();
    for bad in ["", "latest", "sha256:", "sha256:00", "md5:00", "../../etc", &digest().to_uppercase(), &"é".repeat(400)]
    {
        assert!(matches!(ticket::issue(&manager, BEARER, bad, now()), Err(TicketError::Digest(_))), "{bad}");
    }
}

proptest! {
    #[test]
    fn a_changed_ticket_does_not_hold(at in 0usize..1024, bit in 0u8..8, cut in 0usize..1024) {
        let ca = cluster(1);
        let whole = issued(&ca);
        let mut changed = whole.clone();
        let at = at % changed.len();
        changed[at] ^= 1 << bit;
        prop_assert!(ticket::verify(&changed, &ca.bundle(), CLUSTER, BEARER, now()).is_err());
        let cut = &whole[..cut % whole.len()];
        prop_assert!(ticket::verify(cut, &ca.bundle(), CLUSTER, BEARER, now()).is_err());
    }

    #[test]
    fn any_bytes_are_refused_without_panic(mut bytes: Vec<u8>, first: bool) {
        if first && !bytes.is_empty() {
            bytes[0] = 1;
        }
        prop_assert!(ticket::verify(&bytes, &cluster(1).bundle(), CLUSTER, BEARER, now()).is_err());
    }
}
