//! The leader's single writer. It checks each transaction against the head (applied state plus what is in flight), packs
//! many into one Raft entry (group commit) and keeps a few entries in flight. When an entry fails, the head is thrown
//! away and rebuilt from the applied state.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use skep_core::change::Transaction;
use skep_core::head::{Head, Submitted};
use skep_raft::{Committed, Consensus, ProposeError, Status};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::clock::Clock;
use crate::store::{Applied, Submission, WRITE_DEADLINE, WriteError, Written};

/// Entries in flight: enough to keep the disk busy while the next one is packed.
const IN_FLIGHT: usize = 4;
/// How long one wait for a confirmed leader lasts while the head is rebuilt.
const BARRIER: Duration = Duration::from_secs(2);

type Raft = Arc<dyn Consensus<Response = Vec<u64>>>;
/// An entry on its way.
type Proposal = BoxFuture<'static, Landed>;

/// What became of an entry.
struct Landed {
    /// Store version that the head expects after it.
    version: u64,
    /// Raft's term just before it was proposed: its own is not lower.
    term: u64,
    result: Result<Committed<Vec<u64>>, ProposeError>,
}

impl Landed {
    /// Whether the entry did to the state what its callers are told: each of its transactions changed it, upon the
    /// number of transactions that the head expected. A transaction without effect shows as version 0: were it the
    /// version after it, another's in its place would look like it.
    fn as_expected(&self) -> bool {
        let Ok(committed) = &self.result else { return false };
        let versions = &committed.response;
        versions.last() == Some(&self.version) && versions.is_sorted_by(|before, after| before + 1 == *after)
    }
}

/// Where a write's answer goes.
type Answer = oneshot::Sender<Result<Written, WriteError>>;

/// A caller who is answered when its version is committed.
struct Waiting {
    answer: Answer,
    written: Written,
}

struct Sequencer {
    raft: Raft,
    /// Raft's status.
    status: watch::Receiver<Status>,
    applied: Applied,
    clock: Clock,
    head: Head,
    flight: FuturesOrdered<Proposal>,
    /// In the order of their versions.
    waiting: VecDeque<Waiting>,
}

/// Runs until every `Store` handle is gone. Only a leader's store hands it anything.
pub(crate) async fn run(raft: Raft, applied: Applied, clock: Clock, mut submissions: mpsc::Receiver<Submission>) {
    let head = Head::new(applied.state());
    let (flight, waiting) = (FuturesOrdered::new(), VecDeque::new());
    let status = raft.status();
    let mut sequencer = Sequencer { raft, status, applied, clock, head, flight, waiting };
    loop {
        tokio::select! {
            biased;
            Some(landed) = sequencer.flight.next(), if !sequencer.flight.is_empty() => sequencer.landed(landed).await,
            submission = submissions.recv(), if sequencer.flight.len() < IN_FLIGHT => match submission {
                Some(submission) => sequencer.take(submission, &mut submissions),
                None => return,
            },
        }
        sequencer.launch();
    }
}

impl Sequencer {
    /// Takes what has gathered: together it makes few entries.
    fn take(&mut self, first: Submission, submissions: &mut mpsc::Receiver<Submission>) {
        if self.flight.is_empty() {
            // Without a leader's own writes in between, the applied state may be newer (another leader's).
            self.head.reset(self.applied.state());
        }
        let mut next = Some(first);
        while let Some(Submission { transaction, answer }) = next {
            self.submit(transaction, answer);
            next = submissions.try_recv().ok();
        }
    }

    /// Checks one write against the head. What changes nothing is answered at once if nothing is in flight that the
    /// answer depends on. Versions alone prove nothing: while the lead was lost, another leader may have written as many.
    fn submit(&mut self, mut transaction: Transaction, answer: Answer) {
        // The leader's time, which is never before what was applied: whoever decided on it may keep another.
        transaction.at = self.clock.now();
        let (request, object_id) = (transaction.request, transaction.object_id.clone());
        let idle = self.flight.is_empty() && !self.head.has_waiting();
        let mut is_proven = true;
        let (written, is_applied) = match self.head.submit(transaction) {
            Submitted::Queued { version, refused } => (Written { version, object_id, refused }, false),
            Submitted::Nothing { version, refused } => {
                is_proven = false;
                (Written { version, object_id, refused }, idle)
            }
            // The first try may still be in flight: the answer waits for it.
            Submitted::Repeated(record) => {
                let applied = self.applied.state();
                let is_applied = request.is_some_and(|request| applied.request(request).is_some());
                (Written { version: record.version, object_id: record.object_id, refused: Vec::new() }, is_applied)
            }
        };
        if is_applied && !is_proven {
            // No commit will tell that this is the newest state: another leader may have replaced this one already.
            let raft = Arc::clone(&self.raft);
            tokio::spawn(async move {
                let led = raft.read_barrier(BARRIER).await;
                // The caller may have gone.
                let _ = answer.send(led.map(|_| written).map_err(|_| WriteError::NoLeader));
            });
        } else if is_applied {
            // The caller may have gone.
            let _ = answer.send(Ok(written));
        } else {
            self.waiting.push_back(Waiting { answer, written });
        }
    }

