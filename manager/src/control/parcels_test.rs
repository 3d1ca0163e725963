//! Which data a version gets, and what is said of it.
#![allow(clippy::unwrap_used)]

use skep_core::change::{Group, Transaction};
use skep_proto::time::UnixMs;

use super::*;

const DB: ParcelId = ParcelId::Secret(SecretId::new(7));

fn apply(state: &mut State, changes: Vec<Change>) {
    let groups = vec![Group(changes)];
    assert_eq!(state.apply(&Transaction { at: UnixMs(5), groups, ..Transaction::default() }).refused, vec![]);
}

fn state(versions: usize) -> State {
    let mut state = State::default();
    let spec = ParcelSpec { name: "db".into(), ..ParcelSpec::default() };
    apply(&mut state, parcels::creation(DB, spec, Data::new(b"1".to_vec()), UnixMs(1)));
    for number in 2..=versions {
        let parcel = Arc::clone(state.parcel(DB).unwrap());
        let data = Data::new(vec![b'x'; number]);
        let new = NewVersion { data, copied_from: None, rollout: Rollout::Rolling };
        let changes = parcels::rotation(&state, &parcel, new, UnixMs(2)).unwrap().changes;
        apply(&mut state, changes);
    }
    state
}

fn back(state: &State, to: Option<u64>) -> Result<(usize, Option<u64>), String> {
    let parcel = state.parcel(DB).unwrap();
    let found = source(state, parcel, &mut Source::Version(to));
    found.map(|(data, from)| (data.len(), from)).map_err(|status| status.message().to_owned())
}

#[test]
fn going_back_means_the_version_before_or_the_named_one() {
    let three = state(3);
    assert_eq!(back(&three, None), Ok((2, Some(2))));
    assert_eq!(back(&three, Some(1)), Ok((1, Some(1))));
    assert_eq!(back(&three, Some(3)).unwrap_err(), "secret db is at version 3 already");
    assert_eq!(back(&three, Some(9)).unwrap_err(), "secret db has no version 9 (any more); kept are 1, 2, 3");
    assert_eq!(back(&state(1), None).unwrap_err(), "secret db was never rotated: there is nothing to go back to");
}

#[test]
fn the_version_before_is_chosen_once() {
    let mut asked = Source::Version(None);
    let two = state(2);
    source(&two, two.parcel(DB).unwrap(), &mut asked).unwrap();
    let three = state(3);
    let (_, from) = source(&three, three.parcel(DB).unwrap(), &mut asked).unwrap();
    assert_eq!(from, Some(1), "a retry after another rotation goes to the same one");
}

#[test]
fn a_retry_is_told_of_its_own_version() {
    let four = {
        let mut state = state(3);
        let parcel = Arc::clone(state.parcel(DB).unwrap());
        let data = Data::new(vec![b'x'; 2]);
        let new = NewVersion { data, copied_from: Some(2), rollout: Rollout::Rolling };
        let changes = parcels::rotation(&state, &parcel, new, UnixMs(3)).unwrap().changes;
        apply(&mut state, changes);
        state
    };
    let own = |state: &State, source| written(state, state.parcel(DB).unwrap(), &source);
    let given = |bytes: usize| Source::Given(Data::new(vec![b'x'; bytes]));
    assert_eq!(own(&state(3), given(2)), 2, "another rotation came after it");
    assert_eq!(own(&four, given(3)), 3);
    assert_eq!([own(&four, Source::Version(Some(2))), own(&four, Source::Version(None))], [4, 4]);
    assert_eq!(own(&four, given(9)), 4, "its own is not kept any more");
}

#[test]
fn signals_go_with_live_rotations() {
    let options = |live, signal: &str| Some(RolloutOptions { live, signal: signal.to_owned() });
    assert_eq!(rollout_of(None).unwrap(), Rollout::Rolling);
    assert_eq!(rollout_of(options(true, "SIGHUP")).unwrap(), Rollout::Live { signal: "SIGHUP".to_owned() });
    assert!(rollout_of(options(true, "NOPE")).unwrap_err().message().contains("there is no signal"));
    assert!(rollout_of(options(false, "HUP")).is_err());
}
