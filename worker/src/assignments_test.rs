//! Tests of assignment sets.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use skep_proto::v1::{AssignmentItem, AssignmentKey, RevisionKey as WireKey, WantedState};

use super::*;

fn task(id: u128, revision: u64, wanted: WantedState) -> AssignmentItem {
    let mut task =
        Task { id: TaskId::new(id).to_vec(), service_id: ServiceId::new(1).to_vec(), revision, ..Task::default() };
    task.set_wanted(wanted);
    AssignmentItem { item: Some(Item::Task(task)) }
}

fn revision(number: u64) -> AssignmentItem {
    let revision = Revision { service_id: ServiceId::new(1).to_vec(), number, ..Revision::default() };
    AssignmentItem { item: Some(Item::Revision(revision)) }
}

fn credential(id: u128) -> AssignmentItem {
    let credential = Credential { id: CredentialId::new(id).to_vec(), ..Credential::default() };
    AssignmentItem { item: Some(Item::Credential(credential)) }
}

fn removed(id: u128) -> AssignmentKey {
    AssignmentKey { key: Some(Key::TaskId(TaskId::new(id).to_vec())) }
}

fn complete(sequence: u64, put: Vec<AssignmentItem>) -> Assignments {
    Assignments { complete: true, sequence, put, ..Assignments::default() }
}

fn difference(applies_to: u64, sequence: u64, put: Vec<AssignmentItem>, remove: Vec<AssignmentKey>) -> Assignments {
    Assignments { complete: false, applies_to, sequence, put, remove }
}

#[test]
fn a_complete_set_then_differences() {
    let mut set = AssignmentSet::default();
    let changes = set
        .apply(complete(7, vec![task(1, 1, WantedState::Running), task(2, 1, WantedState::Ready), revision(1)]))
        .unwrap();
    assert_eq!(changes.put_tasks, [TaskId::new(1), TaskId::new(2)]);
    assert_eq!(set.sequence(), 7);
    assert!(set.revision_of(&set.tasks()[&TaskId::new(1)]).is_some());

    let changes = set.apply(difference(7, 8, vec![task(2, 1, WantedState::Running)], vec![removed(1)])).unwrap();
    assert_eq!((changes.put_tasks, changes.removed_tasks), (vec![TaskId::new(2)], vec![TaskId::new(1)]));
    // The same again in a complete set: nothing changes but the sequence.
    let changes = set.apply(complete(1, vec![task(2, 1, WantedState::Running), revision(1)])).unwrap();
    assert_eq!(changes, Changes::default());
    assert_eq!(set.sequence(), 1);
}

#[test]
fn gaps_and_bad_ids_change_nothing() {
    let mut set = AssignmentSet::default();
    set.apply(complete(3, vec![task(1, 1, WantedState::Running), revision(1)])).unwrap();
    assert_eq!(
        set.apply(difference(4, 5, vec![], vec![removed(1)])),
        Err(AssignmentError::Gap { applies_to: 4, here: 3 })
    );
    assert_eq!(
        set.apply(difference(3, 3, vec![], vec![removed(1)])),
        Err(AssignmentError::Backward { from: 3, to: 3 })
    );
    let bad = AssignmentKey { key: Some(Key::TaskId(vec![1])) };
    assert!(matches!(
        set.apply(difference(3, 4, vec![task(9, 1, WantedState::Running)], vec![removed(1), bad])),
        Err(AssignmentError::Id { kind: "task", .. })
    ));
    let unknown = AssignmentItem { item: None };
    assert_eq!(set.apply(complete(9, vec![unknown])), Err(AssignmentError::Kind));
    assert_eq!((set.sequence(), set.tasks().len()), (3, 1));
}

#[test]
fn credentials_come_and_go_and_decide_about_resuming() {
    let mut set = AssignmentSet::default();
    set.apply(complete(1, vec![revision(1), credential(5)])).unwrap();
    assert!(set.is_recordable() && set.credentials().len() == 1);
    let with_credential = Revision {
        service_id: ServiceId::new(1).to_vec(),
        number: 2,
        template: Some(TaskTemplate { credential_id: CredentialId::new(5).to_vec(), ..Default::default() }),
        ..Revision::default()
    };
    set.apply(difference(1, 2, vec![AssignmentItem { item: Some(Item::Revision(with_credential)) }], vec![])).unwrap();
    assert!(!set.is_recordable());
    let gone = vec![
        AssignmentKey { key: Some(Key::Revision(WireKey { service_id: ServiceId::new(1).to_vec(), number: 2 })) },
        AssignmentKey { key: Some(Key::CredentialId(CredentialId::new(5).to_vec())) },
    ];
    set.apply(difference(2, 3, vec![], gone)).unwrap();
    assert!(set.is_recordable() && set.credentials().is_empty());
}