    /// Proposes what waits for an entry.
    fn launch(&mut self) {
        while self.flight.len() < IN_FLIGHT
            && let Some(packed) = self.head.pack()
        {
            let term = self.status.borrow().term;
            let proposal = self.raft.propose(Bytes::from(packed.bytes), WRITE_DEADLINE);
            let landed = async move { Landed { version: packed.version, term, result: proposal.await } };
            self.flight.push_back(Box::pin(landed));
        }
    }

    async fn landed(&mut self, landed: Landed) {
        if landed.as_expected() {
            self.answer_up_to(landed.version);
        } else {
            self.fail(landed).await;
        }
    }

    /// Answers those whose version is committed. A repeated request may stand behind newer ones: all are looked at.
    fn answer_up_to(&mut self, version: u64) {
        for Waiting { answer, written } in self.take_up_to(version) {
            // The caller may have gone.
            let _ = answer.send(Ok(written));
        }
    }

    /// Everything in flight and behind it was checked against changes that may never come. An entry that landed
    /// nevertheless is believed only if the state is then what the head expected: without effect of an earlier one it
    /// is another.
    async fn fail(&mut self, first: Landed) {
        let mut next = Some(first);
        // Of those behind the last entry: nothing was proposed.
        let mut answer = WriteError::NoLeader;
        // The last entry of which nobody heard: its version, and its lowest possible term.
        let mut unheard: Option<(u64, u64)> = None;
        while let Some(landed) = next {
            match &landed.result {
                Ok(committed) if landed.as_expected() => {
                    // One log of one leader: what is committed in it holds what that leader appended before. Otherwise
                    // another leader's writes may have taken their place.
                    if let Some((version, term)) = unheard.take()
                        && term != committed.term
                    {
                        self.refuse_up_to(version, &WriteError::Unknown);
                    }
                    self.answer_up_to(landed.version);
                }
                Ok(committed) => {
                    let (found, expected) = (&committed.response, landed.version);
                    warn!(?found, expected, "an entry met another state than it was checked against");
                    self.refuse_up_to(landed.version, &WriteError::Unknown);
                }
                // It may yet be committed, and a later entry tells.
                Err(ProposeError::ResultUnknown { .. }) => {
                    warn!("it is not known whether a write happened; starting again from the applied state");
                    answer = WriteError::Unknown;
                    let lowest = unheard.map_or(landed.term, |(_, term)| term.min(landed.term));
                    unheard = Some((landed.version, lowest));
                }
                Err(trouble) => {
                    info!(%trouble, "a write failed; starting again from the applied state");
                    answer = if matches!(answer, WriteError::Unknown) { answer } else { explain(trouble) };
                    self.refuse_up_to(landed.version, &answer);
                }
            }
            next = self.flight.next().await;
        }
        self.refuse_up_to(u64::MAX, &answer);
        self.settle().await;
    }

    /// Starts again from the applied state. A leader's may lack what is still in its log; without the lead, nothing
    /// enters here until the next one is confirmed.
    async fn settle(&mut self) {
        let leads = self.status.borrow().is_leader();
        if leads && let Err(error) = self.raft.read_barrier(BARRIER).await {
            warn!(%error, "there is no confirmed leader: writes are refused until there is");
        }
        self.head.reset(self.applied.state());
    }

    /// Tells those who wait for a version up to this one that it will not come.
    fn refuse_up_to(&mut self, version: u64, error: &WriteError) {
        for Waiting { answer, .. } in self.take_up_to(version) {
            // The caller may have gone.
            let _ = answer.send(Err(error.clone()));
        }
    }

    fn take_up_to(&mut self, version: u64) -> VecDeque<Waiting> {
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let (taken, rest): (VecDeque<_>, VecDeque<_>) = waiting.partition(|it| it.written.version <= version);
        self.waiting = rest;
        taken
    }
}

fn explain(trouble: &ProposeError) -> WriteError {
    match trouble {
        ProposeError::NotLeader { .. } | ProposeError::NoQuorum { .. } | ProposeError::HandingOver => {
            WriteError::NoLeader
        }
        ProposeError::ResultUnknown { .. } => WriteError::Unknown,
        ProposeError::TooLarge { .. }
        | ProposeError::DiskFull { .. }
        | ProposeError::Stopped { .. }
        | ProposeError::Storage(_) => WriteError::Stopped(trouble.to_string()),
    }
}

#[cfg(test)]
mod sequencer_test;
