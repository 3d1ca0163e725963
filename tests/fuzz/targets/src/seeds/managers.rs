//! What managers keep and send each other.

use skep_core::change::{Change, Group, Op, Transaction};
use skep_core::codec;
use skep_core::object::{ImageName, Meta};
use skep_core::store::Object;
use skep_proto::id::TaskId;

use super::Add;
use crate::api;

pub(super) fn add(add: &mut Add<'_>) {
    let state = api::swarm();
    let mut snapshot = Vec::new();
    codec::write_snapshot(&state, &mut snapshot).unwrap();
    add("store_snapshot", vec![snapshot]);
    let image = ImageName { name: "web".into(), meta: Meta::default(), digest: "d".into(), platforms: Vec::new() };
    let objects = state.objects().filter_map(|object| match object {
        Object::Node(node) => Some(Op::PutNode((*node).clone())),
        Object::Network(network) => Some(Op::PutNetwork((*network).clone())),
        _ => None,
    });
    let mut groups: Vec<Group> = objects.map(|op| Group(vec![Change::create(op)])).collect();
    groups.push(Group(vec![Change::create(Op::PutImageName(image)), Change::any(Op::RemoveTask(TaskId::new(1)))]));
    let transaction = Transaction { groups, ..Transaction::default() };
    add(
        "store_entry",
        vec![
            codec::encode_entry(std::slice::from_ref(&transaction)),
            codec::encode_entry(&[transaction, Transaction::default()]),
        ],
    );
    let [messages, records, snapshots, keys] = skep_raft::fuzzing::samples();
    add("raft_message", messages);
    add("raft_record", records);
    add("raft_snapshot", snapshots);
    add("raft_keys", keys);
}
