//! Everything that nodes report, on its way into the store: the batches of all nodes that arrive close together become
//! one write. One task owns the line; sessions hold clones of [`Reports`].
//!
//! An idle line writes at once. While a write is under way others gather, for a few milliseconds or until a write is
//! full; a few writes are under way at a time, in order.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use prost::Message as _;
use skep_core::change::{Change, Group, Op};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::limits::{REPORT_BYTES, REPORT_CHANGES, REPORT_GATHER, REPORT_QUEUE, REPORTS_IN_FLIGHT};
use crate::store::{Store, WriteError};

/// A write without a known result is tried again so often; reports merge, so a second time does no harm.
const ATTEMPTS: u32 = 3;
/// Pause between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Without a leader a write is tried again until then: sessions outlive a change of leader. Where there is none for longer,
/// they have ended by themselves.
const LEADER_WITHIN: Duration = Duration::from_secs(5);

/// The line. Cheap to clone; it ends when the last clone is dropped and all writes are done.
#[derive(Clone)]
pub(crate) struct Reports(mpsc::Sender<Piece>);

/// What became of changes that were handed in together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Store version after the last of them.
    pub(crate) version: u64,
    /// Changes that the store refused (their object is gone), by index.
    pub(crate) refused: Vec<usize>,
}

/// Changes that fit into one write.
struct Piece {
    changes: Vec<Change>,
    bytes: usize,
    done: oneshot::Sender<Result<Stored, WriteError>>,
}

/// Pieces that go into one write.
#[derive(Default)]
struct Batch {
    pieces: Vec<Piece>,
    changes: usize,
    bytes: usize,
}

impl Reports {
    /// Starts the line. Call it within a tokio runtime.
    pub(crate) fn start(store: Store) -> Self {
        let (sender, receiver) = mpsc::channel(REPORT_QUEUE);
        tokio::spawn(run(store, receiver));
        Self(sender)
    }

    /// Stores changes, each in a group of its own. Returns when they are applied.
    pub(crate) async fn store(&self, changes: Vec<Change>) -> Result<Stored, WriteError> {
        let mut stored = Stored::default();
        let mut waiting = Vec::new();
        for (first, changes, bytes) in cut(changes) {
            let (done, wait) = oneshot::channel();
            let piece = Piece { changes, bytes, done };
            self.0.send(piece).await.map_err(|_| ended())?;
            waiting.push((first, wait));
        }
        for (first, wait) in waiting {
            let piece = wait.await.unwrap_or_else(|_| Err(ended()))?;
            stored.version = stored.version.max(piece.version);
            let refused = piece.refused.into_iter().map(|index| first + index);
            stored.refused.extend(refused);
        }
        Ok(stored)
    }
}

fn ended() -> WriteError {
    WriteError::Stopped("this manager takes no reports any more".to_owned())
}

/// Cuts changes into pieces that fit into one write each, with the index of each piece's first change.
fn cut(changes: Vec<Change>) -> Vec<(usize, Vec<Change>, usize)> {
    let mut pieces: Vec<(usize, Vec<Change>, usize)> = Vec::new();
    for (index, change) in changes.into_iter().enumerate() {
        let size = size(&change);
        match pieces.last_mut() {
            Some((_, piece, bytes)) if piece.len() < REPORT_CHANGES && *bytes + size <= REPORT_BYTES => {
                piece.push(change);
                *bytes += size;
            }
            _ => pieces.push((index, vec![change], size)),
        }
    }
    pieces
}

/// About how many bytes a change takes in the log.
fn size(change: &Change) -> usize {
    /// Ids, version and framing.
    const FRAME: usize = 64;
    FRAME
        + match &change.op {
            Op::ObserveTask(observed) => observed.status.encoded_len(),
            Op::ObserveNode(observed) => {
                let described = observed.description.as_ref();
                let told = observed.status.as_ref();
                described.map_or(0, |description| description.encoded_len())
                    + told.map_or(0, |status| status.message.len() + status.addr.len())
            }
            // Nodes report nothing else.
            _ => 0,
        }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    fn has_room_for(&self, piece: &Piece) -> bool {
        self.is_empty()
            || (self.changes + piece.changes.len() <= REPORT_CHANGES && self.bytes + piece.bytes <= REPORT_BYTES)
    }

    fn push(&mut self, piece: Piece) {
        self.changes += piece.changes.len();
        self.bytes += piece.bytes;
        self.pieces.push(piece);
    }
}