fn payload(version: u64) -> AssignmentItem {
    let payload = skep_proto::v1::Payload { key: Some(payload_key(version)), data: vec![version as u8].into() };
    let given = skep_proto::v1::AssignedPayload { payload: Some(payload), templated: version == 2 };
    AssignmentItem { item: Some(Item::Payload(given)) }
}

fn payload_key(version: u64) -> skep_proto::v1::PayloadKey {
    let owner = skep_proto::v1::payload_key::Owner::ConfigId(vec![3; 16]);
    skep_proto::v1::PayloadKey { owner: Some(owner), version }
}

/// A revision with a config of that version.
fn using(number: u64, version: u64) -> AssignmentItem {
    let config = skep_proto::v1::ConfigRef { config_id: vec![3; 16], version, ..Default::default() };
    let container = ContainerSpec { configs: vec![config], ..ContainerSpec::default() };
    let template = TaskTemplate { containers: vec![container], ..TaskTemplate::default() };
    let service_id = ServiceId::new(1).to_vec();
    let revision = Revision { service_id, number, template: Some(template), ..Revision::default() };
    AssignmentItem { item: Some(Item::Revision(revision)) }
}

#[test]
fn payloads_come_and_go_and_decide_about_resuming() {
    let mut set = AssignmentSet::default();
    set.apply(complete(1, vec![revision(1), payload(1)])).unwrap();
    assert!(set.is_recordable() && set.payloads().len() == 1);
    let changes = set.apply(difference(1, 2, vec![using(2, 2), payload(2)], vec![])).unwrap();
    assert!(!set.is_recordable() && changes.put_revisions.len() == 1);
    let held: Vec<_> = set.payloads().values().map(|held| (held.data.to_vec(), held.templated)).collect();
    assert_eq!(held, [(vec![1], false), (vec![2], true)]);
    let gone = AssignmentKey { key: Some(Key::Payload(payload_key(1))) };
    set.apply(difference(2, 3, vec![], vec![gone])).unwrap();
    assert_eq!(set.payloads().keys().map(|id| id.version).collect::<Vec<_>>(), [2]);
    // What a complete set has not is gone.
    set.apply(complete(9, vec![using(2, 2)])).unwrap();
    assert!(set.payloads().is_empty());
    let nobodys = AssignmentItem { item: Some(Item::Payload(skep_proto::v1::AssignedPayload::default())) };
    assert_eq!(set.apply(complete(10, vec![nobodys])), Err(AssignmentError::Kind));
}

#[test]
fn a_payload_that_was_let_go_is_missed_until_it_comes_again() {
    let running = || task(1, 2, WantedState::Running);
    let mut set = AssignmentSet::default();
    let changes = set.apply(complete(1, vec![payload(1), payload(2), using(2, 2), running()])).unwrap();
    assert!(changes.moved_tasks.is_empty(), "it is new");
    assert!(set.drop_payloads(|_| true) && set.payloads().len() == 1, "nobody needs the first");
    let needs = |set: &AssignmentSet| set.lacks_dropped(set.tasks().values().next().unwrap());
    assert!(!needs(&set) && !set.drop_payloads(|_| true));
    assert!(set.drop_payloads(|_| false) && set.payloads().is_empty() && needs(&set));
    set.apply(complete(5, vec![using(2, 2), running()])).unwrap();
    assert!(!needs(&set), "it comes in a later message");
    set.apply(difference(5, 6, vec![payload(2)], vec![])).unwrap();
    assert_eq!(set.payloads().len(), 1);
    let changes = set.apply(difference(6, 7, vec![task(1, 3, WantedState::Running)], vec![])).unwrap();
    assert_eq!(changes.moved_tasks, [(TaskId::new(1), 2)]);
}

proptest! {
    #[test]
    fn differences_and_complete_sets_lead_to_the_same(
        steps in prop::collection::vec((0u128..6, prop::option::of(0usize..3)), 0..40),
    ) {
        let wanted = [WantedState::Ready, WantedState::Running, WantedState::Shutdown];
        let mut by_difference = AssignmentSet::default();
        let mut truth: BTreeMap<u128, WantedState> = BTreeMap::new();
        for (sequence, (id, put)) in (0u64..).zip(steps) {
            let message = match put {
                Some(which) => {
                    truth.insert(id, wanted[which]);
                    difference(sequence, sequence + 1, vec![task(id, 1, wanted[which])], vec![])
                }
                None => {
                    truth.remove(&id);
                    difference(sequence, sequence + 1, vec![], vec![removed(id)])
                }
            };
            by_difference.apply(message).unwrap();
        }
        let mut at_once = AssignmentSet::default();
        at_once.apply(complete(1, truth.iter().map(|(id, wanted)| task(*id, 1, *wanted)).collect())).unwrap();
        prop_assert_eq!(by_difference.tasks(), at_once.tasks());
    }
}
