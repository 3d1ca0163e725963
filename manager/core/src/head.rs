//! What the sequencer on the leader keeps: the state with everything in flight already applied. Each write is checked
//! against it at once, so that many can be on their way to the disks together, and packed with others into one entry.
//! Pure: the manager proposes the entries and waits. Only the leader has one; lost leadership resets it.

use std::collections::VecDeque;

use prost::Message;
use skep_proto::v1;

use crate::apply::{Applied, Refused};
use crate::change::{Group, Transaction};
use crate::codec::{self, EntryWriter};
use crate::store::{RequestRecord, State};

/// Changes in one entry at most: bounds how long an apply takes.
pub const MAX_ENTRY_CHANGES: usize = 2_000;
/// Bytes of one entry, about: an entry takes no further transaction past it.
pub const MAX_ENTRY_BYTES: usize = 1 << 20;
/// Bytes of one user's transaction at most; an entry may be this large if it holds nothing else.
pub const MAX_TRANSACTION_BYTES: usize = 3 << 19;

/// What became of a write at its submission.
#[derive(Clone, Debug, PartialEq)]
pub enum Submitted {
    /// It is on its way: confirmed once the store version `version` is applied.
    Queued {
        version: u64,
        /// Groups that were refused, by index; the others are on their way.
        refused: Vec<(usize, Refused)>,
    },
    /// Nothing changes: every group is refused or says what is there already. Answer once `version` is applied.
    Nothing { version: u64, refused: Vec<(usize, Refused)> },
    /// The same request was here before: its answer, valid once `version` of it is applied.
    Repeated(RequestRecord),
}

/// An entry to propose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    pub bytes: Vec<u8>,
    /// Store version after its last transaction: those up to it are answered when it is applied.
    pub version: u64,
    pub transactions: usize,
    pub changes: usize,
}

/// The state with all that is in flight, and the transactions that wait for an entry.
#[derive(Clone, Debug, Default)]
pub struct Head {
    state: State,
    queue: VecDeque<Waiting>,
}

/// A transaction that waits for an entry.
#[derive(Clone, Debug)]
struct Waiting {
    bytes: Vec<u8>,
    changes: usize,
    version: u64,
}

/// Groups that will make one transaction.
#[derive(Default)]
struct Piece {
    /// Index in the submitted transaction, wire form.
    wire: Vec<(usize, v1::Group)>,
    groups: Vec<Group>,
    bytes: usize,
    changes: usize,
}

impl Head {
    /// Starts from the applied state: with nothing in flight.
    pub fn new(applied: State) -> Self {
        Self { state: applied, queue: VecDeque::new() }
    }

    /// Drops all that is in flight or waits: leadership was lost, or a proposal failed.
    pub fn reset(&mut self, applied: State) {
        *self = Self::new(applied);
    }

    /// Tells of a newer applied state. With nothing in flight the head becomes that state: both then share their
    /// memory again.
    pub fn settle(&mut self, applied: &State) {
        if applied.version() == self.state.version() {
            self.state = applied.clone();
        }
    }

