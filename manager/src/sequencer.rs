//! The leader's single writer. It keeps `head` = applied state plus what is in flight, checks each transaction against
//! it, packs many into one Raft entry (group commit) and keeps a few entries in flight. When an entry fails, head is
//! thrown away and rebuilt from the applied state.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use skep_core::change::{Group, Transaction};
use skep_core::codec;
use skep_core::store::State;
use skep_raft::{Committed, Consensus, ProposeError};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::store::{Applied, Submission, WRITE_DEADLINE, WriteError, Written};

/// Changes in one entry at most.
const MAX_CHANGES: usize = 2_000;
/// Bytes of one entry, about; a single transaction may be larger.
const MAX_BYTES: usize = 1 << 20;
/// Entries in flight: enough to keep the disk busy while the next one is packed.
const IN_FLIGHT: usize = 4;
/// How long one wait for a confirmed leader lasts while head is rebuilt.
const BARRIER: Duration = Duration::from_secs(2);

type Raft = Arc<dyn Consensus<Response = Vec<u64>>>;
/// An entry on its way (`None`: only retries, which wait for what is before them), and who waits for it.
type Proposal = BoxFuture<'static, (Result<Option<Committed<Vec<u64>>>, ProposeError>, Vec<Waiting>)>;

/// A caller whose transaction is in flight.
struct Waiting {
    answer: oneshot::Sender<Result<Written, WriteError>>,
    written: Written,
}

/// Runs until every `Store` handle is gone.
pub(crate) async fn run(raft: Raft, applied: Applied, mut submissions: mpsc::Receiver<Submission>) {
    let mut head = applied.state();
    let mut flight: FuturesOrdered<Proposal> = FuturesOrdered::new();
    loop {
        tokio::select! {
            biased;
            Some((result, waiting)) = flight.next(), if !flight.is_empty() => {
                if let Some(trouble) = settle(result, waiting) {
                    warn!(%trouble, "a write failed; starting again from the applied state");
                    drain(&mut flight).await;
                    head = rebuild(&raft, &applied).await;
                }
            }
            submission = submissions.recv(), if flight.len() < IN_FLIGHT => match submission {
                None => return drain(&mut flight).await,
                Some(first) => {
                    let (entry, waiting) = pack(&mut head, first, &mut submissions);
                    if entry.is_empty() {
                        flight.push_back(Box::pin(async move { (Ok(None), waiting) }));
                    } else {
                        flight.push_back(propose(&raft, &entry, waiting));
                    }
                }
            },
        }
    }
}

/// Takes what has gathered, up to an entry's limits. Refused groups are left out; a transaction of which nothing is
/// left is answered at once.
fn pack(
    head: &mut State,
    first: Submission,
    submissions: &mut mpsc::Receiver<Submission>,
) -> (Vec<Transaction>, Vec<Waiting>) {
    let (mut entry, mut waiting) = (Vec::new(), Vec::new());
    let (mut changes, mut bytes) = (0, 0);
    let mut next = Some(first);
    while let Some(Submission { transaction, answer }) = next {
        let result = head.apply(&transaction);
        let mut written =
            Written { version: result.version, object_id: transaction.object_id.clone(), refused: result.refused };
        if let Some(record) = result.repeated {
            written.version = record.version;
            written.object_id = record.object_id;
            // Answered with this entry, or at once where it carries nothing else: entries commit in order, so the
            // first try, if it is still in flight, is settled before.
            waiting.push(Waiting { answer, written });
        } else if result.events.is_empty() {
            // The caller may have gone.
            let _ = answer.send(Ok(written));
        } else {
            let accepted = without_refused(transaction, &written);
            changes += accepted.groups.iter().map(|group| group.0.len()).sum::<usize>();
            bytes += codec::transaction_size(&accepted);
            entry.push(accepted);
            waiting.push(Waiting { answer, written });
        }
        next = if changes < MAX_CHANGES && bytes < MAX_BYTES { submissions.try_recv().ok() } else { None };
    }
    (entry, waiting)
}

fn without_refused(mut transaction: Transaction, written: &Written) -> Transaction {
    let mut index = 0;
    transaction.groups.retain(|_: &Group| {
        let keep = !written.refused.iter().any(|(refused, _)| *refused == index);
        index += 1;
        keep
    });
    transaction
}

fn propose(raft: &Raft, entry: &[Transaction], waiting: Vec<Waiting>) -> Proposal {
    let proposal = raft.propose(Bytes::from(codec::encode_entry(entry)), WRITE_DEADLINE);
    Box::pin(async move { (proposal.await.map(Some), waiting) })
}

/// Answers the callers of one entry. Returns what went wrong with it, if anything.
fn settle(result: Result<Option<Committed<Vec<u64>>>, ProposeError>, waiting: Vec<Waiting>) -> Option<ProposeError> {
    let (answer, trouble): (Result<(), WriteError>, _) = match result {
        Ok(_) => (Ok(()), None),
        Err(trouble) => (Err(explain(&trouble)), Some(trouble)),
    };
    for Waiting { answer: caller, written } in waiting {
        // The caller may have gone.
        let _ = caller.send(answer.clone().map(|()| written));
    }
    trouble
}

fn explain(trouble: &ProposeError) -> WriteError {
    match trouble {
        ProposeError::NotLeader { .. } | ProposeError::NoQuorum { .. } => WriteError::NoLeader,
        ProposeError::ResultUnknown { .. } => WriteError::Unknown,
        ProposeError::TooLarge { .. } | ProposeError::Stopped { .. } | ProposeError::Storage(_) => {
            WriteError::Stopped(trouble.to_string())
        }
    }
}

async fn drain(flight: &mut FuturesOrdered<Proposal>) {
    while let Some((result, waiting)) = flight.next().await {
        settle(result, waiting);
    }
}

/// The applied state, once it holds everything that was proposed before.
async fn rebuild(raft: &Raft, applied: &Applied) -> State {
    if let Err(error) = raft.read_barrier(BARRIER).await {
        warn!(%error, "there is no confirmed leader: writes are refused until there is");
    }
    applied.state()
}
