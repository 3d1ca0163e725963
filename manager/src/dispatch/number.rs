//! Numbers assignment messages and cuts them to size. Pure.
//!
//! A complete set is one message wherever it fits: a node removes whatever a complete set lacks, so it must never see
//! the first half of one. Only the data of secrets and configs, which may be a thousand times larger than all the rest, come
//! in messages of their own after it: a task waits for its own. A difference may be cut anywhere, if what a task needs comes
//! before it.

use prost::Message as _;
use skep_core::assign::Difference;
use skep_proto::v1::assignment_item::Item;
use skep_proto::v1::{AssignmentItem, Assignments};

/// Sizes of messages, in bytes. A single item may exceed them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) complete: usize,
    pub(crate) difference: usize,
}

/// The messages of a complete set; the first is number 1. If all of it is too much for one message, the tasks go first:
/// a task without its revision waits, a task that is missing would be stopped.
pub(crate) fn complete(set: Difference, sizes: Sizes) -> Vec<Assignments> {
    let is_payload = |item: &AssignmentItem| matches!(item.item, Some(Item::Payload(_)));
    let total = |items: &[AssignmentItem]| items.iter().map(size).sum::<usize>();
    let mut put = set.put;
    let mut payloads = Vec::new();
    if put.iter().filter(|item| is_payload(item)).map(size).sum::<usize>() > sizes.difference {
        (payloads, put) = put.into_iter().partition(is_payload);
    }
    if total(&put) > sizes.complete {
        put.sort_by_key(|item| std::cmp::Reverse(order(item)));
    }
    let mut pieces = cut(put, sizes.complete, sizes.difference);
    if pieces.is_empty() && !payloads.is_empty() {
        pieces.push(Vec::new());
    }
    pieces.extend(cut(payloads, sizes.difference, sizes.difference));
    let mut pieces = pieces.into_iter();
    let first = Assignments {
        complete: true,
        applies_to: 0,
        sequence: 1,
        put: pieces.next().unwrap_or_default(),
        remove: Vec::new(),
    };
    let mut messages = vec![first];
    messages.extend(pieces.zip(1..).map(|(put, applies_to)| Assignments {
        complete: false,
        applies_to,
        sequence: applies_to + 1,
        put,
        remove: Vec::new(),
    }));
    messages
}

/// The messages of a difference to the set of number `applies_to`, numbered from the next on. Empty for no difference.
pub(crate) fn difference(difference: Difference, applies_to: u64, sizes: Sizes) -> Vec<Assignments> {
    if difference.is_empty() {
        return Vec::new();
    }
    // What tasks need comes before them already.
    let Difference { put, remove } = difference;
    let mut pieces = cut(put, sizes.difference, sizes.difference);
    if pieces.is_empty() {
        pieces.push(Vec::new());
    }
    let mut messages: Vec<Assignments> = pieces
        .into_iter()
        .zip(applies_to..)
        .map(|(put, applies_to)| Assignments {
            complete: false,
            applies_to,
            sequence: applies_to + 1,
            put,
            remove: Vec::new(),
        })
        .collect();
    // Removals are small, and come last, when nothing that stays needs them.
    if let Some(last) = messages.last_mut() {
        last.remove = remove;
    }
    messages
}

/// Bytes of an item in a message.
fn size(item: &AssignmentItem) -> usize {
    /// Tag and length.
    const FRAME: usize = 6;
    item.encoded_len() + FRAME
}

/// What is needed comes before what needs it.
fn order(item: &AssignmentItem) -> u8 {
    match item.item {
        Some(Item::Payload(_)) => 0,
        Some(Item::Credential(_)) => 1,
        Some(Item::Revision(_)) => 2,
        Some(Item::Task(_)) | None => 3,
    }
}

