//! What goes up and down a node's session, what its agent keeps of it, and what managers tell each other of a refusal.

use prost::Message as _;
use skep_proto::id::{NodeId, SecretId, ServiceId, TaskId};
use skep_proto::v1;

use super::{Add, framed};

pub(super) fn add(add: &mut Add<'_>) {
    let task = v1::Task { id: TaskId::new(1).to_vec(), revision: 3, ..v1::Task::default() };
    add("worker_record", vec![record(&task)]);
    add("assignments", vec![assignments(task)]);
    refusals(add);
}

/// All kinds of entries.
fn record(task: &v1::Task) -> Vec<u8> {
    let status =
        [&[1][..], &v1::TaskStatus { message: "started".to_owned(), ..v1::TaskStatus::default() }.encode_to_vec()]
            .concat();
    let key = |kind: &[u8]| [kind, &1_u128.to_be_bytes()].concat();
    let revision = v1::Revision { number: 3, ..v1::Revision::default() }.encode_to_vec();
    framed(&[
        key(b"t"),
        task.encode_to_vec(),
        key(b"s"),
        status,
        [key(b"r"), 3_u64.to_be_bytes().to_vec()].concat(),
        revision,
        b"mboot".to_vec(),
        b"boot-1".to_vec(),
        b"msequence".to_vec(),
        4_u64.to_be_bytes().to_vec(),
        b"mformat".to_vec(),
        vec![1],
    ])
}

/// A whole set, and a difference that takes it back.
fn assignments(task: v1::Task) -> Vec<u8> {
    let item = |item| v1::AssignmentItem { item: Some(item) };
    let owner = Some(v1::payload_key::Owner::SecretId(SecretId::new(1).to_vec()));
    let payload_key = v1::PayloadKey { owner, version: 2 };
    let payload = v1::Payload { key: Some(payload_key.clone()), data: b"{{ env \"A\" }}".to_vec().into() };
    let whole = v1::Assignments {
        complete: true,
        sequence: 1,
        put: vec![
            item(v1::assignment_item::Item::Task(v1::Task { service_id: ServiceId::new(1).to_vec(), ..task })),
            item(v1::assignment_item::Item::Payload(v1::AssignedPayload { payload: Some(payload), templated: true })),
        ],
        ..v1::Assignments::default()
    };
    let next = v1::Assignments {
        applies_to: 1,
        sequence: 2,
        remove: [
            v1::assignment_key::Key::TaskId(TaskId::new(1).to_vec()),
            v1::assignment_key::Key::Payload(payload_key),
        ]
        .map(|key| v1::AssignmentKey { key: Some(key) })
        .into(),
        ..v1::Assignments::default()
    };
    framed(&[whole.encode_to_vec(), next.encode_to_vec()])
}

/// What a node says: itself, that it lives, how its task is, and that it goes.
pub(super) fn session() -> Vec<Vec<u8>> {
    use v1::session_up::Message;
    let description = v1::NodeDescription { hostname: "host1".to_owned(), ..v1::NodeDescription::default() };
    let status = v1::TaskStatus { state: v1::TaskState::Running.into(), ..v1::TaskStatus::default() };
    let observed =
        v1::TaskObserved { task_id: TaskId::new(1).to_vec(), node_id: NodeId::new(1).to_vec(), status: Some(status) };
    let said = [
        Message::Register(v1::Register { description: Some(description.clone()), ..v1::Register::default() }),
        Message::Heartbeat(v1::Heartbeat::default()),
        Message::Statuses(v1::StatusBatch { batch: 1, statuses: vec![observed] }),
        Message::Description(description),
        Message::Images(v1::HeldImages::default()),
        Message::Goodbye(v1::Goodbye::default()),
    ];
    said.map(|message| v1::SessionUp { message: Some(message) }.encode_to_vec()).into()
}

/// What another manager refuses, and why.
fn refusals(add: &mut Add<'_>) {
    use v1::group_refusal::Kind;
    let kinds = [Kind::Exists, Kind::OutOfSequence, Kind::NameTaken, Kind::PortTaken, Kind::Taken, Kind::Overlaps];
    let told = kinds.map(|kind| {
        let refusal = v1::GroupRefusal {
            kind: kind.into(),
            object: "service web".to_owned(),
            part: "tcp".to_owned(),
            id: vec![1; 16],
            other_id: vec![2; 16],
            from: "10.1.0.0/24".to_owned(),
            to: "10.1.0.0/16".to_owned(),
            stored: 80,
            ..v1::GroupRefusal::default()
        };
        v1::RefusedGroup { index: 1, refusal: Some(refusal) }.encode_to_vec()
    });
    add("refusals", told.into());
}
