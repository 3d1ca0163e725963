//! Properties of apply: whatever comes, in whatever order, the state stays whole and every manager has the same.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use skep_proto::v1::Severity;

use crate::arbitrary::{self, Plan};
use crate::change::{Group, Transaction};
use crate::codec;
use crate::doctor;
use crate::store::State;

/// Applies the plans in turn, each resolved against the state before it.
fn run(plans: &[Plan]) -> (State, Vec<Transaction>) {
    let mut state = State::default();
    let mut log = Vec::new();
    for plan in plans {
        let transaction = plan.resolve(&state);
        state.apply(&transaction);
        log.push(transaction);
    }
    (state, log)
}

fn errors(state: &State) -> Vec<doctor::Finding> {
    doctor::check(state).into_iter().filter(|finding| finding.severity == Severity::Error).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_state_stays_whole(plans in arbitrary::history(60)) {
        let mut state = State::default();
        for plan in &plans {
            let transaction = plan.resolve(&state);
            let before = state.clone();
            let applied = state.apply(&transaction);
            prop_assert_eq!(errors(&state), vec![], "after {:#?}\nbefore {:#?}", transaction, before);
            prop_assert_eq!(applied.version, state.version());
            let raised = u64::from(!applied.events.is_empty());
            prop_assert_eq!(state.version(), before.version() + raised);
        }
    }

    #[test]
    fn refused_groups_change_nothing(plans in arbitrary::history(40)) {
        let mut state = State::default();
        for plan in &plans {
            let transaction = plan.resolve(&state);
            let before = state.clone();
            let applied = state.apply(&transaction);
            let is_refused = |index: &usize| applied.refused.iter().any(|(refused, _)| refused == index);
            let part = |keep: &dyn Fn(&usize) -> bool| {
                let groups: Vec<Group> = transaction.groups.iter().enumerate()
                    .filter(|(index, _)| keep(index)).map(|(_, group)| group.clone()).collect();
                Transaction { groups, ..transaction.clone() }
            };
            // Only what was accepted: the same state.
            let mut accepted = before.clone();
            accepted.apply(&part(&|index| !is_refused(index)));
            prop_assert_eq!(&accepted, &state);
            if applied.events.is_empty() {
                prop_assert_eq!(&before, &state);
            }
        }
    }

    #[test]
    fn events_tell_the_whole_change(plans in arbitrary::history(40)) {
        let mut state = State::default();
        for plan in &plans {
            let transaction = plan.resolve(&state);
            let mut replayed = state.clone();
            for event in state.apply(&transaction).events {
                prop_assert_eq!(replayed.get(&event.key), event.before);
                match event.after {
                    Some(object) => replayed.put(object),
                    None => replayed.remove(&event.key),
                };
            }
            prop_assert!(replayed.objects().eq(state.objects()));
        }
    }

    #[test]
    fn equal_logs_make_equal_states(plans in arbitrary::history(40)) {
        let (state, log) = run(&plans);
        let mut other = State::default();
        for transaction in &log {
            other.apply(transaction);
        }
        prop_assert_eq!(&state, &other);
        prop_assert_eq!(state.digest(), other.digest());
    }

    #[test]
    fn a_restored_snapshot_goes_on_as_the_original(plans in arbitrary::history(40), cut in 0..40usize) {
        let (mut state, _) = run(&plans[..cut.min(plans.len())]);
        let mut bytes = Vec::new();
        codec::write_snapshot(&state, &mut bytes).unwrap();
        let mut restored = codec::read_snapshot(&mut bytes.as_slice()).unwrap();
        prop_assert_eq!(&restored, &state);
        for plan in &plans[cut.min(plans.len())..] {
            let transaction = plan.resolve(&state);
            prop_assert_eq!(restored.apply(&transaction), state.apply(&transaction));
        }
        prop_assert_eq!(restored.digest(), state.digest());
    }

    #[test]
    fn a_retry_is_answered_and_not_done_again(plans in arbitrary::history(40)) {
        let mut state = State::default();
        for plan in &plans {
            let transaction = plan.resolve(&state);
            let applied = state.apply(&transaction);
            if transaction.request.is_some() && !applied.events.is_empty() {
                let before = state.clone();
                let again = state.apply(&transaction);
                prop_assert_eq!(&before, &state);
                prop_assert_eq!(again.repeated.map(|record| record.version), Some(applied.version));
            }
        }
    }
}

/// The properties above say little if the random histories get nowhere: they must reach every kind of refusal and a
/// task's whole life.
#[test]
fn random_histories_reach_everything() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    use std::collections::BTreeSet;

    let mut runner = TestRunner::deterministic();
    let mut reasons = BTreeSet::new();
    let mut states = BTreeSet::new();
    for _ in 0..3_000 {
        let plans = arbitrary::history(60).new_tree(&mut runner).unwrap().current();
        let mut state = State::default();
        for plan in &plans {
            let applied = state.apply(&plan.resolve(&state));
            let name = |reason| format!("{reason:?}").split([' ', '{']).next().unwrap_or_default().to_owned();
            reasons.extend(applied.refused.into_iter().map(|(_, reason)| name(reason)));
            states.extend(state.tasks().map(|task| task.state));
        }
    }
    let expected = [
        "Backwards",
        "Exists",
        "Fixed",
        "Gone",
        "InUse",
        "Malformed",
        "Missing",
        "NameTaken",
        "NodeRemoved",
        "OutOfSequence",
        "Overlaps",
        "PortTaken",
        "Taken",
    ];
    assert_eq!(reasons.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    assert_eq!(states.into_iter().collect::<Vec<_>>(), arbitrary::STATES);
}
