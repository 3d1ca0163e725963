//! What nodes receive, and that nobody receives more.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use skep_proto::id::{CredentialId, NodeId, TaskId};
use skep_proto::v1::assignment_item::Item;
use skep_proto::v1::{Assignments, TaskState, WantedState};

use super::AssignmentSet;
use crate::arbitrary;
use crate::codec;
use crate::store::{State, payload_refs};
use crate::watch::{Topic, topics};

/// A node's own copy: what it was sent, by kind and key.
#[derive(Clone, Debug, Default, PartialEq)]
struct Copy {
    sequence: u64,
    items: BTreeMap<(u8, Vec<u8>), Item>,
}

impl Copy {
    fn receive(&mut self, message: &Assignments) {
        if message.complete {
            self.items.clear();
        } else {
            assert_eq!(message.applies_to, self.sequence);
        }
        self.sequence = message.sequence;
        for key in &message.remove {
            use prost::Message;
            use skep_proto::v1::assignment_key::Key;
            let key = match key.key.as_ref().unwrap() {
                Key::TaskId(id) => (1, id.clone()),
                Key::Revision(key) => (2, key.encode_to_vec()),
                Key::CredentialId(id) => (3, id.clone()),
                Key::Payload(key) => (4, key.encode_to_vec()),
            };
            assert!(self.items.remove(&key).is_some(), "a removal of what the node has not");
        }
        for item in &message.put {
            let item = item.item.clone().unwrap();
            self.items.insert(key_of(&item), item);
        }
    }

    fn complete(state: &State, node: NodeId) -> Self {
        let mut copy = Self::default();
        copy.receive(&AssignmentSet::of(state, node).complete().into_complete(1));
        copy
    }
}

fn key_of(item: &Item) -> (u8, Vec<u8>) {
    use prost::Message;
    match item {
        Item::Task(task) => (1, task.id.clone()),
        Item::Revision(revision) => {
            let key = codec::revision_from_wire(revision.clone()).unwrap().key;
            (2, codec::revision_key_to_wire(key).encode_to_vec())
        }
        Item::Credential(credential) => (3, credential.id.clone()),
        Item::Payload(given) => (4, given.payload.as_ref().unwrap().key.as_ref().unwrap().encode_to_vec()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Differences add up to the complete set, for every node and at every step; and where there is one, a topic of
    /// the node was woken.
    #[test]
    fn differences_lead_to_the_complete_set(plans in arbitrary::history(60)) {
        let nodes: Vec<NodeId> = (1..=3).map(NodeId::new).collect();
        let mut state = State::default();
        let mut sent: Vec<_> = nodes.iter().map(|_| (AssignmentSet::default(), Copy::default())).collect();
        for plan in &plans {
            let events = state.apply(&plan.resolve(&state)).events;
            let woken = topics(&events, &state);
            for (node, (set, copy)) in nodes.iter().zip(&mut sent) {
                let new = AssignmentSet::of(&state, *node);
                let difference = set.difference(&new);
                prop_assert_eq!(difference.is_empty(), set.difference(&new).is_empty());
                if !difference.is_empty() {
                    prop_assert!(woken.contains(&Topic::Node(*node)), "{:?}", difference);
                    copy.receive(&difference.into_message(copy.sequence, copy.sequence + 1));
                }
                *set = new;
                prop_assert_eq!(&copy.items, &Copy::complete(&state, *node).items);
            }
        }
    }

    #[test]
    fn a_node_receives_its_own_things_only(plans in arbitrary::history(60)) {
        let mut state = State::default();
        for plan in &plans {
            state.apply(&plan.resolve(&state));
        }
        for node in (1..=3).map(NodeId::new) {
            let own: Vec<_> = state.tasks_on_node(node).collect();
            for item in Copy::complete(&state, node).items.into_values() {
                match item {
                    Item::Task(task) => {
                        prop_assert_eq!(&task.node_id, &node.to_vec());
                        prop_assert_eq!(task.status, None);
                        let task = state.task(TaskId::from_wire(&task.id).unwrap()).unwrap();
                        prop_assert!(task.state >= TaskState::Assigned);
                    }
                    Item::Revision(revision) => {
                        let key = codec::revision_from_wire(revision).unwrap().key;
                        prop_assert!(own.iter().any(|task| task.revision == key));
                    }
                    Item::Credential(credential) => {
                        let id = CredentialId::from_wire(&credential.id).unwrap();
                        let service = state.credential(id).unwrap().service;
                        let needs = |task: &&&std::sync::Arc<crate::object::Task>| {
                            task.service() == service && task.wanted.wants_to_run() && !task.state.is_terminal()
                        };
                        prop_assert!(own.iter().find(needs).is_some());
                    }
                    Item::Payload(given) => {
                        let key = given.payload.unwrap().key.unwrap();
                        let uses = |task: &&&std::sync::Arc<crate::object::Task>| {
                            let template = &state.revision(task.revision).unwrap().template;
                            let mut refs = payload_refs(template).map(|one| codec::payload_key_to_wire(one.key));
                            task.wanted.wants_to_run() && !task.state.is_terminal() && refs.any(|one| one == key)
                        };
                        prop_assert!(own.iter().find(uses).is_some());
                    }
                }
            }
        }
    }

    /// What a node has to do never includes starting a task that is known to have ended.
    #[test]
    fn an_ended_task_is_never_told_to_run(plans in arbitrary::history(60)) {
        let mut state = State::default();
        for plan in &plans {
            state.apply(&plan.resolve(&state));
        }
        for node in (1..=3).map(NodeId::new) {
            for item in Copy::complete(&state, node).items.into_values() {
                if let Item::Task(task) = item
                    && state.task(TaskId::from_wire(&task.id).unwrap()).unwrap().state.is_terminal()
                {
                    prop_assert!(task.wanted() >= WantedState::Shutdown);
                }
            }
        }
    }
}
