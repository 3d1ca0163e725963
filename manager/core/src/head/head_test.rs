//! The head and what replicas make of its entries.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use skep_proto::id::{RequestId, ServiceId, TaskId};

use super::{Head, MAX_ENTRY_BYTES, MAX_ENTRY_CHANGES, MAX_TRANSACTION_BYTES, Packed, Submitted};
use crate::apply::Refused;
use crate::arbitrary;
use crate::change::{Change, Group, Op, Transaction};
use crate::codec::decode_entry;
use crate::example::{START, node, replicated, swarm, with_service};
use crate::object::{ImageName, Meta, Task};
use crate::store::State;

fn apply_entry(replica: &mut State, packed: &Packed) {
    for transaction in decode_entry(&packed.bytes).unwrap() {
        let applied = replica.apply(&transaction);
        assert_eq!(applied.refused, vec![], "the head accepted it");
    }
    assert_eq!(replica.version(), packed.version);
}

fn label(request: Option<u128>, text: &str) -> Transaction {
    Transaction {
        request: request.map(RequestId::new),
        at: START,
        groups: vec![Group(vec![Change::any(Op::PutNode(node(1).label("text", text).build()))])],
        object_id: b"first".to_vec(),
    }
}

fn name(number: usize, size: usize) -> Change {
    Change::create(Op::PutImageName(ImageName {
        name: format!("image{number}"),
        meta: Meta::default(),
        digest: "d".repeat(size),
        platforms: Vec::new(),
    }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever is submitted and however it is packed, a replica that applies the entries is what the head was.
    #[test]
    fn replicas_become_the_head(plans in arbitrary::history(40), pack_after in proptest::collection::vec(any::<bool>(), 40)) {
        let mut head = Head::default();
        let mut replica = State::default();
        for (plan, pack) in plans.iter().zip(pack_after) {
            let transaction = plan.resolve(head.state());
            let before = head.state().version();
            match head.submit(transaction) {
                Submitted::Queued { version, .. } => prop_assert_eq!(version, head.state().version()),
                Submitted::Nothing { version, .. } => prop_assert_eq!(version, before),
                Submitted::Repeated(record) => prop_assert!(record.version <= before),
            }
            while let Some(packed) = pack.then(|| head.pack()).flatten() {
                apply_entry(&mut replica, &packed);
                head.settle(&replica);
            }
        }
        while let Some(packed) = head.pack() {
            apply_entry(&mut replica, &packed);
        }
        prop_assert_eq!(replica.digest(), head.state().digest());
        prop_assert_eq!(&replica, head.state());
    }
}

#[test]
fn a_retry_hears_the_first_answer_in_flight_and_applied() {
    let mut head = Head::new(swarm(1));
    let first = head.submit(label(Some(1), "a"));
    assert!(matches!(first, Submitted::Queued { version: 1, .. }), "{first:?}");
    for _ in 0..2 {
        let Submitted::Repeated(record) = head.submit(label(Some(1), "b")) else { panic!("it is a retry") };
        assert_eq!((record.version, record.object_id), (1, b"first".to_vec()));
        while head.pack().is_some() {}
    }
}

#[test]
fn in_flight_writes_count_until_they_are_lost() {
    let applied = swarm(1);
    let mut head = Head::new(applied.clone());
    let task =
        |id| Task { id: TaskId::new(id), ..Task::clone(with_a_task(&mut swarm(1)).task(TaskId::new(1)).unwrap()) };
    let orphan =
        Transaction { groups: vec![Group(vec![Change::create(Op::PutTask(task(5)))])], ..Transaction::default() };
    let Submitted::Nothing { refused, .. } = head.submit(orphan) else { panic!("its service is missing") };
    assert!(matches!(refused[..], [(0, Refused::Missing { .. })]), "{refused:?}");
    head.submit(label(None, "a"));
    assert_eq!(head.state().version(), 1);
    head.reset(applied);
    assert_eq!(head.state().version(), 0);
    assert!(!head.has_waiting());
}

fn with_a_task(state: &mut State) -> &State {
    let service = with_service(state, replicated(1), |_| {});
    let mut ids = crate::ids::Ids::new(1);
    let plan = crate::orchestrate::plan(state, service, START, &mut ids);
    let Op::PutTask(task) = &plan.groups[0].0[0].op else { panic!("it makes a task") };
    state.put(Task { id: TaskId::new(1), ..task.clone() });
    state
}

#[test]
fn a_loops_plan_is_cut_into_transactions_within_the_limits() {
    let mut head = Head::new(swarm(1));
    // One group in ten is refused; indexes are those of the plan.
    let group = |number: usize| Group(vec![name(if number.is_multiple_of(10) { 1 } else { number }, 10)]);
    let plan = Transaction { groups: (1..=4_500).map(group).collect(), at: START, ..Transaction::default() };
    let Submitted::Queued { version, refused } = head.submit(plan) else { panic!("most is accepted") };
    assert_eq!(version, 3);
    assert!(refused.iter().map(|(index, _)| index + 1).eq((1..=450).map(|tenth| tenth * 10)));
    let mut replica = swarm(1);
    let mut sizes = Vec::new();
    while let Some(packed) = head.pack() {
        assert!(packed.changes <= MAX_ENTRY_CHANGES);
        sizes.push(packed.changes);
        apply_entry(&mut replica, &packed);
    }
    assert_eq!(sizes, [1_800, 1_800, 450]);
    assert_eq!(&replica, head.state());
}

#[test]
fn many_small_writes_share_an_entry_up_to_its_bytes() {
    let mut head = Head::new(swarm(1));
    for number in 0..30 {
        let groups = vec![Group(vec![name(number, MAX_ENTRY_BYTES / 10)])];
        head.submit(Transaction { groups, ..Transaction::default() });
    }
    let packed: Vec<Packed> = std::iter::from_fn(|| head.pack()).collect();
    assert!(packed.iter().all(|entry| entry.bytes.len() <= MAX_ENTRY_BYTES));
    assert_eq!(packed.iter().map(|entry| entry.transactions).collect::<Vec<_>>(), [9, 9, 9, 3]);
}

#[test]
fn a_users_write_beyond_the_limits_is_refused_whole() {
    let mut head = Head::new(swarm(1));
    let submit = |head: &mut Head, changes| {
        let write =
            Transaction { request: Some(RequestId::new(1)), groups: vec![Group(changes)], ..Transaction::default() };
        let Submitted::Nothing { refused, .. } = head.submit(write) else { panic!("it is too large") };
        refused[0].1.to_string()
    };
    let many = submit(&mut head, (0..=MAX_ENTRY_CHANGES).map(|number| name(number, 1)).collect());
    assert_eq!(many, "the change is too large: 2001 changes, at most 2000 fit one transaction; split it");
    let large = submit(&mut head, vec![name(1, MAX_TRANSACTION_BYTES)]);
    assert!(large.contains("bytes, at most 1572864"), "{large}");
    assert!(!head.has_waiting());
    assert_eq!(head.state().version(), 0);
    // Just below is fine, and has an entry of its own.
    let fits =
        Transaction { groups: vec![Group(vec![name(1, MAX_TRANSACTION_BYTES - 200)])], ..Transaction::default() };
    head.submit(label(None, "before"));
    assert!(matches!(head.submit(fits), Submitted::Queued { .. }));
    assert_eq!(head.pack().map(|entry| entry.transactions), Some(1));
    assert_eq!(head.pack().map(|entry| entry.transactions), Some(1));
}

#[test]
fn a_settled_head_shares_the_applied_state() {
    let mut replica = swarm(1);
    let mut head = Head::new(replica.clone());
    head.submit(label(None, "a"));
    let packed = head.pack().unwrap();
    apply_entry(&mut replica, &packed);
    head.settle(&replica);
    let shared = head.state().nodes().zip(replica.nodes()).all(|(a, b)| std::sync::Arc::ptr_eq(a, b));
    assert!(shared);
    assert_eq!(head.state().service(ServiceId::new(1)), None);
}