async fn run(store: Store, mut line: mpsc::Receiver<Piece>) {
    let mut writes = FuturesUnordered::new();
    let mut batch = Batch::default();
    // A piece that did not fit into the batch: it begins the next one.
    let mut carried: Option<Piece> = None;
    let mut gather_until: Option<Instant> = None;
    let mut open = true;
    loop {
        while carried.is_none() {
            match line.try_recv() {
                Ok(piece) if batch.has_room_for(&piece) => batch.push(piece),
                Ok(piece) => carried = Some(piece),
                Err(_) => break,
            }
        }
        if !batch.is_empty() && gather_until.is_none() {
            gather_until = Some(Instant::now() + REPORT_GATHER);
        }
        let gathered = gather_until.is_some_and(|until| until <= Instant::now());
        let due = writes.is_empty() || carried.is_some() || gathered || !open;
        if !batch.is_empty() && due && writes.len() < REPORTS_IN_FLIGHT {
            writes.push(write(store.clone(), std::mem::take(&mut batch)));
            gather_until = None;
            if let Some(piece) = carried.take() {
                batch.push(piece);
            }
            continue;
        }
        if !open && writes.is_empty() && batch.is_empty() {
            return;
        }
        let may_wait = gather_until.filter(|_| writes.len() < REPORTS_IN_FLIGHT);
        let mut timer = pin!(sleep_until(may_wait.unwrap_or_else(Instant::now)));
        tokio::select! {
            Some(()) = writes.next() => {}
            piece = line.recv(), if open && carried.is_none() => match piece {
                Some(piece) if batch.has_room_for(&piece) => batch.push(piece),
                Some(piece) => carried = Some(piece),
                None => open = false,
            },
            () = &mut timer, if may_wait.is_some() => {}
        }
    }
}

/// Writes a batch and tells everyone in it what became of theirs.
async fn write(store: Store, batch: Batch) {
    let groups: Vec<Group> =
        batch.pieces.iter().flat_map(|piece| &piece.changes).map(|change| Group(vec![change.clone()])).collect();
    let result = write_groups(&store, groups).await;
    let mut first = 0;
    for piece in batch.pieces {
        let end = first + piece.changes.len();
        let answer = result.clone().map(|(version, refused)| {
            let own = refused.iter().filter(|index| (first..end).contains(*index));
            Stored { version, refused: own.map(|index| index - first).collect() }
        });
        // The session may have ended meanwhile.
        let _ = piece.done.send(answer);
        first = end;
    }
}

async fn write_groups(store: &Store, groups: Vec<Group>) -> Result<(u64, Vec<usize>), WriteError> {
    let (mut attempt, started) = (1, Instant::now());
    loop {
        match store.write_groups(groups.clone()).await {
            Ok(written) => {
                for (index, why) in &written.refused {
                    debug!(index, %why, "a report was refused");
                }
                let refused = written.refused.into_iter().map(|(index, _)| index);
                return Ok((written.version, refused.collect()));
            }
            Err(WriteError::Unknown) if attempt < ATTEMPTS => {
                attempt += 1;
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Err(WriteError::NoLeader) if started.elapsed() < LEADER_WITHIN => {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use skep_core::change::TaskObserved;
    use skep_proto::id::{NodeId, TaskId};
    use skep_proto::v1::TaskStatus;

    use super::*;

    fn change(error: usize) -> Change {
        let status = TaskStatus { error: "x".repeat(error), ..TaskStatus::default() };
        Change::any(Op::ObserveTask(TaskObserved {
            task: TaskId::new(1),
            node: NodeId::new(1),
            status: Arc::new(status),
        }))
    }

    #[test]
    fn pieces_stay_below_both_limits_and_keep_order_and_indexes() {
        let many = vec![change(0); REPORT_CHANGES * 2 + 1];
        let lengths: Vec<(usize, usize)> =
            cut(many).iter().map(|(first, changes, _)| (*first, changes.len())).collect();
        let n = REPORT_CHANGES;
        assert_eq!(lengths, [(0, n), (n, n), (2 * n, 1)]);

        let large = vec![change(REPORT_BYTES / 3); 7];
        let pieces = cut(large);
        assert!(pieces.iter().all(|(_, _, bytes)| *bytes <= REPORT_BYTES));
        assert_eq!(pieces.iter().map(|(_, changes, _)| changes.len()).sum::<usize>(), 7);
        assert!(cut(Vec::new()).is_empty());
        // One that is too large alone still goes: the store judges it.
        assert_eq!(cut(vec![change(REPORT_BYTES * 2)]).len(), 1);
    }
}