/// Cuts items into pieces: the first of at most `first` bytes, the others of `others`; a piece has at least one item.
fn cut(items: Vec<AssignmentItem>, first: usize, others: usize) -> Vec<Vec<AssignmentItem>> {
    let mut pieces: Vec<Vec<AssignmentItem>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let size = size(&item);
        let limit = if pieces.len() <= 1 { first } else { others };
        match pieces.last_mut() {
            Some(piece) if bytes + size <= limit => {
                piece.push(item);
                bytes += size;
            }
            _ => {
                pieces.push(vec![item]);
                bytes = size;
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use skep_proto::v1::assignment_key::Key;
    use skep_proto::v1::payload_key::Owner;
    use skep_proto::v1::{AssignedPayload, AssignmentKey, Credential, Payload, PayloadKey, Revision, Task};

    use super::super::limits::{COMPLETE_BYTES, DIFFERENCE_BYTES};
    use super::*;

    const SIZES: Sizes = Sizes { complete: 300, difference: 100 };

    fn task(number: u8) -> AssignmentItem {
        let task = Task { id: vec![number; 16], ..Task::default() };
        AssignmentItem { item: Some(Item::Task(task)) }
    }

    fn revision(number: u64, bytes: usize) -> AssignmentItem {
        let revision = Revision { number, service_name: "x".repeat(bytes), ..Revision::default() };
        AssignmentItem { item: Some(Item::Revision(revision)) }
    }

    fn credential() -> AssignmentItem {
        AssignmentItem { item: Some(Item::Credential(Credential::default())) }
    }

    fn whole(put: Vec<AssignmentItem>) -> Difference {
        Difference { put, remove: Vec::new() }
    }

    fn chained(messages: &[Assignments]) -> bool {
        messages.windows(2).all(|pair| !pair[1].complete && pair[1].applies_to == pair[0].sequence)
            && messages.iter().all(|message| message.complete || message.sequence == message.applies_to + 1)
    }

    #[test]
    fn a_set_that_fits_is_one_message() {
        let items = vec![credential(), revision(1, 10), task(1), task(2)];
        let messages = complete(whole(items), SIZES);
        assert_eq!(messages.len(), 1);
        assert!(messages[0].complete && messages[0].sequence == 1 && messages[0].put.len() == 4);
        let empty = complete(Difference::default(), SIZES);
        assert_eq!(empty, [Assignments { complete: true, sequence: 1, ..Assignments::default() }]);
    }

    #[test]
    fn a_set_that_does_not_fit_has_its_tasks_in_the_first_message() {
        let mut items: Vec<AssignmentItem> = (0..6).map(|number| revision(number, 80)).collect();
        items.extend((0..5).map(task));
        let messages = complete(whole(items.clone()), SIZES);
        assert!(messages.len() > 2 && chained(&messages), "{}", messages.len());
        assert!(messages[0].encoded_len() <= SIZES.complete + 10);
        let is_task = |item: &AssignmentItem| matches!(item.item, Some(Item::Task(_)));
        assert_eq!(messages[0].put.iter().filter(|item| is_task(item)).count(), 5);
        let all: usize = messages.iter().map(|message| message.put.len()).sum();
        assert_eq!(all, items.len());
    }

    #[test]
    fn many_large_secrets_come_in_messages_of_their_own() {
        const SECRET_BYTES: usize = 512_000;
        const SIZES: Sizes = Sizes { complete: COMPLETE_BYTES, difference: DIFFERENCE_BYTES };
        let payload = |number: u64| {
            let key = PayloadKey { owner: Some(Owner::SecretId(vec![1; 16])), version: number };
            let payload = Payload { key: Some(key), data: vec![7; SECRET_BYTES].into() };
            let given = AssignedPayload { payload: Some(payload), templated: false };
            AssignmentItem { item: Some(Item::Payload(given)) }
        };
        let items = |secrets| (1..=secrets).map(payload).chain([revision(1, 10), task(1)]).collect();
        let versions = |messages: &[Assignments]| -> Vec<u64> {
            let items = messages.iter().flat_map(|message| &message.put);
            let keys = items.filter_map(|item| match &item.item {
                Some(Item::Payload(given)) => given.payload.as_ref()?.key.as_ref(),
                _ => None,
            });
            keys.map(|key| key.version).collect()
        };
        let small = |messages: &[Assignments]| messages.iter().all(|message| message.encoded_len() <= 1 << 20);

        // Tasks are not stopped for want of a message: the first has them all.
        let messages = complete(whole(items(50)), SIZES);
        assert!(messages[0].complete && messages[0].put.len() == 2 && chained(&messages) && small(&messages));
        assert_eq!((messages.len(), versions(&messages)), (26, (1..=50).collect()));
        assert_eq!(complete(whole(items(2)), SIZES).len(), 1, "what fits comes at once");

        // What a task needs comes before it.
        let messages = difference(whole(items(50)), 3, SIZES);
        assert!(chained(&messages) && small(&messages) && messages[0].applies_to == 3);
        assert_eq!(versions(&messages), (1..=50).collect::<Vec<_>>());
        let last = messages.last().unwrap().put.last().unwrap();
        assert!(matches!(last.item, Some(Item::Task(_))));

        // One that has nothing but payloads is a set all the same.
        let messages = complete(whole((1..=3).map(payload).collect()), SIZES);
        assert!(messages[0].complete && messages[0].put.is_empty() && chained(&messages));
    }

    #[test]
    fn a_difference_gives_first_what_is_needed_and_removes_last() {
        let put = [credential(), revision(1, 60)].into_iter().chain((0..5).map(task)).collect();
        let remove = vec![AssignmentKey { key: Some(Key::TaskId(vec![9; 16])) }];
        let messages = difference(Difference { put, remove: remove.clone() }, 41, SIZES);
        assert!(messages.len() > 1 && chained(&messages));
        assert_eq!(messages[0].applies_to, 41);
        let items: Vec<u8> = messages.iter().flat_map(|message| &message.put).map(order).collect();
        assert!(items.is_sorted() && items.len() == 7, "{items:?}");
        let (last, others) = messages.split_last().unwrap();
        assert_eq!(last.remove, remove);
        assert!(others.iter().all(|message| message.remove.is_empty()));
    }

    #[test]
    fn removals_alone_are_a_message_and_nothing_is_none() {
        let remove = vec![AssignmentKey { key: Some(Key::TaskId(vec![9; 16])) }];
        let messages = difference(Difference { put: Vec::new(), remove }, 3, SIZES);
        assert_eq!(messages.len(), 1);
        assert_eq!((messages[0].applies_to, messages[0].sequence), (3, 4));
        assert!(difference(Difference::default(), 3, SIZES).is_empty());
    }

    #[test]
    fn an_item_larger_than_a_message_goes_alone() {
        let messages = difference(
            Difference { put: vec![revision(1, 500), task(1), revision(2, 500)], remove: Vec::new() },
            0,
            SIZES,
        );
        assert_eq!(messages.iter().map(|message| message.put.len()).collect::<Vec<_>>(), [1, 1, 1]);
    }
}
