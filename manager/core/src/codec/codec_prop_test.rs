//! Properties of the codec: what goes out comes back, and no bytes make it panic.

#![allow(clippy::unwrap_used)]

use proptest::collection::vec;
use proptest::prelude::*;
use skep_proto::v1;

use super::{decode_entry, encode_entry, read_snapshot, write_snapshot};
use crate::arbitrary;
use crate::change::{Expect, Group, Op, Transaction};
use crate::codec::{DecodeError, SnapshotError};
use crate::store::State;

/// What a group's changes are after a trip: expectations that mean nothing for their kind are gone.
fn normal(group: &Group) -> Group {
    let mut group = group.clone();
    for change in &mut group.0 {
        match change.op {
            Op::ObserveTask(_) | Op::ObserveNode(_) => change.expect = Expect::Any,
            Op::RemoveNode(_)
            | Op::RemoveService(_)
            | Op::RemoveRevision(_)
            | Op::RemoveTask(_)
            | Op::RemoveImageName(_)
            | Op::RemoveCredential(_)
            | Op::RemoveNetwork(_)
            | Op::RemoveParcel(_)
            | Op::RemovePayload(_)
            | Op::RemoveClient(_)
                if matches!(change.expect, Expect::Absent | Expect::Version(0)) =>
            {
                change.expect = Expect::Any;
            }
            // "Version 0" is no version that anything has.
            _ if change.expect == Expect::Version(0) => change.expect = Expect::Absent,
            _ => {}
        }
    }
    group
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Above all: no group that apply accepts makes an entry that cannot be read. It would stop every manager.
    #[test]
    fn what_apply_accepts_comes_back(plans in arbitrary::history(40)) {
        let mut state = State::default();
        for plan in &plans {
            let mut transaction = plan.resolve(&state);
            let applied = state.apply(&transaction);
            if applied.repeated.is_some() {
                continue;
            }
            let mut index = 0;
            transaction.groups.retain(|_| {
                index += 1;
                !applied.refused.iter().any(|(refused, _)| refused + 1 == index)
            });
            let back = decode_entry(&encode_entry(std::slice::from_ref(&transaction))).unwrap();
            let groups = transaction.groups.iter().map(normal).collect();
            let back: Vec<_> = back.into_iter()
                .map(|one| Transaction { groups: one.groups.iter().map(normal).collect(), ..one }).collect();
            prop_assert_eq!(back, vec![Transaction { groups, ..transaction }]);
        }
    }

    #[test]
    fn random_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..400)) {
        let _ = decode_entry(&bytes);
        let _ = read_snapshot(&mut bytes.as_slice());
    }

    #[test]
    fn damaged_bytes_are_read_or_refused(
        plans in arbitrary::history(30), place in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
    ) {
        let mut state = State::default();
        let log: Vec<_> = plans.iter().map(|plan| {
            let transaction = plan.resolve(&state);
            state.apply(&transaction);
            transaction
        }).collect();
        let mut snapshot = Vec::new();
        write_snapshot(&state, &mut snapshot).unwrap();
        for mut bytes in [encode_entry(&log), snapshot] {
            let place = place.index(bytes.len());
            if cut { bytes.truncate(place) } else { bytes[place] = byte }
            let _ = decode_entry(&bytes);
            let _ = read_snapshot(&mut bytes.as_slice());
        }
    }
}

#[test]
fn what_a_later_version_wrote_is_refused_with_a_sentence() {
    use prost::Message;
    let newer = v1::Entry { format: 2, transactions: Vec::new() }.encode_to_vec();
    let error = decode_entry(&newer).unwrap_err();
    assert_eq!(error.to_string(), "the entry has format 2, this version knows up to 1: upgrade skep on this manager");
    let change = v1::Change { expect_version: 1, ..v1::Change::default() };
    let transactions =
        vec![v1::Transaction { groups: vec![v1::Group { changes: vec![change] }], ..v1::Transaction::default() }];
    let unknown = v1::Entry { format: 1, transactions }.encode_to_vec();
    assert!(matches!(decode_entry(&unknown), Err(DecodeError::UnknownKind { .. })));
}

#[test]
fn a_cut_or_oversized_snapshot_is_refused() {
    use prost::Message;
    let mut head = v1::SnapshotHeader { format: 1, version: 3, records: 1 }.encode_length_delimited_to_vec();
    let cut = read_snapshot(&mut head.as_slice()).unwrap_err();
    assert!(matches!(cut, SnapshotError::Cut { found: 0, expected: 1 }), "{cut}");
    head.extend([0xff, 0xff, 0xff, 0x7f]);
    let large = read_snapshot(&mut head.as_slice()).unwrap_err();
    assert!(matches!(large, SnapshotError::RecordTooLarge { record: 1, .. }), "{large}");
    let empty = read_snapshot(&mut [].as_slice()).unwrap_err();
    assert!(matches!(empty, SnapshotError::Cut { .. }), "{empty}");
}