    /// The state as it will be once all in flight is applied.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether a transaction waits for an entry.
    pub fn has_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Checks a write against the head and queues what is accepted of it. A user's write (with a request id, or of one
    /// group) is one transaction, or refused; a loop's is cut into as many as the limits ask.
    pub fn submit(&mut self, transaction: Transaction) -> Submitted {
        if let Some(record) = transaction.request.and_then(|request| self.state.request(request)) {
            return Submitted::Repeated(record.clone());
        }
        let splits = transaction.request.is_none();
        let queued_before = self.queue.len();
        let mut refused = Vec::new();
        let mut piece = Piece::default();
        let Transaction { request, at, groups, object_id } = transaction;
        let head = Transaction { request, at, groups: Vec::new(), object_id };
        for (index, group) in groups.into_iter().enumerate() {
            let wire = codec::group_to_wire(&group);
            let (bytes, changes) = (wire.encoded_len(), group.0.len());
            if splits && piece.is_full_with(bytes, changes) {
                self.queue_piece(std::mem::take(&mut piece), &head, &mut refused);
            }
            let whole = if splits { (bytes, changes) } else { (piece.bytes + bytes, piece.changes + changes) };
            match within_limits(whole.0, whole.1) {
                Ok(()) => piece.push(index, group, wire, bytes),
                Err(reason) if splits => refused.push((index, reason)),
                // Wholly or not at all.
                Err(reason) => {
                    return Submitted::Nothing { version: self.state.version(), refused: vec![(index, reason)] };
                }
            }
        }
        self.queue_piece(piece, &head, &mut refused);
        let version = self.state.version();
        if self.queue.len() == queued_before {
            Submitted::Nothing { version, refused }
        } else {
            Submitted::Queued { version, refused }
        }
    }

    /// Takes the next entry from what waits: as many transactions as its limits allow, at least one.
    pub fn pack(&mut self) -> Option<Packed> {
        let mut entry = EntryWriter::default();
        let (mut transactions, mut changes, mut version) = (0, 0, 0);
        while let Some(next) = self.queue.front() {
            let too_many = changes + next.changes > MAX_ENTRY_CHANGES;
            let too_large = entry.size_bytes() + next.bytes.len() > MAX_ENTRY_BYTES;
            if transactions > 0 && (too_many || too_large) {
                break;
            }
            entry.push(&next.bytes);
            transactions += 1;
            changes += next.changes;
            version = next.version;
            self.queue.pop_front();
        }
        (transactions > 0).then(|| Packed { bytes: entry.finish(), version, transactions, changes })
    }

    /// Applies a piece to the head and queues what was accepted of it.
    fn queue_piece(&mut self, piece: Piece, head: &Transaction, refused: &mut Vec<(usize, Refused)>) {
        let Piece { wire, groups, .. } = piece;
        let transaction = Transaction { groups, ..head.clone() };
        let Applied { version, refused: turned_down, events, .. } = self.state.apply(&transaction);
        let queued = !events.is_empty();
        let mut turned_down = turned_down.into_iter().peekable();
        let mut accepted = Vec::with_capacity(wire.len());
        for (position, (index, group)) in wire.into_iter().enumerate() {
            match turned_down.next_if(|(refused, _)| *refused == position) {
                Some((_, reason)) => refused.push((index, reason)),
                None => accepted.push(group),
            }
        }
        if queued {
            let changes = accepted.iter().map(|group| group.changes.len()).sum();
            let bare = Transaction { groups: Vec::new(), ..transaction };
            let wire = v1::Transaction { groups: accepted, ..codec::transaction_to_wire(&bare) };
            self.queue.push_back(Waiting { bytes: wire.encode_to_vec(), changes, version });
        }
    }
}

impl Piece {
    fn is_full_with(&self, bytes: usize, changes: usize) -> bool {
        let too_large = self.bytes + bytes > MAX_ENTRY_BYTES || self.changes + changes > MAX_ENTRY_CHANGES;
        !self.groups.is_empty() && too_large
    }

    fn push(&mut self, index: usize, group: Group, wire: v1::Group, bytes: usize) {
        self.bytes += bytes;
        self.changes += group.0.len();
        self.wire.push((index, wire));
        self.groups.push(group);
    }
}

fn within_limits(bytes: usize, changes: usize) -> Result<(), Refused> {
    if bytes > MAX_TRANSACTION_BYTES {
        return Err(Refused::TooLarge { size: bytes, limit: MAX_TRANSACTION_BYTES, unit: "bytes" });
    }
    if changes > MAX_ENTRY_CHANGES {
        return Err(Refused::TooLarge { size: changes, limit: MAX_ENTRY_CHANGES, unit: "changes" });
    }
    Ok(())
}

#[cfg(test)]
mod head_test;
